"""Labels of a picture, each where it covers the least, with a line to its point where it stands away from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

BACKED = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}
NEAR = 9.0  # points of the letters between a label and its point, beyond which a line joins them
OVERLAP = 100.0  # what covering another label costs, in weights of points
Offset = tuple[float, float, str, str]  # points to the right and up, and the side and the height at which the label hangs there


def around(*, nearest: float, radii: Sequence[float] = (0, 9, 20, 34, 52, 74, 100, 130)) -> list[Offset]:
    """Offsets in twelve directions, ever further away; above and below first."""
    return [
        ((nearest + radius) * x, (nearest + radius) * y, _hanging(x, "left", "right"), _hanging(y, "bottom", "top"))
        for radius in radii
        for x, y in (_direction(degrees) for degrees in (90, 270, 0, 180, 60, 120, 240, 300, 30, 150, 210, 330))
    ]


def _direction(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _hanging(towards: float, ahead: str, behind: str) -> str:
    """Which end of a label is at its offset, so that it reaches away from the point."""
    return "center" if abs(towards) < 0.3 else ahead if towards > 0 else behind


class Labels:
    """Labels that keep clear of weighted points and of each other, in pixels."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.axes, self.dots_a_point = axes, figure.dpi / 72
        self.renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        self.points = np.zeros((0, 4))
        self.boxes: list[Bbox] = []

    def avoid(self, x: float | np.ndarray, y: float | np.ndarray, weight: float, *, radius: float = 0.0) -> None:
        """Points of the data that a label should not cover, the less the heavier they are; `radius` in points of the letters."""
        pixels = self.axes.transData.transform(np.column_stack(np.broadcast_arrays(np.atleast_1d(x), y)))
        each = np.full((len(pixels), 2), (weight, radius * self.dots_a_point))
        self.points = np.vstack([self.points, np.column_stack([pixels, each])])

    def keep_off(self, point: tuple[float, float], *, points: float) -> None:
        """A point of the data that labels stay away from, by so many points of the letters."""
        x, y = self.axes.transData.transform(point)
        self.boxes.append(Bbox([(x, y), (x, y)]).padded(points * self.dots_a_point))

    def place(
        self,
        text: str,
        point: tuple[float, float],
        offsets: Sequence[Offset],
        *,
        leader: float | None = None,
        far: float = 0.08,
        **style: Any,
    ) -> None:
        """At the offset that covers least, inside the axes; of equals at the first. `leader`, where a line to the point may be
        drawn: how many points before it the line ends; `far` is what each point away from it costs."""
        style = {"fontsize": 8.5, "bbox": BACKED, "zorder": 10, "multialignment": "left", **style}
        if leader is not None:
            colour = style.get("color", "black")
            style["arrowprops"] = {"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": leader}
        label = self.axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", **style)
        label.set_in_layout(False)
        at = self.axes.transData.transform(point)

        def put(offset: Offset) -> Bbox:
            label.set(position=offset[:2], horizontalalignment=offset[2], verticalalignment=offset[3])
            label.update_positions(self.renderer)
            return Text.get_window_extent(label, self.renderer).padded(3)

        hanging = {ends: put((0, 0, *ends)) for ends in {(side, height) for _, _, side, height in offsets}}

        def box(offset: Offset) -> Bbox:
            right, up, side, height = offset
            return hanging[side, height].translated(self.dots_a_point * right, self.dots_a_point * up)

        def away(box: Bbox) -> float:
            """From the point, in points of the letters."""
            return float(np.hypot(*self._step(box, at))) / self.dots_a_point

        def cost(offset: Offset) -> float:
            placed = box(offset)
            x0, y0, x1, y1 = placed.extents
            left, bottom, right, top = self.axes.bbox.extents
            outside = max(left - x0, 0) + max(x1 - right, 0) + max(bottom - y0, 0) + max(y1 - top, 0)
            total = (
                self._covered(placed)
                + OVERLAP * placed.count_overlaps(self.boxes)
                + OVERLAP * (outside > 0)
                + 2.0 * outside
                + far * away(placed)
            )
            if leader is not None and away(placed) > NEAR:
                total += 0.5 + self._crossed(at, at + self._step(placed, at))
            return float(total)

        best = put(min(offsets, key=cost))
        if label.arrow_patch is not None:
            label.arrow_patch.set_visible(away(best) > NEAR)
        self.boxes.append(best)

    @staticmethod
    def _step(box: Bbox, at: np.ndarray) -> np.ndarray:
        """From a point to the nearest of a box."""
        step: np.ndarray = np.clip(at, box.min, box.max) - at
        return step

    def _covered(self, box: Bbox) -> float:
        x, y, weight, radius = self.points.T
        (x0, y0), (x1, y1) = box.min, box.max
        return float(weight[(x > x0 - radius) & (x < x1 + radius) & (y > y0 - radius) & (y < y1 + radius)].sum())

    def _crossed(self, start: np.ndarray, end: np.ndarray) -> float:
        """The weight of the markers that a line runs over, but for the one that it begins at, and of the labels."""
        along = start + np.linspace(0, 1, 30)[:, None] * (end - start)
        distance = np.hypot(*(along[:, None] - self.points[None, :, :2]).transpose(2, 0, 1))  # [steps, points]
        x, y, weight, radius = self.points.T
        others = np.hypot(x - start[0], y - start[1]) > radius
        over = sum(((box.min <= along) & (along <= box.max)).all(axis=1).any() for box in self.boxes if not box.contains(*start))
        return float(weight[others & (distance < radius).any(axis=0)].sum()) + OVERLAP / 5 * float(over)
