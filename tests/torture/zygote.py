"""Starts processes in milliseconds: one process imports what a rank needs, once, and each rank is a fork of it.

``python -m tests.torture.zygote`` reads requests from its input, a JSON object a line, and says on its output
``started PID`` for each and ``ended PID STATUS`` when it has reaped one. It computes nothing before it forks and has
no threads, so what it forks is as good as new: a test compares the bits.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

from runyard.stopping import STOP_SIGNALS

PRELOAD = ("cluster.job", "cluster.submit", "runyard.report.page", "runyard.training.loop")
living: set[int] = set()  # what was forked and not yet reaped


def named(name: str) -> Any:
    """What ``package.module:Class.method`` names."""
    module, _, path = name.partition(":")
    found = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def main() -> None:
    for module in PRELOAD:
        import_module(module)
    _load_kernels()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # as cluster.task does: children inherit it
    signal.signal(signal.SIGCHLD, _reap)
    gc.collect()
    gc.freeze()  # a rank that collects at its end need not go through all that was imported
    os.write(1, b"ready\n")
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # not reaped before it is noted
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        living.add(pid)
        os.write(1, f"started {pid}\n".encode())  # before its end is told
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for pid in list(living):  # whoever asked for them is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _load_kernels() -> None:
    """The machine code of augmentation, from its cache on disk or compiled."""
    import numpy as np

    from runyard.data.augment import draws, kernels
    from tests.conftest import compose
    from tests.torture.ground import SETTINGS

    settings = draws.settings(compose(*SETTINGS).augment, 16, (0.5, 0.5, 0.5))
    images, rows = np.zeros((2, 16, 16, 3), np.uint8), np.arange(2)
    kernels.augment(images, rows, rows, 0, 0, settings, np.zeros_like(images))


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            living.discard(found[0])
            os.write(1, f"ended {found[0]} {os.waitstatus_to_exitcode(found[1])}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """The child: a task of a local job, as submitit and cluster.task start one. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    log = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # as the controller makes it
    with open(os.devnull) as nothing, open(log, "ab") as said:
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ.update(request["env"])
    code = 1
    try:
        for name, *arguments in request["first"]:
            named(name)(*arguments)
        name, *arguments = request["call"]
        named(name)(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
