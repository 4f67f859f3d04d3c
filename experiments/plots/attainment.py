"""The picture of several runs of several strategies: what they attain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, WIDE, drawing, empty, head
from nas.pareto import attainment_surface

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY)


@drawing()
def attainment_figure(runs: Mapping[str, Sequence[np.ndarray]], *, title: str, axes_words: tuple[str, str]) -> Figure:
    """For each strategy what half of its runs attain, and as thin lines what all of them do and what any did.

    Args:
        runs: by strategy, for each seed the points that it found, [N, 2].
        axes_words: what the two objectives are, with their units.
    """
    figure, axes = empty(WIDE, 5.5)
    for (name, of_seeds), colour in zip(runs.items(), COLOURS, strict=False):
        for share in (1.0 / len(of_seeds), 1.0):
            surface = attainment_surface(of_seeds, share=share)
            axes.plot(*surface.T, drawstyle="steps-post", color=colour, lw=0.8, alpha=0.5)
        axes.plot(*attainment_surface(of_seeds).T, drawstyle="steps-post", color=colour, lw=2.0, label=name, gid=name)
    axes.set(xlabel=axes_words[0], ylabel=axes_words[1])
    seeds = max(map(len, runs.values()))
    head(figure, axes, title, f"attained by half of {seeds} seeds; thin: by all of them, and by any · lower left is better")
    figure.legend(loc="outside lower left", ncols=3)
    return figure
