"""How busy GPUs and nodes were: what NVML and /proc say, null where they do not, and never a training that waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training.distributed.launcher import RankInfo
from runyard.training.metrics import system_metrics
from runyard.training.metrics.system_metrics import (
    RankMetrics,
    SystemMetrics,
    metrics_by_node,
    node_name,
)
from tests.support.settings import PATIENCE_S
from tests.support.trainings import train

ALONE = RankInfo(0, 1, 0, 1, "none", "test")
Open = Callable[..., SystemMetrics]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """``opened(ask, warnings)``: the measures of a rank with a GPU whose utilisation ``ask`` tells, begun."""
    made: list[SystemMetrics] = []

    def make(ask: Callable[[torch.device], int], warnings: list[str], *, all_nodes: bool = False) -> SystemMetrics:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000_000, 3_500_000_000))
        monkeypatch.setattr(torch.cuda, "utilization", ask)
        monkeypatch.setattr(system_metrics, "SAMPLE_EVERY_S", 0.001)
        made.append(SystemMetrics(ALONE, all_nodes=all_nodes, warn=warnings.append))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_gpus_utilisation_is_the_mean_of_the_samples_since_the_last_row(opened: Open) -> None:
    asked, answers = threading.Semaphore(0), queue.SimpleQueue[int]()

    def ask(device: torch.device) -> int:
        assert device == torch.device("cuda", 0)
        asked.release()
        return answers.get()

    def sample(*values: int) -> None:
        for value in values:
            answers.put(value)
            assert asked.acquire(timeout=PATIENCE_S), "the next is asked for once this one is in"

    measured = opened(ask, warnings := [])
    assert asked.acquire(timeout=PATIENCE_S)
    sample(90, 70)
    assert measured.read() == {"gpu_util_pct": 80.0}
    sample(20)
    assert measured.read() == {"gpu_util_pct": 20.0}
    assert measured.read() == {"gpu_util_pct": None}
    assert warnings == []
    measured.close()
    answers.put(0)


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("nvidia-ml-py does not seem to be installed"), RuntimeError("Not Supported\nat all")]
)
def test_a_gpu_that_cannot_say_is_null_and_one_warning(opened: Open, error: Exception) -> None:
    asked = []

    def ask(device: torch.device) -> int:
        asked.append(device)
        if len(asked) > 3:
            raise error
        return 50

    measured = opened(ask, warnings := [])
    wait_for(lambda: len(asked) > 3)
    wait_for(lambda: measured._sampler is not None and measured._sampler.problem is not None)
    assert [measured.read() for _ in range(3)] == [{"gpu_util_pct": None}] * 3, "a mean over a part of the time"
    assert warnings == [f"gpu_util_pct is not measured on every GPU ({node_name()}: {str(error).splitlines()[0]})"]
    assert len(asked) == 4


def test_nobody_waits_for_a_gpu_that_does_not_answer(opened: Open) -> None:
    hangs = threading.Event()
    measured = opened(lambda device: int(hangs.wait(PATIENCE_S)), warnings := [])
    assert measured.read() == {"gpu_util_pct": None}
    measured.close()
    assert not hangs.is_set(), "it hangs still"
    assert warnings == []
    hangs.set()


def test_without_a_gpu_nothing_is_asked_and_nothing_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    before, warnings = set(threading.enumerate()), list[str]()
    measured = SystemMetrics(ALONE, all_nodes=False, warn=warnings.append)
    measured.start()
    assert measured.read() == {"gpu_util_pct": None}
    assert set(threading.enumerate()) <= before
    assert warnings == []


def test_a_nodes_gpus_are_told_with_their_memory(opened: Open) -> None:
    measured = opened(lambda device: 40, [], all_nodes=True)
    wait_for(lambda: measured._sampler is not None and len(measured._sampler._samples) > 0)
    row = measured.read()
    (node,) = row["nodes"]
    assert (row["gpu_util_pct"], node["gpu_util_pct"], node["gpu_memory_mb"]) == (40.0, 40.0, 2500.0)
    assert node["node"] == node_name()


def test_nodes_hold_what_their_ranks_measured() -> None:
    reports = [
        RankMetrics("a", gpu_util_pct=90, gpu_memory_mb=1000, cpu_pct=30, memory_mb=5000),
        RankMetrics("a", gpu_util_pct=70, gpu_memory_mb=3000),
        RankMetrics("b", gpu_util_pct=None, gpu_memory_mb=500, cpu_pct=None, memory_mb=6000),
        RankMetrics("c", cpu_pct=10, memory_mb=7000),
    ]
    assert metrics_by_node(reports) == [
        {"node": "a", "cpu_pct": 30, "memory_mb": 5000, "gpu_util_pct": 80, "gpu_memory_mb": 4000},
        {"node": "b", "cpu_pct": None, "memory_mb": 6000, "gpu_util_pct": None, "gpu_memory_mb": 500},
        {"node": "c", "cpu_pct": 10, "memory_mb": 7000},
    ]


def test_a_node_has_slurms_name_and_no_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics.socket, "gethostname", lambda: "node7.cluster.edu")
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert node_name() == "node7"
    monkeypatch.setenv("SLURMD_NODENAME", "gpu3")
    assert node_name() == "gpu3"


@pytest.mark.slow
@pytest.mark.parametrize("asked", [False, True])
def test_a_run_measures_its_nodes_where_asked_for(make_run: Callable[..., Run], asked: bool) -> None:
    run = make_run(f"tracking.all_nodes={str(asked).lower()}", "epochs=2")
    train(run)
    rows = journal.epochs(journal.read_journal(run.journal_path)[0])
    assert [row["gpu_util_pct"] for row in rows] == [None, None]
    assert ["nodes" in row for row in rows] == [asked, asked]
    for row in rows if asked else ():
        (node,) = row["nodes"]  # two ranks, one node, told of once
        assert node["node"] == node_name()
        assert node["memory_mb"] > 0
        assert node["cpu_pct"] is None or 0 <= node["cpu_pct"] <= 100
