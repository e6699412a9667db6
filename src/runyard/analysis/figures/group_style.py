"""Plot styles: each group has the same color, line and marker in every chart.

Eight colors after Okabe and Ito, which people with the common kinds of color blindness can tell apart, each in a shade
for light and one for dark backgrounds (contrast at least 3:1). The ninth group repeats the first color with another
line and marker. More than ``MAX_NAMED_STYLES`` groups cannot be told apart: the color then shows the group's rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runyard.analysis.compare.groups import Group

if TYPE_CHECKING:
    from matplotlib.typing import LineStyleType

MAX_NAMED_STYLES = 24
COLORS_LIGHT = ("#0072b2", "#d55e00", "#00845f", "#a0418a", "#1a1d21", "#a37500", "#3a9bd9", "#8c4a2f")
COLORS_DARK = ("#56b4e9", "#f08a4b", "#2fc79a", "#e08fd0", "#e9ebee", "#e6c229", "#9fb8ff", "#c99a7c")
# From worst to best: lightness alone orders them, so they also survive a black and white print.
RAMP_LIGHT = ("#d9b400", "#c98a2b", "#ad6a52", "#854f73", "#4e3a86", "#0b2a6b")
RAMP_DARK = ("#3d5fc4", "#6f74c9", "#a385b8", "#d0979b", "#efb36b", "#fbe35c")
LINE_STYLES = ("solid", "dash", "dot")  # plotly's names; matplotlib's are in MATPLOTLIB_LINES
MATPLOTLIB_LINES: dict[str, LineStyleType] = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.4))}
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
MATPLOTLIB_MARKERS = dict(zip(MARKERS, ("o", "s", "D", "^", "v", "P", "X", "*"), strict=True))


@dataclass(frozen=True)
class GroupStyle:
    """Colors on light and on dark backgrounds, ``#rrggbb``; line and marker by plotly's names."""

    light: str
    dark: str
    line: str
    marker: str


def group_styles(groups: Sequence[Group]) -> list[GroupStyle]:
    """Return a style for each group, in order."""
    if len(groups) <= MAX_NAMED_STYLES:
        count = len(COLORS_LIGHT)
        return [
            GroupStyle(
                COLORS_LIGHT[index % count],
                COLORS_DARK[index % count],
                LINE_STYLES[index // count],
                MARKERS[(index + index // count) % len(MARKERS)],
            )
            for index in range(len(groups))
        ]
    fractions = _rank_fraction([mean_top1(group) for group in groups])
    return [GroupStyle(_blend(RAMP_LIGHT, s), _blend(RAMP_DARK, s), "solid", "circle") for s in fractions]


def mean_top1(group: Group) -> float:
    """Return the group's mean last test top-1, a fraction of 1; NaN if no run was evaluated."""
    seen = group.values("last")
    seen = seen[np.isfinite(seen)]
    return float(seen.mean()) if len(seen) else float("nan")


def colored_by_score(groups: Sequence[Group]) -> bool:
    """Return whether colors show a group's rank instead of its identity."""
    return len(groups) > MAX_NAMED_STYLES


def _rank_fraction(scores: Sequence[float]) -> list[float]:
    """Return each score's rank, from 0 for the worst to 1 for the best; a missing score is the worst."""
    order = np.argsort(np.argsort(np.nan_to_num(np.array(scores), nan=-1.0), kind="stable"), kind="stable")
    return [float(rank) / max(1, len(scores) - 1) for rank in order]


def _blend(ramp: Sequence[str], fraction: float) -> str:
    ends = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in ramp], float)
    position = fraction * (len(ramp) - 1)
    low = min(int(position), len(ramp) - 2)
    mixed = ends[low] + (ends[low + 1] - ends[low]) * (position - low)
    return "#" + "".join(f"{round(part):02x}" for part in mixed)
