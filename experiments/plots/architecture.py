"""The picture of an architecture, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.layers import parts_of, split_layers
from experiments.networks import Network
from experiments.plots.style import BLUE, GREEN, ORANGE, PALE, PURPLE, SKY, WIDE, drawing, empty, head


@drawing()
def architecture_figure(network: Network, networks: Sequence[Network], *, width: float = WIDE) -> Figure:
    """The layers from input (left) to output: sizes as bars beside the largest in `networks`, kinds as words.

    Slots that only deeper networks fill stay empty.
    """
    whole, layers = split_layers(network.arch)
    others = [split_layers(n.arch)[1] for n in (network, *networks)]
    rows = parts_of([layer for other in others for layer in other]) or ["layers"]
    num_columns = max(1, *(len(other) for other in others))
    figure, axes = empty(width, 0.42 * len(rows) + 0.95)
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
    head(figure, axes, f"Architecture {network.id}", f"{words} · {network.num_parameters:,} parameters")
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
