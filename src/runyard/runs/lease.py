"""The right to write a run: the file ``lease`` in its directory, whose token is its holder's. No torch.

It must hold between nodes whose file system may have no locks and whose clocks may differ. It rests on three things:

- *Taking.* Whoever wants the lease judges its holder first (``lease_holder``): a lock on the lease itself tells, where
  locks work, whether a holder on this node has died; else SLURM's queue does, or a heartbeat (the lease's mtime). Under
  a gate, a file that only one can create, it looks again and puts its own in the place of the one it judged.
- *Fencing.* A holder that was judged wrongly, stopped or cut off, may wake and go on. So each of its writes is first
  opened or prepared, then asks ``check`` whether the lease is still its own, and is then made. Who takes over puts what
  may be open or prepared out of the way (``Run.lease``): a write that had just passed its check reaches nothing then.
- *Releasing.* The file is deleted, if it is still the releaser's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runyard.errors import UserError
from runyard.files import open_within, sync_folder
from runyard.runs.lease_holder import LEASE_TIMEOUT_S, LeaseDecision, LeaseHolder, ObservedLease, decide_lease

LEASE_HEARTBEAT_S = 10.0  # how often a holder shows that it lives
LEASE_POLL_S = 1.0
MAX_LEASE_BYTES = 4096  # of a lease
LEASE_FILE, GATE = "lease", ".lease-gate"
LOCKS_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # what a file system that has none answers


class LeaseLost(Exception):
    """Another process writes this run now. Whoever meets this writes nothing more, and ends."""


class Lease:
    """A held lease. It beats in a thread until it is released or its process ends.

    Attributes:
        fencing: It was taken from a holder of which nobody can be certain that it is gone.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder, self._run_id = folder, run_id
        self._self_holder = LeaseHolder.this_process(os.environ)
        self._file, self.fencing = self._acquire()
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._heartbeat_loop, name="lease", daemon=True)
        self._beating.start()
        this = weakref.ref(self)  # a child that outlives this process must not keep the lock for it
        os.register_at_fork(after_in_child=lambda: (held := this()) and held._file.close())

    def check(self) -> None:
        """Asked before every write to the run, once that is prepared.

        Raises:
            LeaseLost: the lease is another's, or gone.
        """
        now = _read_lease(self._folder, lock=False)
        if now is None:
            raise LeaseLost(f"run {self._run_id}: its lease is gone; this process writes nothing more to it")
        if now.holder.token != self._self_holder.token:
            taker = now.holder.description
            raise LeaseLost(f"run {self._run_id} was taken over by {taker}; this process writes nothing more to it")

    def release(self) -> None:
        """Give it back. One that cannot be deleted (a full disk) is told by its free lock or its silence."""
        self._released.set()
        self._beating.join()
        with contextlib.suppress(OSError), _gate(self._folder) as alone:
            now = _read_lease(self._folder, lock=False)
            if alone and now is not None and now.holder.token == self._self_holder.token:
                (self._folder / LEASE_FILE).unlink()
        self._file.close()

    def _heartbeat_loop(self) -> None:
        while not self._released.wait(LEASE_HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a beat missed; whether the lease is still ours, each write asks
                os.utime(self._file.fileno())  # this lease's own file, also when another's has its name

    def _acquire(self) -> tuple[BinaryIO, bool]:
        first, said, deadline = _read_lease(self._folder), False, time.monotonic() + LEASE_TIMEOUT_S + LEASE_HEARTBEAT_S
        while True:
            found, now = _read_lease(self._folder), file_system_time(self._folder)
            verdict = decide_lease(found, first, self._self_holder, now)
            if verdict is LeaseDecision.TAKE and (file := self._write_lease(found)) is not None:
                return file, found is not None and not found.holder_died(self._self_holder)
            if found is not None and (verdict is LeaseDecision.REFUSE or time.monotonic() > deadline):
                raise UserError(
                    f"run {self._run_id} is being written by {found.last_seen_text(now)}: wait for it, or stop it first"
                )
            if found is not None and verdict is LeaseDecision.WAIT and not said:
                said, who = True, found.last_seen_text(now)
                line = (
                    f"run {self._run_id}: last written by {who}; taken over if not heard of for {LEASE_TIMEOUT_S:g} s"
                )
                print(f"runyard: {line}", file=sys.stderr, flush=True)
            time.sleep(LEASE_POLL_S)

    def _write_lease(self, judged: ObservedLease | None) -> BinaryIO | None:
        """Put this process's lease in the place of the one that was judged; None if that is not there any more."""
        with _gate(self._folder) as alone:
            now = _read_lease(self._folder, lock=False)
            if not alone or (now and now.holder) != (judged and judged.holder):
                return None
            making = self._folder / f".{LEASE_FILE}-{self._self_holder.token}"
            file = open(making, "x+b")  # noqa: SIM115  held open for the lease's life
            try:
                file.write(dataclasses.replace(self._self_holder, locked=_lock(file, fcntl.LOCK_EX)).to_bytes())
                file.flush()
                os.fsync(file.fileno())
                os.replace(making, self._folder / LEASE_FILE)
            except BaseException:
                file.close()
                making.unlink(missing_ok=True)
                raise
            sync_folder(self._folder)
            return file


def lease_holder(folder: Path) -> str | None:
    """Who writes the run in ``folder``, in words; None if nobody is known to. The lease is left as it is."""
    try:
        found = _read_lease(folder)
    except UserError:  # no lease at all, but what somebody put in its place
        return None
    if found is None or found.holder_died(LeaseHolder.this_process(os.environ)):
        return None
    try:
        now = file_system_time(folder)
    except OSError:  # who may only read this directory has no better clock than this node's
        now = time.time()
    return found.last_seen_text(now) if found.age_s(now) <= LEASE_TIMEOUT_S else None


def successor_text(folder: Path) -> str | None:
    """Who writes the run in the place of this SLURM job's present start: a later start of it, or another process."""
    found, me = _read_lease(folder), LeaseHolder.this_process(os.environ)
    if found is not None and found.holder.same_job(me):
        return found.holder.description if found.holder.restarts > me.restarts else None
    return lease_holder(folder)


def file_system_time(folder: Path) -> float:
    """Unix seconds by the clock that stamps the heartbeats there."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _read_lease(folder: Path, *, lock: bool = True) -> ObservedLease | None:
    try:
        return _open(folder / LEASE_FILE, lock)
    except OSError as error:
        if error.errno != errno.ESTALE:  # NFS: replaced on another node while it was read
            raise
        return _open(folder / LEASE_FILE, lock)


def _open(path: Path, lock: bool) -> ObservedLease | None:
    try:
        # opening is what makes NFS ask its server for the present file and its times
        with open_within(path.parent, path.name) as file:
            free = lock and _lock(file, fcntl.LOCK_SH)
            return ObservedLease(
                LeaseHolder.from_bytes(file.read(MAX_LEASE_BYTES)), os.fstat(file.fileno()).st_mtime, free
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EINVAL):
            raise
        raise UserError(f"{path}: {error.strerror}: no lease of ours; remove it") from None


def _lock(file: BinaryIO, kind: int) -> bool:
    """Whether it could be locked: not if somebody else has, nor where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, *LOCKS_UNSUPPORTED}:
            raise
        return False
    return True


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[bool]:
    """Whether this process alone may change the lease within the block, which takes milliseconds."""
    gate = folder / GATE
    try:
        os.close(os.open(gate, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if file_system_time(folder) - gate.stat().st_mtime > LEASE_TIMEOUT_S:
                gate.unlink()  # whoever made it died within the block
        yield False
        return
    try:
        yield True
    finally:
        gate.unlink(missing_ok=True)
