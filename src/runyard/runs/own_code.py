"""A run is read and gone on with by its own code: the snapshot that was taken of it when the run was created."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from runyard.errors import UserError
from runyard.ownership import require_owner
from runyard.runs import snapshot
from runyard.runs.run import Run

ENTERED_VARIABLE = "RUNYARD_OWN_CODE"  # set for the program that ``exec_run_code`` starts, which must not start another
TRUST = "--trust"


def restore_code(run: Run, *, trusted: bool = False) -> str | None:
    """See that the run's snapshot is there and what it was; take it anew where it is gone and this program is the same.

    Args:
        trusted: A person has said that this code, another user's, is to be run.

    Returns:
        In words, that it was gone and was taken anew; None if it was there.

    Raises:
        UserError: it is gone and this program is another, or it was changed, or others can write it. Says what to do.
    """
    wanted = run.record.get("code_sha256")
    link = run.path / "code"
    if run.code_path.is_dir():
        snapshot.verify_snapshot(run.code_path, wanted, trusted=trusted)
        return None
    if wanted is None or snapshot.content_hash(snapshot.checkout_files()) != wanted:
        raise UserError(f"run {run.id}: its code is gone ({link} leads to nothing): {_restore_hint(run)}")
    store = run.path.parent / snapshot.CODE_STORE
    with run.reporting_write_errors():
        snapshot.take_snapshot(store, group_reads=run.config.runs_group_readable)
        if not run.code_path.is_dir():
            link.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # another rank was quicker
                link.symlink_to(Path("..") / snapshot.CODE_STORE / wanted[:16])
    return f"run {run.id}: its code was gone, and was taken anew from this checkout, which holds the same"


def _restore_hint(run: Run) -> str:
    name = str(run.record.get("code_sha256"))[:16]
    return (
        f"copy {snapshot.CODE_STORE}/{name} from beside the run where it was created to "
        f"{run.path.parent / snapshot.CODE_STORE}, or check out the version that it was created with, and try again"
    )


def exec_run_code(run: Run, argv: list[str], *, trusted: bool = False) -> None:
    """Go on as the run's own code: does not return where this program is another.

    Args:
        argv: What this program was told, less its name.
        trusted: Whether code in another user's run may be run.

    Raises:
        UserError: the run's code is gone or changed, or is another user's and not ``trusted``.
    """
    if Path(snapshot.__file__).is_relative_to(run.code_path):
        return
    if run.record.get("code_sha256") in (None, snapshot.content_hash(snapshot.checkout_files())):
        return
    if run.code_path.is_dir() and not trusted:
        for path in (run.path, run.code_path):
            require_owner(path, f"run {run.id}: {path}", f"its code would be run: read it first, then say {TRUST}")
    if (restored := restore_code(run, trusted=trusted)) is not None:
        print(f"runyard: {restored}", file=sys.stderr, flush=True)
    if os.environ.get(ENTERED_VARIABLE) == str(run.code_path):
        raise UserError(
            f"run {run.id}: Python does not take its code from {run.code_path}: unset PYTHONHOME, and -I or -E"
        )
    print(f"runyard: run {run.id} was made by other code than this checkout's: going on by its own", file=sys.stderr)
    sys.stderr.flush()
    search = os.pathsep.join(filter(None, [str(run.code_path), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {ENTERED_VARIABLE: str(run.code_path), "PYTHONPATH": search, "PYTHONSAFEPATH": "1"}
    forwarded_argv = [word for word in argv if word != TRUST]  # an older version does not know it
    os.execve(sys.executable, [sys.executable, "-m", "runyard", *forwarded_argv], environment)
