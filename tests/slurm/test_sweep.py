"""A search on the real cluster: its trials are arrays, and the next command adopts what a killed one left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from runyard.cluster.search.study import runs_by_trial
from runyard.runs.summary import RunSummary
from tests.support.settings import ROOT
from tests.support.slurm_runs import Runs

pytestmark = pytest.mark.slow
DRIVE_S = 200


def test_a_search_whose_command_was_killed_goes_on_with_its_array_and_runs_no_trial_twice(runs: Runs) -> None:
    settings = [o for o in runs.settings if not o.startswith(("cluster.nodes", "epochs", "optim.lr"))]
    command = [sys.executable, "-m", "runyard", "sweep", "--json", "--name", "search", "--trials", "3", "--parallel",
               "2", *settings, "cluster.nodes=1", "epochs=4", "optim.lr=log(0.01,0.2)"]  # fmt: skip
    own = runs.sandbox.environment | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True) as first:
        until_there(runs, 2)
        os.kill(first.pid, signal.SIGKILL)
    forgetful = runs_by_trial("search", runs.folder)[1]
    record = json.loads((forgetful / "run.json").read_text())
    (record["submission"],) = record["jobs"]  # as if it had been killed a moment before
    del record["submission"]["id"]
    record["jobs"] = []
    (forgetful / "run.json").write_text(json.dumps(record))
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=DRIVE_S)
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 3, trials
    paths = runs_by_trial("search", runs.folder)
    jobs = [[job["id"] for job in RunSummary(paths[n]).record["jobs"]] for n in range(3)]
    array = jobs[0][0].partition("_")[0]
    assert jobs[:2] == [[f"{array}_0"], [f"{array}_1"]], "one array, adopted and not submitted again"
    assert [len(RunSummary(paths[n]).starts) for n in range(3)] == [1, 1, 1]


def until_there(runs: Runs, count: int) -> None:
    """Until that many trials have a job in their records."""

    def there() -> bool:
        found = runs_by_trial("search", runs.folder)
        return len(found) == count and all(RunSummary(path).record["jobs"] for path in found.values())

    deadline = time.monotonic() + DRIVE_S
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)
