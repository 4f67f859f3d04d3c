"""The picture of what a run gained by each evaluation, and by each second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments.plots.style import BLUE, GREEN, NARROW, ORANGE, PURPLE, WIDE, drawing

COLOURS = {"search": BLUE, "random": ORANGE, "parameters": PURPLE}
WORDS = {"search": "search", "random": "random search", "parameters": "parameter count alone"}
PANELS = {
    "evaluations": "evaluations",
    "seconds": "seconds of evaluations; the search's begin\nwith those of the differentiable search",
}


@drawing()
def gains_figure(curves: Mapping[str, Any], *, width: float = WIDE) -> Figure:
    """Hypervolume after each evaluation and after each second, as a share of the most that anybody reached.

    Args:
        curves: `hypervolumes_by_cost` of `experiments.trust`, with at least one of the phases that evaluate.
    """
    phases = [phase for phase in COLOURS if phase in curves]
    ends = {phase: curves[phase]["after_evaluations"][-1] for phase in phases}
    best = max(*ends.values(), curves["hand"]) or 1.0
    beside = width > NARROW
    figure = Figure(figsize=(width, 3.4 if beside else 6.0), layout="constrained")
    panels = figure.subplots(*((1, 2) if beside else (2, 1)), sharey=True)
    for axes, (which, costs) in zip(panels, PANELS.items(), strict=True):
        for phase in phases:
            volumes = [volume / best for volume in curves[phase]["after_evaluations"]]
            x = curves[phase]["seconds"] if which == "seconds" else range(1, len(volumes) + 1)
            axes.plot(x, volumes, drawstyle="steps-post", color=COLOURS[phase], lw=2.0, gid=f"{phase} by {which}")
        axes.axhline(curves["hand"] / best, color=GREEN, lw=1.6, ls=(0, (5, 3)), gid=f"hand by {which}")
        axes.set_xlabel(costs)
        axes.set_xlim(left=0)
        axes.tick_params(labelbottom=True)
        if axes is panels[0] or not beside:
            axes.set_ylabel("share of the best hypervolume")
    lowest = min([curves["hand"], *ends.values()]) / best
    panels[0].set_ylim(max(0.0, lowest - 0.6 * (1.02 - lowest) - 0.02), 1.02)
    lines = [next(line for line in panels[0].lines if line.get_gid() == f"{name} by evaluations") for name in (*phases, "hand")]
    words = [*(WORDS[phase] for phase in phases), "designed by hand, all of them"]
    figure.legend(lines, words, loc="outside lower left", ncols=4 if beside else 1)
    return figure
