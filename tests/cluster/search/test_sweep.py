"""A search: what it asks, hears and tells; and that whatever ends the command, no trial is lost and none runs twice."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from runyard.cli.main import main
from runyard.cluster.search.space import split_search_space
from runyard.cluster.search.study import SearchSettings, Study, runs_by_trial, search_lock
from runyard.cluster.search.sweep import Search
from runyard.errors import UserError
from runyard.runs import journal
from runyard.runs.run import sweeps_dir
from runyard.runs.summary import RunSummary
from tests.support.commands import Runs, environment
from tests.support.fabricated import Folder, epoch, start
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import PATIENCE_S

WORDS = ["optim.lr=log(0.01,0.5)"]


@pytest.fixture
def folder(tmp_path: Path, slurm: FakeSlurm) -> Folder:
    return Folder(tmp_path, slurm)


def study(tmp_path: Path, **changes: Any) -> Study:
    settings = SearchSettings(**{"overrides": [], "space": WORDS, "seed": 0, "sampler": "tpe", "prune": True,
                                 "measure": "auto"} | changes)  # fmt: skip
    place = tmp_path / "first"
    place.mkdir(exist_ok=True)
    return Study(place, settings, split_search_space(WORDS)[1], epochs=5)


def test_the_same_seed_draws_the_same_points_wherever_the_command_was_interrupted(tmp_path: Path) -> None:
    def drawn(place: Path, interrupted: bool, seed: int = 0) -> list[Any]:
        place.mkdir()
        made = study(place, seed=seed)
        for number in range(14):  # TPE itself begins at the eleventh
            if interrupted and number % 5 == 4:
                made = study(place, seed=seed)
            trial = made.ask()
            made.tell(trial, TrialState.COMPLETE, 1 - abs(trial.params["optim.lr"] - 0.1))
        return [trial.params for trial in made.trials]

    whole = drawn(tmp_path / "a", False)
    assert drawn(tmp_path / "b", True) == whole
    assert drawn(tmp_path / "c", False, seed=1) != whole


def test_a_trial_below_the_median_of_the_others_is_to_be_stopped_and_one_above_is_not(
    tmp_path: Path, folder: Folder
) -> None:
    made = study(tmp_path)
    for _ in range(5):
        trial = made.ask()
        assert not made.report_epochs(trial, RunSummary(folder.run(start(1), *(epoch(n, n, 0.5) for n in range(1, 5)))))
        made.tell(trial, TrialState.COMPLETE, 0.5)
    bad, good = made.ask(), made.ask()
    assert made.report_epochs(bad, RunSummary(folder.run(start(1), *(epoch(n, n, 0.2) for n in range(1, 4)))))
    assert not made.report_epochs(good, RunSummary(folder.run(start(1), *(epoch(n, n, 0.8) for n in range(1, 4)))))
    assert not study(tmp_path, prune=False).report_epochs(
        made.ask(), RunSummary(folder.run(start(1), epoch(3, 3, 0.1)))
    )


def test_it_goes_by_the_held_out_part_where_there_is_one(tmp_path: Path, folder: Folder) -> None:
    both = RunSummary(folder.run(start(1), epoch(1, 1, 0.5, val_top1=0.25)))
    assert study(tmp_path).scores(both) == [(1, 0.25)]
    assert study(tmp_path, measure="test_top1").scores(both) == [(1, 0.5)]
    assert study(tmp_path).scores(RunSummary(folder.run(start(1), epoch(1, 1, 0.5)))) == [(1, 0.5)]


def test_two_commands_do_not_drive_one_search(tmp_path: Path) -> None:
    with search_lock(tmp_path), pytest.raises(UserError, match="another command drives it"), search_lock(tmp_path):
        pass
    with search_lock(tmp_path):
        pass


def test_a_folder_of_runs_that_cannot_be_written_is_one_line_and_the_searchs_own_errors_stay(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.write_text("a file")  # root writes into any folder
    told = rf"runs_dir={runs}: cannot be written \(File exists\); set runs_dir"
    with pytest.raises(UserError, match=told), search_lock(sweeps_dir(runs) / "first"):
        pass
    runs.unlink()
    with pytest.raises(FileNotFoundError), search_lock(sweeps_dir(runs) / "first"):
        raise FileNotFoundError


@pytest.mark.parametrize(("words", "told"), [
    (["--name", "a/b", *WORDS], "--name 'a/b': "), (["--trials", "0", *WORDS], "--trials 0: "),
    (["--name", "unheard"], "--name unheard: "), ([], "runyard sweep "), (["optim.lr=0.1"], "optim.lr=log("),
    (["optim.lr=log(0.1,1"], "optim.lr=log(0.1,1: "), (["optim.lrr=log(0.1,1)"], "optim.lrr"),
    (["seed=0,1", *WORDS], "seed=0,1: "),
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [["--runs-dir", "two words"], ["+runs_dir='two words'"]], ids=["option", "setting"])
def test_the_command_that_comes_next_finds_the_search_wherever_its_runs_are(
    where: list[str], small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Search, "run", interrupted)
    settings = [word for word in small if not word.startswith(("optim.lr=", "runs_dir="))]
    words = ["sweep", "--name", "q", *settings, "experiment=null", "cluster=slurm", *WORDS]
    assert main([*words, *where]) == 130
    assert (sweeps_dir(tmp_path / "two words") / "q").is_dir()
    following = capsys.readouterr().err.partition("continue with: ")[2]
    assert main(shlex.split(following)[1:]) == 130, "the same search is found, and interrupted again"
    assert main(words) == 130
    assert "--runs-dir" not in capsys.readouterr().err.splitlines()[-1], "the control"


@pytest.mark.parametrize(("option", "told"), [
    (["--seed", "5"], "was started with seed 0, not with 5"),
    (["--sampler", "random"], "was started with sampler tpe, not with random"),
    (["--no-prune"], "was started with prune True, not with False"),
    (["--measure", "test_top1"], "was started with measure auto, not with test_top1"),
])  # fmt: skip
@pytest.mark.parametrize("words", [[], WORDS], ids=["its name alone", "its settings too"])
def test_a_search_goes_on_with_nothing_else_than_it_was_begun_with(
    words: list[str], option: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    begun = SearchSettings([f'runs_dir="{runs}"'], WORDS, 0, "tpe", True, "auto")
    begun.save(sweeps_dir(runs) / "q")
    assert main(["sweep", "--name", "q", "--runs-dir", str(runs), *option, *words]) == 2
    assert told in capsys.readouterr().err


class Searches:
    """The command in a process of its own, and what came of it."""

    def __init__(self, runs: Runs) -> None:
        fixed = runs.settings("epochs=2", "cluster.tasks_per_node=1")
        self.settings = [*(word for word in fixed if not word.startswith("optim.lr=")), *WORDS]
        self.folder = runs.folder

    def start(self, name: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "runyard", "sweep", "--name", name, "--json", *options, *self.settings]
        return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def trials(self, name: str) -> dict[int, Path]:
        return runs_by_trial(name, self.folder)


@pytest.fixture
def searches(runs: Runs) -> Searches:
    return Searches(runs)


def until(true: Callable[[], object], command: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)


def began(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and any(
        row["event"] == "start" for row in journal.read_journal(run / "metrics.jsonl")[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_ends_midway_loses_no_trial_and_the_next_runs_none_twice(
    searches: Searches, ended_by: signal.Signals
) -> None:
    name = ended_by.name.lower()
    first = searches.start(name, "--trials", "2")
    until(lambda: 0 in searches.trials(name) and began(searches.trials(name)[0]), first)
    first.send_signal(ended_by)
    _, said = first.communicate(timeout=PATIENCE_S)
    if ended_by == signal.SIGINT:
        assert first.returncode == 130
        assert f"runyard sweep --name {name} --trials 2" in said
        assert not RunSummary(searches.trials(name)[0]).local_pid(), "it has saved and stopped"
    second = searches.start(name, "--trials", "2")
    printed, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, said
    told = json.loads(printed)
    assert [trial["state"] for trial in told["trials"]] == ["complete", "complete"]
    assert told["best"] in (0, 1)
    paths = searches.trials(name)
    assert {n: path.name for n, path in paths.items()} == {t["trial"]: t["run"] for t in told["trials"]}
    of_it = [p for p in searches.folder.glob("[!.]*/run.json") if json.loads(p.read_text())["sweep"] == name]
    assert len(of_it) == 2, "one run for each trial"
    for trial in told["trials"]:
        rows = journal.read_journal(paths[trial["trial"]] / "metrics.jsonl")[0]
        assert [row["epoch"] for row in journal.epochs(rows)] == [1, 2]
        assert journal.epochs(rows)[-1]["test_top1"] == trial["top1"]
        config = (paths[trial["trial"]] / "config.yaml").read_text()
        assert f"lr: {trial['settings']['optim.lr']}" in config


@pytest.mark.slow
def test_a_trial_that_fails_is_told_so_and_the_search_goes_on_without_torch(searches: Searches) -> None:
    """model.widths=[16,0] is refused by the network itself, in the job."""
    fixed = [word for word in searches.settings if not word.startswith("model.widths=")]
    searches.settings = [*fixed, "model.widths=choice([16,0],[16,32])"]
    listing = "import sys; from runyard.cli.main import main; code = main(sys.argv[1:]); " \
              "sys.exit(99 if 'torch' in sys.modules else code)"  # fmt: skip
    command = [sys.executable, "-c", listing, "sweep", "--json", "--trials", "3", "--seed", "1", "--sampler", "random",
               "--name", "fails", "--parallel", "2", *searches.settings]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    fine = [trial["settings"]["model.widths"] == "[16,32]" for trial in trials]
    assert [trial["state"] == "complete" for trial in trials] == fine
    assert sorted(set(fine)) == [False, True], "the seed was to draw both"
    assert all("16,0" in trial["why"] or "width" in trial["why"] for trial in trials if trial["why"])


@pytest.mark.slow
def test_a_trial_that_makes_no_run_is_written_down_for_those_who_compare(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.cluster.search import sweep

    made, place = study(tmp_path), tmp_path / "first"
    said: list[str] = []

    def refuse(*_: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(sweep, "compose", refuse)
    sweep.Search(made, place, 1, True, said.append).run(2)
    rows = [json.loads(line) for line in (place / sweep.REFUSED_TRIALS_FILE).read_text().splitlines()]
    assert rows == [{"trial": 0, "why": "no room"}, {"trial": 1, "why": "no room"}]


@pytest.mark.slow
def test_what_is_stopped_early_is_saved_and_told(folder: Folder, searches: Searches) -> None:
    """Five trials that others made set the median; the sixth, which never learns, is stopped for it."""
    from runyard.cluster.launch import submit as launcher
    from runyard.cluster.search.sweep import Search

    searches.settings = [o for o in searches.settings if not o.startswith(("epochs=", "optim.lr="))]
    fixed = [*searches.settings, "epochs=400"]
    place = searches.folder / ".sweeps" / "early"
    place.mkdir(parents=True)
    space = split_search_space(["optim.lr=log(1e-9,2e-9)"])[1]
    made = Study(place, SearchSettings(fixed, [], 0, "tpe", True, "auto"), space, epochs=5)
    for _ in range(5):
        trial = made.ask()
        made.report_epochs(trial, RunSummary(folder.run(start(1), *(epoch(n, n, 0.9) for n in range(1, 400)))))
        made.tell(trial, TrialState.COMPLETE, 0.9)
    assert launcher.plan_submission([*fixed, "optim.lr=1e-9"]).config.epochs == 400
    said: list[str] = []
    Search(made, place, 1, True, said.append).run(6)
    assert made.trials[5].state is TrialState.PRUNED, said
    run = RunSummary(runs_by_trial("early", searches.folder)[5])
    assert run.journal.state == "interrupted"
    assert run.record["pruned"], "for those who compare"
    assert run.last_checkpoint_step
    assert "below the median: stopped" in said[-1]
