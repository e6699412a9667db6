"""Before the first step each rank checks its node; the one that is unfit is named, with its node, on all ranks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runyard.data import manifest
from runyard.errors import UserError
from runyard.known_causes import BY_NAME, RetryAdvice
from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training.distributed import health_check
from runyard.training.distributed.health_check import HealthError
from runyard.training.distributed.launcher import RankInfo
from tests.support.trainings import Ranks, train

CPU = torch.device("cpu")


def test_a_single_wrong_element_of_a_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    health_check._check_matmul(CPU)
    right = torch.Tensor.cpu

    def wrong(found: torch.Tensor) -> torch.Tensor:
        altered = right(found).clone()
        altered[-1, 17, 5] += 1
        return altered

    monkeypatch.setattr(torch.Tensor, "cpu", wrong)
    with pytest.raises(HealthError, match="1 of 4 matrix products on cpu are wrong"):
        health_check._check_matmul(CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_exact_in_every_precision(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(1)
    a, b = (
        torch.randint(-1, 2, (2, health_check.MATRIX_SIDE, health_check.MATRIX_SIDE), generator=drawn) for _ in range(2)
    )
    assert torch.equal((a.to(dtype) @ b.to(dtype)).long(), a @ b)
    worst = torch.ones(health_check.MATRIX_SIDE, health_check.MATRIX_SIDE)
    assert torch.equal((worst.to(dtype) @ worst.to(dtype)).float(), worst @ worst), "the largest sum there can be"


def test_a_wrong_sum_over_the_ranks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_info = RankInfo(0, 2, 0, 2, "none", "job")
    for extra, found in ((2.0, False), (2.5, True)):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda numbers, extra=extra: numbers.add_(extra))
        if found:
            with pytest.raises(HealthError, match="65536 of 65536 sums over all ranks are wrong"):
                health_check._check_all_reduce(rank_info)
        else:
            health_check._check_all_reduce(rank_info)


def test_a_full_node_and_a_full_disk_are_told_apart(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rank_info = make_run("epochs=1"), RankInfo(0, 1, 0, 1, "none", "job")
    folder = manifest.dataset_dir(run.config.data)
    data = manifest.load_manifest(folder)
    health_check.check_node(run, rank_info, data, folder, 1000)
    with monkeypatch.context() as little:
        little.setitem(health_check.MIN_FREE_BYTES, "cpu", 1 << 60)
        with pytest.raises(HealthError, match="of the memory of the node are free"):
            health_check.check_node(run, rank_info, data, folder, 1000)
    with pytest.raises(UserError, match="but a checkpoint needs about"):
        health_check.check_node(run, rank_info, data, folder, 1 << 50)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 30_000))  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=r"0\.03 MB are free, but a checkpoint needs about 0\.1. MB"):
            health_check.check_node(run, rank_info, data, folder, 6_500)
    with pytest.raises(OSError, match="No such file"):
        health_check.check_node(run, rank_info, data, Path("/nowhere"), 1000)


UNFIT = """
import os, sys
from runyard.training.distributed import health_check as health
if os.environ["SUBMITIT_LOCAL_GLOBALID"] == "1":
    def found(device): raise health.HealthError("3 of 4 matrix products on cpu are wrong (float32)")
    health._check_matmul = found
from runyard.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.slow
def test_an_unfit_rank_is_named_with_its_node_before_the_first_step(make_run: Callable[..., Run]) -> None:
    run = make_run("epochs=1")
    ranks = Ranks(run, 2, "first", {"SLURMD_NODENAME": "node7"}, [sys.executable, "-c", UNFIT, str(run.path)])
    assert ranks.wait(600) == [1, 1], ranks.errors
    (stop,) = journal.read_journal(run.journal_path)[0]
    assert stop["message"] == "rank 1: 3 of 4 matrix products on cpu are wrong (float32)"
    known = {"rank": 1, "node": "node7", "exception": "HealthError", "cause": "failed health check", "retry": True}
    assert known.items() <= stop.items()
    assert BY_NAME[stop["cause"]].retry is RetryAdvice.ELSEWHERE
    train(run, job="second")
    assert run.is_finished, "the control: on a node that is fit it trains"
