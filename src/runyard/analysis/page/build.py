"""Fills the template ``page.html`` with tables, plotly's JavaScript, and the data to draw."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from runyard.analysis.compare import narrative
from runyard.analysis.compare.groups import Group, differing_settings, format_setting
from runyard.analysis.compare.importance import Sweep, failures_by_reason
from runyard.analysis.compare.pairs import PairTests
from runyard.analysis.compare.table import TableRow, table_columns
from runyard.analysis.figures.group_style import colored_by_score, group_styles
from runyard.analysis.html import render_template
from runyard.analysis.page.content import X_AXES, page_data
from runyard.analysis.page.disagreements import disagreements
from runyard.analysis.page.tables import html_table
from runyard.analysis.report import style
from runyard.analysis.report.theme import DARK, LIGHT
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.runs.identity import separates_runs
from runyard.runs.results.history import RunHistory

# Only content of the file may load, and only the page's own script, which has the nonce, may run, whatever markup a
# name or a message contains. plotly creates styles and, to save a picture, blob: images.
PAGE_CSP = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; "
    "base-uri 'none'; form-action 'none'"
)
PAGE_SCRIPTS = ("page.js", "runs.js", "curves.js", "charts.js", "pair.js")
MAX_PANELS = 4
LIBRARY = "package_data/plotly.min.js"


def write_page(
    out: Path,
    table: Sequence[TableRow],
    pairs: PairTests,
    *,
    notes: Sequence[str] = (),
    target: float | None = None,
    sweep: tuple[Sweep, str] | None = None,
) -> Path:
    """Write the page of these rows to ``out`` and return its path.

    Args:
        pairs: The tests between the rows' groups.
        notes: What a reader should know before trusting the numbers, one line each.
        target: The target top-1 of the table, a fraction of 1.
        sweep: The summary of a sweep, and its id.

    Raises:
        UserError: the file cannot be written, or plotly is not installed.
    """
    groups = [row.group for row in table]
    content = page_data(groups) | {"disagreements": disagreements(groups)}
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    nonce = secrets.token_urlsafe(16)
    runs = len(_runs(groups))
    run_count_text = f"{runs} run{'s' * (runs != 1)}" + (f" in {len(groups)} groups" if runs != len(groups) else "")
    failures = [] if sweep else narrative.failure_text(failures_by_reason(_runs(groups)))
    page = render_template(
        "page/page.html",
        policy=Markup(PAGE_CSP.format(nonce=nonce)),
        nonce=nonce,
        title=run_count_text + " compared" * (runs > 1),
        style=Markup(_color_css() + style.RULES) + _read_asset("page.css"),
        about=_about(groups),
        notices=notes,
        color_note="The color shows how good a group is: the stronger, the better." if colored_by_score(groups) else "",
        axes=X_AXES,
        panels=min(MAX_PANELS, len(content["measures"])),
        heading="Settings that differ, and what came of them" if len(groups) > 1 else "What came of it",
        results=html_table(table_columns(table, target), group_styles(groups)),
        result_notes=narrative.column_notes(groups, target) + narrative.table_notes(groups) + failures,
        pair_texts=_untitled("Is it real? ", narrative.pair_text(pairs, html_table)),
        sweep_texts=_untitled("What the sweep found ", narrative.sweep_text(*sweep, html_table) if sweep else []),
        shared="\n".join(_shared(groups)),
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        library=_gzip_base64(_library()),
        data=_gzip_base64(data.encode("utf-8", "surrogatepass")),
        scripts=Markup("\n").join(map(_read_asset, PAGE_SCRIPTS)),
    )
    try:
        write_atomic(out, page)
    except (OSError, ValueError) as error:  # a ValueError if the path names no file, as "." does
        detail = error.strerror if isinstance(error, OSError) else error
        reason = f"cannot write it ({detail}); name a file in a folder you can write"
        raise UserError(f"--html {out}: {reason}") from error
    return out


def _runs(groups: Sequence[Group]) -> list[RunHistory]:
    return [run for group in groups for run in group.runs]


def _library() -> bytes:
    """Return plotly's JavaScript from its Python package, without importing the package."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("--html: plotly is not installed here", "`make setup` installs it")
    return Path(spec.submodule_search_locations[0], LIBRARY).read_bytes()


def _gzip_base64(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _read_asset(name: str) -> Markup:
    """Return a script or a style sheet of this package, which is code and is not escaped."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _color_css() -> str:
    """Return the CSS of both themes: the page's switch decides, or else the browser's setting."""
    light, dark = style.css_variables(LIGHT, "#f4f5f7"), style.css_variables(DARK, "#0e1013")
    dark_rules = f"color-scheme: dark; {dark}"
    return (
        f":root {{ color-scheme: light; {light} }}\n:root[data-theme=dark] {{ {dark_rules} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark_rules} }} }}\n"
    )


def _about(groups: Sequence[Group]) -> str:
    names = sorted({f"{g.settings.get('model.name', '?')} on {g.runs[0].data_name}" for g in groups})
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _untitled(title: str, texts: list[str]) -> list[str]:
    """Drop the title of a section that begins its first text."""
    return [texts[0].removeprefix(title), *texts[1:]] if texts else []


def _shared(groups: Sequence[Group]) -> list[str]:
    """Return the settings that all groups have in common."""
    differing = {*differing_settings(groups), "seed", "name"}
    settings = groups[0].settings.items()
    return [
        f"{name}={format_setting(value)}" for name, value in settings if separates_runs(name) and name not in differing
    ]
