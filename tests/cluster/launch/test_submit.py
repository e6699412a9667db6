"""The whole line on this machine: composed, submitted through submitit, trained by two ranks, followed, stopped."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.commands import API_KEY, Command, Runs, environment, processes_of, rows, until
from tests.support.settings import PATIENCE_S, ROOT

pytestmark = pytest.mark.slow
STEPS_PER_EPOCH = 8


@pytest.fixture(scope="module")
def finished(runs: Runs) -> Command:
    command = runs.start("submit", *runs.settings("epochs=2", "tracking=offline", "report=true"))
    command.wait()
    return command


def test_a_submitted_run_is_shown_to_its_end_and_reported(finished: Command) -> None:
    assert finished.process.returncode == 0, finished.stdout + finished.stderr
    run = finished.run()
    job = run.record["jobs"][0]["id"]
    first, *_, last = finished.stdout.splitlines()
    assert first == f"run {run.id}, job {job}, in {run.path}"
    assert last == f"report: {run.path}/report/index.html"
    assert (run.path / "report" / "index.html").stat().st_size > 10_000
    for shown in ("2 ranks", "epoch 1/2", "epoch 2/2", "final test top-1"):
        assert shown in finished.stdout
    assert finished.stderr == ""


def test_its_journal_tells_of_two_ranks_from_start_to_stop(finished: Command) -> None:
    run = finished.run()
    (start,), (final,), (stop,) = rows(run, "start"), rows(run, "final"), rows(run, "stop")
    assert (start["world_size"], start["device"], start["launcher"]) == (2, "cpu", "submitit, local")
    assert [row["step"] for row in rows(run, "epoch")] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    assert sum(map(sum, final["confusion"])) == 100
    assert stop["reason"] == "finished"
    assert processes_of(run) == {}


def test_two_ranks_make_one_wandb_record_under_the_runs_id(finished: Command) -> None:
    run = finished.run()
    (record,) = (run.path / "wandb").glob("offline-run-*")
    assert [p.name for p in record.glob("*.wandb")] == [f"run-{run.id}.wandb"]
    assert rows(run, "warning") == []


def test_no_file_of_the_run_holds_the_api_key(finished: Command) -> None:
    files = {path: path.read_bytes() for path in finished.run().path.rglob("*") if path.is_file()}
    assert not [path for path, content in files.items() if API_KEY.encode() in content]
    assert any(b"one_cycle" in content for path, content in files.items() if path.suffix == ".wandb"), "the control"


def test_nothing_of_the_run_can_be_read_by_others_whatever_the_umask(finished: Command) -> None:
    run = finished.run()
    written = [path for place in (run.path, run.code_path.parent) for path in (place, *place.rglob("*"))]
    assert [path for path in written if not path.is_symlink() and path.stat().st_mode & 0o077] == []
    assert {"state.pt", "metrics.jsonl", "index.html", "controller.log"} < {path.name for path in written}
    assert any(path.suffix == ".pkl" for path in written)


def test_the_job_ran_the_runs_own_copy_of_the_code(finished: Command) -> None:
    compiled = {p.name.partition(".")[0] for p in finished.run().code_path.rglob("__pycache__/*.pyc")}
    assert {"train_job", "task", "trainer", "recorder"} <= compiled, (
        "what was imported from there left its bytecode there"
    )
    assert "attach" not in compiled, "the control: the command itself runs from the checkout"


def test_a_failed_training_is_told_in_one_object(runs: Runs) -> None:
    command = runs.start("submit", "--json", *runs.settings("optim.lr=1e30", "schedule=constant"))
    assert command.wait() == 1
    said = json.loads(command.stdout)
    assert set(said) == {"run", "job", "path", "outcome", "message"}
    assert said["outcome"] == "failed"
    assert "not a finite number" in said["message"]
    assert Path(said["path"], "run.json").exists()
    assert command.stderr == ""


@pytest.fixture(scope="module")
def interrupted(runs: Runs) -> Command:
    """Stopped by Ctrl-C, as a terminal gives it: to every process of the group."""
    command = runs.start("submit", *runs.settings("epochs=30", "tracking=offline", "checkpoint.keep_best=false"))
    run = command.run()
    until(lambda: len(rows(run, "epoch")) >= 2, command)
    os.killpg(command.process.pid, signal.SIGINT)
    command.wait()
    return command


def test_ctrl_c_saves_and_leaves_no_process(interrupted: Command) -> None:
    run = interrupted.run()
    assert interrupted.process.returncode == 130, interrupted.stdout + interrupted.stderr
    assert re.search(f"saved.*runyard resume .*{run.id}$", interrupted.stdout)
    assert "Traceback" not in interrupted.stderr
    assert [row["reason"] for row in rows(run, "stop")] == ["interrupted"]
    saved = checkpoint.newest_checkpoint(run.checkpoints)
    assert saved is not None
    assert 2 * STEPS_PER_EPOCH <= saved.step < 30 * STEPS_PER_EPOCH
    until(lambda: not processes_of(run))


def test_it_resumes_at_that_step_detached_and_finishes_after_the_terminal_is_gone(
    interrupted: Command, runs: Runs
) -> None:
    run = interrupted.run()
    saved = checkpoint.newest_checkpoint(run.checkpoints)
    assert saved is not None
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "runyard", "resume", "--detach", "--runs-dir", str(runs.folder), run.id]
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "cwd": ROOT, "env": environment()}
    assert subprocess.Popen(["setsid", "--ctty", *command], **terminal).wait(PATIENCE_S) == 0
    os.close(theirs)
    os.close(ours)  # hangs up whatever still belongs to this terminal
    assert len(rows(run, "start")) == 1, "it was to return before the job began"
    until(lambda: len(rows(run, "stop")) == 2)
    assert rows(run, "stop")[-1]["reason"] == "finished"
    assert rows(run, "start")[-1]["step"] == saved.step
    assert [row["step"] for row in journal.epochs(rows(run, "epoch"))] == [STEPS_PER_EPOCH * n for n in range(1, 31)]
    until(lambda: not processes_of(run))


@pytest.fixture(scope="module")
def endless(runs: Runs) -> Run:
    """A run that nobody waits to see finished; each test starts it anew and stops it in another way."""
    return runs.create("epochs=100000", "cluster.timeout_min=60", "checkpoint.every_s=0.2")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_fails_the_job_in_one_line_that_names_it(endless: Run, runs: Runs, rank: int) -> None:
    before = len(rows(endless, "checkpoint"))
    command = runs.start("resume", "--runs-dir", str(runs.folder), endless.id)
    until(lambda: len(rows(endless, "checkpoint")) > before + 1, command)
    os.kill(command.tasks()[rank], signal.SIGKILL)
    assert command.wait() == 1
    (line,) = command.stderr.splitlines()
    assert line.startswith(f"runyard: run {endless.id} failed: rank {rank} of 2 ended without a word")
    until(lambda: not processes_of(endless))


def test_a_stop_that_comes_while_the_job_starts_ends_it_before_the_first_step(endless: Run, runs: Runs) -> None:
    before = len(rows(endless, "start"))
    command = runs.start("resume", "--runs-dir", str(runs.folder), endless.id)
    command.until_said("\n")
    modules = {"submitit.core._submit", "runyard.cluster.job.task"}
    until(lambda: all({"submitit.core._submit"} == modules & set(args) for args in command.tasks_arguments()), command)
    os.kill(command.process.pid, signal.SIGTERM)
    assert len(rows(endless, "start")) == before, "it was to be asked before it began"
    assert command.wait() == 130, command.stdout + command.stderr
    assert len(rows(endless, "start")) == before
    assert (rows(endless, "stop")[-1]["reason"], rows(endless, "stop")[-1]["cause"]) == ("interrupted", "TERM")
    until(lambda: not processes_of(endless))


def test_slurms_warning_to_the_command_of_a_batch_script_reaches_the_tasks_and_two_terms_are_one(
    endless: Run, runs: Runs
) -> None:
    for sent, cause in (([signal.SIGUSR2], "USR2"), ([signal.SIGTERM, signal.SIGTERM], "TERM")):
        before = len(rows(endless, "checkpoint"))
        command = runs.start("resume", "--runs-dir", str(runs.folder), endless.id)
        until(lambda before=before: len(rows(endless, "checkpoint")) > before + 1, command)  # type: ignore[misc]
        for number in sent:
            os.kill(command.process.pid, number)
            time.sleep(0.1)
        assert command.wait() == 130, command.stdout + command.stderr
        assert "stopped, saved" in command.stdout, "it was to wait for the end"
        assert (rows(endless, "stop")[-1]["reason"], rows(endless, "stop")[-1]["cause"]) == ("interrupted", cause)
        until(lambda: not processes_of(endless))


def test_the_time_limit_saves_and_says_how_to_go_on(endless: Run, runs: Runs) -> None:
    before = checkpoint.newest_checkpoint(endless.checkpoints)
    command = runs.start("resume", "--runs-dir", str(runs.folder), endless.id, "cluster.signal_delay_s=3599")
    assert command.wait() == 130, command.stdout + command.stderr
    assert rows(endless, "stop")[-1]["reason"] == "interrupted"
    assert re.search(f"saved.*runyard resume .*{endless.id}$", command.stdout)
    saved = checkpoint.newest_checkpoint(endless.checkpoints)
    assert saved is not None
    assert before is None or saved.step > before.step
