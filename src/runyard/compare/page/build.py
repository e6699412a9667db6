"""The page itself: what is known when it is written stands in its HTML; plotly draws the rest from the data inside."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from runyard.compare import words
from runyard.compare.groups import Group, differing, written
from runyard.compare.importance import Sweep
from runyard.compare.looks import Look, by_score, looks
from runyard.compare.page.content import content
from runyard.compare.page.disagreements import disagreements
from runyard.compare.pairs import Pairs
from runyard.compare.reading import matters
from runyard.compare.table import Row, columns
from runyard.compare.text import Column
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.report import style
from runyard.report.theme import DARK, LIGHT

# Nothing but what stands in the file may load, whatever a name or a message tries to smuggle in. plotly makes its own
# styles and, for its button that saves a picture, blob: images.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SCRIPTS = ("page.js", "curves.js", "charts.js", "pair.js")
PANELS = 4
LONG_NUMBER = re.compile(r"-?\d+\.\d{6,}(e-?\d+)?")  # a sweep drew it; the whole of it is shown on pointing at it
LIBRARY = "package_data/plotly.min.js"


class Markup(str):
    """HTML that is finished; any other text is escaped."""


def write_page(out: Path, table: Sequence[Row], pairs: Pairs, *, notes: Sequence[str] = (), target: float | None = None,
               sweep: tuple[Sweep, str] | None = None) -> Path:
    """Write the page of these rows to ``out`` and return it.

    Args:
        pairs: What was tested between the rows' groups.
        notes: What a person should know before trusting the figures, a line each.
        target: As the table's.
        sweep: What a sweep found, and its name.

    Raises:
        UserError: the file cannot be written, or plotly is not installed.
    """
    groups = [row.group for row in table]
    held = content(groups) | {"disagreements": disagreements(groups)}
    data = json.dumps(held, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    page = _document(table, pairs, notes, target, sweep, len(held["measures"]), _packed(_library()),
                     _packed(data.encode("utf-8", "surrogatepass")))
    try:
        write_atomic(out, page)
    except OSError as error:
        raise UserError(f"--html {out}: cannot write it ({error.strerror}); name a file in a folder you can write") from error
    return out


def _library() -> bytes:
    """plotly's JavaScript, as its Python package carries it; the package itself is not imported."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise UserError("--html: plotly is not installed here; `make setup` installs it")
    return Path(found.submodule_search_locations[0], LIBRARY).read_bytes()


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def _document(table: Sequence[Row], pairs: Pairs, notes: Sequence[str], target: float | None,
              sweep: tuple[Sweep, str] | None, measures: int, library: str, data: str) -> str:
    groups = [row.group for row in table]
    runs = sum(len(group.runs) for group in groups)
    title = f"{runs} run{'s' * (runs != 1)}" + (f" in {len(groups)} groups" if runs != len(groups) else "")
    what = sorted({f"{g.runs[0].settings.get('model.name', '?')} on {g.runs[0].data_name}" for g in groups})
    about = "; ".join(what[:3]) + (f" and {len(what) - 3} more" if len(what) > 3 else "")
    notices = "".join(f'<p class="notice">{escape(note)}</p>' for note in notes)
    dark = style.variables(DARK, "#0e1013")
    colours = (f":root {{ color-scheme: light; {style.variables(LIGHT, '#f4f5f7')} }}\n"
               f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {dark} }} }}\n"
               f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}\n")
    scripts = "\n".join(map(_own, SCRIPTS))
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{colours}{style.RULES}{_own('page.css')}</style></head>\n<body>"
        f'<header><div><h1>{escape(title)} compared</h1><p class="sub">{escape(about)}</p></div>'
        '<button id="theme" type="button">Light / dark</button></header>\n<main>'
        '<p class="notice" id="trouble" hidden>This browser is too old to draw the charts (it lacks DecompressionStream, '
        "which browsers have since 2023). The tables are whole.</p>"
        '<noscript><p class="notice">The charts need JavaScript, which is inside this file. The tables are whole.</p></noscript>'
        f'{notices}<div class="layout">{_list(by_score(groups))}<div>{_curves(measures)}{_results(table, target)}'
        f"{_pairs(pairs)}{_cost()}{_settings(groups, sweep)}{_classes()}{_pair()}{_shared(groups)}</div></div></main>\n"
        f"<footer>Written by runyard from the runs' journals, {when}. Drawn by plotly.js.</footer>\n"
        f'<script type="text/plain" id="library">{library}</script>\n<script type="text/plain" id="data">{data}</script>\n'
        f"<script>{scripts}</script></body></html>\n")


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>\n'


def _values(chart: str, words: str = "Values") -> str:
    """Where the script puts a chart's numbers as a table."""
    return (f'<details class="values" id="{chart}-values"><summary>{words} as a table</summary>'
            '<div class="scroll" tabindex="0"></div></details>')


def _list(by_score: bool) -> str:
    how = " The colour says how good a group is: the stronger, the better." if by_score else ""
    return ('<section id="list"><h2>Shown</h2>'
            f'<p class="note">Last test accuracy, mean over seeds.{how}</p><ul id="runs" tabindex="-1"></ul>'
            '<div class="buttons"><button type="button" id="all">All</button><button type="button" id="none">None</button>'
            '<button type="button" id="best">Best 5</button><span class="note" id="shown" role="status"></span></div></section>\n')


def _choices(legend: str, name: str, values: Sequence[tuple[str, str]]) -> str:
    made = "".join(f'<label><input type="radio" name="{name}" value="{value}"{" checked" * (not at)}>{words}</label>'
                   for at, (value, words) in enumerate(values))
    return f"<fieldset><legend>{legend}</legend>{made}</fieldset>"


def _curves(measures: int) -> str:
    over = _choices("Over", "x", (("epoch", "epoch"), ("step", "step"), ("wall", "wall time"), ("training", "training time"),
                                  ("gpu", "GPU-hours"), ("core", "core-hours")))
    band = _choices("Seeds", "band", (("sd", "mean ± sd"), ("range", "mean, min to max"), ("each", "every run")))
    smooth = ('<label><span class="word">Smoothing</span><input type="range" name="smooth" min="0" max="0.99" step="0.01" '
              'value="0"><output id="smooth-value">0</output></label>')
    logs = "".join(f'<label><input type="checkbox" name="log-{axis}">log {axis}</label>' for axis in "xy")
    panels = "".join(
        f'<figure class="panel"><select aria-label="What chart {place + 1} shows"></select>'
        f'<div class="chart" id="curve-{place}" role="img" aria-label="Lines over time; the numbers are in the table below"></div>'
        f"{_values(f'curve-{place}')}</figure>" for place in range(min(PANELS, max(1, measures))))
    about = ("A line is the mean of a group's runs that count, a band what is chosen above; thin lines are runs by "
             "themselves. Over time, a group's point stands at the mean time of its runs at that epoch. △ on the time "
             "axis: a run went on after an interruption. Smoothing is an exponential moving average, of the band too.")
    return _section("curves", "Curves", f'<div class="controls">{over}{band}{smooth}<span class="pair">{logs}</span></div>'
                    f'<div class="panels">{panels}</div><p class="note">{about}</p>')


def _cell(tag: str, column: Column, text: str, look: Look | None = None) -> str:
    kind = "n" if column.right else "s"
    swatch = "" if look is None else (f'<span class="swatch dot" style="--light:{look.light};--dark:{look.dark}" '
                                      'aria-hidden="true">●</span> ')
    text = text.strip()
    if tag == "th":
        return f'<th class="{kind}" scope="row">{swatch}{_breakable(text)}</th>'
    if LONG_NUMBER.fullmatch(text):
        return f'<td class="{kind}" title="{text}">{float(text):.4g}</td>'
    return f'<td class="{kind}">{escape(text)}</td>'


def _breakable(name: str) -> str:
    """Long names break behind their underscores and hyphens first."""
    return "<wbr>".join(map(escape, re.split(r"(?<=[_\-./])", name)))


def _table(shown: Sequence[Column], every: Sequence[Look] = ()) -> Markup:
    head = "".join(f'<th scope="col" class="{"n" if column.right else "s"}">{escape(column.heading.replace("- ", "-"))}</th>'
                   for column in shown)
    rows = ""
    for at in range(len(shown[0].cells)):
        first = _cell("th", shown[0], shown[0].cells[at], every[at] if every else None)
        rows += f"<tr>{first}{''.join(_cell('td', column, column.cells[at]) for column in shown[1:])}</tr>"
    return Markup(f'<div class="scroll long" tabindex="0"><table class="results"><thead><tr>{head}</tr></thead>'
                  f"<tbody>{rows}</tbody></table></div>")


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(text if isinstance(text, Markup) else f'<p class="note">{escape(text)}</p>' for text in texts)


def _results(table: Sequence[Row], target: float | None) -> str:
    groups = [row.group for row in table]
    about = words.of_table(groups)
    if len(groups) > 1:
        about = [*about, "Of the settings, only those that differ are shown."]
    return _section("results", "Settings that differ, and what came of them",
                    _table(columns(table, target), looks(groups)) + _paragraphs(about))


def _pairs(pairs: Pairs) -> str:
    said = [text if isinstance(text, Markup) else text.removeprefix("Is it real? ") for text in words.of_pairs(pairs, _table)]
    return _section("real", "Is it real?", _paragraphs(said)) if said else ""


def _cost() -> str:
    by = '<label><span class="word">Cost</span> <select id="cost-by"></select></label>'
    of = ('<label><span class="word">Accuracy</span> <select id="cost-score"><option value="last">last epoch</option>'
          '<option value="best">best epoch</option></select></label>')
    about = "Large: a group's mean; small: its runs. The dotted line is the Pareto front: nothing cheaper is as good."
    return _section("cost", "Accuracy against cost", f'<div class="controls">{by}{of}</div><div class="chart tall" '
                    f'id="cost-chart" role="img" aria-label="Accuracy against cost; the numbers are in the table below"></div>'
                    f'{_values("cost-chart")}<p class="note">{about}</p>')


def _settings(groups: Sequence[Group], sweep: tuple[Sweep, str] | None) -> str:
    found = _paragraphs(words.of_sweep(*sweep, _table)) if sweep else ""
    if not differing(groups) and not found:
        return '<section id="sweep" hidden></section>'
    chart = ('<div class="scroll" tabindex="0"><div class="chart tall" id="sweep-chart" role="img" '
             'aria-label="Each group\'s settings and accuracy; the numbers are in the table below"></div></div>'
             f'{_values("sweep-chart")}<p class="note" id="sweep-note">A line is a group: through its settings to its accuracy.</p>')
    return _section("sweep", "Settings and accuracy", chart + found)


def _classes() -> str:
    about = "Of the test images of a class, how many got that class; mean over a group's runs that count."
    return _section("classes", "Accuracy per class", '<div class="scroll long" tabindex="0"><div class="chart" '
                    'id="classes-chart" role="img" aria-label="Accuracy per class; the numbers are in the table below"></div></div>'
                    f'{_values("classes-chart")}<p class="note">{about}</p>')


def _pair() -> str:
    choose = "".join(f'<label><span class="word">{letter}</span> <select id="{name}"></select></label>'
                     for letter, name in (("A", "first"), ("B", "second")))
    panels = "".join(f'<figure><h3 id="{name}-title">{title}</h3><div class="chart" id="matrix-{name}" role="img" '
                     f'aria-label="{words}"></div></figure>' for name, title, words in (
                         ("first", "A", "Confusion matrix of run A"), ("second", "B", "Confusion matrix of run B"),
                         ("difference", "B − A", "Difference of the two; the largest changes are in the table below")))
    about = ("Blue: right; orange: mistaken, on a scale of its own, the same for A and B. In the difference blue is where B "
             "does better, orange where it does worse, written in images.")
    return _section("pair", "Two runs side by side", (
        f'<div class="controls">{choose}<button type="button" id="swap">Swap A and B</button></div>'
        f'<div id="matrices"><div class="matrices">{panels}</div>{_values("matrices", "Largest changes")}'
        f'<p class="note">{about}</p></div><p class="note" id="no-matrices" hidden>Not both of these runs have a confusion '
        'matrix here: it comes with the final evaluation.</p>'
        '<h3>Images on which they disagree</h3><p class="note" id="disagree-note" role="status"></p>'
        '<div class="sample" id="faces"></div>'))


def _shared(groups: Sequence[Group]) -> str:
    """The settings that all have in common."""
    apart = {*differing(groups), "seed", "name"}
    lines = [f"{name}={written(value)}" for name, value in groups[0].settings.items() if matters(name) and name not in apart]
    return ('<section id="shared"><details><summary>Settings that all have in common</summary>'
            f"<pre>{escape(chr(10).join(lines))}</pre></details></section>\n")
