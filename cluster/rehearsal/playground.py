"""One throwaway SLURM for each user, up until it is taken down: to learn ``submit``, ``status`` and ``cancel``.

``python -m runyard.cluster.rehearsal.playground NODES`` is the process that holds it, in a session of its own. Its
record names that process by id and start time: an id alone may belong to another process by now.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from runyard.cluster.rehearsal.sandbox import SlurmSandbox, missing_programs
from runyard.cluster.rehearsal.supervisor import search_path
from runyard.errors import ExplainedError, UserError
from runyard.file_lock import exclusive_lock
from runyard.files import write_atomic
from runyard.ownership import per_user_name, private_folder

LOCK_WAIT_S, END_WAIT_S = 120.0, 120.0
POLL_S = 0.1
RECORD, LOG, LOCK = "playground.json", "log", "lock"
CLUSTER = "slurm-"  # of its folder's name, which is short: sockets lie in it
UP = "runyard slurm up"


@dataclass(frozen=True)
class Playground:
    """A SLURM that is up.

    Attributes:
        pid: The process that holds it; all of its daemons and jobs end with that process.
        start_ticks: When that process started, as /proc tells it.
        nodes: Its nodes' names.
        since: When it was up, in unix seconds.
        folder: The cluster's files. Each cluster has its own: what ends one whose process was killed, and deletes its
            folder, may still be at work when the next one starts.
    """

    pid: int
    start_ticks: int
    nodes: list[str]
    since: float
    folder: str

    @property
    def alive(self) -> bool:
        return start_ticks(self.pid) == self.start_ticks

    @property
    def sandbox(self) -> SlurmSandbox:
        """Its cluster, for SLURM's commands."""
        return SlurmSandbox(Path(self.folder))

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which SLURM's commands, and this ``runyard``, use it."""
        own = {"OMP_NUM_THREADS": "1", "RUNYARD_PYTHON": sys.executable}  # all nodes share this machine's cores
        path = f"{Path(sys.executable).parent}:{search_path()}"
        return own | self.sandbox.environment | {"PATH": path}


def state_folder() -> Path:
    """Return this user's folder for it, which holds nothing once it is down.

    Raises:
        UserError: it cannot be made, or is not this user's.
    """
    folder = Path(tempfile.gettempdir()) / per_user_name("runyard-slurm")
    try:
        return private_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}", "set TMPDIR to a folder of yours with a short path") from None


def find() -> Playground | None:
    """Return the playground that is up, None if there is none."""
    try:
        found = Playground(**json.loads((state_folder() / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.alive else None


def require_up() -> Playground:
    """Return the playground that is up.

    Raises:
        UserError: there is none.
    """
    if (found := find()) is None:
        raise UserError("no SLURM of yours is up on this machine", f"start one: {UP}")
    return found


def up(nodes: int) -> tuple[Playground, bool]:
    """Start it, unless it is up. Returns it, and whether this call started it.

    Raises:
        UserError: SLURM is not installed, or did not start.
    """
    if reason := missing_programs(with_accounting=False):
        raise UserError(reason)
    folder = state_folder()
    with _locked(folder):
        if (found := find()) is not None:
            return found, False
        with open(folder / LOG, "wb") as log:
            holder = subprocess.Popen(
                [sys.executable, "-m", "runyard.cluster.rehearsal.playground", str(nodes)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it outlives the terminal
            )
        try:
            while (found := find()) is None or found.pid != holder.pid:
                if holder.poll() is not None:
                    said = (folder / LOG).read_text(errors="replace").strip().splitlines()
                    raise UserError((said or ["SLURM did not start, and said nothing"])[-1].removeprefix("runyard: "))
                time.sleep(POLL_S)
        except BaseException:
            holder.terminate()
            holder.wait()
            raise
        return found, True


def down() -> bool:
    """End the playground and its jobs. Returns whether it was up.

    Raises:
        UserError: it does not end.
    """
    folder = state_folder()
    with _locked(folder):
        found = find()
        if found is not None and not _end(found):
            raise UserError(f"process {found.pid}, which holds the SLURM, does not end", f"kill -KILL {found.pid}")
        _wait_until_deleted(folder)
        for name in (RECORD, LOG):
            (folder / name).unlink(missing_ok=True)
        return found is not None


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None if there is no such process, or no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _end(found: Playground) -> bool:
    """Ask its process to end, and wait. The descriptor stands for this very process, whoever gets its id later."""
    try:
        process = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return True
    try:
        if not found.alive:
            return True
        signal.pidfd_send_signal(process, signal.SIGTERM)
        return bool(select.select([process], [], [], END_WAIT_S)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(process)


def _wait_until_deleted(folder: Path) -> None:
    """Wait until nothing is left of clusters whose process was killed: ``Supervisor.start_cleaner`` sees to that."""
    deadline = time.monotonic() + END_WAIT_S
    while left := list(folder.glob(f"{CLUSTER}*")):
        if time.monotonic() > deadline:  # what would delete them was killed as well: a reboot
            for cluster in left:
                shutil.rmtree(cluster, ignore_errors=True)
            return
        time.sleep(POLL_S)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    def on_wait() -> None:
        print("runyard: another `runyard slurm` is at work: waiting for it", file=sys.stderr, flush=True)

    try:
        with exclusive_lock(folder / LOCK, LOCK_WAIT_S, on_wait):
            yield
    except TimeoutError:
        raise UserError(f"another `runyard slurm` has been at work in {folder} for {LOCK_WAIT_S:g} s") from None


def _hold(nodes: int) -> None:
    """Start the cluster, record this process, and wait for SIGTERM, which ends it."""
    folder = state_folder()
    with SlurmSandbox(folder / f"{CLUSTER}{secrets.token_hex(3)}", nodes=nodes) as cluster:
        ticks = start_ticks(os.getpid())
        assert ticks is not None
        record = Playground(os.getpid(), ticks, cluster.nodes, time.time(), str(cluster.folder))
        write_atomic(folder / RECORD, json.dumps(asdict(record)))
        while True:
            signal.pause()


if __name__ == "__main__":
    try:
        _hold(int(sys.argv[1]))
    except ExplainedError as error:
        print(f"runyard: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
