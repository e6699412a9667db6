"""Every metric that is measured each epoch: its names, its title and unit, and which direction is better.

The journal's ``epoch`` row has these names. The columns of a comparison, the charts of its page, the titles of the
report and the names at W&B, TensorBoard and MLflow are derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric of an ``epoch`` row.

    Attributes:
        name: In the journal, and in ``compare --sort`` and ``--where``.
        title: On charts.
        unit: Of a charted value: ``%`` of a fraction has ``factor`` 100. Losses, in nats, have none.
        wandb: The name at W&B, TensorBoard and MLflow; "" if it is no curve there. A slash makes a section of W&B's
            workspace. Of a rank or a node, the name below ``rank/3/`` or ``node/NAME/``.
        better: Whether a higher or a lower value is better, if one is.
        over_epochs: How a run's epochs make one number for ``compare``; time_mean is the mean over training time. None:
            they make none.
        of: What has a value of its own: the run, or each of its ranks (a list) or nodes (an entry of ``nodes``).
        charted: Whether the page has a chart of it.
    """

    name: str
    title: str
    unit: str = ""
    wandb: str = ""
    better: Literal["higher", "lower", ""] = ""
    over_epochs: Literal["last", "median", "time_mean"] | None = "last"
    factor: int = 1
    of: Literal["run", "rank", "node"] = "run"
    charted: bool = True

    @property
    def label(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def axis_title(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = (  # in the order of the page's charts
    Metric("test_top1", "Test accuracy", "%", "test/top1", "higher", None, 100),  # compare has last and best
    Metric("test_loss", "Test loss", "", "test/loss", "lower"),
    Metric("train_loss", "Train loss", "", "train/loss", "lower"),
    Metric("val_top1", "Validation accuracy", "%", "val/top1", "higher", "last", 100),
    Metric("val_loss", "Validation loss", "", "val/loss", "lower"),
    Metric("train_top1", "Train accuracy", "%", "train/top1", "higher", "last", 100),
    Metric("lr", "Learning rate", "", "train/lr", over_epochs=None),
    Metric("grad_norm", "Gradient norm", "", "train/grad_norm"),
    Metric("images_per_s", "Training images/s", "", "speed/images_per_s", "higher", "median"),
    Metric("data_wait_pct", "Waiting for data", "%", "speed/data_wait_pct", "lower", "time_mean"),
    Metric("gpu_util_pct", "GPU utilization", "%", "speed/gpu_util_pct", "higher"),
    Metric("peak_memory_mb", "Peak memory", "MB", "speed/peak_memory_mb", "lower"),
    Metric("slowest_rank", "Slowest rank", "", "speed/slowest_rank", over_epochs=None),
    Metric("slowest_to_median", "Time of the slowest rank, in medians", "", "speed/slowest_to_median", "lower"),
    Metric("train_s", "Training time of the epoch", "s", "speed/train_s", "lower", charted=False),
    Metric("eval_s", "Evaluation time of the epoch", "s", "speed/eval_s", "lower", charted=False),
    Metric("clock_s", "Training time", "s", "", "lower", charted=False),  # the clock stands still between restarts
    Metric("gpu_hours", "GPU-hours", "h", "cost/gpu_hours", "lower", charted=False),  # computed from the starts
    Metric("core_hours", "Core-hours", "h", "cost/core_hours", "lower", charted=False),
    Metric("rank_step_ms", "A rank's own work in a step", "ms", "step_ms", "lower", of="rank"),
    Metric("rank_data_ms", "A rank's wait for data in a step", "ms", "data_ms", "lower", of="rank"),
    Metric("cpu_pct", "CPU utilization of a node", "%", "cpu_pct", of="node"),
    Metric("memory_mb", "Memory used on a node", "MB", "memory_mb", of="node"),
    Metric("gpu_util_pct", "GPU utilization of a node", "%", "gpu_util_pct", of="node"),
    Metric("gpu_memory_mb", "GPU memory used on a node", "MB", "gpu_memory_mb", of="node"),
)
METRICS_BY_NAME = {metric.name: metric for metric in METRICS if metric.of == "run"}
