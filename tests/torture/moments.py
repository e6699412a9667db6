"""Moments of a rank's life, for attacks that strike at one whatever the machine's speed: called in it before it begins.

A moment is the n-th call of a function, or the n-th call of any function of this project.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.zygote import named

PACKAGE = str(Path(import_module("runyard").__file__ or "").parent)


def around(name: str, before: Callable[[int], None] | None = None, after: Callable[[int], None] | None = None) -> None:
    """Call ``before`` and ``after`` at each call of the function of that name, with the call's number, from 1."""
    owner_name, _, attribute = name.rpartition("." if "." in name.partition(":")[2] else ":")
    owner = named(owner_name) if ":" in owner_name else import_module(owner_name)
    function, calls = getattr(owner, attribute), [0]

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        number = calls[0]
        if before is not None:
            before(number)
        result = function(*arguments, **options)
        if after is not None:
            after(number)
        return result

    setattr(owner, attribute, wrapped)


def die_at(name: str, call: int, when: str) -> None:
    """SIGKILL to this process ``before`` or ``after`` that call of the function."""
    raise_at(name, call, when, signal.SIGKILL)


def raise_at(name: str, call: int, when: str, number: int) -> None:
    """That signal to this process ``before`` or ``after`` that call of the function."""

    def strike(now: int) -> None:
        if now == call:
            os.kill(os.getpid(), number)

    around(name, **{when: strike})


def signal_at_any_call(call: int, number: int) -> None:
    """That signal to this process at the n-th call, in any thread, of any function of this project."""
    calls = [0]

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), number)

    threading.setprofile(profile)
    sys.setprofile(profile)


def count_calls(file: str) -> None:
    """Write down at the end how many calls ``signal_at_any_call`` would have counted."""
    import atexit

    calls = [0]

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[0] += 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    atexit.register(lambda: Path(file).write_text(str(calls[0])))
