"""Labels of a picture, each where it covers the least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

BACKED = {"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none", "alpha": 0.75}


class Labels:
    """Labels that keep clear of weighted points and of each other, in pixels."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.axes, self.dots_a_point = axes, figure.dpi / 72
        self.renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        self.points = np.zeros((0, 3))
        self.boxes: list[Bbox] = []

    def avoid(self, x: float | np.ndarray, y: float | np.ndarray, weight: float) -> None:
        """Points of the data that a label should not cover, the less the heavier they are."""
        pixels = self.axes.transData.transform(np.column_stack(np.broadcast_arrays(np.atleast_1d(x), y)))
        self.points = np.vstack([self.points, np.column_stack([pixels, np.full(len(pixels), weight)])])

    def keep_off(self, point: tuple[float, float], *, points: float) -> None:
        """A point of the data that labels stay away from, by so many points of the letters."""
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
