"""The picture of a search space: what its networks cost, and what each option does to the largest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots.labels import Labels, around
from experiments.plots.style import BLUE, GREEN, GREY, INK, PALE, SKY, WIDE, drawing, head, log_ticks

CLOSE = 3.0  # percent


@drawing()
def space_figure(
    title: str, subtitle: str, drawn: np.ndarray, named: Mapping[str, tuple[float, float]],
    options: Mapping[str, Mapping[str, float]],
) -> Figure:  # fmt: skip
    """Costs of networks above, and below a row for each choice with its options.

    Args:
        drawn: MFLOPs and parameters of random networks, [N, 2].
        named: the same of networks with names.
        options: by choice and option, the FLOPs of the largest network with that option, in percent of its own.
    """
    figure = Figure(figsize=(WIDE, 5.0 + 0.36 * len(options)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[4.2, 0.36 * len(options) + 0.6])
    _draw_networks(figure, above, drawn, named)
    head(figure, above, title, subtitle)
    _draw_options(below, options)
    return figure


def _draw_networks(figure: Figure, axes: Axes, drawn: np.ndarray, named: Mapping[str, tuple[float, float]]) -> None:
    axes.scatter(
        drawn[:, 0],
        drawn[:, 1],
        s=9,
        color=SKY,
        alpha=0.35,
        lw=0,
        zorder=2,
        label=f"{len(drawn):,} random networks",
        gid="random",
    )
    points = np.array(list(named.values()))
    axes.plot(
        *points.T, "^", ms=8, color=GREEN, mec="white", ls="none", zorder=5, label="its ends, and networks designed by hand"
    )
    log_ticks(axes, "x")
    log_ticks(axes, "y")
    axes.set(xlabel="MFLOPs of an answer", ylabel="parameters (thousand)")
    axes.margins(x=0.08, y=0.1)
    axes.legend(loc="upper left")
    figure.canvas.draw_idle()
    labels = Labels(figure, axes)
    labels.avoid(points[:, 0], points[:, 1], 6.0)
    labels.avoid(drawn[:, 0], drawn[:, 1], 0.02)
    for name, (mflops, thousand) in named.items():
        labels.place(name, (mflops, thousand), around(nearest=6), leader=4, color=INK)


def _labels(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Words and where they stand; those that would cover each other share a place."""
    groups: list[list[str]] = []
    for option in sorted(values, key=values.__getitem__):
        if groups and values[option] - values[groups[-1][-1]] < CLOSE:
            groups[-1].append(option)
        else:
            groups.append([option])
    named = [group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}" for group in groups]
    return [(words, float(np.mean([values[o] for o in group]))) for words, group in zip(named, groups, strict=True)]


def _draw_options(axes: Axes, options: Mapping[str, Mapping[str, float]]) -> None:
    rows = range(len(options))
    for row, of_choice in zip(rows, options.values(), strict=True):
        values = list(of_choice.values())
        axes.plot([min(values), max(values)], [row, row], color=PALE, lw=3, zorder=1, solid_capstyle="round")
        axes.plot(values, [row] * len(values), "o", ms=6, color=BLUE, mec="white", ls="none", zorder=3)
        for words, value in _labels(of_choice):
            axes.annotate(words, (value, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7.5, color=GREY)
    axes.set_yticks(rows, list(options))
    axes.set(
        ylim=(len(options) - 0.4, -0.8), xlabel="FLOPs of the largest network with this option in all layers, in % of its own"
    )
    axes.margins(x=0.08)  # for the words of options at the ends
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
