"""A supervisor for child programs: they end with this process, and may run in their own namespaces."""

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
# The supervisor's end, whatever its cause, closes the pipe that the cleaner reads. If it has stopped all programs, it
# writes a line first. If not, a program that was just being started may be too late for the kernel to end it, and for a
# moment shows no environment to recognize it by; and a dying program may still write a file. So the cleaner has to find
# nothing three times in a row.
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
    """The programs of a cluster by name, in the order in which they were started.

    Args:
        folder: Each program's output goes to ``log/NAME.out`` in it; isolated programs see its ``hosts`` as /etc/hosts.
        environment: The programs' environment without PATH; later changes reach the programs that are started later.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._isolated: set[str] = set()
        self._cleaner: subprocess.Popen[bytes] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def start_cleaner(self) -> None:
        """Start, before any program, the process that ends all programs and deletes the folder once this one ends."""
        self._cleaner = subprocess.Popen(
            ["sh", "-c", CLEANER, "sh", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self, name: str, command: list[str]) -> None:
        """Start a program that the kernel kills if this process dies first."""
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
        """Start a program in namespaces of its own, where host names resolve by the cluster's ``hosts``."""
        setup = f"hostname {name} && mount --bind {shlex.quote(f'{self._folder}/hosts')} /etc/hosts && exec "
        namespaces = ["unshare", "--pid", "--mount", "--uts", "--mount-proc", "--fork", "--kill-child"]
        if os.getuid() != 0:  # root in the namespace to set the node up, then the user again
            namespaces.append("--map-root-user")
            setup += f"unshare --user --map-user={os.getuid()} --map-group={os.getgid()} "
        self._isolated.add(name)
        self.start(name, [*namespaces, "sh", "-c", setup + command])

    def wait_until(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait up to ``START_TIMEOUT_S`` until ``ready``, which depends on program ``name``.

        Raises:
            UserError: a program has ended, or ``name`` takes too long; with the program's last line of output.
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
            raise UserError(f"{dead[0]} did not start: {output[-1] if output else 'it printed nothing'}")

    def stop(self, name: str) -> None:
        part = self._running.pop(name)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if name in self._isolated:  # the first process of its namespace: all others end with it
                for child in _children(part.pid):
                    os.kill(child, signal.SIGKILL)
            else:
                part.terminate()
            part.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
        part.wait()

    def stop_all(self) -> None:
        """Stop every program and delete the folder."""
        for name in reversed(list(self._running)):
            self.stop(name)
        if self._cleaner is not None:
            self._cleaner.communicate(b"1\n")

    def suspend(self, name: str) -> None:
        """Stop all processes of an isolated program with SIGSTOP."""
        while running := [pid for pid in self._processes(name) if _state(pid) not in "TZ"]:
            for pid in running:  # parents first, then children that were started meanwhile
                _signal(pid, signal.SIGSTOP)

    def resume(self, name: str, delay_first_s: float) -> None:
        """Continue a program's processes; the first, which controls the others, ``delay_first_s`` seconds later."""
        first, *others = self._processes(name)
        for pid in others:
            _signal(pid, signal.SIGCONT)
        time.sleep(delay_first_s)
        _signal(first, signal.SIGCONT)

    def _processes(self, name: str) -> list[int]:
        """Return the ids of the processes in a program's namespaces, parents before children."""
        pids = _children(self._running[name].pid)
        for pid in pids:  # the list grows meanwhile
            pids += _children(pid)
        return pids


def search_path() -> str:
    """Return PATH with the folders of daemons, which few ordinary users have on theirs."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _children(pid: int) -> list[int]:
    pids: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):  # every thread may have children
        with contextlib.suppress(OSError):  # it has just ended
            pids += map(int, (task / "children").read_text().split())
    return pids


def _state(pid: int) -> str:
    """Return a process's state as /proc's letter; Z, as for a dead process, if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
