"""The picture of a search in a table of measurements: what its networks hold against what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.objectives import OBJECTIVES
from experiments.plots.style import BLUE, GREEN, GREY, INK, LOOKS, VERMILLION, WIDE, drawing, empty, head
from experiments.roles import ROLES
from experiments.verdicts import budget_words


@drawing()
def capacity_figure(results: Mapping[str, Any], points: Mapping[str, Sequence[tuple[float, float]]], *, cost: str) -> Figure:
    """Capacity in million parameters against latency, or energy, of a search in a table: its front, what was scored, and what
    was recorded. `cost` is the name of the objective.

    `points` by "recorded", "random", "search" and "front".
    """
    figure, axes = empty(WIDE, 5.2)
    unit = OBJECTIVES[cost].unit
    axes.set(xlabel=OBJECTIVES[cost].header, ylabel="parameters of the layers (million)")
    x, y = zip(*points["recorded"], strict=True)
    axes.scatter(x, y, s=9, color=GREY, alpha=0.25, lw=0, label="recorded, not fitted", zorder=1)
    for role in (role for role in LOOKS if role in points):
        look, (x, y) = LOOKS[role], zip(*points[role], strict=True)
        axes.scatter(
            x, y, s=18, color=look.colour, marker=look.marker, alpha=0.55, lw=0, label=f"{ROLES[role]}: predicted", zorder=3
        )
    x, y = zip(*points["front"], strict=True)
    axes.plot(x, y, color=BLUE, lw=2.2, drawstyle="steps-post", zorder=4, label="front within the budget", gid="front")
    axes.plot(x[-1], y[-1], "o", ms=13, mfc="none", mec=INK, mew=1.6, zorder=8, ls="none", label="picked by the search")
    verdict, known = results["verdict"], results["held_out"]
    asked = verdict[f"asked_{unit.lower()}"]
    if known["kept"] is not None:
        at = (known[f"measured_{unit.lower()}"], known["num_parameters"] / 1e6)
        axes.plot(*at, "D", ms=8, mfc=GREEN if known["kept"] else VERMILLION, mec="white", zorder=7, ls="none",
                  label=f"recorded network picked by its bound: {'kept' if known['kept'] else 'BROKEN'}")  # fmt: skip
    words = budget_words(asked, verdict["asked_origin"], unit)
    axes.axvline(asked, color=VERMILLION, lw=1.4, ls=(0, (5, 3)), zorder=2, label=words, gid="budget")
    head(figure, axes, results["title"], f"{results['device']['device']} · upper left is better")
    figure.legend(loc="outside lower left", ncols=2)
    return figure
