"""The Pareto picture of a run: error against latency, the budget, and what ships."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from experiments.formatting import format_ms
from experiments.networks import Network, front
from experiments.objectives import further, objective
from experiments.plots.labels import Labels, Offset, around
from experiments.plots.style import (
    DARK_GREEN,
    DARK_PURPLE,
    GREY,
    INK,
    LOG_BEYOND,
    LOOKS,
    NARROW,
    PURPLE,
    VERMILLION,
    WIDE,
    drawing,
    empty,
    head,
    log_ticks,
)
from experiments.results import Results
from experiments.roles import ROLES
from nas.types import Candidate, Provenance

BAR: dict[str, Any] = {"lw": 1.6, "marker": "|", "ms": 6, "mew": 1.6}
LINK: dict[str, Any] = {"lw": 0.9, "ls": (0, (1, 1.2))}
FAR = 4.0  # a budget beyond so many times the slowest network is named and not drawn
WHOLE: dict[str, Any] = {"clip_on": False, "in_layout": False}  # markers that lie on an axis
HEIGHTS = (3, 15, 28, 42, 56, 72, 90)  # points between the line of the baseline and its label
RING: dict[str, Any] = {"marker": "o", "ms": 11, "mfc": "none", "mec": PURPLE, "mew": 1.2}
FRONT: dict[str, Any] = {"color": INK, "lw": 1.8}
OWN_FRONT: dict[str, Any] = {"color": "#b9d5e7", "lw": 6.0, "solid_capstyle": "butt"}
DIAMOND: dict[str, Any] = {"marker": "D", "ms": 4.5, "mfc": "white", "mew": 1.0}


@dataclass(frozen=True)
class _Limits:
    """What a Pareto picture shows: all trained networks, a budget that is not far beyond them, and scored candidates as far as
    they do not squash those."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    shows_trivial: bool
    shows_budget: bool


@drawing()
def pareto_figure(results: Results, candidates: Sequence[Candidate], *, width: float = WIDE) -> Figure:
    """Error against latency: what was scored (on the split of the search), what was trained and measured (validation error), the
    budget and what ships.

    Each part carries a `gid`: a role, "scored <role>", "predicted <role>", "interval <role>", "front", "picked", "budget", ...
    """
    candidates = [c for c in candidates if c.provenance["error"] == Provenance.INHERITED]
    figure, axes = empty(width, 5.6 if width > NARROW else 6.6)
    limits = _limits(results, candidates)
    axes.set(xlim=limits.x, ylim=limits.y, xlabel="latency (ms)", ylabel=f"validation error: {results.error_means} (%)")
    if limits.log:
        log_ticks(axes, "x")
    num_hidden = _draw_candidates(axes, candidates, limits)
    for role in LOOKS:
        _draw_networks(axes, results.of_role(role), role)
    axes.plot(
        *_points(front(results.of_role("search"))), drawstyle="steps-post", zorder=3, gid="front of the search", **OWN_FRONT
    )
    best = front(results.networks)
    axes.plot(*_points(best), drawstyle="steps-post", zorder=4, gid="front", **FRONT)
    beyond = [n for n in results.front if n not in best]
    axes.plot(*_points(beyond), ls="none", zorder=7, gid="front in more", **RING)
    picked, shipped, trivial = results.picked, results.shipped, results.best_trivial
    look = LOOKS[picked.role]
    if results.kept_stages:
        axes.plot(*_points([picked, shipped]), color=INK, zorder=7, gid="stages", **LINK)
    colour = INK if results.kept_stages else look.colour  # what stages made is not alike to the trained ones
    axes.plot(
        *_points([shipped]), look.marker, color=colour, ms=look.size, mec="white", mew=0.9, zorder=9, **WHOLE, gid="shipped"
    )
    axes.plot(*_points([shipped]), "o", ms=15, mfc="none", mec=INK, mew=1.6, zorder=9, **WHOLE, gid="picked")
    asked_ms = results.verdict.asked_ms
    if limits.shows_budget:
        axes.axvline(asked_ms, color=VERMILLION, lw=1.4, ls=(0, (5, 3)), zorder=2, gid="budget")
        axes.axvspan(asked_ms, limits.x[1], color=VERMILLION, alpha=0.05, lw=0, zorder=0, gid="over the budget")
    if limits.shows_trivial and trivial:
        axes.axhline(trivial[1], color=PURPLE, lw=1.6, ls=":", zorder=2, gid="trivial")
    head(figure, axes, results.title, f"{results.device} · {results.workload_words} · lower left is better")
    handles, words = _legend(results, candidates)
    words = [textwrap.fill(entry, 72 if width > NARROW else 58) for entry in words]
    columns = 2 if width > NARROW else 1
    figure.legend(handles, words, loc="outside lower left", ncols=columns, handler_map={tuple: HandlerTuple(None)})
    hidden = f"{num_hidden} of {len(candidates)} scored architectures lie outside" if num_hidden else ""
    _place_labels(figure, axes, results, limits, hidden)
    return figure


def _limits(results: Results, candidates: Sequence[Candidate]) -> _Limits:
    networks = (*results.networks, results.shipped)
    times = [t for n in networks for t in (n.predicted_ms, n.measured_ms, n.measured_low_ms, n.measured_high_ms) if t is not None]
    shows_budget = results.verdict.asked_ms <= FAR * max(times)
    times += [results.verdict.asked_ms] * shows_budget
    fastest, slowest = min(times), max(times)
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
    return _Limits(x, (max(low - pad, 0.0), top + pad), log, shows_trivial, shows_budget)


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
    axes.plot(times, errors, color=look.colour, mec=look.colour, ls="none", zorder=6, gid=f"predicted {role}", **DIAMOND, **WHOLE)
    axes.plot(*_points(measured), look.marker, color=look.colour, ms=look.size, mec="white", mew=0.9, zorder=7, **WHOLE, gid=role)


def _points(networks: Sequence[Network]) -> tuple[list[float], list[float]]:
    return [n.latency_ms for n in networks], [n.error_percent for n in networks]


def _legend(results: Results, candidates: Sequence[Candidate]) -> tuple[list[Any], list[str]]:
    entries: dict[str, Any] = {}
    for role, look in LOOKS.items():
        if networks := results.of_role(role):
            style: dict[str, Any] = {"marker": look.marker, "ms": look.size, "mec": "white"}
            what = f"trained, {results.verdict.how}"
            if all(n.measured_ms is None for n in networks):
                style, what = {**DIAMOND, "mec": look.colour}, "trained, not measured"
            own = role == "search" and len(networks) > 1
            name = f"{ROLES[role]}, and its own front" if own else ROLES[role]
            line = OWN_FRONT if own else {"ls": "none", "color": look.colour}
            entries[f"{name}: {what}"] = Line2D([], [], **{"mfc": look.colour, **line, **style})
    when = ", before stages" if results.kept_stages else ""
    entries[f"front{when}: no other network here is better in both"] = Line2D([], [], **FRONT)
    if any(n.measured_low_ms is not None for n in results.networks):
        entries[results.interval] = Line2D([], [], color=GREY, **BAR)
    if any(n.measured_ms is not None for n in results.networks):
        entries["predicted latency of the same network"] = Line2D([], [], color=GREY, mec=GREY, **LINK, **DIAMOND)
    if candidates:
        dot: dict[str, Any] = {"marker": "o", "ms": 3.5, "mew": 0, "alpha": 0.45, "ls": "none"}
        roles = [role for role in LOOKS if any(c.phase == role for c in candidates)]
        dots = tuple(Line2D([], [], color=LOOKS[role].colour, **dot) for role in roles)
        entries["scored with shared weights (split of the search, predicted latency)"] = dots
    if any(n not in front(results.networks) for n in results.front):
        words = ", ".join(objective(name).words for name in further(results.objectives))
        entries[f"on the front for its {words}"] = Line2D([], [], ls="none", **RING)
    return list(entries.values()), list(entries)


def _place_labels(figure: Figure, axes: Axes, results: Results, limits: _Limits, corner: str) -> None:
    """Puts each label where it covers the least, the most important first."""
    figure.draw_without_rendering()
    verdict, shipped, trivial = results.verdict, results.shipped, results.best_trivial
    right, (bottom, top) = limits.x[1], limits.y
    labels = Labels(figure, axes)
    labels.keep_off((shipped.latency_ms, shipped.error_percent), points=8)
    for n in (*results.networks, shipped):
        labels.avoid(n.latency_ms, n.error_percent, 6.0, radius=4.0)
        labels.avoid(n.predicted_ms, n.error_percent, 3.0, radius=3.0)
        low_ms, high_ms = n.measured_low_ms or n.latency_ms, n.measured_high_ms or n.latency_ms
        labels.avoid(np.geomspace(low_ms, high_ms, 10), n.error_percent, 0.4, radius=1.0)
    if results.kept_stages:
        before = results.picked
        labels.avoid(
            np.linspace(before.latency_ms, shipped.latency_ms, 20),
            np.linspace(before.error_percent, shipped.error_percent, 20),
            0.2,
        )
    for line in (front(results.of_role("search")), front(results.networks)):
        for n, after in itertools.pairwise(line):
            labels.avoid(np.geomspace(n.latency_ms, after.latency_ms, 40), n.error_percent, 1.0)
            labels.avoid(after.latency_ms, np.linspace(n.error_percent, after.error_percent, 40), 1.0)
    if limits.shows_budget:
        labels.avoid(verdict.asked_ms, np.linspace(bottom, top, 80), 0.2)
    if trivial and limits.shows_trivial:
        labels.avoid(np.geomspace(max(limits.x[0], 1e-6), right, 80), trivial[1], 0.1)
    stages = "".join(f", {stage.name}" for stage in results.kept_stages)
    ships = f"ships {shipped.id}{stages}\n{shipped.error_percent:.2f} %, {format_ms(shipped.latency_ms)} ms"
    at = (shipped.latency_ms, shipped.error_percent)
    labels.place(ships, at, around(nearest=11), leader=8, fontweight="bold", color=INK, gid="ships")
    if trivial:
        _label_trivial(figure, labels, trivial, limits)
    rise = axes.bbox.height * 72 / figure.dpi
    asked, at = verdict.asked_words, (verdict.asked_ms, bottom)
    sides = [(5, "left"), (-5, "right")]
    if not limits.shows_budget:
        asked, at, sides = f"{asked}, beyond this picture", (right, bottom), [(-5, "right")]
    along: list[Offset] = [(dx, dy, side, "center") for dy in (12, *np.linspace(rise - 12, 26, 12)) for dx, side in sides]
    labels.place(asked, at, along, far=0.0, color=VERMILLION, fontweight="bold", gid="asked")
    for n in results.of_role("hand"):
        words = textwrap.shorten(n.label, 40, placeholder="…")
        at = (n.latency_ms, n.error_percent)
        labels.place(words, at, around(nearest=7), leader=4, color=DARK_GREEN, gid="hand label")
    if corner:
        corners: list[Offset] = [(dx, dy, "right", "top") for dy in (-4, *range(-16, -100, -12)) for dx in (-3, -120)]
        labels.place(corner, (right, top), corners, color=GREY, fontsize=7.5, gid="hidden")


def _label_trivial(figure: Figure, labels: Labels, trivial: tuple[str, float], limits: _Limits) -> None:
    """Beside the line of the baseline, or at the edge beyond which it lies."""
    right, (bottom, top) = limits.x[1], limits.y
    words = f"{textwrap.shorten(trivial[0], 50, placeholder='…')}: {trivial[1]:.2f}\u00a0%"
    width = labels.axes.bbox.width * 72 / figure.dpi
    shifts = -np.linspace(4, width - 4, 12)
    if limits.shows_trivial:
        height, heights = trivial[1], [(sign * y, hangs) for y in HEIGHTS for sign, hangs in ((1, "bottom"), (-1, "top"))]
    else:
        above = trivial[1] > top
        words += f", {'above' if above else 'below'} this picture"
        height = top if above else bottom
        heights = [(-y if above else y, "top" if above else "bottom") for y in HEIGHTS]
    offsets: list[Offset] = [(x, y, "right", hangs) for y, hangs in heights for x in shifts]
    words = textwrap.fill(words, int(6 * figure.get_figwidth()))
    labels.place(words, (right, height), offsets, color=DARK_PURPLE, gid="trivial label")
