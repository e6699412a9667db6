"""SLURM says when a submission would start, and in which other sizes it would start sooner, before any is made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.cluster.slurm.estimate import parse_estimate
from tests.support.fake_slurm import SBATCH as TAKES_ALL
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import SMALL

AT = "2031-01-02T03:04:05"
# A short job and one of two nodes start later; more than two nodes it does not take.
SBATCH = """
case $1 in --version) echo slurm 22.05.8; exit ;; --test-only) ;; *) exit 1 ;; esac
script=$(cat)
case $script in
*--nodes=4*) echo "allocation failure: Node count specification invalid" >&2; exit 1 ;;
*--nodes=2*) at=2031-01-03T00:00:00 ;;
*) at=2031-01-02T03:04:05 ;;
esac
echo "sbatch: Job 12 to start at $at using 4 processors on nodes node[1-2] in partition main" >&2
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "slurm")
    slurm.program("sbatch", SBATCH)
    monkeypatch.setenv("PATH", f"{slurm.bin}:{os.environ['PATH']}")
    return slurm


@pytest.mark.parametrize(
    ("said", "nodes", "partition"),
    [
        (f"sbatch: Job 12 to start at {AT} using 8 processors on nodes n[1-2] in partition gpu", ("n1", "n2"), "gpu"),
        (f"sbatch: Job 12 to start at {AT} using 8 processors on n3 in partition gpu", ("n3",), "gpu"),
        (f"a banner\nsbatch: Job 12 to start at {AT} using 8 processors on n3\n", ("n3",), ""),
    ],
)
def test_the_answers_of_slurms_of_all_ages_are_read(said: str, nodes: tuple[str, ...], partition: str) -> None:
    estimate = parse_estimate(said)
    assert estimate is not None
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(estimate.start)) == AT
    assert (estimate.nodes, estimate.partition) == (nodes, partition)


@pytest.mark.parametrize("said", ["", "sbatch: a banner", "sbatch: Job 12 to start at Unknown using 8 processors"])
def test_an_answer_without_a_time_is_none(said: str) -> None:
    assert parse_estimate(said) is None


def test_the_submission_and_its_alternatives_are_asked_about_and_none_is_made(
    site: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "--ask", *SMALL, "cluster=slurm", "cluster.gpus_per_node=2", "cluster.constraint='h200|l40s'",
             "cluster.partition=main", "batch_size=32", f"runs_dir={tmp_path / 'runs'}"]  # fmt: skip
    assert main([*words, "--json"]) == 0
    rows = {row["change"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["", "cluster.nodes=2", "cluster.nodes=4", "cluster.timeout_min=30", "cluster.timeout_min=15",
                          "cluster.partition=short", "cluster.constraint=h200", "cluster.constraint=l40s"]  # fmt: skip
    assert rows["cluster.nodes=2"]["start"] > rows[""]["start"] > time.time()
    assert (rows[""]["gpu_hours"], rows["cluster.nodes=2"]["gpu_hours"]) == (2, 4)
    assert rows["cluster.timeout_min=30"]["gpu_hours"] == 1
    assert rows["cluster.nodes=4"]["start"] is None
    assert "Node count specification invalid" in rows["cluster.nodes=4"]["problem"]
    assert rows[""]["on"] == ["node1", "node2"]
    assert not (tmp_path / "runs").exists()
    assert set(site.calls("sbatch")) <= {"sbatch --test-only", "sbatch --version"}
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "as asked 1 60 min 2 at 2031-01-02 03:04" in said
    assert said.endswith("nothing was submitted (--ask)")


def test_a_size_whose_batch_does_not_divide_is_left_out(
    site: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cluster=slurm", "cluster.tasks_per_node=3", "batch_size=6", f"runs_dir={tmp_path / 'runs'}"]
    assert main(["submit", "--ask", "--json", *SMALL, *words]) == 0
    changes = [row["change"] for row in json.loads(capsys.readouterr().out)]
    assert "cluster.nodes=2" in changes
    assert "cluster.nodes=4" not in changes


@pytest.mark.parametrize(
    ("words", "told"), [(["cluster=local"], "has no queue"), (["cluster=slurm", "-m", "seed=0,1"], "leave out -m")]
)
def test_what_has_no_queue_is_said(
    site: FakeSlurm, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["submit", "--ask", *SMALL, *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("told", [True, False])
def test_submit_says_when_slurm_expects_to_start_the_job(
    slurm: FakeSlurm, small: list[str], capsys: pytest.CaptureFixture[str], told: bool
) -> None:
    if told:
        answer = f'--test-only) echo "sbatch: Job 12 to start at {AT} using 4 processors on node1" >&2; exit ;;'
        slurm.program("sbatch", TAKES_ALL.replace("--test-only) exit ;;", answer))
    assert main(["submit", *small, "cluster=slurm"]) == 0
    said = capsys.readouterr().out
    assert (f"expected start:   at {AT[:10]} 03:04 (in " in said) == told
    assert len(slurm.submissions) == 1
