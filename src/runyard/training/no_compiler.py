"""Keep torch's compiler out of a process that compiles nothing.

Eager optimizers and DDP import it for five calls that then do nothing. That import is half of the CPU time from the
import of torch to an optimizer's first step, and thousands of small files on a shared disk.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

COMPILER_MODULE = "torch._dynamo"
Function = Callable[..., Any]


class _ModuleStub(types.ModuleType):
    """A module that knows what is asked of it in a process that compiles nothing; all else brings the real one in."""

    def __init__(self, name: str, **known: object) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__loader__"):  # what Python asks of whatever module is there
            raise AttributeError(name)
        if isinstance(sys.modules.get(COMPILER_MODULE), _ModuleStub):
            del sys.modules[COMPILER_MODULE]
            vars(torch).pop("_dynamo", None)
        return getattr(importlib.import_module(self.__name__), name)


def defer_compiler_import() -> None:
    """From now on torch's compiler is imported by its first real use. Where it has been, it stays."""
    if COMPILER_MODULE in sys.modules:
        return

    def as_it_is(function: Function, *_: object, **__: object) -> Function:
        return function

    sys.modules[COMPILER_MODULE] = torch._dynamo = _ModuleStub(
        COMPILER_MODULE,
        disable=as_it_is,
        graph_break=lambda: None,
        trace_rules=_ModuleStub(f"{COMPILER_MODULE}.trace_rules", clear_lru_cache=lambda: None),
        utils=_ModuleStub(f"{COMPILER_MODULE}.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer"),
    )
