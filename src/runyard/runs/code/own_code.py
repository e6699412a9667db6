"""Runs are loaded and resumed with their own code: the snapshot taken when the run was created."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from runyard.errors import UserError
from runyard.ownership import require_owner
from runyard.runs.code import snapshot
from runyard.runs.run import Run

ENTERED_VARIABLE = "RUNYARD_OWN_CODE"  # set in the program that ``exec_run_code`` starts: it must not start another
TRUST = "--trust"


def restore_code(run: Run, *, trusted: bool = False) -> str | None:
    """Verify the run's snapshot. If it is missing and this program has the same code, take the snapshot again.

    Args:
        trusted: Whether the user has confirmed that this code, which is another user's, may be run.

    Returns:
        A message if the snapshot was missing and was taken again; None if it was there.

    Raises:
        UserError: it is missing and this program has other code, or it was changed, or other users can write to it.
    """
    expected_sha256 = run.record.get("code_sha256")
    link = run.path / "code"
    if run.code_path.is_dir():
        snapshot.verify_snapshot(run.code_path, expected_sha256, trusted=trusted)
        return None
    if expected_sha256 is None or snapshot.content_hash(snapshot.checkout_files()) != expected_sha256:
        raise UserError(f"run {run.id}: its code is missing ({link} leads nowhere)", _restore_hint(run))
    store = run.path.parent / snapshot.CODE_STORE
    with run.reporting_write_errors():
        snapshot.take_snapshot(store, group_reads=run.config.runs_group_readable)
        if not run.code_path.is_dir():
            link.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # another rank was faster
                link.symlink_to(Path("..") / snapshot.CODE_STORE / expected_sha256[:16])
    return f"run {run.id}: its code was missing, and was copied again from this checkout, which has the same code"


def _restore_hint(run: Run) -> str:
    name = str(run.record.get("code_sha256"))[:16]
    return (
        f"copy {snapshot.CODE_STORE}/{name} from the folder of runs where it was created to "
        f"{run.path.parent / snapshot.CODE_STORE}, or check out the version that it was created with, and try again"
    )


def exec_run_code(run: Run, argv: list[str], *, trusted: bool = False) -> None:
    """Replace this process by one that runs the run's own code; returns if this program already has that code.

    Args:
        argv: This program's arguments without its name.
        trusted: Whether code in another user's run may be run.

    Raises:
        UserError: the run's code is missing or changed, or is another user's and not ``trusted``.
    """
    if Path(snapshot.__file__).is_relative_to(run.code_path):
        return
    if run.record.get("code_sha256") in (None, snapshot.content_hash(snapshot.checkout_files())):
        return
    if run.code_path.is_dir() and not trusted:
        for path in (run.path, run.code_path):
            require_owner(path, f"run {run.id}: {path}", f"its code would be run: read it first, then add {TRUST}")
    if (restored := restore_code(run, trusted=trusted)) is not None:
        print(f"runyard: {restored}", file=sys.stderr, flush=True)
    if os.environ.get(ENTERED_VARIABLE) == str(run.code_path):
        raise UserError(
            f"run {run.id}: Python does not import its code from {run.code_path}",
            "unset PYTHONHOME, do not use -I or -E",
        )
    print(f"runyard: run {run.id} was created with other code than this checkout's: using its own", file=sys.stderr)
    sys.stderr.flush()
    python_path = os.pathsep.join(filter(None, [str(run.code_path), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {ENTERED_VARIABLE: str(run.code_path), "PYTHONPATH": python_path, "PYTHONSAFEPATH": "1"}
    forwarded_argv = [argument for argument in argv if argument != TRUST]  # an older version does not know it
    os.execve(sys.executable, [sys.executable, "-m", "runyard", *forwarded_argv], environment)
