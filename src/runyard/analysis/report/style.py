"""The report's style sheet: one column on a phone, light or dark by the reader's setting, without scripts."""

from __future__ import annotations

from runyard.analysis.report.theme import DARK, LIGHT, Theme


def stylesheet() -> str:
    """Return the report's CSS."""
    return (
        f":root {{ color-scheme: light dark; {css_variables(LIGHT, '#f4f5f7')} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK, '#0e1013')} }} }}\n" + RULES
    )


def css_variables(theme: Theme, page: str) -> str:
    colors = {
        "page": page,
        "card": theme.background,
        "ink": theme.foreground,
        "muted": theme.muted,
        "line": theme.grid,
        "right": theme.train,
        "wrong": theme.test,
        "good": theme.validation,
    }
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; padding: 0 16px 48px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 1080px; margin: 0 auto; }
header { padding: 28px 0 8px; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 0 0 2px; font-size: 1.1rem; }
p { margin: 0 0 12px; }
.sub, .note, figcaption, footer, dt, th { color: var(--muted); }
.sub { margin: 4px 0 0; overflow-wrap: anywhere; }
.note, figcaption, footer { font-size: .87rem; }
.pill { display: inline-block; margin-left: .2em; padding: .15em .7em; border: 1px solid; border-radius: 99px;
  font-size: .8rem; font-weight: 600; letter-spacing: .01em; vertical-align: .3em; color: var(--wrong); }
.pill.finished { color: var(--good); }
.notice { margin: 14px 0 0; padding: 10px 14px; border-left: 4px solid var(--wrong); border-radius: 4px;
  background: var(--card); overflow-wrap: anywhere; }
section, .tiles { margin: 16px 0 0; padding: 20px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
.tiles { display: grid; gap: 18px 20px; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.tiles div { min-width: 0; }
.tiles dt { font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3; }
.tiles .lead dd { font-size: 2.1rem; line-height: 1.1; letter-spacing: -.02em; }
.tiles small { display: block; color: var(--muted); font-size: .8rem; font-weight: 400; }
figure { margin: 12px 0 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: 10px; }
.scroll { overflow-x: auto; }
.two { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 16px; }
@media (min-width: 900px) { .two { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); align-items: start; } }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); text-align: left; font-weight: 400; }
tr:last-child > * { border-bottom: 0; }
th { font-size: .85rem; }
tbody th { color: var(--ink); font-size: inherit; overflow-wrap: break-word; }
td.n, th.n { padding-right: 0; padding-left: 10px; text-align: right; white-space: nowrap; }
.long { max-height: 520px; overflow-y: auto; }
.bar { width: 42%; }
.bar span { display: block; height: 12px; border-radius: 2px;
  background: color-mix(in srgb, var(--wrong) 24%, var(--card)); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--right); }
.pairs { display: grid; gap: 22px 28px; margin-top: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.pairs h3 { margin: 0 0 2px; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
.pairs b { color: var(--wrong); font-weight: 600; }
.faces { display: grid; grid-template-columns: repeat(6, 1fr); gap: 4px; max-width: 560px; margin-top: 6px; }
.faces img { display: block; width: 100%; aspect-ratio: 1; border-radius: 3px; image-rendering: pixelated; }
ol.starts { margin: 10px 0 0; padding: 0; list-style: none; }
ol.starts li { margin-bottom: 10px; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
pre { margin: 12px 0 0; overflow-x: auto; font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { padding: 18px 0 0; }
@media (max-width: 600px) { section, .tiles { padding: 16px 14px; } .tiles { grid-template-columns: 1fr 1fr; }
  .tiles .lead dd { font-size: 1.75rem; } .bar { width: 26%; } td.n, th.n { padding-left: 6px; }
  .scroll img { max-width: none; width: 460px; } }
@media print { body { background: none; } section, .tiles { break-inside: avoid; } }
"""
