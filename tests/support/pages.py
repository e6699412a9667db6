"""What the tests of the comparison's page share: writing one, working its controls, reading its charts."""

from __future__ import annotations

from pathlib import Path

from runyard.analysis.compare import choose, groups, importance, pairs, table
from runyard.analysis.page.build import write_page
from tests.support.browser import Browser

READY = "document.documentElement.dataset.ready"


def page_of(runs_dir: Path, *, sweep: str | None = None, target: float | None = None) -> Path:
    """What ``runyard compare --all --html`` writes, or with ``--sweep`` and ``--target``."""
    chosen = choose.select_runs([], everything=sweep is None, sweep=sweep, runs_dir=runs_dir)
    found = groups.group_runs(chosen.runs)
    rows = table.sort_rows(table.table_rows(found, target), "last")
    return write_page(
        runs_dir.parent / f"{runs_dir.name}.html",
        rows,
        pairs.compare_groups([row.group for row in rows]),
        notes=chosen.notes,
        target=target,
        sweep=(importance.summarize_sweep(found, chosen.refused_trials), chosen.sweep) if chosen.sweep else None,
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
