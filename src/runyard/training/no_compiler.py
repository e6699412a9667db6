"""Avoids the import of torch's compiler in a process that compiles nothing.

Eager optimizers and DDP import it for five calls that then do nothing. That import takes half of the CPU time from the
import of torch to an optimizer's first step, and reads thousands of small files from a shared disk.
"""

from __future__ import annotations

import importlib
import sys
import types

import torch

COMPILER_MODULE = "torch._dynamo"


class _ModuleStub(types.ModuleType):
    """A module with the functions that a process without compilation needs; other attributes import the real one."""

    def __init__(self, name: str, **known: object) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> object:
        if name in ("__file__", "__loader__"):  # Python looks these up in every loaded module
            raise AttributeError(name)
        if isinstance(sys.modules.get(COMPILER_MODULE), _ModuleStub):
            del sys.modules[COMPILER_MODULE]
            vars(torch).pop("_dynamo", None)
        return getattr(importlib.import_module(self.__name__), name)


def defer_compiler_import() -> None:
    """Defer the import of torch's compiler to its first real use. If it was already imported, it stays."""
    if COMPILER_MODULE in sys.modules:
        return

    def identity(function: object, *_: object, **__: object) -> object:
        return function

    sys.modules[COMPILER_MODULE] = torch._dynamo = _ModuleStub(
        COMPILER_MODULE,
        disable=identity,
        graph_break=lambda: None,
        trace_rules=_ModuleStub(f"{COMPILER_MODULE}.trace_rules", clear_lru_cache=lambda: None),
        utils=_ModuleStub(f"{COMPILER_MODULE}.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer"),
    )
