"""Writes a run's report: figures, and one HTML file without external resources."""

from __future__ import annotations

import datetime
import time
from html import escape
from pathlib import Path

import yaml

from runyard.analysis.report import confusion, curves, style, tables
from runyard.analysis.report.tables import data_element, loss_element, note, percent_element, section
from runyard.analysis.report.theme import DARK, LIGHT, save
from runyard.config import schema
from runyard.errors import UserError
from runyard.files import folder_within, write_atomic
from runyard.runs.events import Row, finite_or_none
from runyard.runs.facts import ReportData, load_report_data
from runyard.runs.run import Run

# Only inlined content may load, whatever markup a class name or a message contains.
REPORT_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
WIDE_CLASSES = 58  # with more classes the confusion matrix is wider than the page and scrolls
PAPER_DPI, PAGE_DPI = 300, 170


def write_report(run: Run) -> Path:
    """Write ``report/`` into the run: index.html, and figures 1 and 2 as .png (300 dpi) and .pdf. Returns the page.

    Works at any time in a run's life; the page names what is still missing.

    Raises:
        UserError: the run's directory cannot be written.
    """
    report_data = load_report_data(run)
    folder = run.path / "report"
    figures = {"curves": lambda theme: curves.draw_curves(report_data, theme)}
    if report_data.confusion is not None:
        matrix = report_data.confusion
        figures["confusion"] = lambda theme: confusion.draw_confusion(matrix, report_data.classes, theme)
    pictures: dict[str, bytes] = {}
    try:
        folder_within(run.path, folder.name)
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
        raise UserError(
            f"{folder}: cannot write the report there ({error.strerror}); make it writable, or free some space"
        ) from error
    return folder / "index.html"


def render(report_data: ReportData, pictures: dict[str, bytes]) -> str:
    """Return the whole page as HTML.

    Args:
        pictures: PNGs by name: curves and confusion (absent without a final evaluation), each also with ``_dark``, and
            curves with ``_phone`` and ``_phone_dark``.
    """
    state, sentence = report_data.status
    run = report_data.run
    notices = [sentence] if sentence else []
    if report_data.broken:
        notices.append(
            f"{report_data.broken} line{'s' * (report_data.broken > 1)} of the run's journal could not be read and "
            f"{'are' if report_data.broken > 1 else 'is'} left out here."
        )
    notices += [f"The run warned: {message}" for message in report_data.warnings]
    head = (
        f'<header><h1>{escape(run.id)} <span class="pill {state.replace(" ", "-")}">{state}</span></h1>'
        f'<p class="sub">{escape(run.config.model.name)} on {escape(run.config.data.name)}'
        f" · created {escape(_utc_time(run.record.get('created')))}</p>"
        + "".join(f'<p class="notice">{escape(text)}</p>' for text in notices)
        + "</header>\n"
    )
    side_by_side = len(report_data.classes) <= tables.MANY_CLASSES
    body = (
        _headline(report_data)
        + _curves(report_data, pictures)
        + _side_by_side(_confusion(report_data, pictures), tables.per_class_section(report_data), side_by_side)
        + tables.confused_pairs_section(report_data)
        + _side_by_side(tables.paper_section(report_data), _machine(report_data), True)
        + _config(report_data)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{REPORT_CSP}">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(run.id)}</title>\n'
        f"<style>{style.stylesheet()}</style></head>\n"
        f"<body>{head}<main>{body}</main>\n"
        f"<footer>Written by runyard from the run's journal, {_utc_time(time.time())}. "
        f"Code {escape(str(run.record.get('code_sha256'))[:12])}.</footer></body></html>\n"
    )


def _side_by_side(one: str, other: str, side_by_side: bool) -> str:
    """Return two sections, side by side if the page is wide enough."""
    if not (one and side_by_side):
        return one + other
    return f'<div class="two"><div>{one}</div><div>{other}</div></div>\n'


def _headline(report_data: ReportData) -> str:
    final_top1 = finite_or_none(report_data.final_row, "top1")
    best, best_epoch = report_data.best()
    done = report_data.epochs[-1]["epoch"] if report_data.epochs else 0
    rates = sorted(report_data.series("images_per_s")[1])
    clock = finite_or_none(report_data.final_row, "clock_s") or report_data.last("clock_s")
    parameters = next(
        filter(None, (finite_or_none(row, "parameters") for row in (report_data.final_row, *report_data.start_rows))),
        None,
    )
    test_loss = finite_or_none(report_data.final_row, "loss")
    split = "validation" if report_data.has_validation else "test"
    tiles = [
        (
            "lead",
            "Final top-1" if final_top1 is not None else "Top-1 so far",
            percent_element(final_top1 if final_top1 is not None else report_data.last("test_top1")),
            "on the test set",
        ),
        ("lead", "Best top-1", percent_element(best), f"{split}, epoch {best_epoch}" if best_epoch else split),
        ("", "Test loss", loss_element(test_loss if test_loss is not None else report_data.last("test_loss")), ""),
        ("", "Train loss", loss_element(report_data.last("train_loss")), ""),
        (
            "",
            "Epochs",
            data_element(done, "{}"),
            f"of {report_data.run.config.epochs}" if done != report_data.run.config.epochs else "",
        ),
        ("", "Training time", data_element(clock, _duration(clock or 0)), "evaluation included"),
        ("", "Images/s", data_element(rates[len(rates) // 2] if rates else None, "{:,.0f}"), "training, median epoch"),
        ("", "Parameters", data_element(parameters, "{:,.0f}"), ""),
        ("", "Restarts", data_element(report_data.restarts, "{}"), ""),
    ]
    cells = "".join(
        f'<div class="{kind}"><dt>{name}</dt><dd>{value}{f"<small>{detail}</small>" if detail else ""}</dd></div>'
        for kind, name, value, detail in tiles
    )
    return f'<dl class="tiles">{cells}</dl>\n'


def _picture(pictures: dict[str, bytes], name: str, alt: str, **attributes: str) -> str:
    """Return one figure with variants for dark mode and for phones."""
    variants = (
        (f"{name}_phone_dark", "(max-width: 600px) and (prefers-color-scheme: dark)"),
        (f"{name}_phone", "(max-width: 600px)"),
        (f"{name}_dark", "(prefers-color-scheme: dark)"),
    )
    sources = "".join(
        f'<source media="{media}" srcset="{tables.data_uri(pictures[key])}">'
        for key, media in variants
        if key in pictures
    )
    return f"<picture>{sources}{tables.image(pictures[name], alt=alt, **attributes)}</picture>"


def _curves(report_data: ReportData, pictures: dict[str, bytes]) -> str:
    alt = "Four panels by epoch: train loss, test loss, test accuracy, learning rate."
    caption = "Figure 1. Train loss, test loss, test accuracy and learning rate at the end of each epoch."
    if report_data.restarts:
        caption += " Dotted lines: the run was resumed from a checkpoint."
    return section("Curves", f"<figure>{_picture(pictures, 'curves', alt)}<figcaption>{caption}</figcaption></figure>")


def _confusion(report_data: ReportData, pictures: dict[str, bytes]) -> str:
    if "confusion" not in pictures:
        return section("Confusion matrix", note("Known after the final evaluation, which this run has not made."))
    wide = len(report_data.classes) > WIDE_CLASSES
    alt = "Confusion matrix over the test set: rows are true classes, columns predicted ones."
    caption = (
        "Figure 2. Confusion matrix over the test set, counts of images. Blue: correct; orange: mistaken, on a "
        "scale of its own." + (" Scroll sideways." if wide else "")
    )
    width = f"max-width: none; width: {min(18 * len(report_data.classes), 2400)}px"
    picture = _picture(pictures, "confusion", alt, **({"style": width} if wide else {}))
    figure = f'<figure><div class="scroll">{picture}</div><figcaption>{caption}</figcaption></figure>'
    return section("Confusion matrix", figure)


def _machine(report_data: ReportData) -> str:
    if not report_data.start_rows:
        return section("Machine", note("The journal holds no start."))
    items = "".join(map(_start, range(len(report_data.start_rows)), report_data.start_rows, report_data.stop_rows))
    return section("Machine and restarts", f'<ol class="starts">{items}</ol>')


def _start(index: int, start: Row, stop: Row | None) -> str:
    def known(key: str) -> str:
        return escape(str(start.get(key, "?")))

    origin = f"resumed from {known('resumed_from')}" if start.get("resumed_from") else "from the beginning"
    end = "no end recorded"
    if stop is not None:
        message = f"({stop['message']})" if stop.get("message") else ""
        end = f"ended: {stop.get('reason')} {_utc_time(stop.get('t'))} {message}"
    return (
        f"<li><strong>{'Start' if index == 0 else f'Restart {index}'}</strong> {_utc_time(start.get('t'))}, {origin}, "
        f"step {known('step')}<br>{known('device_name')} · {_count(start.get('world_size'), 'rank')} on "
        f"{_count(start.get('nodes'), 'node')} · {known('hostname')} · {_count(start.get('cpus'), 'CPU')} · "
        f"{_count(start.get('threads'), 'thread')}<br>"
        f'<span class="note">torch {known("torch")} · {known("precision")} · loader {known("loader")} · '
        f"job {known('job')} · {escape(end)}</span></li>"
    )


def _config(report_data: ReportData) -> str:
    text = yaml.safe_dump(schema.config_to_dict(report_data.run.config), sort_keys=False)
    overrides = " ".join(map(str, report_data.run.record.get("overrides") or []))
    overrides_note = note(f"Overrides: <code>{escape(overrides)}</code>") if overrides else ""
    content = f"{overrides_note}<pre>{escape(text)}</pre>"
    return f"<section><details><summary>Configuration</summary>{content}</details></section>\n"


def _count(value: object, noun: str) -> str:
    return escape(f"{value} {noun}") + ("" if value == 1 else "s")


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
