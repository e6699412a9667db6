"""A real training of two ranks under W&B's real client: one run appears, whatever signals the whole step gets, and one
alert if it fails.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.config.schema import Config
from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.settings import SMALL
from tests.support.trainings import Ranks
from tests.support.waiting import until
from tests.support.wandb_server import WandbServer, is_one_history

MakeRun = Callable[..., Run]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_is_kept")]


@pytest.fixture
def make_run(data_root: Path, tmp_path: Path, make_config: Callable[..., Config], server: WandbServer) -> MakeRun:
    def make(*overrides: str) -> Run:
        ours = (*SMALL, f"data.root={data_root}", f"runs_dir={tmp_path / 'runs'}", "tracking=online", "epochs=20")
        config = make_config(*[setting for setting in ours if setting != "tracking=none"], *overrides)
        return Run.create(config, [])

    return make


@pytest.mark.parametrize("how", ["a rank is killed", "the loss is no number"])
def test_a_training_that_fails_is_one_alert_that_says_how(server: WandbServer, make_run: MakeRun, how: str) -> None:
    diverges = how == "the loss is no number"
    run = make_run(*["optim.lr=1e30"] * diverges)
    ranks = Ranks(run, 2, "first")
    if not diverges:
        until(lambda: run.id in server.runs and len(journal.epochs(journal.read_journal(run.journal_path)[0])) > 1)
        ranks.processes[1].kill()
    assert ranks.wait() == ([1, 1] if diverges else [1, -signal.SIGKILL])
    (alert,) = server.runs[run.id].alerts
    assert alert["title"] == f"{run.config.name}: {'diverged' if diverges else 'failed'}"
    assert ("not a finite number" if diverges else "rank 1 of 2 ended without a word") in alert["text"]
    assert server.runs[run.id].ends == [1]


def family(process: int) -> list[int]:
    """The process and its helpers of W&B's: what scancel signals together."""
    children = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent(path) == process]
    return [process, *(pid for pid in children if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes())]


def parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_two_ranks_stopped_by_sigterm_to_all_and_resumed_are_one_run_with_one_history(
    server: WandbServer, make_run: MakeRun
) -> None:
    run = make_run()
    first = Ranks(run, 2, "first")
    until(lambda: run.id in server.runs and len(journal.epochs(journal.read_journal(run.journal_path)[0])) > 1)
    everybody = [pid for process in first.processes for pid in family(process.pid)]
    assert len(everybody) == 3, "two ranks and one helper"
    for pid in everybody:
        os.kill(pid, signal.SIGTERM)
    first.wait()
    (stop,) = [row for row in journal.read_journal(run.journal_path)[0] if row["event"] == "stop"]
    assert stop["reason"] == "interrupted", first.errors
    second = Ranks(run, 2, "second")
    assert second.wait() == [0, 0], second.errors
    assert list(server.runs) == [run.id]
    is_one_history(server.runs[run.id], 20)
    assert server.runs[run.id].ends[-1] == 0
    assert server.runs[run.id].history[-1]["sample_predictions"]["nrows"] > 1
