"""What the tests of the comparison's page share: writing one, working its controls, reading its charts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runyard.compare import choose, groups, pairs, table
from runyard.compare.page.build import write_page
from tests.browser import Browser

READY = "document.documentElement.dataset.ready"


def page_of(runs_dir: Path, **more: Any) -> Path:
    """What ``runyard compare --all --html`` writes."""
    chosen = choose.choose([], everything=True, runs_dir=runs_dir)
    rows = table.ordered(table.rows(groups.group(chosen.runs)), "last")
    return write_page(
        runs_dir.parent / f"{runs_dir.name}.html",
        rows,
        pairs.compare([row.group for row in rows]),
        notes=chosen.notes,
        **more,
    )


def choose_input(browser: Browser, name: str, value: str) -> None:
    """As a person does: a click, and the charts are drawn anew."""
    browser.run(f"document.querySelector('input[name={name}][value=\"{value}\"]').click()")
    settle(browser)


def settle(browser: Browser) -> None:
    browser.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 60)))")


def lines(browser: Browser, chart: str = "curve-0") -> dict[str, dict[str, list[float]]]:
    """The lines of a chart by name, as plotly holds them; bands and marks left out."""
    found = browser.run(
        f"document.getElementById('{chart}').data.filter(t => t.name && t.name !== 'restarts')"
        ".map(t => ({ name: t.name, x: t.x, y: t.y }))"
    )
    return {line["name"]: line for line in found}
