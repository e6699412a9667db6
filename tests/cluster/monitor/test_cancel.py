"""A cancelled run saves, ends and stays ended, wherever it stood: waiting, starting, training, deaf, or put back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import slurm_client
from runyard.cli.main import main
from runyard.cluster.monitor import cancel
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.commands import Runs, processes_of, rows, until
from tests.support.fabricated import BEGAN, Folder, row, start, stop
from tests.support.fabricated import runs as line_of
from tests.support.fake_slurm import FakeSlurm

WAITS = "12|PENDING|Priority|0:00|57:00|N/A||@"
RUNS = "12|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|@"
SCANCEL = """
case "$1" in
--signal=TERM) {on_term} ;;
*) rm -f "$here/squeue.txt" ;;
esac
"""
TERM, KILL = "scancel --signal=TERM 12", "scancel 12"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(slurm.bin) + ":/bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cancel, "CANCEL_POLL_S", 0.02)
    made = Folder(tmp_path / "runs", slurm)
    on_term(made, "true")
    return made


def on_term(folder: Folder, does: str) -> None:
    """What the tasks do when they are asked to stop."""
    folder.slurm.program("scancel", SCANCEL.format(on_term=does))


def writes(run: Path, *written: dict[str, Any]) -> str:
    """A shell command that appends rows to the journal."""
    lines = "".join(json.dumps(r | {"t": BEGAN + r["t"]}) + "\\n" for r in written)
    return f"printf '{lines}' >> {run}/metrics.jsonl"


@pytest.fixture
def cancelled(folder: Folder, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``cancelled("--json")``: exit code, stdout and stderr of `runyard cancel` of the newest run."""

    def run(*argv: str, which: str = "@last") -> tuple[int, str, str]:
        code = main(["cancel", "--runs-dir", str(folder.path), *argv, which])
        return code, *capsys.readouterr()

    return run


def test_what_waits_is_taken_off_the_queue_and_its_journal_says_so(folder: Folder, cancelled: Any) -> None:
    run = folder.run()
    folder.queue(WAITS)
    assert cancelled()[:2] == (
        0,
        f"run {run.name}: stopped before the first step "
        f"(cancelled before its tasks had begun); continue with: runyard resume {run.name}\n",
    )
    assert folder.slurm.calls("scancel") == [KILL]
    assert cancelled()[0] == 2, "there is nothing left to cancel"


def test_what_trains_is_asked_once_and_says_what_it_saved(folder: Folder, cancelled: Any) -> None:
    run = folder.run(start(1), row("checkpoint", 5, step=240))
    folder.queue(RUNS)
    on_term(
        folder,
        writes(run, row("checkpoint", 8, step=240), stop(9, "interrupted", cause="TERM"))
        + '; (sleep 0.3; rm "$here/squeue.txt") &',
    )
    code, out, _ = cancelled("--json")
    assert code == 0
    words = f"stopped at step 240, saved (cancelled); continue with: runyard resume {run.name}"
    assert json.loads(out) == {"run": run.name, "state": "interrupted", "step": 240, "forced": False, "message": words}
    assert folder.slurm.calls("scancel") == [TERM]


# While several elements of an array wait, scancel --signal of one that runs does not return (seen in SLURM 22.05).
ELEMENT_HANGS = 'case "$*" in "--signal=TERM 12_3") sleep 600 ;; "--signal=TERM 12_3.0") {on_term} ;; *) exit 1 ;; esac'
STEPS = """
case "$*" in *--steps*) printf "12_3.%s\\n" 0 batch extern ;; *) cat "$here/squeue.txt" 2>/dev/null || true ;; esac
"""


def test_one_of_an_array_is_asked_by_its_step(folder: Folder, cancelled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_client, "COMMAND_TIMEOUT_S", 5.0)
    run = folder.run(start(1), row("checkpoint", 5, step=240), job="12_3")
    folder.queue(RUNS.replace("12|", "12_3|"))
    ends = writes(run, stop(9, "interrupted", cause="TERM")) + '; rm "$here/squeue.txt"'
    folder.slurm.program("squeue", STEPS)
    folder.slurm.program("scancel", ELEMENT_HANGS.format(on_term=ends))
    assert cancelled()[0] == 0
    assert folder.slurm.calls("scancel") == ["scancel --signal=TERM 12_3.0"]


def test_what_starts_is_asked_until_it_listens_and_then_once_more(
    folder: Folder, cancelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "SIGNAL_INTERVAL_S", 0.05)
    run = folder.run()
    folder.queue(RUNS)
    saved = row("checkpoint", 8, step=3), stop(9, "interrupted", cause="TERM")
    begins, ends = writes(run, start(5)), writes(run, *saved)
    on_term(
        folder,
        f'echo >> "$here/heard"; case $(grep -c "" "$here/heard") in 3) {begins} ;; '
        f'4) {ends}; (sleep 0.5; rm "$here/squeue.txt") & ;; esac',
    )
    assert cancelled()[0] == 0
    assert folder.slurm.calls("scancel") == [TERM] * 4


def test_what_has_saved_and_is_ending_is_left_to_end(folder: Folder, cancelled: Any, monkeypatch: Any) -> None:
    """Its tasks listen no more: a signal now would make a crash of it."""
    folder.run(start(1), row("checkpoint", 8, step=240), stop(9, "interrupted", cause="time limit"))
    folder.queue(RUNS)
    monkeypatch.setattr(cancel.time, "sleep", lambda _: (folder.slurm.folder / "squeue.txt").unlink(missing_ok=True))
    assert cancelled()[0] == 0
    assert folder.slurm.calls("scancel") == []


def test_what_went_back_into_the_queue_meanwhile_is_taken_off_it(folder: Folder, cancelled: Any) -> None:
    run = folder.run(start(1), row("checkpoint", 8, step=240))
    folder.queue(RUNS)
    folder.slurm.says("waits", WAITS.replace("@", run.name) + line_of(run) + "\n")
    on_term(folder, writes(run, row("requeue", 9, cause="crash", step=240)) + '; mv "$here/waits" "$here/squeue.txt"')
    code, out, _ = cancelled()
    assert code == 0
    assert "stopped at step 240, saved" in out
    assert folder.slurm.calls("scancel") == [TERM, KILL]


def test_what_does_not_end_in_time_is_ended_by_force(folder: Folder, cancelled: Any) -> None:
    folder.run(start(1), row("checkpoint", 8, step=240))
    folder.queue(RUNS)
    code, out, err = cancelled("--wait-s", "0.2")
    assert (code, out) == (1, "")
    assert "stopped at step 240, saved (ended by force)" in err
    assert folder.slurm.calls("scancel") == [TERM, KILL]


def test_what_survives_even_that_is_said_to(folder: Folder, cancelled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "KILL_TIMEOUT_S", 0.2)
    run = folder.run(start(1))
    folder.queue(RUNS)
    folder.slurm.program("scancel", "")
    code, _, err = cancelled("--wait-s", "0")
    assert code == 1
    assert "has not ended" in err
    assert "stop" not in (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize("end", ["finished", "interrupted", "failed"])
def test_what_has_ended_is_not_cancelled(folder: Folder, cancelled: Any, end: str) -> None:
    folder.run(start(1), stop(9, end))
    code, out, err = cancelled()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is neither pending nor running" in err
    assert folder.slurm.calls("scancel") == []


def test_mistakes_cost_a_line(folder: Folder, cancelled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cancelled()[0] == 2
    folder.run()
    for argv in (("--wait-s", "-1"), ("--wait-s", "nan"), ("--wait-s", "soon"), ("--now",)):
        code, out, err = cancelled(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = cancelled()
    assert (code, out) == (2, "")
    assert "no squeue on this machine" in err


@pytest.fixture(scope="module")
def endless(runs: Runs) -> Run:
    return runs.create("epochs=100000", "checkpoint.every_s=1")


def cancel_here(runs: Runs, run: Run, *argv: str) -> tuple[int, dict[str, Any]]:
    command = runs.start("cancel", "--json", *argv, str(run.path))
    return command.wait(), json.loads(command.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [True, False])
def test_a_run_on_this_machine_saves_and_leaves_no_process(endless: Run, runs: Runs, begun: bool) -> None:
    before = len(rows(endless, "start"))
    assert runs.start("resume", "--detach", str(endless.path)).wait() == 0
    if begun:
        until(lambda: len(rows(endless, "start")) > before)
    code, said = cancel_here(runs, endless)
    assert (code, said["state"], said["forced"]) == (0, "interrupted", False)
    newest = checkpoint.newest_checkpoint(endless.checkpoints)
    assert said["step"] == (newest.step if newest else None)
    until(lambda: not processes_of(endless))
    assert runs.start("cancel", str(endless.path)).wait() == 2, "there is nothing left to cancel"


@pytest.mark.slow
def test_a_run_on_this_machine_that_is_deaf_is_killed(endless: Run, runs: Runs) -> None:
    before = len(rows(endless, "start"))
    command = runs.start("resume", "--detach", str(endless.path))
    assert command.wait() == 0
    until(lambda: len(rows(endless, "start")) > before)
    for pid in command.tasks():
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    code, said = cancel_here(runs, endless, "--wait-s", "1")
    assert (code, said["forced"], time.monotonic() - began < cancel.KILL_TIMEOUT_S) == (1, True, True)
    until(lambda: not processes_of(endless))
