"""The right to write a run: the file ``lease`` in its directory, which names its holder by a token. Imports no torch.

It must work between nodes whose file system may have no locks and whose clocks may differ. It has three parts:

- *Taking.* A process that wants the lease first judges its holder (``lease_holder``). Where locks work, a lock on the
  lease itself shows whether a holder on this node has died; else SLURM's queue shows it, or a heartbeat (the lease's
  mtime). Behind a gate, a file that only one process can create, it reads the lease again and replaces the one that it
  judged by its own.
- *Fencing.* A holder that was judged wrongly, suspended or cut off, may wake up and continue. So each of its writes is
  first opened or prepared, then calls ``check`` to see whether the lease is still its own, and is then made. The
  process that takes over moves away what may be open or prepared (``Run.acquire_lease``), so that a write that had
  just passed its check has no effect.
- *Releasing.* The file is deleted if it still belongs to the process that releases it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runyard.errors import TrainingFailed, UserError
from runyard.file_lock import try_lock
from runyard.files import open_within, sync_folder
from runyard.runs.lease_holder import LEASE_TIMEOUT_S, LeaseDecision, LeaseHolder, ObservedLease, decide_lease

LEASE_HEARTBEAT_S = 10.0  # how often a holder shows that it is alive
LEASE_POLL_S = 1.0
MAX_LEASE_BYTES = 4096
LEASE_FILE, GATE = "lease", ".lease-gate"


class LeaseLost(TrainingFailed):
    """Raised when another process has taken over the run: this process must write nothing more and end."""


class Lease:
    """A held lease. A thread sends its heartbeat until it is released or its process ends.

    Args:
        what: What is in ``folder``, in messages, such as "run ID".

    Attributes:
        fencing: Whether it was taken from a holder that may still be alive.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder, self._what = folder, what
        self._self_holder = LeaseHolder.this_process(os.environ)
        self._file, self.fencing = self._acquire()
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._heartbeat_loop, name="lease", daemon=True)
        self._beating.start()
        this = weakref.ref(self)  # a child that outlives this process must not keep the lock
        os.register_at_fork(after_in_child=lambda: (held := this()) and held._file.close())

    def check(self) -> None:
        """Verify that the lease is still this process's. To be called before every write, once that is prepared.

        Raises:
            LeaseLost: another process holds the lease, or it is gone.
        """
        current = _read_lease(self._folder, lock=False)
        if current is None:
            raise LeaseLost(f"{self._what}: its lease is gone", "this process writes nothing more to it")
        if current.holder.token != self._self_holder.token:
            successor = current.holder.description
            raise LeaseLost(f"{self._what} was taken over by {successor}", "this process writes nothing more to it")

    def release(self) -> None:
        """Give the lease back. If the file cannot be deleted, its free lock or its age shows that it is not held."""
        self._released.set()
        self._beating.join()
        with contextlib.suppress(OSError), _gate(self._folder) as alone:
            current = _read_lease(self._folder, lock=False)
            if alone and current is not None and current.holder.token == self._self_holder.token:
                (self._folder / LEASE_FILE).unlink()
        self._file.close()

    def _heartbeat_loop(self) -> None:
        while not self._released.wait(LEASE_HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a missed heartbeat; each write checks whether the lease is still held
                os.utime(self._file.fileno())  # this lease's own file, also if another lease has its name by now

    def _acquire(self) -> tuple[BinaryIO, bool]:
        first, reported = _read_lease(self._folder), False
        deadline = time.monotonic() + LEASE_TIMEOUT_S + LEASE_HEARTBEAT_S
        while True:
            observed, now = _read_lease(self._folder), file_system_time(self._folder)
            decision = decide_lease(observed, first, self._self_holder, now)
            if decision is LeaseDecision.TAKE and (file := self._write_lease(observed)) is not None:
                return file, observed is not None and not observed.holder_died(self._self_holder)
            if observed is not None and (decision is LeaseDecision.REFUSE or time.monotonic() > deadline):
                raise UserError(
                    f"{self._what} is being written by {observed.last_seen_text(now)}", "wait for it, or stop it first"
                )
            if observed is not None and decision is LeaseDecision.WAIT and not reported:
                reported, writer = True, observed.last_seen_text(now)
                message = f"last written by {writer}; taken over if not seen for {LEASE_TIMEOUT_S:g} s"
                print(f"runyard: {self._what}: {message}", file=sys.stderr, flush=True)
            time.sleep(LEASE_POLL_S)

    def _write_lease(self, judged: ObservedLease | None) -> BinaryIO | None:
        """Replace the lease that was judged by this process's own; return None if the former is no longer there."""
        with _gate(self._folder) as alone:
            current = _read_lease(self._folder, lock=False)
            if not alone or (current and current.holder) != (judged and judged.holder):
                return None
            tmp_path = self._folder / f".{LEASE_FILE}-{self._self_holder.token}"
            file = open(tmp_path, "x+b")  # noqa: SIM115  stays open while the lease is held
            try:
                file.write(dataclasses.replace(self._self_holder, locked=bool(try_lock(file))).to_bytes())
                file.flush()
                os.fsync(file.fileno())
                os.replace(tmp_path, self._folder / LEASE_FILE)
            except BaseException:
                file.close()
                tmp_path.unlink(missing_ok=True)
                raise
            sync_folder(self._folder)
            return file


def lease_holder(folder: Path) -> str | None:
    """Describe the process that writes the run in ``folder``; None if none is known. The lease is not changed."""
    try:
        observed = _read_lease(folder)
    except UserError:  # something else was put in the lease's place
        return None
    if observed is None or observed.holder_died(LeaseHolder.this_process(os.environ)):
        return None
    try:
        now = file_system_time(folder)
    except OSError:  # a reader without write access to this directory has no better clock than this node's
        now = time.time()
    return observed.last_seen_text(now) if observed.age_s(now) <= LEASE_TIMEOUT_S else None


def successor_text(folder: Path) -> str | None:
    """Describe what writes the run instead of this start of the SLURM job: a later start of it, or another process."""
    observed, me = _read_lease(folder), LeaseHolder.this_process(os.environ)
    if observed is not None and observed.holder.same_job(me):
        return observed.holder.description if observed.holder.restarts > me.restarts else None
    return lease_holder(folder)


def file_system_time(folder: Path) -> float:
    """Return the time in unix seconds by the clock of ``folder``'s file system, which stamps the heartbeats."""
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
            lock_is_free = lock and bool(try_lock(file, shared=True))
            return ObservedLease(
                LeaseHolder.from_bytes(file.read(MAX_LEASE_BYTES)), os.fstat(file.fileno()).st_mtime, lock_is_free
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EINVAL):
            raise
        raise UserError(f"{path}: {error.strerror}: not a lease of runyard", "remove it") from None


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[bool]:
    """Yield whether this process alone may change the lease within the block, which takes milliseconds."""
    gate = folder / GATE
    try:
        os.close(os.open(gate, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if file_system_time(folder) - gate.stat().st_mtime > LEASE_TIMEOUT_S:
                gate.unlink()  # the process that created it died within the block
        yield False
        return
    try:
        yield True
    finally:
        gate.unlink(missing_ok=True)
