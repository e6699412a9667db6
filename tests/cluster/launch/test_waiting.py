"""What passes by itself is waited for by ``submit --wait`` and by a search, and both say for how long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from runyard.cli.main import main
from runyard.cluster.launch import waiting
from runyard.cluster.launch.refusals import JobLimitReached, SubmissionDelayed
from runyard.cluster.launch.waiting import Waiting, in_parts
from runyard.errors import UserError
from runyard.runs.run import Run
from tests.support.fake_slurm import SBATCH, FakeSlurm

# As MaxSubmitJobs=4: a refusal says so, --test-only's too, and after that of a single job one has left the queue.
LIMITED = """
case $1 in --version) exit ;; --test-only) script=$here/asked; cat > "$script" ;; *) script=$1 ;; esac
size=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
queued=$(awk -F'|' '{ n += $3 + 1 } END { print n + 0 }' "$here/queue" 2>/dev/null)
if [ $((${queued:-0} + ${size:-0} + 1)) -gt 4 ]; then
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    [ "$1" = --test-only ] || [ -n "$size" ] || [ ! -e "$here/queue" ] || sed -i 1d "$here/queue"
    exit 1
fi
"""


@pytest.fixture
def limited(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A SLURM that takes four jobs of a user's, on which one ends each time that a single one is refused."""
    slurm.program("sbatch", LIMITED + SBATCH)
    monkeypatch.setattr(waiting, "TRY_INTERVAL_S", 0.0)
    return slurm


def test_a_grid_of_six_goes_through_where_four_jobs_are_allowed(
    small: list[str], limited: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", *small, "experiment=null", "cluster=slurm", "-m", "seed=0,1,2,3,4,5"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runyard: sbatch refuses the job (AssocMaxSubmitJobLimit, ")
    assert "runyard submit --wait" in line
    assert not list((tmp_path / "runs").glob("[!.]*")), "the control: without --wait nothing is left"
    assert main([*words, "--wait", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 6
    runs = [Run.open(path.parent) for path in sorted((tmp_path / "runs").glob("[!.]*/run.json"))]
    assert [len(run.record["jobs"]) for run in runs] == [1] * 6
    assert len({run.record["jobs"][0]["id"] for run in runs}) == 6
    assert "waiting (0 min so far): sbatch refuses the job (AssocMax" in err
    assert "accepted after 0 min" in err


def test_a_wait_that_is_interrupted_keeps_the_jobs_that_were_taken_and_no_other_run(
    small: list[str], limited: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Waiting, "refused", interrupted)
    words = ["submit", *small, "experiment=null", "cluster=slurm", "-m", "seed=0,1,2,3,4,5", "--wait"]
    assert main(words) == 130
    runs = [Run.open(path.parent) for path in (tmp_path / "runs").glob("[!.]*/run.json")]
    assert [len(run.record["jobs"]) for run in runs] == [1] * 4


def test_another_refusal_is_not_waited_for(
    small: list[str], limited: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    limited.says("refusal", "sbatch: error: Invalid qos specification\n")
    assert main(["submit", *small, "experiment=null", "cluster=slurm", "--wait"]) == 2
    assert "Invalid qos specification" in capsys.readouterr().err


def test_here_is_no_queue_to_wait_for(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *small, "experiment=null", "--wait"]) == 2
    assert "--wait: " in capsys.readouterr().err


def test_the_wait_is_told_at_longer_and_longer_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr("runyard.cluster.launch.waiting.time.monotonic", lambda: now[0])
    monkeypatch.setattr("runyard.cluster.launch.waiting.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    tries = iter([SubmissionDelayed("no room")] * 40)

    def attempt() -> str:
        if (error := next(tries, None)) is not None:
            raise error
        return "job"

    assert Waiting(said.append).until_accepted(attempt) == "job"
    minutes = [line.split("(")[1].split()[0] for line in said[:-1]]
    assert minutes == ["0", "1", "2", "4", "8", "16"]
    assert said[-1] == "accepted after 20 min"


@pytest.mark.parametrize("room", [1, 3, 4, 100])
def test_parts_are_as_large_as_is_taken_and_each_is_taken_once(room: int) -> None:
    taken: list[int] = []

    def enqueue(part: slice) -> list[int]:
        if len(taken) + part.stop - part.start > room:
            raise JobLimitReached("full")
        taken.extend(range(part.start, part.stop))
        return list(range(part.start, part.stop))

    got: list[int] = []
    try:
        for job in in_parts(slice(0, 6), enqueue):
            got.append(job)
    except SubmissionDelayed:
        assert room < 6
    assert got == taken == list(range(min(room, 6)))


def test_a_search_waits_for_places_and_loses_no_trial(
    small: list[str], limited: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.cluster.search import sweep
    from runyard.cluster.search.space import split_search_space
    from runyard.cluster.search.study import SearchSettings, Study
    from runyard.runs.run import sweeps_dir

    monkeypatch.setattr(sweep, "SEARCH_POLL_S", 0.0)
    words = ["optim.lr=log(0.01,0.5)"]
    fixed = ["experiment=null", "cluster=slurm", *(word for word in small if not word.startswith("optim.lr="))]
    place = sweeps_dir(tmp_path / "runs") / "wide"
    place.mkdir(parents=True)
    settings = SearchSettings(fixed, words, 0, "random", False, "auto")
    made = Study(place, settings, split_search_space(words)[1], epochs=3)
    said: list[str] = []
    search: Any = sweep.Search(made, place, 6, False, said.append)
    search._start_trials([made.ask() for _ in range(6)])
    assert len(search._unsubmitted) == 2, "the control: four were taken"
    assert any(line.startswith("waiting (0 min so far): sbatch refuses the job (AssocMax") for line in said)
    for _ in range(10):
        search._poll_trials()
        if search._unsubmitted and search._waiting.is_due:
            search._submit()
    assert search._unsubmitted == []
    waited = made.trials[4:]  # the jobs of earlier ones have left the queue
    assert {trial.state for trial in waited} == {TrialState.RUNNING}, "none has failed for having waited"
    assert len([line for line in said if ": optim.lr=" in line]) == 6
    limited.says("refusal", "sbatch: error: Invalid qos specification\n")
    with pytest.raises(UserError, match="qos"):
        search._start_trials([made.ask()])


def test_a_job_that_is_still_leaving_the_queue_holds_its_place(slurm: FakeSlurm, tmp_path: Path) -> None:
    from runyard.cluster.search.sweep import Search

    search = Search.__new__(Search)
    slurm.says(
        "known", "7|COMPLETING|None|0:10|10:00|N/A|n1|x\x1f/\x1f/s\n8|COMPLETED|None|0:10|10:00|N/A|n1|x\x1f/\x1f/s\n"
    )
    assert search._still_queued({"7", "8", "9"}) == {"7"}
    assert search._still_queued(set()) == set()
