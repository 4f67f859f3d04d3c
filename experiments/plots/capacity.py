"""The picture of a search in a table of measurements: what its networks hold against what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.plots.style import BLUE, GREEN, GREY, INK, LOOKS, VERMILLION, WIDE, drawing, empty, head
from experiments.roles import ROLES
from experiments.verdicts import Verdict


@drawing()
def capacity_figure(results: Mapping[str, Any], points: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Capacity in million parameters against latency of a search in a table: its front, what was scored, and what was recorded.

    `points` by "recorded", "random", "search" and "front".
    """
    figure, axes = empty(WIDE, 5.2)
    axes.set(xlabel="latency (ms)", ylabel="parameters of the layers (million)")
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
    verdict, known = Verdict(**results["verdict"]), results["held_out"]
    if known["kept"] is not None:
        at = (known["measured_ms"], known["num_parameters"] / 1e6)
        axes.plot(*at, "D", ms=8, mfc=GREEN if known["kept"] else VERMILLION, mec="white", zorder=7, ls="none",
                  label=f"recorded network picked by its bound: {'kept' if known['kept'] else 'BROKEN'}")  # fmt: skip
    dashes = (0, (5, 3))
    axes.axvline(verdict.asked_ms, color=VERMILLION, lw=1.4, ls=dashes, zorder=2, label=verdict.asked_words, gid="budget")
    head(figure, axes, results["title"], f"{results['device']['device']} · upper left is better")
    figure.legend(loc="outside lower left", ncols=2)
    return figure
