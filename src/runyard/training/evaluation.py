"""The exact evaluation of splits over all ranks. It can be saved half-way, and goes on from there to the same bits.

A row per sample is kept and not a sum, and the rows are summed once, in data order, when all are there: so neither an
interruption nor the order in which ranks answer changes a bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from runyard.data.loading.batch import Batch
from runyard.training.metrics.counters import EvaluationResult

COLUMNS = {"index": torch.int64, "label": torch.int64, "predicted": torch.int64, "confidence": torch.float32,
           "loss": torch.float32}  # fmt: skip
Rows = list[tuple[Tensor, ...]]  # the columns of some samples


class SplitEvaluation:
    """One split's evaluation as far as it has come.

    Attributes:
        batches: Done, on every rank; one that has fewer images than another has nothing to do in the last.
    """

    def __init__(self, samples: int, world_size: int, batch_size: int) -> None:
        self.batches = 0
        self._total_batches = math.ceil(math.ceil(samples / world_size) / batch_size)
        self._pending_rows: Rows = []  # this rank's, on the device, since the ranks' rows were last brought together
        self._gathered: Rows = []  # all ranks', on rank 0

    @property
    def is_complete(self) -> bool:
        return self.batches == self._total_batches

    @torch.no_grad()
    def evaluate_batches(
        self, logits_of: Callable[[Tensor], Tensor], batches: Iterable[Batch], label_smoothing: float
    ) -> Iterator[None]:
        """Evaluate this rank's ``batches``, those from ``self.batches`` on; yields after each, on all ranks as often.

        ``logits_of`` maps uint8 images [b, S, S, 3] to logits [b, classes]. The loss is smoothed as in training, so
        that the two curves of figure 1 compare (the paper's do: its test loss lies above the smoothed floor).
        """
        for batch, _ in itertools.zip_longest(batches, range(self.batches, self._total_batches)):
            if batch is not None:
                logits = logits_of(batch.images).float()
                confidence, predicted = logits.softmax(1).max(1)
                loss = torch.nn.functional.cross_entropy(
                    logits, batch.labels, reduction="none", label_smoothing=label_smoothing
                )
                self._pending_rows.append((batch.indices, batch.labels, predicted, confidence, loss))
            self.batches += 1
            yield

    def gather(self) -> None:
        """Bring all ranks' rows together on rank 0. A collective call, and a host sync."""
        mine = (
            [tuple(torch.cat(column).cpu() for column in zip(*self._pending_rows, strict=True))]
            if self._pending_rows
            else []
        )
        self._pending_rows = []
        if not dist.is_initialized():
            self._gathered += mine
            return
        gathered: list[Rows] | None = [[] for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
        dist.gather_object(mine, gathered)
        self._gathered += itertools.chain.from_iterable(gathered or [])

    def predictions(self) -> EvaluationResult:
        """Mean cross entropy, top-1 and predictions over all ranks' samples, each once. A collective call."""
        self.gather()
        columns = self._columns()
        order = np.argsort(columns["index"].numpy(), kind="stable")
        index, label, predicted, confidence, loss = (column.numpy()[order] for column in columns.values())
        samples = max(len(loss), 1)
        measured = [math.fsum(loss.tolist()) / samples, int((predicted == label).sum()) / samples]
        if dist.is_initialized():  # which of them is best decides on all ranks what is saved
            dist.broadcast_object_list(measured)
        return EvaluationResult(measured[0], measured[1], index, label, predicted, confidence)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, once gathered: rank 0's is whole."""
        return {"batches": self.batches, **self._columns()}

    def restore(self, state: dict[str, Any]) -> None:
        self.batches = int(state["batches"])
        for name, dtype in COLUMNS.items():
            if state[name].ndim != 1 or state[name].dtype != dtype:
                raise ValueError(f"{name}: expected a column of {dtype}")
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._gathered = [tuple(state[name] for name in COLUMNS)]

    def _columns(self) -> dict[str, Tensor]:
        none = [tuple(torch.empty(0, dtype=dtype) for dtype in COLUMNS.values())]
        return dict(zip(COLUMNS, map(torch.cat, zip(*(self._gathered or none), strict=True)), strict=True))


class Evaluation:
    """What is under way between the last step of an epoch and its row in the journal.

    Attributes:
        trained: What is known of the epoch's steps by then and the journal is to say; empty while it has steps to go.
        seconds: That it took so far, over all starts.
    """

    def __init__(self, world_size: int, batch_size: int) -> None:
        self._partition = {"world_size": world_size, "batch_size": batch_size}
        self.clear()

    def clear(self) -> None:
        self.epoch_stats: dict[str, Any] = {}
        self.elapsed_s = 0.0
        self._parts: dict[str, SplitEvaluation] = {}

    def part(self, split: str, samples: int) -> SplitEvaluation:
        """The evaluation of ``split``, begun or to begin."""
        if split not in self._parts:
            self._parts[split] = SplitEvaluation(samples, **self._partition)
        return self._parts[split]

    def gather(self) -> None:
        """A collective call: rank 0's state then holds what all ranks have found."""
        for part in self._parts.values():
            part.gather()

    def state(self) -> dict[str, Any] | None:
        """None where nothing is under way."""
        if not self.epoch_stats and not self._parts:
            return None
        parts = {split: part.state() for split, part in self._parts.items()}
        images = sum(len(part["index"]) for part in parts.values())
        return {
            "images": images,
            "cut": self._partition,
            "trained": self.epoch_stats,
            "seconds": self.elapsed_s,
            "parts": parts,
        }

    def restore(self, state: dict[str, Any] | None, samples: dict[str, int]) -> None:
        """Go on from ``state``; cut among other ranks, or into other batches, the evaluation begins anew."""
        self.clear()
        if state is None:
            return
        self.epoch_stats = state["trained"]
        if state["cut"] == self._partition:
            self.elapsed_s = state["seconds"]
            for split, part in state["parts"].items():
                self.part(split, samples[split]).restore(part)
