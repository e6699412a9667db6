"""Ranks agree on what to do, and count together exactly."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runyard.data.loading.batch import Batch
from runyard.data.sampler import evaluation_indices
from runyard.training.distributed.launcher import RankInfo
from runyard.training.distributed.process_group import Consensus, joined_process_group
from runyard.training.evaluation import SplitEvaluation
from runyard.training.metrics.counters import Counters
from runyard.training.metrics.system_metrics import SystemMetrics
from runyard.training.stop_signals import StopReason, TrainingStopped
from tests.support.ranks import RANKS, Together, as_rank_that_prepares, place

IMAGES, CLASSES = 100, 4


def test_a_world_of_one_joins_nothing_and_agrees_with_itself_a_step_later(tmp_path: Path) -> None:
    with joined_process_group(place(0, 1), tmp_path):
        assert not torch.distributed.is_initialized()
        vote = Consensus(place(0, 1))
        assert [vote.exchange([n, 0]) for n in (0, 3, 1)] == [[0, 0], [0, 0], [3, 0]]
        assert vote.agree_now([0, 2]) == [1, 2]
        assert vote.wait_pending() is None


def voting(rank_info: RankInfo) -> list[Any]:
    """Rank r raises flag 1 at step r, and flag 2 as high as its rank at step 0."""
    vote = Consensus(rank_info)
    answers = [vote.exchange([int(step == rank_info.rank), rank_info.rank * (step == 0)]) for step in range(5)]
    return [*answers, vote.agree_now([0, rank_info.rank])]


def logits_of(images: torch.Tensor) -> torch.Tensor:
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(12, CLASSES))).float()
    return images.reshape(len(images), 12).float() / 50 @ weights


def measuring(rank_info: RankInfo) -> Any:
    """Loss, top-1 and predictions over 100 images of which each rank sees its share, in small batches."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, size=(IMAGES, 2, 2, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, size=IMAGES))
    mine = torch.from_numpy(np.asarray(evaluation_indices(IMAGES, rank_info.rank, rank_info.world_size)))
    batches = [Batch(images[part], labels[part], part) for part in mine.split(7)]
    part = SplitEvaluation(IMAGES, rank_info.world_size, 7)
    assert len(list(part.evaluate_batches(logits_of, batches, 0.1))) == {1: 15, RANKS: 5}[rank_info.world_size], (
        "on each rank"
    )
    assert part.is_complete
    p = part.predictions()
    return p.loss, p.top1, p.confusion(CLASSES), p.index.tolist(), p.predicted.tolist(), p.confidence.tolist()


def counting(rank_info: RankInfo, *, restoring: int = 1) -> list[float | None]:
    """A count that is saved on its way by rank 0 and goes on from what was saved, there and on ``restoring`` in all."""
    counters = Counters(torch.device("cpu"))

    def step(loss: float, correct: int, norm: float) -> None:
        counters.add(torch.tensor(loss), torch.tensor(correct), 10)
        if rank_info.rank == 0:
            counters.add_norm(torch.tensor(norm))

    step(float(rank_info.rank + 1), rank_info.rank, 5.0)
    counters.gather()
    saved = [counters.state().clone()]
    torch.distributed.broadcast_object_list(saved)
    counters.reset()
    if rank_info.rank < restoring:
        counters.restore(saved[0])
    step(4.0, 2, 2.0)
    step(4.0, 2, 2.0)
    return list(counters.mean())


def counting_everywhere(rank_info: RankInfo) -> list[float | None]:
    return counting(rank_info, restoring=RANKS)


def using(rank_info: RankInfo) -> Any:
    """Two nodes, of which the first has all ranks but the last."""
    last = rank_info.rank == RANKS - 1
    os.environ["SLURMD_NODENAME"] = "node2" if last else "node1"
    usage = SystemMetrics(
        dataclasses.replace(rank_info, local_rank=0 if last else rank_info.rank), all_nodes=True, warn=pytest.fail
    )
    usage.start()
    return usage.read()


@pytest.mark.slow
def test_every_rank_reads_the_highest_flag_of_any_one_step_later(together: Together) -> None:
    wanted = [[0, 0], [1, RANKS - 1], [1, 0], [1, 0], [0, 0], [0, RANKS - 1]]
    assert together(voting, RANKS) == [wanted] * RANKS


@pytest.mark.slow
def test_three_ranks_measure_what_one_does_with_each_image_once(together: Together) -> None:
    loss, top1, confusion, index, predicted, confidence = measuring(place(0, 1))
    ranks = together(measuring, RANKS)
    assert [r[0] for r in ranks] == pytest.approx([loss] * RANKS, rel=1e-6)  # a batch is summed in float32
    assert [r[1] for r in ranks] == [top1] * RANKS
    assert ranks[0][2:5] == (confusion, index, predicted)
    assert ranks[0][5] == pytest.approx(confidence, rel=1e-6)
    assert index == list(range(IMAGES))
    assert np.sum(confusion) == IMAGES
    assert 0 < np.trace(confusion) < IMAGES


@pytest.mark.slow
def test_counters_saved_by_rank_0_count_each_image_once(together: Together) -> None:
    loss, top1, grad_norm = (1 + 2 + 3 + 6 * 4) / 90, (0 + 1 + 2 + 6 * 2) / 90, (5 + 2 + 2) / 3
    assert together(counting, RANKS) == [pytest.approx([loss, top1, grad_norm])] * RANKS


@pytest.mark.slow
def test_counters_restored_on_every_rank_would_count_what_was_saved_again(together: Together) -> None:
    for loss, _, grad_norm in together(counting_everywhere, RANKS):
        assert loss == pytest.approx((3 * (1 + 2 + 3) + 6 * 4) / 150)
        assert grad_norm == pytest.approx((3 * 5 + 2 + 2) / 5)


@pytest.mark.slow
def test_rank_0_hears_of_every_node_once(together: Together) -> None:
    first, *others = together(using, RANKS)
    assert [node["node"] for node in first["nodes"]] == ["node1", "node2"]
    assert all(node["memory_mb"] > 0 for node in first["nodes"])
    assert others == [{"gpu_util_pct": None, "nodes": []}] * (RANKS - 1)


def stopping_before_it_begins(rank_info: RankInfo) -> None:
    """Rank 0 alone is asked to stop while the others get ready."""
    if rank_info.rank == 0:
        raise TrainingStopped(StopReason.TERM)


@pytest.mark.slow
def test_one_ranks_stop_before_training_is_every_ranks(together: Together) -> None:
    assert (
        together(stopping_before_it_begins, RANKS, as_rank_that_prepares)
        == [("TrainingStopped", "asked to stop (TERM)")] * RANKS
    )
