"""Programs that one process starts and that end with it, whatever ends it, alone in their own namespaces if asked."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from runyard.errors import UserError

NAMESPACE_PROGRAMS = ("unshare", "setpriv")
START_TIMEOUT_S, END_TIMEOUT_S = 30.0, 3.0
OWNER_VARIABLE = "RUNYARD_PART_OF"
# The end of the process that began it, whatever it is, closes its pipe; one that ended all parts says so first. Else a
# part that was just being made may have been made too late for the kernel to end it, and for a moment shows no
# environment by which to know it; and what is dying may still write a file: nothing must be there three times in a row.
CLEANER = f"""
read -r ended
clean=0
for _ in 1 2 3 4 5 6 7 8 9; do
    left=$(grep -lszxF "{OWNER_VARIABLE}=$1" /proc/[0-9]*/environ | cut -d/ -f3)
    [ -z "$left" ] || kill -KILL $left
    if rm -rf "$1" && [ -z "$left" ]; then clean=$((clean + 1)); else clean=0; fi
    [ "$clean" -lt "${{ended:-3}}" ] || exit
    sleep 0.2
done"""


class Supervisor:
    """The parts of a cluster by name, in the order in which they were started.

    Args:
        folder: What each part says goes to ``log/NAME.out`` in it; its ``hosts`` is /etc/hosts of those who are alone.
        environment: The parts' environment, less the path; what is put into it later reaches those begun later.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._isolated: set[str] = set()
        self._cleaner: subprocess.Popen[bytes] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def start_cleaner(self) -> None:
        """Before any part: start what deletes the folder, and ends what is left, once this process is gone or done."""
        self._cleaner = subprocess.Popen(
            ["sh", "-c", CLEANER, "sh", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self, name: str, command: list[str]) -> None:
        """Start a part that the kernel ends should this process die without a chance to."""
        with open(self._folder / "log" / f"{name}.out", "ab") as log:
            self._running[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self._environment | {"PATH": search_path(), OWNER_VARIABLE: str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for this process alone
            )

    def start_isolated(self, name: str, command: str) -> None:
        """Start a part in namespaces of its own, where names resolve as the cluster's administrator would have it."""
        setup = f"hostname {name} && mount --bind {shlex.quote(f'{self._folder}/hosts')} /etc/hosts && exec "
        namespaces = ["unshare", "--pid", "--mount", "--uts", "--mount-proc", "--fork", "--kill-child"]
        if os.getuid() != 0:  # root inside to set the node up, then oneself again
            namespaces.append("--map-root-user")
            setup += f"unshare --user --map-user={os.getuid()} --map-group={os.getgid()} "
        self._isolated.add(name)
        self.start(name, [*namespaces, "sh", "-c", setup + command])

    def wait_until(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait for ``ready``, which part ``name`` is to bring about.

        Raises:
            UserError: with the last words of the part that has died, or of ``name`` where it takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            dead = [n for n, part in self._running.items() if part.poll() is not None]
            if dead or ready():
                break
            time.sleep(0.05)
        else:
            dead = [name]
        if dead:
            output = (self._folder / "log" / f"{dead[0]}.out").read_text(errors="replace").strip().splitlines()
            raise UserError(f"{dead[0]} did not start: {output[-1] if output else 'it said nothing'}")

    def stop(self, name: str) -> None:
        part = self._running.pop(name)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if name in self._isolated:  # the first process of its namespace: all others go with it
                for child in _children(part.pid):
                    os.kill(child, signal.SIGKILL)
            else:
                part.terminate()
            part.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
        part.wait()

    def stop_all(self) -> None:
        """End every part and delete the folder."""
        for name in reversed(list(self._running)):
            self.stop(name)
        if self._cleaner is not None:
            self._cleaner.communicate(b"1\n")

    def suspend(self, name: str) -> None:
        """Stop all processes of a part that is alone, where they are."""
        while running := [pid for pid in self._processes(name) if _state(pid) not in "TZ"]:
            for pid in running:  # parents first, and again for children made meanwhile
                _signal(pid, signal.SIGSTOP)

    def resume(self, name: str, delay_first_s: float) -> None:
        """Let a part's processes go on; the first of them, which rules the others, so much later."""
        first, *others = self._processes(name)
        for pid in others:
            _signal(pid, signal.SIGCONT)
        time.sleep(delay_first_s)
        _signal(first, signal.SIGCONT)

    def _processes(self, name: str) -> list[int]:
        """What runs in a part's namespaces, parents before children."""
        pids = _children(self._running[name].pid)
        for pid in pids:  # it grows
            pids += _children(pid)
        return pids


def search_path() -> str:
    """Where daemons lie is on few ordinary users' PATH."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _children(pid: int) -> list[int]:
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):  # every thread may have made some
        with contextlib.suppress(OSError):  # it has just ended
            pids += map(int, (task / "children").read_text().split())
    return pids


def _state(pid: int) -> str:
    """A process's state as /proc has it, in one letter; Z, as of a dead one, where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
