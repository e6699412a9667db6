"""W&B is alerted when a batch script gives a run up: no training process is left then that could say so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from runyard.cluster.job import alert as tell
from runyard.cluster.job import requeue
from runyard.errors import ExitCode
from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.life import Event, begin, epochs, live, write
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.wandb_server import WandbServer, synced

MakeRun = Callable[..., Run]
pytestmark = [pytest.mark.usefixtures("nobody_home"), pytest.mark.slow]
CRASHED: Event = ("stop", {"reason": "failed", "message": "rank 1 of 2 ended without a word", "retry": True})


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")


def judged(run: Run) -> subprocess.CompletedProcess[str]:
    """What a batch script asks once srun has ended with 9."""
    command = [sys.executable, "-m", "runyard.cluster.job.requeue", str(run.path), "9", "0"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


def titles(server: WandbServer, run: Run) -> list[str]:
    return [alert["title"].partition(": ")[2] for alert in server.run(run.wandb_id).alerts]


def test_a_run_that_crashed_before_it_ever_spoke_to_wandb_is_one_alert_once_it_is_given_up(
    server: WandbServer, make_run: MakeRun
) -> None:
    run = make_run("tracking.mode=online", "cluster=slurm")
    requeued = [judged(run) for _ in range(3)]
    assert [(done.returncode, done.stderr) for done in requeued] == [(ExitCode.REQUEUE, "")] * 3
    assert server.runs == {}, "the control: a run that goes on is no alert"
    last = judged(run)
    assert last.returncode == 1
    given_up, told = last.stderr.splitlines()
    assert given_up.startswith("runyard: given up: 3 restarts without progress")
    assert told.startswith("runyard: W&B alert sent: http")
    (alert,) = server.runs[run.id].alerts
    assert alert["title"] == f"{run.config.name}: given up"
    assert "srun ended with 9" in alert["text"]
    assert synced(str(run.path))[0]["action"] == "nothing to send"
    assert len(server.runs[run.id].alerts) == 1


def test_what_the_killed_training_had_not_sent_goes_with_the_alert(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=auto", "cluster=slurm")
    live(run, begin(), *epochs(1, 2), CRASHED)
    assert titles(server, run) == ["failed"]
    write(run, *[("requeue", {"cause": "crash", "step": 0})] * 3, begin(), *epochs(1, 3))
    assert judged(run).returncode == 1
    assert titles(server, run) == ["failed", "given up"]
    assert server.runs[run.id].values("epoch") == [1, 2, 3]
    assert server.runs[run.id].summary["status"] == "failed"


@pytest.mark.parametrize("trouble", ["stall", "fail", "nobody"])
def test_a_wandb_that_does_not_answer_is_one_line_and_changes_no_exit_code(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    trouble: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(tell, "ALERT_TIMEOUT_S", 12.0)
    run = make_run("tracking.mode=online", "cluster=slurm")
    write(run, *[("requeue", {"cause": "crash", "step": 0})] * 3)
    if trouble == "nobody":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    else:
        getattr(server, trouble).set()
    assert requeue.finish_job(str(run.path), 9, preempted=False) == 1
    _, told = capfd.readouterr().err.splitlines()
    assert told.startswith("runyard: W&B alert not sent (")
    assert told.endswith(f"try: runyard sync {run.path}")
    assert journal.read_journal(run.journal_path)[0][-1]["message"].startswith("given up")


@pytest.mark.parametrize("mode", ["auto", "offline", "none"])
def test_who_does_not_use_wandb_hears_nothing_of_it(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str], mode: str
) -> None:
    run = make_run(f"tracking.mode={mode}", "cluster=slurm")
    write(run, *[("requeue", {"cause": "crash", "step": 0})] * 3)
    assert requeue.finish_job(str(run.path), 9, preempted=False) == 1
    assert len(capfd.readouterr().err.splitlines()) == 1
