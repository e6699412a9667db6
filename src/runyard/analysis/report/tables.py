"""The page's tables: classes one by one, the pairs most often confused, and the paper's figures beside ours."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from runyard.analysis.report.samples import ConfusedPair, confused_pairs
from runyard.runs.facts import ReportData

MANY_CLASSES = 20

# What the paper reports (its table of results): over 50 epochs, and of 1,000 test images of a class, by CIFAR-10 label.
PAPER_CURVES = (
    ("Train loss", "train_loss", 1.8417, 0.5475),
    ("Test loss", "test_loss", 1.756, 0.5314),
    ("Test accuracy", "test_top1", 0.4333, 0.9109),
)
PAPER_BEST = 0.9268
PAPER_CLASSES = ((0, "plane", 869), (8, "ship", 960), (3, "cat", 845), (6, "frog", 941))


def data_element(value: float | None, text: str) -> str:
    """A number as readers see it, with its full value for machines; a dash when there is none."""
    return "—" if value is None else f'<data value="{value!r}">{text.format(value)}</data>'


def percent_element(share: float | None, digits: int = 2) -> str:
    """A part of 1 as a percentage."""
    return "—" if share is None else f'<data value="{share!r}">{100 * share:.{digits}f} %</data>'


def loss_element(nats: float | None) -> str:
    return data_element(nats, "{:.4f}")


def image(png: bytes, **attributes: str) -> str:
    """An inlined PNG."""
    rest = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f'<img src="{data_uri(png)}"{rest}>'


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def per_class_section(facts: ReportData) -> str:
    """Each class's part of right answers, with a bar."""
    if facts.confusion is None:
        return section("Accuracy per class", note("Known after the final evaluation, which this run has not made."))
    counts = facts.confusion.sum(axis=1)
    right = np.diag(facts.confusion)
    share = right / np.maximum(counts, 1)
    many = len(counts) > MANY_CLASSES
    order = np.argsort(share, kind="stable") if many else np.arange(len(counts))
    rows = "".join(
        f'<tr><th scope="row">{escape(facts.classes[label])}</th>'
        f'<td class="bar"><span><i style="width:{100 * share[label]:.2f}%"></i></span></td>'
        f'<td class="n">{percent_element(float(share[label]), 1)}</td>'
        f'<td class="n">{right[label]} / {counts[label]}</td></tr>'
        for label in order
    )
    table = (
        '<table><thead><tr><th>Class</th><th class="bar"></th><th class="n">Accuracy</th><th class="n">Right</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )
    about = "Of the test images of a class, how many the network gave that class" + ("; worst first." if many else ".")
    return section("Accuracy per class", note(about) + (f'<div class="long">{table}</div>' if many else table))


def confused_pairs_section(facts: ReportData) -> str:
    """The pairs of classes most often confused, with mistaken images."""
    title = "Most confused"
    if facts.confusion is None:
        return section(title, note("Known after the final evaluation, which this run has not made."))
    found, missing = confused_pairs(facts)
    if not found:
        return section(title, note("The network made no mistake on the test set."))
    about = (
        f"Test images are not shown: {escape(missing)}."
        if missing
        else "True class → what it was taken for; of the mistaken test images, those the network was surest of."
    )
    return section(title, note(about) + f'<div class="pairs">{"".join(_pair(pair, facts) for pair in found)}</div>')


def _pair(pair: ConfusedPair, facts: ReportData) -> str:
    true, predicted = facts.classes[pair.true], facts.classes[pair.predicted]
    assert facts.confusion is not None
    of = int(facts.confusion[pair.true].sum())
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
        f'<div class="note">{data_element(pair.count, "{}")} of {of} ({100 * pair.count / of:.1f} %)</div>'
        + (f'<div class="faces">{faces}</div>' if faces else "")
        + "</div>"
    )


def paper_section(facts: ReportData) -> str:
    """The figures the paper reports beside this run's; nothing for another data set than CIFAR-10."""
    if facts.run.config.data.kind != "cifar10":
        return ""
    rows = []
    last = facts.epochs[-1]["epoch"] if facts.epochs else 0
    for name, key, first_theirs, last_theirs in PAPER_CURVES:
        shown = percent_element if key == "test_top1" else loss_element
        ours = dict(zip(*facts.series(key), strict=True))
        rows.append((f"{name}, epoch 1", shown(first_theirs), shown(ours.get(1))))
        rows.append((f"{name}, last epoch", shown(last_theirs), shown(ours.get(last))))
    best = max(facts.series("test_top1")[1], default=None)
    rows.append(("Test accuracy, best epoch", percent_element(PAPER_BEST), percent_element(best)))
    for label, name, theirs in PAPER_CLASSES:
        known = facts.confusion is not None and len(facts.confusion) == 10
        right = int(facts.confusion[label, label]) if known and facts.confusion is not None else None
        rows.append((f"Right of 1,000: {name}", data_element(theirs, "{}"), data_element(right, "{}")))
    body = "".join(
        f'<tr><th scope="row">{name}</th><td class="n">{theirs}</td><td class="n">{ours}</td></tr>'
        for name, theirs, ours in rows
    )
    smoothing = facts.run.config.loss.label_smoothing
    about = (
        f"Theirs after 50 epochs, ours after {last}. "
        f"Losses compare at equal label smoothing only: theirs 0.05, ours {smoothing:g}."
    )
    head = '<tr><th></th><th class="n">Paper</th><th class="n">This run</th></tr>'
    return section("Beside the paper", note(about) + f"<table><thead>{head}</thead><tbody>{body}</tbody></table>")


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def note(text: str) -> str:
    """A muted line; ``text`` is HTML."""
    return f'<p class="note">{text}</p>'
