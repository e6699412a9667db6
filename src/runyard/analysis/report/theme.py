"""Colors and fonts that the figures and the page share, for light and dark backgrounds.

The palette is Okabe and Ito's, readable with every common kind of color blindness: blue is training and correct,
vermillion is the test set and mistaken, green is validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    background: str
    foreground: str
    muted: str
    grid: str
    train: str
    test: str
    validation: str


LIGHT = Theme(
    background="#ffffff",
    foreground="#1a1d21",
    muted="#5c6570",
    grid="#e4e7eb",
    train="#0072b2",
    test="#d55e00",
    validation="#00845f",
)
DARK = Theme(
    background="#171a1f",
    foreground="#e9ebee",
    muted="#9da7b3",
    grid="#2d333b",
    train="#56b4e9",
    test="#f08a4b",
    validation="#2fc79a",
)


@contextmanager
def figure_factory(theme: Theme) -> Iterator[Callable[..., Figure]]:
    """Set matplotlib up for ``theme`` within the block. Yields the function that creates a ``Figure``."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def new_figure(figsize: tuple[float, float]) -> Figure:
        figure = Figure(figsize, facecolor=theme.background)
        FigureCanvasAgg(figure)
        return figure

    with matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.labelsize": 8,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 8,
            "text.color": theme.foreground,
            "axes.labelcolor": theme.muted,
            "axes.facecolor": theme.background,
            "axes.edgecolor": theme.muted,
            "axes.linewidth": 0.6,
            "xtick.color": theme.muted,
            "ytick.color": theme.muted,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.unicode_minus": True,
        }
    ):
        yield new_figure


def save(figure: Figure, kind: str, dpi: int) -> bytes:
    """Return the figure as the bytes of a file of this ``kind``: png, pdf or svg."""
    import io
    import warnings

    import matplotlib

    out = io.BytesIO()
    # Type 42 embeds TrueType fonts: journals accept them and text stays searchable.
    with matplotlib.rc_context({"pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # class names in any script
        figure.savefig(out, format=kind, dpi=dpi)
    return out.getvalue()


def blend(low: str, high: str, fraction: np.ndarray) -> np.ndarray:
    """Return colors between two, float [..., 3] in [0, 1]; ``fraction`` is in [0, 1], of any shape."""
    import numpy as np

    ends = [np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for color in (low, high)]
    weight = fraction[..., None]
    return ends[0] * (1 - weight) + ends[1] * weight
