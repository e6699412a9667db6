"""When a job that a terminal follows is over: what SLURM says of it, however it ended, and whether it answers."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from runyard import slurm_client
from runyard.cli.commands.following import follow_to_end
from runyard.cluster.monitor.attach import SlurmJobHandle
from tests.support.fake_slurm import NUMBER, FakeSlurm


def has_ended(slurm: FakeSlurm, state: str) -> bool:
    slurm.says("known", f"{NUMBER}|{state}|None|0:01|9:00|N/A|n1|run\n")
    return SlurmJobHandle(NUMBER, Path("logs")).has_ended()


@pytest.mark.parametrize("state", ["COMPLETED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "CANCELLED"])
def test_it_is_over_however_it_ended(slurm: FakeSlurm, state: str) -> None:
    assert has_ended(slurm, state)
    assert not has_ended(slurm, "RUNNING"), "the control"
    assert not has_ended(slurm, "PENDING"), "the control"


def test_a_controller_that_does_not_answer_ends_nothing_and_holds_nothing_up(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.program("squeue", "exec sleep 60\n")
    monkeypatch.setattr(slurm_client, "COMMAND_TIMEOUT_S", 0.2)
    assert not SlurmJobHandle(NUMBER, Path("logs")).has_ended()


class Going:
    """A job that goes on, while a signal comes to the command that follows it."""

    id, logs, survives_terminal = "7", Path("logs"), False

    def __init__(self, sent: signal.Signals) -> None:
        self.sent, self.warned = sent, 0

    def has_ended(self) -> bool:
        signal.raise_signal(self.sent)
        if self.warned > 1:
            raise KeyboardInterrupt
        return False

    def on_ctrl_c(self) -> str:
        return "interrupted"

    def forward_warning(self) -> None:
        self.warned += 1


def follow(folder: Path, job: Going) -> tuple[int, str]:
    config = SimpleNamespace(epochs=1)
    run = SimpleNamespace(id="R", cli_reference="R", path=folder, journal_path=folder / "metrics.jsonl", config=config)
    code, row = follow_to_end(run, job, quiet=False)
    return code, row["outcome"]


def test_a_command_whose_terminal_goes_says_in_one_line_that_the_run_goes_on_and_how_to_follow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(tmp_path, Going(signal.SIGHUP)) == (130, "left")
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "runyard: the terminal was closed; run R continues. Follow it: runyard logs -f R; stop it: runyard cancel R"
    ]
    assert "interrupted" not in out, "nothing was asked of the job"


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGUSR2])
def test_slurms_warning_is_passed_to_the_job_and_ends_no_command(tmp_path: Path, sent: signal.Signals) -> None:
    job = Going(sent)
    assert follow(tmp_path, job) == (130, "left")
    assert job.warned > 1
