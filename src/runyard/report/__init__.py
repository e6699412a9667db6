"""One run on one page: its curves, its confusion matrix, and what it was made of. No torch here."""

from __future__ import annotations

from pathlib import Path

from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.report import confusion, curves, page
from runyard.report.facts import gather
from runyard.report.theme import DARK, LIGHT, save
from runyard.run import Run

PAPER_DPI, PAGE_DPI = 300, 170


def write_report(run: Run) -> Path:
    """Write ``report/`` into the run: index.html, and figures 1 and 2 as .png (300 dpi) and .pdf. Returns the page's path.

    Works at any time in a run's life; the page says what is not there yet.

    Raises:
        UserError: the run's directory cannot be written.
    """
    facts = gather(run)
    folder = run.path / "report"
    figures = {"curves": lambda theme: curves.draw(facts, theme)}
    if facts.confusion is not None:
        matrix = facts.confusion
        figures["confusion"] = lambda theme: confusion.draw(matrix, facts.classes, theme)
    pictures: dict[str, bytes] = {}
    try:
        folder.mkdir(exist_ok=True)
        for name, draw in figures.items():
            figure = draw(LIGHT)
            pictures[name] = save(figure, "png", PAPER_DPI)
            write_atomic(folder / f"{name}.png", pictures[name])
            write_atomic(folder / f"{name}.pdf", save(figure, "pdf", PAPER_DPI))
            pictures[f"{name}_dark"] = save(draw(DARK), "png", PAGE_DPI)
        for suffix, theme in (("", LIGHT), ("_dark", DARK)):
            pictures[f"curves_phone{suffix}"] = save(curves.draw(facts, theme, columns=1), "png", PAGE_DPI)
        write_atomic(folder / "index.html", page.render(facts, pictures))
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report there ({error.strerror}); make it writable, or free some space") from error
    return folder / "index.html"
