"""Computes the report's tables: accuracy per class, and the paper's results beside the run's."""

from __future__ import annotations

import numpy as np

from runyard.runs.results.facts import ReportData
from runyard.runs.results.metrics import METRICS_BY_NAME

MANY_CLASSES = 20

# Results in the paper: at epochs 1 and 50, and correct images of 1,000 per class, by CIFAR-10 label.
PAPER_CURVES = (("train_loss", 1.8417, 0.5475), ("test_loss", 1.756, 0.5314), ("test_top1", 0.4333, 0.9109))
PAPER_BEST = 0.9268
PAPER_CLASSES = ((0, "plane", 869), (8, "ship", 960), (3, "cat", 845), (6, "frog", 941))


def class_rows(report_data: ReportData) -> list[tuple[str, int, int, float]] | None:
    """Return each class's name, correct images, images, and accuracy (0 to 1); of many classes the worst first.

    None before the final evaluation.
    """
    if report_data.confusion is None:
        return None
    counts = report_data.confusion.sum(axis=1)
    right = np.diag(report_data.confusion)
    accuracy = right / np.maximum(counts, 1)
    order = np.argsort(accuracy, kind="stable") if len(counts) > MANY_CLASSES else np.arange(len(counts))
    return [(report_data.classes[n], int(right[n]), int(counts[n]), float(accuracy[n])) for n in order.tolist()]


def paper_rows(report_data: ReportData) -> list[tuple[str, str, float, float | None]]:
    """Return what is compared, its format ("" for a percentage), the paper's value and this run's, None if unknown.

    Empty for data sets other than CIFAR-10.
    """
    if report_data.run.config.data.kind != "cifar10":
        return []
    rows: list[tuple[str, str, float, float | None]] = []
    last = report_data.epochs[-1]["epoch"] if report_data.epochs else 0
    for key, paper_first, paper_last in PAPER_CURVES:
        metric = METRICS_BY_NAME[key]
        run_values = dict(zip(*report_data.series(key), strict=True))
        form = "" if metric.unit == "%" else "{:.4f}"
        rows.append((f"{metric.title}, epoch 1", form, paper_first, run_values.get(1)))
        rows.append((f"{metric.title}, last epoch", form, paper_last, run_values.get(last)))
    best = max(report_data.series("test_top1")[1], default=None)
    rows.append(("Test accuracy, best epoch", "", PAPER_BEST, best))
    for label, name, paper_value in PAPER_CLASSES:
        known = report_data.confusion is not None and len(report_data.confusion) == 10
        right = int(report_data.confusion[label, label]) if known and report_data.confusion is not None else None
        rows.append((f"Right of 1,000: {name}", "{}", paper_value, right))
    return rows
