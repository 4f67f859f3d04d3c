"""What all pictures share: colours, letters, titles and axes, and how a figure becomes bytes.

Colours are those of Okabe and Ito, told apart with any colour vision; markers differ too. Each figure is drawn for a width, so
that its letters are as large on a phone as on a desk.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY, PALE, DARK_GREEN, DARK_PURPLE = "#1f2933", "#6b7785", "#e4e8ee", "#00694d", "#94437a"
WIDE, NARROW = 8.6, 4.3  # inches
LOG_BEYOND = 8.0  # an axis whose ends differ by more than this factor is logarithmic

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "text.color": INK, "text.parse_math": False, "text.usetex": False,
    "axes.edgecolor": "#9aa5b1", "axes.labelcolor": INK, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "axes.formatter.use_mathtext": False,
    "grid.color": "#eceff3", "grid.linewidth": 0.8, "xtick.color": GREY, "ytick.color": GREY, "legend.frameon": False,
    "legend.fontsize": 8.5, "figure.facecolor": "white", "figure.dpi": 150, "svg.fonttype": "path",
    "svg.hashsalt": "paretoformer",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How networks of one origin are drawn."""

    colour: str
    marker: str
    size: float


LOOKS = {
    "search": Look(BLUE, "o", 7),
    "random": Look(ORANGE, "s", 6),
    "hand": Look(GREEN, "^", 7),
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style whatever the user's; a script that the font lacks shows boxes and does not warn."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def empty(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def head(figure: Figure, axes: Axes, title: str, subtitle: str) -> None:
    """A bold title and a grey line under it, both wrapped to the figure's width."""
    inches = figure.get_figwidth() - 0.7
    small = textwrap.wrap(subtitle, int(14.5 * inches))
    axes.set_title(
        textwrap.fill(title, int(9.5 * inches)), loc="left", fontsize=11.5, fontweight="bold", pad=11 + 11.5 * len(small)
    )
    axes.annotate(
        "\n".join(small), (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", color=GREY, fontsize=8.5
    )


def log_ticks(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each power of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots an inch."""
    return _written(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as SVG with letters as outlines; the same bytes for the same figure."""
    return _written(figure, "svg", {"Date": None, "Creator": None, "Format": None, "Type": None})


def _written(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
