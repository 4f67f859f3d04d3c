"""The pictures of a run, as matplotlib figures that depend on plain data and on no global state.

Colours are those of Okabe and Ito, told apart with any colour vision; markers differ too. Each figure is drawn for a width, so
that its letters are as large on a phone as on a desk.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from experiments.objectives import OBJECTIVES, further
from experiments.results import (
    LedgerEntry,
    Network,
    PredictorReport,
    Results,
    format_ms,
    format_seconds,
    front,
    parts_of,
    split_layers,
)
from nas.types import Candidate, Provenance

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
BACKED = {"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none", "alpha": 0.75}
BAR: dict[str, Any] = {"lw": 1.6, "marker": "|", "ms": 6, "mew": 1.6}
LINK: dict[str, Any] = {"lw": 0.9, "ls": (0, (1, 1.2))}
RING: dict[str, Any] = {"marker": "o", "ms": 11, "mfc": "none", "mec": PURPLE, "mew": 1.2}
DIAMOND: dict[str, Any] = {"marker": "D", "ms": 4.5, "mfc": "white", "mew": 1.0}


@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    size: float
    legend: str


LOOKS = {
    "search": _Look(BLUE, "o", 7, "search"),
    "random": _Look(ORANGE, "s", 6, "random search"),
    "hand": _Look(GREEN, "^", 7, "designed by hand"),
}


@dataclass(frozen=True)
class _Limits:
    """What a Pareto picture shows: all trained networks and the budget; scored candidates as far as they do not squash those."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    shows_trivial: bool


@contextmanager
def _drawing() -> Iterator[None]:
    """Our style whatever the user's; a script that the font lacks shows boxes and does not warn."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@_drawing()
def pareto_figure(results: Results, candidates: Sequence[Candidate], *, width: float = WIDE) -> Figure:
    """Validation error against latency: what was scored, what was trained and measured, the budget and what ships.

    Each part carries a `gid`: a role, "scored <role>", "predicted <role>", "interval <role>", "front", "picked", "budget", ...
    """
    candidates = [c for c in candidates if c.provenance["error"] == Provenance.INHERITED]
    figure, axes = _empty(width, 5.5 if width > NARROW else 6.2)
    limits = _limits(results, candidates)
    axes.set(xlim=limits.x, ylim=limits.y, xlabel="latency (ms)", ylabel=f"validation error: {results.error_means} (%)")
    if limits.log:
        _log_ticks(axes, "x")
    num_hidden = _draw_candidates(axes, candidates, limits)
    for role in LOOKS:
        _draw_networks(axes, results.of_role(role), role)
    steps = [(n.latency_ms, n.error_percent) for n in front(results.of_role("search"))]
    axes.plot(*zip(*steps, strict=True), color=BLUE, lw=2.2, drawstyle="steps-post", zorder=4, gid="front")
    beyond = [n for n in results.front if n not in front(results.networks)]
    axes.plot(*_points(beyond), ls="none", zorder=7, gid="front in more", **RING)
    picked, trivial = results.picked, results.best_trivial
    axes.plot(picked.latency_ms, picked.error_percent, "o", ms=15, mfc="none", mec=INK, mew=1.6, zorder=8, gid="picked")
    axes.axvline(results.verdict.asked_ms, color=VERMILLION, lw=1.4, ls=(0, (5, 3)), zorder=2, gid="budget")
    if limits.shows_trivial and trivial:
        axes.axhline(trivial[1], color=PURPLE, lw=1.6, ls=":", zorder=2, gid="trivial")
    workload = results.workload
    words = f"{results.device} · {workload.words} · lower left is better"
    _head(figure, axes, results.title, words)
    handles = {tuple: HandlerTuple(None)}
    figure.legend(*_legend(results, candidates), loc="outside lower left", ncols=2 if width > NARROW else 1, handler_map=handles)
    hidden = f"{num_hidden} of {len(candidates)} scored architectures lie outside" if num_hidden else ""
    _place_labels(figure, axes, results, limits, hidden)
    return figure


def _limits(results: Results, candidates: Sequence[Candidate]) -> _Limits:
    networks = results.networks
    times = [t for n in networks for t in (n.predicted_ms, n.measured_ms, n.measured_low_ms, n.measured_high_ms) if t is not None]
    fastest, slowest = min(*times, results.verdict.asked_ms), max(*times, results.verdict.asked_ms)
    log = slowest > LOG_BEYOND * fastest
    if log:
        margin = (slowest / fastest) ** 0.06
        x = (fastest / margin, slowest * margin)
    else:
        pad = max(0.07 * (slowest - fastest), 0.25 * slowest - 0.5 * (slowest - fastest))
        x = (max(0.0, fastest - pad), slowest + pad)
    low, high = min(n.error_percent for n in networks), max(n.error_percent for n in networks)
    span = max(high - low, 0.1 * high, 0.5)
    trivial = results.best_trivial
    shows_trivial = trivial is not None and low - span <= trivial[1] <= high + span
    if trivial is not None and shows_trivial:
        low, high = min(low, trivial[1]), max(high, trivial[1])
        span = max(span, high - low)
    # what was trained, and the baseline, keep at least six tenths of the height
    top = max(high, min(max((c.objectives["error"] for c in candidates), default=high), low + span / 0.6))
    pad = max(0.1 * (top - low), 0.5 * (span - (top - low)))
    return _Limits(x, (max(low - pad, -0.3 * pad), top + pad), log, shows_trivial)


def _draw_candidates(axes: Axes, candidates: Sequence[Candidate], limits: _Limits) -> int:
    """Draws those inside the limits; returns how many are not."""
    (left, right), (bottom, top) = limits.x, limits.y
    num_hidden = 0
    for role in LOOKS:
        of_role = [c.objectives for c in candidates if c.phase == role]
        x, y = (np.array([objectives[name] for objectives in of_role]) for name in ("latency_ms", "error"))
        inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
        num_hidden += int(np.sum(~inside))
        axes.scatter(
            x[inside], y[inside], s=11, color=LOOKS[role].colour, alpha=0.28, lw=0, zorder=1, rasterized=len(x) > 1500,
            gid=f"scored {role}",
        )  # fmt: skip
    return num_hidden


def _draw_networks(axes: Axes, networks: Sequence[Network], role: str) -> None:
    """For each network a hollow diamond where it was predicted, and its measured point with the interval if it has one."""
    look = LOOKS[role]
    for n in networks:
        height = [n.error_percent] * 2
        axes.plot([n.predicted_ms, n.latency_ms], height, color=look.colour, **LINK, zorder=3)
        if n.measured_low_ms is not None and n.measured_high_ms is not None:
            axes.plot([n.measured_low_ms, n.measured_high_ms], height, color=look.colour, **BAR, zorder=5, gid=f"interval {role}")
    measured = [n for n in networks if n.measured_ms is not None]
    times, errors = [n.predicted_ms for n in networks], [n.error_percent for n in networks]
    axes.plot(times, errors, color=look.colour, mec=look.colour, ls="none", zorder=6, gid=f"predicted {role}", **DIAMOND)
    axes.plot(*_points(measured), look.marker, color=look.colour, ms=look.size, mec="white", mew=0.9, zorder=7, gid=role)


def _points(networks: Sequence[Network]) -> tuple[list[float], list[float]]:
    return [n.latency_ms for n in networks], [n.error_percent for n in networks]


def _legend(results: Results, candidates: Sequence[Candidate]) -> tuple[list[Any], list[str]]:
    entries: dict[str, Any] = {}
    for role, look in LOOKS.items():
        if networks := results.of_role(role):
            style: dict[str, Any] = {"marker": look.marker, "ms": look.size, "mec": "white"}
            what = "trained, measured"
            if all(n.measured_ms is None for n in networks):
                style, what = {**DIAMOND, "mec": look.colour}, "trained, not measured"
            style |= {"lw": 2.2, "ls": "-" if role == "search" else "none"}
            entries[f"{look.legend}: {what}"] = Line2D([], [], color=look.colour, **style)
    if any(n.measured_low_ms is not None for n in results.networks):
        entries[results.interval] = Line2D([], [], color=GREY, **BAR)
    if any(n.measured_ms is not None for n in results.networks):
        entries["predicted latency of the same network"] = Line2D([], [], color=GREY, mec=GREY, **LINK, **DIAMOND)
    if candidates:
        dot: dict[str, Any] = {"marker": "o", "ms": 3.5, "mew": 0, "alpha": 0.45, "ls": "none"}
        roles = [role for role in LOOKS if any(c.phase == role for c in candidates)]
        dots = tuple(Line2D([], [], color=LOOKS[role].colour, **dot) for role in roles)
        entries["scored with shared weights (predicted latency)"] = dots
    if any(n not in front(results.networks) for n in results.front):
        words = ", ".join(OBJECTIVES[name].words for name in further(results.objectives))
        entries[f"on the front for its {words}"] = Line2D([], [], ls="none", **RING)
    return list(entries.values()), list(entries)


def _place_labels(figure: Figure, axes: Axes, results: Results, limits: _Limits, corner: str) -> None:
    """Puts each label where it covers the least, the most important first."""
    figure.draw_without_rendering()
    verdict, picked, trivial = results.verdict, results.picked, results.best_trivial
    right, (bottom, top) = limits.x[1], limits.y
    labels = _Labels(figure, axes)
    labels.keep_off((picked.latency_ms, picked.error_percent), points=8)
    for n in results.networks:
        labels.avoid(n.latency_ms, n.error_percent, 3.0)
        for time in (n.predicted_ms, n.measured_low_ms, n.measured_high_ms):
            labels.avoid(time or n.latency_ms, n.error_percent, 1.0)
    ours = front(results.of_role("search"))
    for n, after in itertools.pairwise(ours):
        labels.avoid(np.geomspace(n.latency_ms, after.latency_ms, 40), n.error_percent, 0.4)
        labels.avoid(after.latency_ms, np.linspace(n.error_percent, after.error_percent, 40), 0.4)
    labels.avoid(verdict.asked_ms, np.linspace(bottom, top, 80), 0.1)
    if corner:
        labels.place(corner, (right, top), [(-3, -9, "right")], color=GREY, fontsize=7.5, gid="hidden")
    rise = axes.bbox.height * 72 / figure.dpi - 12
    offsets = [(dx, dy, side) for dy in (6, rise, rise - 14) for dx, side in ((5, "left"), (-5, "right"))]
    asked = f"asked {format_ms(verdict.asked_ms)} ms"
    labels.place(asked, (verdict.asked_ms, bottom), offsets, color=VERMILLION, fontweight="bold", gid="asked")
    offsets = [(dx, dy, side) for dy in (-34, -50, 30, 46, -8) for dx, side in ((-16, "right"), (16, "left"), (-40, "right"))]
    ships = f"ships {picked.id}\n{picked.error_percent:.2f} %, {format_ms(picked.latency_ms)} ms"
    arrow = {"arrowstyle": "-", "color": INK, "lw": 0.8, "shrinkA": 0, "shrinkB": 8}
    labels.place(ships, (picked.latency_ms, picked.error_percent), offsets, fontweight="bold", arrowprops=arrow, gid="ships")
    for n in results.of_role("hand"):
        offsets = [(dx, dy, side) for dy in (7, -14, 18, -26) for dx, side in ((0, "center"), (8, "left"), (-8, "right"))]
        offsets += [(18, -3, "left"), (-18, -3, "right")]
        words = textwrap.shorten(n.label, 40, placeholder="…")
        labels.place(words, (n.latency_ms, n.error_percent), offsets, color=DARK_GREEN, gid="hand label")
    if trivial:
        words = f"{textwrap.shorten(trivial[0], 50, placeholder='…')}: {trivial[1]:.2f}\u00a0%"
        height, offsets = trivial[1], [(x, y, "right") for x in (-4, -80, -160) for y in (4, -12)]
        if not limits.shows_trivial:
            above = trivial[1] > top
            words += f", {'above' if above else 'below'} this picture"
            height, offsets = (
                (top if above else bottom),
                [(x, y if above else -y - 6, "right") for x in (-4, -120) for y in (-24, -12, -38, -56, -74)],
            )
        words = textwrap.fill(words, int(11.7 * figure.get_figwidth()))
        labels.place(words, (right, height), offsets, color=DARK_PURPLE, gid="trivial label")


class _Labels:
    """Labels that keep clear of weighted points and of each other, in pixels."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.axes, self.dots_a_point = axes, figure.dpi / 72
        self.renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        self.points = np.zeros((0, 3))
        self.boxes: list[Bbox] = []

    def avoid(self, x: float | np.ndarray, y: float | np.ndarray, weight: float) -> None:
        pixels = self.axes.transData.transform(np.column_stack(np.broadcast_arrays(np.atleast_1d(x), y)))
        self.points = np.vstack([self.points, np.column_stack([pixels, np.full(len(pixels), weight)])])

    def keep_off(self, point: tuple[float, float], *, points: float) -> None:
        x, y = self.axes.transData.transform(point)
        self.boxes.append(Bbox([(x, y), (x, y)]).padded(points * self.dots_a_point))

    def place(self, text: str, point: tuple[float, float], offsets: Sequence[tuple[float, float, str]], **style: Any) -> None:
        """At the offset (in points, with its alignment) that covers least; of equals at the first."""
        style = {"fontsize": 8.5, "bbox": BACKED, "zorder": 10, "multialignment": "left", **style}
        label = self.axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", **style)
        label.set_in_layout(False)
        at = self.axes.transData.transform(point)

        def box(offset: tuple[float, float, str]) -> Bbox:
            label.set(position=offset[:2], horizontalalignment=offset[2])
            label.update_positions(self.renderer)
            return Text.get_window_extent(label, self.renderer).padded(3)

        def cost(offset: tuple[float, float, str]) -> float:
            x0, y0, x1, y1 = box(offset).extents
            x, y, weight = self.points.T
            covered = weight[(x > x0) & (x < x1) & (y > y0) & (y < y1)].sum()
            left, bottom, right, top = self.axes.bbox.extents
            outside = max(left - x0, 0) + max(x1 - right, 0) + max(bottom - y0, 0) + max(y1 - top, 0)
            away = np.hypot(max(x0 - at[0], at[0] - x1, 0), max(y0 - at[1], at[1] - y1, 0)) / self.dots_a_point
            return float(covered + 0.3 * outside + 0.05 * away + 8.0 * box(offset).count_overlaps(self.boxes))

        self.boxes.append(box(min(offsets, key=cost)))


@_drawing()
def capacity_figure(results: Mapping[str, Any], points: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Capacity in million parameters against latency of a search in a table: its front, what was scored, and what was recorded.

    `points` by "recorded", "random", "search" and "front".
    """
    figure, axes = _empty(WIDE, 5.2)
    axes.set(xlabel="latency (ms)", ylabel="parameters of the layers (million)")
    x, y = zip(*points["recorded"], strict=True)
    axes.scatter(x, y, s=9, color=GREY, alpha=0.25, lw=0, label="recorded, not fitted", zorder=1)
    for role in (role for role in LOOKS if role in points):
        look, (x, y) = LOOKS[role], zip(*points[role], strict=True)
        axes.scatter(
            x, y, s=18, color=look.colour, marker=look.marker, alpha=0.55, lw=0, label=f"{look.legend}: predicted", zorder=3
        )
    x, y = zip(*points["front"], strict=True)
    axes.plot(x, y, color=BLUE, lw=2.2, drawstyle="steps-post", zorder=4, label="front within the budget", gid="front")
    axes.plot(x[-1], y[-1], "o", ms=13, mfc="none", mec=INK, mew=1.6, zorder=8, ls="none", label="picked by the search")
    asked, known = results["verdict"]["asked_ms"], results["held_out"]
    if known["kept"] is not None:
        at = (known["measured_ms"], known["num_parameters"] / 1e6)
        axes.plot(*at, "D", ms=8, mfc=GREEN if known["kept"] else VERMILLION, mec="white", zorder=7, ls="none",
                  label=f"recorded network picked by its bound: {'kept' if known['kept'] else 'BROKEN'}")  # fmt: skip
    axes.axvline(asked, color=VERMILLION, lw=1.4, ls=(0, (5, 3)), zorder=2, label=f"asked {format_ms(asked)} ms", gid="budget")
    _head(figure, axes, results["title"], f"{results['device']['device']} · upper left is better")
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@_drawing()
def predictor_figure(predictor: PredictorReport, *, width: float = NARROW) -> Figure:
    """Predicted against measured latency of the held-out networks, each with its upper bound, and the band of 10 %."""
    figure, axes = _empty(width, 0.95 * width)
    measured, predicted, upper = (
        np.array([getattr(h, name) for h in predictor.held_out]) for name in ("measured_ms", "predicted_ms", "upper_ms")
    )
    low, high = min(*measured, *predicted), max(*measured, *upper)
    log = high > LOG_BEYOND * low
    ends = (low / 1.15, high * 1.15) if log else (max(0.0, low - 0.08 * high), 1.08 * high)
    axes.set(xlim=ends, ylim=ends, xlabel="measured latency (ms)", ylabel="predicted latency (ms)")
    if log:
        _log_ticks(axes, "x")
        _log_ticks(axes, "y")
    line = np.geomspace(max(ends[0], 1e-3 * ends[1]), ends[1], 100)
    axes.fill_between(line, 0.9 * line, 1.1 * line, color=SKY, alpha=0.18, lw=0, label="within 10 %")
    axes.plot(line, line, color=GREY, lw=1.0, label="exact")
    axes.vlines(measured, predicted, upper, color=BLUE, lw=1.0, alpha=0.6)
    axes.plot(measured, upper, "_", color=BLUE, ms=6, mew=1.2, alpha=0.6, label="upper bound")
    axes.plot(measured, predicted, "o", color=BLUE, mec="white", mew=0.8, ms=5.5, label="predicted", gid="held out")
    over = measured > upper
    if over.any():
        axes.plot(measured[over], upper[over], "_", color=VERMILLION, ms=9, mew=2.2, label="upper bound exceeded", gid="exceeded")
    _head(figure, axes, "Latency model", f"{predictor.num_held_out} networks that it had not seen")
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@_drawing()
def architecture_figure(network: Network, networks: Sequence[Network], *, width: float = WIDE) -> Figure:
    """The layers from input (left) to output: sizes as bars beside the largest in `networks`, kinds as words.

    Slots that only deeper networks fill stay empty.
    """
    whole, layers = split_layers(network.arch)
    others = [split_layers(n.arch)[1] for n in (network, *networks)]
    rows = parts_of([layer for other in others for layer in other]) or ["layers"]
    num_columns = max(1, *(len(other) for other in others))
    figure, axes = _empty(width, 0.42 * len(rows) + 0.95)
    axes.set(xlim=(0, num_columns), ylim=(len(rows), 0))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(num_columns) + 0.5, [f"layer {i}" for i in range(1, num_columns + 1)])
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    for row, part in enumerate(rows):
        values = [layer[part] for other in others for layer in other if part in layer]
        kinds = sorted({v for v in values if isinstance(v, str)} - {"none"})
        largest = max((v for v in values if isinstance(v, int)), default=1)
        for column in range(num_columns):
            value = layers[column].get(part) if column < len(layers) else None
            _draw_cell(axes, column, row, value, largest=largest, kinds=kinds, exists=column < len(layers))
    words = ", ".join(f"{name} {value}" for name, value in whole.items())
    _head(figure, axes, f"Architecture {network.id}", f"{words} · {network.num_parameters:,} parameters")
    return figure


def _draw_cell(
    axes: Axes, column: int, row: int, value: int | str | None, *, largest: int, kinds: list[str], exists: bool
) -> None:
    left, top = column + 0.07, row + 0.1
    if value is None:
        axes.add_patch(Rectangle((left, top), 0.86, 0.8, fc="none", ec=PALE, ls=(0, (2, 2)), lw=0.9))
    elif isinstance(value, str):
        colour = PALE if value == "none" else (SKY, GREEN, ORANGE, PURPLE)[kinds.index(value) % 4]
        axes.add_patch(Rectangle((left, top), 0.86, 0.8, fc=colour, ec="none", alpha=0.55))
    else:
        height = 0.8 * value / largest
        axes.add_patch(Rectangle((left, top), 0.86, 0.8, fc="#f4f6f9", ec="none"))
        axes.add_patch(Rectangle((left, top + 0.8 - height), 0.86, height, fc=BLUE, ec="none", alpha=0.35))
    if exists:
        words = "–" if value is None else str(value)
        axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", fontsize=8.5)


@_drawing()
def ledger_figure(ledger: Sequence[LedgerEntry], *, width: float = WIDE) -> Figure:
    """What each phase cost in wall time, in the order in which they ran."""
    figure, axes = _empty(width, 0.3 * len(ledger) + 0.3)
    seconds = [entry.seconds for entry in ledger]
    axes.barh(range(len(ledger)), seconds, height=0.62, color=SKY, gid="phases")
    for row, entry in enumerate(ledger):
        trained = f" · {entry.networks_trained} network{'s' * (entry.networks_trained > 1)}" if entry.networks_trained else ""
        words = f"{format_seconds(entry.seconds)}{trained}"
        axes.annotate(words, (entry.seconds, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    names = [entry.phase[:1].upper() + entry.phase[1:] for entry in ledger]
    axes.set_yticks(
        range(len(ledger)), [textwrap.fill(name, 40 if width > NARROW else 20, break_on_hyphens=False) for name in names]
    )
    axes.set_xlim(0, (1.3 if width > NARROW else 2.0) * max(seconds, default=0.0) or 1.0)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots an inch."""
    return _written(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as SVG with letters as outlines; the same bytes for the same figure."""
    return _written(figure, "svg", {"Date": None, "Creator": None, "Format": None, "Type": None})


def _written(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with _drawing():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _empty(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _head(figure: Figure, axes: Axes, title: str, subtitle: str) -> None:
    """A bold title and a grey line under it, both wrapped to the figure's width."""
    inches = figure.get_figwidth() - 0.7
    small = textwrap.wrap(subtitle, int(14.5 * inches))
    axes.set_title(
        textwrap.fill(title, int(9.5 * inches)), loc="left", fontsize=11.5, fontweight="bold", pad=11 + 11.5 * len(small)
    )
    axes.annotate(
        "\n".join(small), (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", color=GREY, fontsize=8.5
    )


def _log_ticks(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each power of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
