"""The report's tables: accuracy per class, the most confused pairs, and the paper's results beside the run's."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from runyard.analysis.report.samples import ConfusedPair, confused_pairs
from runyard.runs.facts import ReportData

MANY_CLASSES = 20

# Results in the paper: at epochs 1 and 50, and correct images of 1,000 per class, by CIFAR-10 label.
PAPER_CURVES = (
    ("Train loss", "train_loss", 1.8417, 0.5475),
    ("Test loss", "test_loss", 1.756, 0.5314),
    ("Test accuracy", "test_top1", 0.4333, 0.9109),
)
PAPER_BEST = 0.9268
PAPER_CLASSES = ((0, "plane", 869), (8, "ship", 960), (3, "cat", 845), (6, "frog", 941))


def data_element(value: float | None, text: str) -> str:
    """Return a number as HTML, rounded for readers with its full value as an attribute; a dash for None."""
    return "—" if value is None else f'<data value="{value!r}">{text.format(value)}</data>'


def percent_element(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction of 1 as a percentage, as HTML."""
    return "—" if fraction is None else f'<data value="{fraction!r}">{100 * fraction:.{digits}f} %</data>'


def loss_element(nats: float | None) -> str:
    return data_element(nats, "{:.4f}")


def image(png: bytes, **attributes: str) -> str:
    """Return an inlined PNG as HTML."""
    attribute_text = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f'<img src="{data_uri(png)}"{attribute_text}>'


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def per_class_section(report_data: ReportData) -> str:
    """Return the table of each class's accuracy, with bars."""
    if report_data.confusion is None:
        return section("Accuracy per class", note("Known after the final evaluation, which this run has not made."))
    counts = report_data.confusion.sum(axis=1)
    right = np.diag(report_data.confusion)
    accuracy = right / np.maximum(counts, 1)
    many = len(counts) > MANY_CLASSES
    order = np.argsort(accuracy, kind="stable") if many else np.arange(len(counts))
    rows = "".join(
        f'<tr><th scope="row">{escape(report_data.classes[label])}</th>'
        f'<td class="bar"><span><i style="width:{100 * accuracy[label]:.2f}%"></i></span></td>'
        f'<td class="n">{percent_element(float(accuracy[label]), 1)}</td>'
        f'<td class="n">{right[label]} / {counts[label]}</td></tr>'
        for label in order
    )
    table = (
        '<table><thead><tr><th>Class</th><th class="bar"></th><th class="n">Accuracy</th><th class="n">Right</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )
    description = "Of the test images of a class, how many the network gave that class" + (
        "; worst first." if many else "."
    )
    return section("Accuracy per class", note(description) + (f'<div class="long">{table}</div>' if many else table))


def confused_pairs_section(report_data: ReportData) -> str:
    """Return the most confused pairs of classes, with mistaken images."""
    title = "Most confused"
    if report_data.confusion is None:
        return section(title, note("Known after the final evaluation, which this run has not made."))
    pairs, missing = confused_pairs(report_data)
    if not pairs:
        return section(title, note("The network made no mistake on the test set."))
    description = (
        f"Test images are not shown: {escape(missing)}."
        if missing
        else "True class → what it was taken for; of the mistaken test images, those the network was surest of."
    )
    return section(
        title, note(description) + f'<div class="pairs">{"".join(_pair(pair, report_data) for pair in pairs)}</div>'
    )


def _pair(pair: ConfusedPair, report_data: ReportData) -> str:
    true, predicted = report_data.classes[pair.true], report_data.classes[pair.predicted]
    assert report_data.confusion is not None
    total = int(report_data.confusion[pair.true].sum())
    faces = "".join(
        image(
            s.png,
            alt=f"test image {s.index}: {true} taken for {predicted}",
            title=f"test image {s.index}, confidence {100 * s.confidence:.0f} %",
        )
        for s in pair.samples
    )
    return (
        f"<div><h3>{escape(true)} → <b>{escape(predicted)}</b></h3>"
        f'<div class="note">{data_element(pair.count, "{}")} of {total} ({100 * pair.count / total:.1f} %)</div>'
        + (f'<div class="faces">{faces}</div>' if faces else "")
        + "</div>"
    )


def paper_section(report_data: ReportData) -> str:
    """Return the paper's results beside this run's; empty for data sets other than CIFAR-10."""
    if report_data.run.config.data.kind != "cifar10":
        return ""
    rows = []
    last = report_data.epochs[-1]["epoch"] if report_data.epochs else 0
    for name, key, paper_first, paper_last in PAPER_CURVES:
        format_value = percent_element if key == "test_top1" else loss_element
        run_values = dict(zip(*report_data.series(key), strict=True))
        rows.append((f"{name}, epoch 1", format_value(paper_first), format_value(run_values.get(1))))
        rows.append((f"{name}, last epoch", format_value(paper_last), format_value(run_values.get(last))))
    best = max(report_data.series("test_top1")[1], default=None)
    rows.append(("Test accuracy, best epoch", percent_element(PAPER_BEST), percent_element(best)))
    for label, name, paper_value in PAPER_CLASSES:
        known = report_data.confusion is not None and len(report_data.confusion) == 10
        right = int(report_data.confusion[label, label]) if known and report_data.confusion is not None else None
        rows.append((f"Right of 1,000: {name}", data_element(paper_value, "{}"), data_element(right, "{}")))
    body = "".join(
        f'<tr><th scope="row">{name}</th><td class="n">{paper_value}</td><td class="n">{run_value}</td></tr>'
        for name, paper_value, run_value in rows
    )
    smoothing = report_data.run.config.loss.label_smoothing
    description = (
        f"The paper's results are after 50 epochs, this run's after {last}. "
        f"Losses are comparable only at equal label smoothing: 0.05 in the paper, {smoothing:g} here."
    )
    head = '<tr><th></th><th class="n">Paper</th><th class="n">This run</th></tr>'
    return section("Beside the paper", note(description) + f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def note(text: str) -> str:
    """Return a muted paragraph; ``text`` is HTML."""
    return f'<p class="note">{text}</p>'
