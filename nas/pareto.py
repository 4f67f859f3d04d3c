"""Non-dominated sets, hypervolume and the knee of a front. All objectives are minimised; rows are points [N, M]."""

from __future__ import annotations

import numpy as np


def non_dominated(costs: np.ndarray) -> np.ndarray:
    """Mask [N] of the points that no other point dominates; of identical points the first stays."""
    costs = np.asarray(costs, dtype=float)
    order = np.lexsort(costs.T[::-1])
    keep = np.zeros(len(costs), dtype=bool)
    front: list[int] = []
    for i in order:
        # in lexicographic order a point can be dominated only by one that came before it
        if not front or not np.any(np.all(costs[front] <= costs[i], axis=1)):
            keep[i] = True
            front.append(int(i))
    return keep


def hypervolume(costs: np.ndarray, reference: tuple[float, float]) -> float:
    """Area that two-objective points dominate, up to a reference point (Zitzler & Thiele, 1998).

    Points that do not strictly dominate the reference add nothing.
    """
    costs = np.asarray(costs, dtype=float).reshape(-1, 2)
    inside = costs[np.all(costs < np.asarray(reference), axis=1)]
    if not len(inside):
        return 0.0
    front = inside[non_dominated(inside)]
    front = front[np.argsort(front[:, 0])]
    right = np.append(front[1:, 0], reference[0])
    return float(np.sum((right - front[:, 0]) * (reference[1] - front[:, 1])))


def knee(costs: np.ndarray) -> int:
    """Index of the point farthest below the straight line between the ends of a two-objective front.

    Both axes are scaled to [0, 1] (Das, 1999, "On characterizing the knee of the Pareto curve").

    Raises:
        ValueError: an empty front.
    """
    costs = np.asarray(costs, dtype=float)
    if not len(costs):
        raise ValueError("knee: the front is empty")
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(scaled.sum(axis=1)))
