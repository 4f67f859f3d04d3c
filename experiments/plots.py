"""The pictures of a run, as matplotlib figures that depend on plain data and on no global state.

Colours are those of Okabe and Ito, told apart with any colour vision; markers differ too. Each figure is drawn for a width, so that
its letters are as large on a phone as on a desk.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.results import LedgerEntry, Network, PredictorReport, Results, format_ms, format_seconds, front, split_layers
from nas.types import Candidate

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY, PALE = "#1f2933", "#6b7785", "#e4e8ee"
WIDE, NARROW = 8.6, 4.3  # inches
LOG_BEYOND = 8.0  # an axis whose ends differ by more than this factor is logarithmic

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "text.color": INK, "text.parse_math": False, "text.usetex": False,
    "axes.edgecolor": "#9aa5b1", "axes.labelcolor": INK, "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "axes.formatter.use_mathtext": False,
    "grid.color": "#eceff3", "grid.linewidth": 0.8, "xtick.color": GREY, "ytick.color": GREY, "legend.frameon": False,
    "legend.fontsize": 8.5, "figure.facecolor": "white", "figure.dpi": 150, "svg.fonttype": "path", "svg.hashsalt": "paretoformer",
}  # fmt: skip
HALO = [effects.withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    size: float
    legend: str


LOOKS = {
    "search": _Look(BLUE, "o", 7, "search: trained, measured"),
    "random": _Look(ORANGE, "s", 6, "random search: trained, measured"),
    "hand": _Look(GREEN, "^", 7, "designed by hand: trained, measured"),
}


@dataclass(frozen=True)
class _Limits:
    """What a Pareto picture shows: all trained networks and the budget; scored candidates as far as they do not squash those."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    shows_trivial: bool


@mpl.rc_context(STYLE)
def pareto_figure(results: Results, candidates: Sequence[Candidate], *, width: float = WIDE) -> Figure:
    """Validation error against latency: what was scored, what was trained and measured, the budget and what ships."""
    figure = Figure(figsize=(width, 5.4 if width > 6 else 6.2), layout="constrained")
    axes = figure.add_subplot()
    limits = _limits(results, candidates)
    axes.set(xlim=limits.x, ylim=limits.y, xlabel="latency (ms)", ylabel="validation error (%)")
    if limits.log:
        _log_ticks(axes, "x")
    num_hidden = _draw_candidates(axes, candidates, limits)
    for role, look in LOOKS.items():
        _draw_networks(axes, results.of_role(role), look, role)
    ours = front(results.of_role("search"))
    axes.plot(
        [n.measured_ms for n in ours],
        [n.error_percent for n in ours],
        color=BLUE,
        lw=2.2,
        drawstyle="steps-post",
        zorder=4,
        gid="front",
    )
    picked = results.picked
    axes.plot(picked.measured_ms, picked.error_percent, "o", ms=15, mfc="none", mec=INK, mew=1.6, zorder=8, gid="picked")
    axes.axvline(results.verdict.asked_ms, color=VERMILLION, lw=1.4, ls=(0, (5, 3)), zorder=2, gid="budget")
    if limits.shows_trivial and results.best_trivial:
        axes.axhline(results.best_trivial[1], color=PURPLE, lw=1.6, ls=":", zorder=2, gid="trivial")
    workload = results.workload
    _head(
        figure, axes, f"{results.task} on {results.device}",
        f"batch {workload.batch}, {workload.tokens} tokens, {workload.mode} · lower left is better",
    )  # fmt: skip
    figure.legend(
        *_legend(results, candidates),
        loc="outside lower left",
        ncols=3 if width > 6 else 1,
        handler_map={tuple: HandlerTuple(None)},
    )
    if num_hidden:
        words = f"{num_hidden} of {len(candidates)} scored architectures lie outside"
        axes.text(
            0.995,
            0.99,
            words,
            transform=axes.transAxes,
            ha="right",
            va="top",
            color=GREY,
            fontsize=7.5,
            path_effects=HALO,
            gid="hidden",
        )
    _place_labels(figure, axes, results, limits)
    return figure


def _limits(results: Results, candidates: Sequence[Candidate]) -> _Limits:
    networks = results.networks
    times = [t for n in networks for t in (n.predicted_ms, n.measured_ms, n.measured_low_ms, n.measured_high_ms) if t is not None]
    times.append(results.verdict.asked_ms)
    fastest, slowest = min(times), max(times)
    log = slowest > LOG_BEYOND * fastest
    if log:
        margin = (slowest / fastest) ** 0.06
        x = (fastest / margin, slowest * margin)
    else:
        pad = max(0.06 * (slowest - fastest), 0.04 * slowest)
        x = (max(0.0, fastest - pad), slowest + pad)
    errors = [n.error_percent for n in networks]
    low, high = min(errors), max(errors)
    span = max(high - low, 0.1 * high, 0.5)
    trivial = results.best_trivial
    shows_trivial = trivial is not None and low - span <= trivial[1] <= high + span
    if trivial is not None and shows_trivial:
        low, high = min(low, trivial[1]), max(high, trivial[1])
        span = max(span, high - low)
    inherited = [c.objectives["error"] for c in candidates]
    top = max(high, min(max(inherited, default=high), low + span / 0.6))
    pad = 0.09 * max(top - low, span)
    return _Limits(x, (max(low - pad, -0.3 * pad), min(top + pad, 102.0)), log, shows_trivial)


def _draw_candidates(axes: Axes, candidates: Sequence[Candidate], limits: _Limits) -> int:
    """Draws those inside the limits; returns how many are not."""
    num_hidden = 0
    for role, colour in (("search", BLUE), ("random", ORANGE)):
        of_role = [c for c in candidates if (c.phase == "random") == (role == "random")]
        points = np.array([(c.objectives["latency_ms"], c.objectives["error"]) for c in of_role]).reshape(-1, 2)
        (left, right), (bottom, top) = limits.x, limits.y
        inside = (points[:, 0] >= left) & (points[:, 0] <= right) & (points[:, 1] >= bottom) & (points[:, 1] <= top)
        num_hidden += int(np.sum(~inside))
        axes.scatter(
            *points[inside].T,
            s=11,
            color=colour,
            alpha=0.28,
            linewidths=0,
            zorder=1,
            rasterized=len(points) > 1500,
            gid=f"scored {role}",
        )
    return num_hidden


def _draw_networks(axes: Axes, networks: Sequence[Network], look: _Look, role: str) -> None:
    """For each network its measured point with the interval, and a hollow diamond where it was predicted."""
    for n in networks:
        axes.plot([n.predicted_ms, n.measured_ms], [n.error_percent] * 2, color=look.colour, lw=0.9, ls=(0, (1, 1.2)), zorder=3)
        if n.measured_low_ms is not None and n.measured_high_ms is not None:
            ends = [n.measured_low_ms, n.measured_high_ms]
            axes.plot(
                ends,
                [n.error_percent] * 2,
                color=look.colour,
                lw=1.6,
                marker="|",
                ms=6,
                mew=1.6,
                zorder=5,
                gid=f"interval {role}",
            )
    errors = [n.error_percent for n in networks]
    axes.plot(
        [n.predicted_ms for n in networks],
        errors,
        "D",
        ms=4.5,
        mfc="white",
        mec=look.colour,
        mew=1.0,
        zorder=6,
        gid=f"predicted {role}",
    )
    axes.plot(
        [n.measured_ms for n in networks],
        errors,
        look.marker,
        ms=look.size,
        color=look.colour,
        mec="white",
        mew=0.9,
        zorder=7,
        gid=role,
    )


def _legend(results: Results, candidates: Sequence[Candidate]) -> tuple[list[object], list[str]]:
    entries: dict[str, object] = {}
    for role, look in LOOKS.items():
        if results.of_role(role):
            line = "-" if role == "search" else "none"
            entries[look.legend] = Line2D(
                [], [], color=look.colour, marker=look.marker, ms=look.size, mec="white", lw=2.2, ls=line
            )
    if any(n.measured_low_ms is not None for n in results.networks):
        entries[results.interval] = Line2D([], [], color=GREY, marker="|", ms=6, mew=1.6, lw=1.6)
    entries["its predicted latency"] = Line2D(
        [], [], color=GREY, marker="D", ms=4.5, mfc="white", mec=GREY, lw=0.9, ls=(0, (1, 1.2))
    )
    if candidates:
        dots = [Line2D([], [], color=colour, marker="o", ms=3.5, mew=0, alpha=0.4, ls="none") for colour in (BLUE, ORANGE)]
        label = "scored with shared weights (predicted latency)"
        entries[label] = tuple(dots) if any(c.phase == "random" for c in candidates) else dots[0]
    return list(entries.values()), list(entries)


def _place_labels(figure: Figure, axes: Axes, results: Results, limits: _Limits) -> None:
    """Puts each label where it covers the least, the most important first."""
    figure.draw_without_rendering()
    verdict, picked, trivial = results.verdict, results.picked, results.best_trivial
    (left, right), (bottom, top) = limits.x, limits.y
    taken = _Taken(figure, axes)
    for n in results.networks:
        taken.add((n.measured_ms, n.error_percent), 3.0)
        for time in (n.predicted_ms, n.measured_low_ms, n.measured_high_ms):
            taken.add((time or n.measured_ms, n.error_percent), 1.0)
    for height in np.linspace(bottom, top, 60):
        taken.add((verdict.asked_ms, float(height)), 0.5)
    if limits.shows_trivial and trivial:
        for time in np.linspace(left, right, 60):
            taken.add((float(time), trivial[1]), 0.5)
    asked = _note(
        axes, f"asked {format_ms(verdict.asked_ms)} ms", (verdict.asked_ms, bottom), color=VERMILLION, fontweight="bold"
    )
    taken.place(asked, [(5, 6, "left"), (-5, 6, "right"), (5, 300, "left"), (-5, 300, "right")])
    short = f"{picked.id}: {picked.error_percent:.2f} %, {format_ms(picked.measured_ms)} ms"
    ships = _note(
        axes,         f"ships {short}", (picked.measured_ms, picked.error_percent), fontweight="bold", gid="ships",
        arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.8, "shrinkA": 1, "shrinkB": 8},
    )  # fmt: skip
    taken.place(
        ships, [(dx, dy, side) for dy in (-24, -40, 26, 44, -60) for dx, side in ((-14, "right"), (14, "left"), (-40, "left"))]
    )
    for n in results.of_role("hand"):
        label = _note(axes, textwrap.shorten(n.label, 40), (n.measured_ms, n.error_percent), color=GREEN, gid="hand label")
        taken.place(label, [(dx, dy, side) for dy in (8, -15, 18, -25) for dx, side in ((8, "left"), (-8, "right"))])
    if trivial:
        name = textwrap.shorten(trivial[0], 60)
        if limits.shows_trivial:
            note = _note(axes, f"{name}: {trivial[1]:.2f} %", (right, trivial[1]), color="#a04b7d")
            taken.place(note, [(-4, 5, "right"), (-4, -13, "right"), (-150, 5, "right"), (-150, -13, "right")])
        else:
            words = f"{name}: {trivial[1]:.2f} %, {'above' if trivial[1] > top else 'below'} this picture"
            note = _note(axes, words, (left, top if trivial[1] > top else bottom), color="#a04b7d")
            taken.place(note, [(6, -12 if trivial[1] > top else 6, "left"), (6, -26 if trivial[1] > top else 20, "left")])


class _Taken:
    """What of the axes is covered: weighted points and the boxes of the labels so far, in pixels."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.axes = axes
        self.renderer = FigureCanvasAgg(figure).get_renderer()
        self.points: list[tuple[float, float, float]] = []
        self.boxes = [t.get_window_extent(self.renderer) for t in axes.texts]

    def add(self, point: tuple[float, float], weight: float) -> None:
        x, y = self.axes.transData.transform(point)
        self.points.append((float(x), float(y), weight))

    def place(self, label: Text, offsets: Sequence[tuple[float, float, str]]) -> None:
        """Moves an annotation to the offset (points; horizontal alignment) that covers least; of equals to the first."""
        label.set(path_effects=HALO, fontsize=8.5, in_layout=False)

        def cost(offset: tuple[float, float, str]) -> float:
            _move(label, offset)
            box = Text.get_window_extent(label, self.renderer).padded(4)
            inside = self.axes.bbox
            outside = (
                max(inside.x0 - box.x0, 0) + max(box.x1 - inside.x1, 0) + max(inside.y0 - box.y0, 0) + max(box.y1 - inside.y1, 0)
            )
            covered = sum(w for x, y, w in self.points if box.x0 < x < box.x1 and box.y0 < y < box.y1)
            return 0.3 * outside + covered + 8.0 * sum(bool(box.overlaps(other)) for other in self.boxes)

        _move(label, min(offsets, key=cost))
        self.boxes.append(Text.get_window_extent(label, self.renderer).padded(2))


def _move(label: Text, offset: tuple[float, float, str]) -> None:
    label.set(position=offset[:2], horizontalalignment=offset[2])


def _note(axes: Axes, text: str, point: tuple[float, float], **style: Any) -> Annotation:
    return axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", zorder=10, **style)


@mpl.rc_context(STYLE)
def predictor_figure(predictor: PredictorReport, *, width: float = NARROW) -> Figure:
    """Predicted against measured latency of the held-out networks, each with its upper bound, and the band of 10 %."""
    figure = Figure(figsize=(width, 0.92 * width), layout="constrained")
    axes = figure.add_subplot()
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
    axes.vlines(measured, predicted, upper, color=BLUE, lw=1.2, alpha=0.6, label="up to the upper bound")
    axes.plot(measured, predicted, "o", color=BLUE, mec="white", mew=0.8, ms=6, label="held-out network", gid="held out")
    broken = measured > upper
    if broken.any():
        axes.plot(
            measured[broken], upper[broken], "_", color=VERMILLION, ms=9, mew=2, label="bound that was exceeded", gid="exceeded"
        )
    _head(figure, axes, "Latency model", f"{predictor.num_held_out} networks that it had not seen")
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def architecture_figure(network: Network, networks: Sequence[Network], *, width: float = WIDE) -> Figure:
    """The layers from input (left) to output: sizes as bars beside the largest in `networks`, kinds as words.

    Slots that only deeper networks fill stay empty.
    """
    whole, layers = split_layers(network.arch)
    others = [split_layers(n.arch)[1] for n in (network, *networks)]
    rows = list(dict.fromkeys(part for layer in max(others, key=len) for part in layer)) or ["layers"]
    num_columns = max(1, *(len(other) for other in others))
    figure = Figure(figsize=(width, 0.62 * len(rows) + 0.85), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, num_columns), ylim=(len(rows), 0))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(num_columns) + 0.5, [f"{i}" for i in range(1, num_columns + 1)])
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xlabel("layer")
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
        axes.add_patch(Rectangle((left, top), 0.86, 0.8, fc="none", ec=PALE, ls="-" if exists else (0, (2, 2)), lw=0.9))
        return
    if isinstance(value, str):
        colour = PALE if value == "none" else (SKY, GREEN, ORANGE, PURPLE)[kinds.index(value) % 4]
        axes.add_patch(Rectangle((left, top), 0.86, 0.8, fc=colour, ec="none", alpha=0.55))
    else:
        axes.add_patch(Rectangle((left, top), 0.86, 0.8, fc="#f4f6f9", ec="none"))
        height = 0.8 * value / largest
        axes.add_patch(Rectangle((left, top + 0.8 - height), 0.86, height, fc=BLUE, ec="none", alpha=0.35))
    axes.text(column + 0.5, row + 0.5, str(value), ha="center", va="center", fontsize=8.5)


@mpl.rc_context(STYLE)
def ledger_figure(ledger: Sequence[LedgerEntry], *, width: float = WIDE) -> Figure:
    """What each phase cost in wall time, in the order in which they ran."""
    figure = Figure(figsize=(width, 0.3 * len(ledger) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    seconds = [entry.seconds for entry in ledger]
    axes.barh(range(len(ledger)), seconds, height=0.62, color=SKY, gid="phases")
    for row, entry in enumerate(ledger):
        trained = f" · {entry.networks_trained} trained" if entry.networks_trained else ""
        axes.annotate(
            f"{format_seconds(entry.seconds)}{trained}",
            (entry.seconds, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(ledger)), [textwrap.fill(entry.phase, 40 if width > 6 else 22) for entry in ledger])
    axes.set_xlim(0, 1.3 * max(seconds, default=1.0) or 1.0)
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
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a script that the font lacks shows boxes
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _head(figure: Figure, axes: Axes, title: str, subtitle: str) -> None:
    """A bold title and a grey line under it, both wrapped to the figure's width."""
    letters = int(11.5 * figure.get_figwidth())
    axes.set_title(textwrap.fill(subtitle, int(1.25 * letters)), loc="left", color=GREY, fontsize=8.5)
    figure.suptitle(textwrap.fill(title, letters), x=0.01, ha="left", fontsize=11.5, fontweight="bold")


def _log_ticks(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each power of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
