"""A sweep of W&B's own: its agent hands out runs, and each appears at W&B as exactly the run that was handed out.

`wandb sweep` and `wandb agent` are the installed ones, as a user starts them; their server is a stand-in over loopback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runyard.cli.main import main
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.runs import journal
from runyard.runs.events import parse_event
from runyard.runs.run import Run
from runyard.tracking.wandb import connection, record
from runyard.tracking.wandb.agent import SweepAssignment, sweep_assignment
from runyard.tracking.wandb.history import WandbHistory
from tests.support.life import FINISHED, INTERRUPTED, begin, epochs, live, write
from tests.support.settings import PATIENCE_S, ROOT, SMALL
from tests.support.waiting import until
from tests.support.wandb_server import ENTITY, WandbServer, is_one_history, synced

MakeRun = Callable[..., Run]
MakeConfig = Callable[..., Config]
DRAWN = {"optim.lr": 0.03, "model.widths": [8, 16]}
SETTINGS = [s for s in SMALL if not s.startswith(("tracking", "epochs", "optim.lr", "model.widths"))]


class Sweep:
    """Made by `wandb sweep`; agents are started in ``folder``, and their runs lie there."""

    def __init__(self, folder: Path, data_root: Path, server: WandbServer, *settings: str) -> None:
        self.folder, self._server = folder, server
        command = [sys.executable, "-m", "runyard", "submit", "experiment=null", *SETTINGS, f"data.root={data_root}",
                   f"runs_dir={folder / 'runs'}", *settings, "${args_no_hyphens}"]  # fmt: skip
        described = {"program": "runyard", "method": "grid", "command": command,
                     "parameters": {name: {"value": value} for name, value in DRAWN.items()}}  # fmt: skip
        (folder / "sweep.yaml").write_text(yaml.safe_dump(described))
        made = self.wandb("sweep", "--project", "sweeping", "sweep.yaml")
        said, _ = made.communicate(timeout=PATIENCE_S)
        assert made.returncode == 0, said
        (self.served,) = server.sweeps.values()
        self.path = f"{ENTITY}/sweeping/{self.served.name}"
        assert f"wandb agent {self.path}" in said

    def agent(self, *draws: dict[str, Any]) -> subprocess.Popen[str]:
        """An agent that takes one run, for which W&B draws the next of ``draws``."""
        self.served.draws += draws
        return self.wandb("agent", "--forward-signals", "--count", "1", self.path)

    def wandb(self, *words: str) -> subprocess.Popen[str]:
        own = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "wandb", *words]
        out = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=own, stdout=out, stderr=subprocess.STDOUT, text=True)

    def runs(self) -> list[Run]:
        return [Run.open(path.parent) for path in sorted((self.folder / "runs").glob("[!.]*/run.json"))]

    def until_learning(self, least: int = 2) -> Run:
        until(lambda: bool(runs := self.runs()) and len(epochs_of(runs[0])) >= least, PATIENCE_S)
        return self.runs()[0]


def epochs_of(run: Run) -> list[journal.Row]:
    return journal.epochs(journal.read_journal(run.journal_path)[0])


def stops(run: Run) -> list[journal.Row]:
    return [row for row in journal.read_journal(run.journal_path)[0] if row["event"] == "stop"]


@pytest.mark.slow
def test_an_agent_trains_the_run_that_it_was_handed_with_what_was_drawn_and_no_other_appears(
    tmp_path: Path, data_root: Path, server: WandbServer
) -> None:
    sweep = Sweep(tmp_path, data_root, server, "tracking=online", "epochs=3")
    said, _ = sweep.agent(DRAWN).communicate(timeout=PATIENCE_S)
    (run,) = sweep.runs()
    ((name, served),) = server.runs.items()
    assert (name, served.sweep, list(sweep.served.handed)) == (run.wandb_id, sweep.served.name, [name]), said
    assert run.id not in server.runs, "the control: without its agent it would be of its own id"
    assert (run.config.optim.lr, run.config.model.options["widths"]) == (0.03, [8, 16])
    is_one_history(served, 3)
    assert served.ends == [0]
    assert served.config["optim"]["value"]["lr"] == served.config["optim.lr"]["value"] == 0.03
    assert (served.attributes["project"], served.attributes["entity"]) == ("sweeping", ENTITY)
    assert 0 < served.summary["top1_best"] <= 1
    assert run.record["sweep"] == sweep.served.name
    assert [row for row in journal.read_journal(run.journal_path)[0] if row["event"] == "warning"] == []
    assert synced(str(run.path))[0]["action"] == "nothing to send"


@pytest.mark.slow
def test_a_run_that_slurm_interrupts_is_preempted_and_the_next_agent_goes_on_in_its_directory(
    tmp_path: Path, data_root: Path, server: WandbServer
) -> None:
    sweep = Sweep(tmp_path, data_root, server, "tracking=online", "epochs=40")
    first = sweep.agent(DRAWN)
    run = sweep.until_learning()
    first.send_signal(signal.SIGUSR2)  # as wandb_agent.sbatch does at SLURM's warning
    said, _ = first.communicate(timeout=PATIENCE_S)
    served = server.runs[run.wandb_id]
    assert [(stop["reason"], stop["cause"]) for stop in stops(run)] == [("interrupted", "USR2")], said
    assert (served.preempting > 0, served.ends) == (True, [1])
    sweep.served.waiting.append(run.wandb_id)  # what W&B does with a run that was preempted
    said, _ = sweep.agent().communicate(timeout=PATIENCE_S)
    assert [each.id for each in sweep.runs()] == [run.id], said
    assert list(server.runs) == [run.wandb_id]
    assert stops(run)[-1]["reason"] == "finished"
    is_one_history(served, 40)
    assert served.ends == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["SLURM", "W&B"])
def test_a_run_that_somebody_stops_is_saved_and_not_handed_out_again(
    tmp_path: Path, data_root: Path, server: WandbServer, who: str
) -> None:
    sweep = Sweep(tmp_path, data_root, server, "tracking=online", "epochs=10000")
    agent = sweep.agent(DRAWN)
    run = sweep.until_learning()
    if who == "W&B":  # a person's Stop, or hyperband's
        sweep.served.stop.add(run.wandb_id)
    else:  # scancel: to every process of the batch script; and the agent passes its own on
        for process in everybody_under(agent.pid):
            os.kill(process, signal.SIGTERM)
    said, _ = agent.communicate(timeout=PATIENCE_S)
    assert [(stop["reason"], stop["cause"]) for stop in stops(run)] == [("interrupted", "TERM")], said
    assert "stopped, saved" in said, "it was to wait for the end"
    served = server.runs[run.wandb_id]
    assert (served.preempting, served.ends) == (0, [255])


def everybody_under(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(pid for child in children for pid in everybody_under(int(child)))]


@pytest.mark.slow
def test_what_the_agents_node_could_not_send_sync_sends_to_the_same_run(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=auto")
    noted = {"id": "handed1", "sweep": "sweep7", "drawn": {"optim.lr": 0.03}}
    (run.path / "run.json").write_text(json.dumps(run.record | {"wandb": noted}))
    write(run, begin(), *epochs(1, 2), INTERRUPTED, begin(2), *epochs(3, 4), *FINISHED)
    assert synced(str(run.path))[0]["sent"] == 5
    ((name, served),) = server.runs.items()
    assert (name, served.sweep, served.config["optim.lr"]["value"]) == ("handed1", "sweep7", 0.03)
    is_one_history(served, 4)
    assert synced(str(run.path))[0]["action"] == "nothing to send"


def remember_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what another process left in the environment stays."""
    for module in (record, connection):
        monkeypatch.setattr(module, "prepare_environment", lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("forgets", [True, False])
def test_a_run_that_was_not_handed_out_does_not_take_the_id_of_one_that_was(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep7")
    monkeypatch.setenv("WANDB_RUN_ID", "handed1")
    if not forgets:
        remember_others(monkeypatch)
    run = make_run("tracking.mode=online")
    live(run, begin(), *epochs(1, 4), *FINISHED)
    assert list(server.runs) == ([run.id] if forgets else ["handed1"])


@pytest.mark.slow
@pytest.mark.parametrize("forgets", [True, False])
def test_a_training_does_not_speak_through_the_helper_of_the_process_that_started_it(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    """A notebook that logs to W&B, and from which a run is submitted, has this variable; on a node there is no such
    socket, and the notebook may end."""
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/nowhere/of-a-notebook.sock")
    if not forgets:
        remember_others(monkeypatch)
    run = make_run("tracking.mode=online")
    live(run, begin(), *epochs(1, 4), *FINISHED)
    assert list(server.runs) == ([run.id] if forgets else [])


AGENT = {"WANDB_SWEEP_ID": "sweep7", "WANDB_RUN_ID": "handed1", "WANDB_PROJECT": "sweeping", "WANDB_ENTITY": "a-team"}


@pytest.fixture
def drawn(tmp_path: Path) -> dict[str, str]:
    """What an agent says, all of it."""
    path = tmp_path / "drawn.yaml"
    path.write_text("wandb_version: 1\noptim.lr:\n  value: 0.03\n")
    return AGENT | {"WANDB_SWEEP_PARAM_PATH": str(path)}


def test_what_an_agent_says_is_read_and_without_one_nothing_is(drawn: dict[str, str]) -> None:
    assert sweep_assignment(drawn) == SweepAssignment("handed1", "sweep7", "sweeping", "a-team", {"optim.lr": 0.03})
    assert sweep_assignment({"WANDB_RUN_ID": "mine", "WANDB_PROJECT": "p"}) is None


@pytest.mark.parametrize(("lacking", "mend"), [("WANDB_RUN_ID", "unset"), ("WANDB_PROJECT", "wandb agent ENTITY/"),
                                               ("WANDB_SWEEP_PARAM_PATH", "not the settings")])  # fmt: skip
def test_half_of_what_an_agent_says_is_refused(drawn: dict[str, str], lacking: str, mend: str) -> None:
    del drawn[lacking]
    with pytest.raises(UserError, match=f"{lacking}.*{mend}"):
        sweep_assignment(drawn)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tracking=offline"], "add tracking=online"),
        (["tracking=none"], "add tracking=online"),
        (["tracking=online", "cluster=slurm"], "add cluster.requeue=false"),
        (["tracking=online", "tracking.project=mine"], "leave this out"),
        (["-m", "seed=0,1"], "leave out -m"),
        (["--detach"], "leave out -m and --detach"),
    ],
)
def test_what_an_agent_could_not_wait_for_or_hear_of_is_refused_before_anything_is_made(
    drawn: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    for name, value in drawn.items():
        monkeypatch.setenv(name, value)
    assert main(["submit", "experiment=null", *SETTINGS, f"runs_dir={tmp_path / 'runs'}", *words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err
    assert not (tmp_path / "runs").exists()


def test_the_sweep_that_is_shipped_names_settings_and_a_metric_that_there_are(make_config: MakeConfig) -> None:
    described = yaml.safe_load((ROOT / "slurm" / "wandb_sweep.yaml").read_text())
    settings = [word for word in described["command"] if "=" in word]
    for name, parameter in described["parameters"].items():
        make_config(*settings, f"{name}={parameter['min']}", f"{name}={parameter['max']}")
    history = WandbHistory(make_config())
    history.consume([parse_event({"event": "epoch", **epochs(1, 1)[0][1]})])
    assert isinstance(history.points[0].values[described["metric"]["name"]], float)
    assert isinstance(history.points[0].summary[described["metric"]["name"]], float), "bayes reads the summary"
    assert set(described["early_terminate"]) == {"type", "min_iter", "eta"}
    assert described["command"][-1] == "${args_no_hyphens}"
