"""Writes a run's report: figures, and one HTML file without external resources."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import yaml
from markupsafe import Markup

from runyard.analysis.html import data_uri, render_template
from runyard.analysis.report import confusion, curves, style, tables
from runyard.analysis.report.samples import confused_pairs
from runyard.analysis.report.theme import DARK, LIGHT, save
from runyard.config import schema
from runyard.errors import UserError
from runyard.files import file_fix, folder_within, write_atomic
from runyard.runs.events import finite_or_none
from runyard.runs.results.facts import ReportData, load_report_data
from runyard.runs.results.metrics import METRICS_BY_NAME
from runyard.runs.run import Run

# Only inlined content may load, whatever markup a class name or a message contains.
REPORT_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
WIDE_CLASSES = 58  # with more classes the confusion matrix is wider than the page and scrolls
PAPER_DPI, PAGE_DPI = 300, 170
VARIANTS = (  # of a figure, for dark mode and for phones
    ("_phone_dark", "(max-width: 600px) and (prefers-color-scheme: dark)"),
    ("_phone", "(max-width: 600px)"),
    ("_dark", "(prefers-color-scheme: dark)"),
)


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write ``report/`` into the run: index.html, and figures 1 and 2 as .png (300 dpi) and .pdf. Returns the page.

    Works at any time in a run's life; the page names what is still missing.

    Args:
        out: The directory to write into instead, created if needed, for runs that this user cannot or must not write.

    Raises:
        UserError: the directory cannot be written.
    """
    report_data = load_report_data(run)
    folder = out or run.path / "report"
    figures = {"curves": lambda theme: curves.draw_curves(report_data, theme)}
    if report_data.confusion is not None:
        matrix = report_data.confusion
        figures["confusion"] = lambda theme: confusion.draw_confusion(matrix, report_data.classes, theme)
    pictures: dict[str, bytes] = {}
    try:
        if out is None:
            folder_within(run.path, folder.name)
        else:
            out.mkdir(parents=True, exist_ok=True)
        for name, draw in figures.items():
            figure = draw(LIGHT)
            pictures[name] = save(figure, "png", PAPER_DPI)
            write_atomic(folder / f"{name}.png", pictures[name])
            write_atomic(folder / f"{name}.pdf", save(figure, "pdf", PAPER_DPI))
            pictures[f"{name}_dark"] = save(draw(DARK), "png", PAGE_DPI)
        for suffix, theme in (("", LIGHT), ("_dark", DARK)):
            pictures[f"curves_phone{suffix}"] = save(curves.draw_curves(report_data, theme, columns=1), "png", PAGE_DPI)
        write_atomic(folder / "index.html", render(report_data, pictures))
    except OSError as error:
        fix = f"{file_fix(error)}, or choose another place with --out DIR"
        raise UserError(f"{folder}: cannot write the report there ({error.strerror})", fix) from error
    return folder / "index.html"


def render(report_data: ReportData, pictures: dict[str, bytes]) -> str:
    """Return the whole page as HTML.

    Args:
        pictures: PNGs by name: curves and confusion (absent without a final evaluation), each also with ``_dark``, and
            curves with ``_phone`` and ``_phone_dark``.
    """
    run, classes = report_data.run, report_data.classes
    state, sentence = report_data.status
    final, best = report_data.final_row, report_data.best()
    final_top1, final_loss = finite_or_none(final, "top1"), finite_or_none(final, "loss")
    rates = sorted(report_data.series("images_per_s")[1])
    parameters = (finite_or_none(row, "parameters") for row in (final, *report_data.start_rows))
    pairs, no_images = confused_pairs(report_data)
    wide = len(classes) > WIDE_CLASSES
    return render_template(
        "report/report.html",
        run=run,
        policy=Markup(REPORT_CSP),
        style=Markup(style.stylesheet()),
        state=state,
        notices=_notices(report_data, sentence),
        is_final=final_top1 is not None,
        top1=final_top1 if final_top1 is not None else report_data.last("test_top1"),
        best=best[0],
        best_epoch=best[1],
        split="validation" if report_data.has_validation else "test",
        test_loss=final_loss if final_loss is not None else report_data.last("test_loss"),
        train_loss=report_data.last("train_loss"),
        epochs_done=report_data.epochs[-1]["epoch"] if report_data.epochs else 0,
        clock_s=finite_or_none(final, "clock_s") or report_data.last("clock_s"),
        images_per_s=rates[len(rates) // 2] if rates else None,
        parameters=next(filter(None, parameters), None),
        restarts=report_data.restarts,
        pictures={name: data_uri(png) for name, png in pictures.items()},
        variants=VARIANTS,
        wide_style=f"max-width: none; width: {min(18 * len(classes), 2400)}px" if wide else "",
        class_rows=tables.class_rows(report_data),
        many_classes=len(classes) > tables.MANY_CLASSES,
        pairs=[(p, classes[p.true], classes[p.predicted], _images_of(report_data, p.true)) for p in pairs],
        no_images=no_images,
        paper_rows=tables.paper_rows(report_data),
        starts=list(zip(report_data.start_rows, report_data.stop_rows, strict=True)),
        metrics=[
            (metric, value)
            for metric in METRICS_BY_NAME.values()
            if (value := report_data.last(metric.name)) is not None
        ],
        config_text=yaml.safe_dump(schema.config_to_dict(run.config), sort_keys=False),
        overrides=" ".join(map(str, run.record.get("overrides") or [])),
        now=_utc_time(time.time()),
        utc_time=_utc_time,
        duration=_duration,
        data_uri=data_uri,
    )


def _notices(report_data: ReportData, sentence: str) -> list[str]:
    notices = [sentence] if sentence else []
    if report_data.broken:
        notices.append(
            f"{report_data.broken} line{'s' * (report_data.broken > 1)} of the run's journal could not be read and "
            f"{'are' if report_data.broken > 1 else 'is'} left out here."
        )
    return notices + [f"The run warned: {message}" for message in report_data.warnings]


def _images_of(report_data: ReportData, label: int) -> int:
    return 0 if report_data.confusion is None else int(report_data.confusion[label].sum())


def _utc_time(t: object) -> str:
    if not isinstance(t, (int, float)):
        return "at an unknown time"
    return datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    minutes, remaining_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {remaining_s:02d} s" if minutes else f"{seconds:.1f} s"
