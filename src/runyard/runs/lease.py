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
from runyard.runs.lease_holder import SILENT_S, Found, Holder, Verdict, judge

BEAT_S = 10.0  # how often a holder shows that it lives
POLL_S = 1.0
MOST_BYTES = 4096  # of a lease
FILE, GATE = "lease", ".lease-gate"
WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # what a file system that has none answers


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
        self._me = Holder.this_process(os.environ)
        self._file, self.fencing = self._acquire()
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()
        this = weakref.ref(self)  # a child that outlives this process must not keep the lock for it
        os.register_at_fork(after_in_child=lambda: (held := this()) and held._file.close())

    def check(self) -> None:
        """Asked before every write to the run, once that is prepared.

        Raises:
            LeaseLost: the lease is another's, or gone.
        """
        now = _look(self._folder, lock=False)
        if now is None:
            raise LeaseLost(f"run {self._run_id}: its lease is gone; this process writes nothing more to it")
        if now.holder.token != self._me.token:
            taker = now.holder.words
            raise LeaseLost(f"run {self._run_id} was taken over by {taker}; this process writes nothing more to it")

    def release(self) -> None:
        """Give it back. One that cannot be deleted (a full disk) is told by its free lock or its silence."""
        self._released.set()
        self._beating.join()
        with contextlib.suppress(OSError), _gate(self._folder) as alone:
            now = _look(self._folder, lock=False)
            if alone and now is not None and now.holder.token == self._me.token:
                (self._folder / FILE).unlink()
        self._file.close()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a beat missed; whether the lease is still ours, each write asks
                os.utime(self._file.fileno())  # this lease's own file, also when another's has its name

    def _acquire(self) -> tuple[BinaryIO, bool]:
        first, said, deadline = _look(self._folder), False, time.monotonic() + SILENT_S + BEAT_S
        while True:
            found, now = _look(self._folder), file_system_time(self._folder)
            verdict = judge(found, first, self._me, now)
            if verdict is Verdict.TAKE and (file := self._put(found)) is not None:
                return file, found is not None and not found.dead(self._me)
            if found is not None and (verdict is Verdict.REFUSE or time.monotonic() > deadline):
                raise UserError(
                    f"run {self._run_id} is being written by {found.heard(now)}: wait for it, or stop it first"
                )
            if found is not None and verdict is Verdict.WAIT and not said:
                said, who = True, found.heard(now)
                line = f"run {self._run_id}: last written by {who}; taken over if not heard of for {SILENT_S:g} s"
                print(f"runyard: {line}", file=sys.stderr, flush=True)
            time.sleep(POLL_S)

    def _put(self, judged: Found | None) -> BinaryIO | None:
        """Put this process's lease in the place of the one that was judged; None if that is not there any more."""
        with _gate(self._folder) as alone:
            now = _look(self._folder, lock=False)
            if not alone or (now and now.holder) != (judged and judged.holder):
                return None
            making = self._folder / f".{FILE}-{self._me.token}"
            file = open(making, "x+b")  # noqa: SIM115  held open for the lease's life
            try:
                file.write(dataclasses.replace(self._me, locked=_lock(file, fcntl.LOCK_EX)).written())
                file.flush()
                os.fsync(file.fileno())
                os.replace(making, self._folder / FILE)
            except BaseException:
                file.close()
                making.unlink(missing_ok=True)
                raise
            sync_folder(self._folder)
            return file


def holder(folder: Path) -> str | None:
    """Who writes the run in ``folder``, in words; None if nobody is known to. The lease is left as it is."""
    try:
        found = _look(folder)
    except UserError:  # no lease at all, but what somebody put in its place
        return None
    if found is None or found.dead(Holder.this_process(os.environ)):
        return None
    try:
        now = file_system_time(folder)
    except OSError:  # who may only read this directory has no better clock than this node's
        now = time.time()
    return found.heard(now) if found.age_s(now) <= SILENT_S else None


def successor(folder: Path) -> str | None:
    """Who writes the run in the place of this SLURM job's present start: a later start of it, or another process."""
    found, me = _look(folder), Holder.this_process(os.environ)
    if found is not None and found.holder.same_job(me):
        return found.holder.words if found.holder.restarts > me.restarts else None
    return holder(folder)


def file_system_time(folder: Path) -> float:
    """Unix seconds by the clock that stamps the heartbeats there."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _look(folder: Path, *, lock: bool = True) -> Found | None:
    try:
        return _open(folder / FILE, lock)
    except OSError as error:
        if error.errno != errno.ESTALE:  # NFS: replaced on another node while it was read
            raise
        return _open(folder / FILE, lock)


def _open(path: Path, lock: bool) -> Found | None:
    try:
        # opening is what makes NFS ask its server for the present file and its times
        with open_within(path.parent, path.name) as file:
            free = lock and _lock(file, fcntl.LOCK_SH)
            return Found(Holder.read(file.read(MOST_BYTES)), os.fstat(file.fileno()).st_mtime, free)
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
        if error.errno not in {errno.EWOULDBLOCK, *WITHOUT_LOCKS}:
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
            if file_system_time(folder) - gate.stat().st_mtime > SILENT_S:
                gate.unlink()  # whoever made it died within the block
        yield False
        return
    try:
        yield True
    finally:
        gate.unlink(missing_ok=True)
