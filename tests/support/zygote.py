"""Starts processes in milliseconds: one process imports what a rank needs, once, and each rank is a fork of it.

``python -m tests.support.zygote`` reads requests from its input, a JSON object a line, and says on its output
``started PID`` for each and ``ended PID STATUS`` when it has reaped one. It computes nothing before it forks and has
no threads, so what it forks is as good as new: a test compares the bits.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from runyard.training.stop_signals import STOP_SIGNALS
from tests.support.settings import PATIENCE_S, ROOT

PRELOAD = (
    "runyard.cluster.job.train_job",
    "runyard.cluster.launch.submit",
    "runyard.analysis.report.page",
    "runyard.training.trainer",
)
living: set[int] = set()  # what was forked and not yet reaped
First = Sequence[Sequence[Any]]  # functions to call in a process before it begins: names, each with its arguments


class Fork:
    """A forked process, with as much of Popen's surface as the tests use."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid

    def poll(self) -> int | None:
        return None if self._zygote.alive(self.pid) else self._zygote.wait(self.pid)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self._zygote.wait(self.pid, timeout_s)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process that forks (``main`` below), and what it says. It begins with these ``variables``."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"], cwd=ROOT, env=os.environ | self._variables,
            text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._started: queue.Queue[int] = queue.Queue()
        self._codes: dict[int, int] = {}
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, said: Path, call: Sequence[Any], env: dict[str, str] | None = None, first: First = ()) -> int:
        """Fork a process, which does ``first``, then ``call``; what it says is appended to ``said``. Its id."""
        assert self._process.stdin is not None
        env = os.environ | self._variables | (env or {})  # as it is now: a test may have changed it
        request = {"said": str(said), "call": list(call), "env": env, "first": [list(f) for f in first]}
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._started.get(timeout=PATIENCE_S)

    def fork(self, said: Path, call: Sequence[Any], env: dict[str, str] | None = None) -> Fork:
        """``start``, as a process that can be asked."""
        return Fork(self, self.start(said, call, env))

    def wait(self, pid: int, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code, negative if a signal ended it."""
        with self._news:
            ended = self._news.wait_for(lambda: pid in self._codes, timeout_s)
        if not ended:
            raise TimeoutError(f"process {pid} hangs: {Path(f'/proc/{pid}/wchan').read_text()}")
        return self._codes[pid]

    def first_to_fail(self, pids: list[int]) -> int | None:
        """Waits until one of them has ended badly, or all have ended well: then None."""
        with self._news:
            ended = self._news.wait_for(
                lambda: any(self._codes.get(p) for p in pids) or all(p in self._codes for p in pids), PATIENCE_S
            )
            if not ended:
                raise TimeoutError(f"processes {pids} hang")
            return next((pid for pid in pids if self._codes.get(pid)), None)

    def all_ended(self, pids: list[int], within_s: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: all(pid in self._codes for pid in pids), within_s)

    def alive(self, pid: int) -> bool:
        return pid not in self._codes

    def close(self) -> None:
        """It ends, and what it forked with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, *numbers = line.split()
            if word == "started":
                with self._news:
                    self._codes.pop(int(numbers[0]), None)  # of a process that had this id before
                self._started.put(int(numbers[0]))
            elif word == "ended":
                with self._news:
                    self._codes[int(numbers[0])] = int(numbers[1])
                    self._news.notify_all()


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
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # as runyard.cluster.job.task does: children inherit it
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


def say(*words: str) -> None:
    """In a process: the command line."""
    from runyard.cli.main import main

    sys.exit(main(list(words)))


def _load_kernels() -> None:
    """The machine code of augmentation, from its cache on disk or compiled."""
    import numpy as np

    from runyard.data.augment import kernels, params
    from tests.support.settings import SMALL, compose

    settings = params.augment_params(compose(*SMALL).augment, 16, (0.5, 0.5, 0.5))
    images, rows = np.zeros((2, 16, 16, 3), np.uint8), np.arange(2)
    kernels.augment_batch(images, rows, rows, 0, 0, settings, np.zeros_like(images))


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            living.discard(found[0])
            os.write(1, f"ended {found[0]} {os.waitstatus_to_exitcode(found[1])}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """The child: a task of a local job, as submitit and runyard.cluster.job.task start one. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    log = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # as the controller makes it
    with open(os.devnull) as nothing, open(log, "ab") as said:
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ.clear()
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
