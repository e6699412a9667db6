"""The exact evaluation of splits over all ranks. It can be saved half-way and resumed, with bit-identical results.

It keeps a row per sample and not a running sum, and sums the rows once, in data order, when all are there: so neither
an interruption nor the order in which ranks answer changes a bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from runyard.data.loading.batch import Batch
from runyard.runs.saved_checkpoints import State
from runyard.training.metrics.counters import EvaluationResult

COLUMNS = {"index": torch.int64, "label": torch.int64, "predicted": torch.int64, "confidence": torch.float32,
           "loss": torch.float32}  # fmt: skip
Rows = list[tuple[Tensor, ...]]  # tuples of columns, each tuple for some of the samples


class SplitEvaluation:
    """The evaluation of one split, possibly unfinished.

    Attributes:
        batches: The number of batches done, equal on all ranks; a rank with fewer images may have none in the last.
    """

    def __init__(self, samples: int, world_size: int, batch_size: int) -> None:
        self.batches = 0
        self._total_batches = math.ceil(math.ceil(samples / world_size) / batch_size)
        self._pending_rows: Rows = []  # this rank's rows on the device, since the last gather
        self._gathered: Rows = []  # all ranks' rows, on rank 0

    @property
    def is_complete(self) -> bool:
        return self.batches == self._total_batches

    @torch.no_grad()
    def evaluate_batches(
        self, logits_of: Callable[[Tensor], Tensor], batches: Iterable[Batch], label_smoothing: float
    ) -> Iterator[None]:
        """Evaluate this rank's ``batches`` from ``self.batches`` on. Yields after each, equally often on all ranks.

        ``logits_of`` maps uint8 images [b, S, S, 3] to logits [b, classes]. The loss uses the label smoothing of
        training, so that the two curves of figure 1 are comparable (as in the paper: its test loss lies above the
        smoothed floor).
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
        """Gather all ranks' rows on rank 0. A collective call, and a host sync."""
        own_rows = (
            [tuple(torch.cat(column).cpu() for column in zip(*self._pending_rows, strict=True))]
            if self._pending_rows
            else []
        )
        self._pending_rows = []
        if not dist.is_initialized():
            self._gathered += own_rows
            return
        gathered: list[Rows] | None = [[] for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
        dist.gather_object(own_rows, gathered)
        self._gathered += itertools.chain.from_iterable(gathered or [])

    def predictions(self) -> EvaluationResult:
        """Return mean cross entropy, top-1 and predictions over all ranks' samples, each once. A collective call."""
        self.gather()
        columns = self._columns()
        order = np.argsort(columns["index"].numpy(), kind="stable")
        index, label, predicted, confidence, loss = (column.numpy()[order] for column in columns.values())
        samples = max(len(loss), 1)
        loss_and_top1 = [math.fsum(loss.tolist()) / samples, int((predicted == label).sum()) / samples]
        if dist.is_initialized():  # all ranks need them: the best epoch decides what is saved
            dist.broadcast_object_list(loss_and_top1)
        return EvaluationResult(loss_and_top1[0], loss_and_top1[1], index, label, predicted, confidence)

    def state(self) -> State:
        """Return what a checkpoint stores, after a gather; complete on rank 0."""
        return {"batches": self.batches, **self._columns()}

    def restore(self, state: State) -> None:
        self.batches = int(state["batches"])
        for name, dtype in COLUMNS.items():
            if state[name].ndim != 1 or state[name].dtype != dtype:
                raise ValueError(f"{name}: expected a column of {dtype}")
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._gathered = [tuple(state[name] for name in COLUMNS)]

    def _columns(self) -> dict[str, Tensor]:
        no_rows = [tuple(torch.empty(0, dtype=dtype) for dtype in COLUMNS.values())]
        return dict(zip(COLUMNS, map(torch.cat, zip(*(self._gathered or no_rows), strict=True)), strict=True))


class Evaluation:
    """The evaluations between the last step of an epoch and its row in the journal.

    Attributes:
        epoch_stats: The throughput of the epoch's steps, for its journal row; empty while steps remain.
        elapsed_s: The time that the evaluation took so far, over all starts, s.
    """

    def __init__(self, world_size: int, batch_size: int) -> None:
        self._partition = {"world_size": world_size, "batch_size": batch_size}
        self.clear()

    def clear(self) -> None:
        self.epoch_stats: dict[str, float] = {}
        self.elapsed_s = 0.0
        self._parts: dict[str, SplitEvaluation] = {}

    def part(self, split: str, samples: int) -> SplitEvaluation:
        """Return the evaluation of ``split``; create it if it has not begun."""
        if split not in self._parts:
            self._parts[split] = SplitEvaluation(samples, **self._partition)
        return self._parts[split]

    def gather(self) -> None:
        """Gather all ranks' rows, so that rank 0's state is complete. A collective call."""
        for evaluation in self._parts.values():
            evaluation.gather()

    def state(self) -> State | None:
        """Return what a checkpoint stores, or None if no evaluation has begun."""
        if not self.epoch_stats and not self._parts:
            return None
        parts = {split: evaluation.state() for split, evaluation in self._parts.items()}
        images = sum(len(split_state["index"]) for split_state in parts.values())
        return {
            "images": images,
            "cut": self._partition,
            "trained": self.epoch_stats,
            "seconds": self.elapsed_s,
            "parts": parts,
        }

    def restore(self, state: State | None, samples: dict[str, int]) -> None:
        """Resume from ``state``. With another world size or batch size the evaluation starts again."""
        self.clear()
        if state is None:
            return
        self.epoch_stats = state["trained"]
        if state["cut"] == self._partition:
            self.elapsed_s = state["seconds"]
            for split, split_state in state["parts"].items():
                self.part(split, samples[split]).restore(split_state)
