"""Non-dominated sets, hypervolume, epsilon and the knee of a front, and what several runs attain.

All objectives are minimised; rows are points [N, M].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def non_dominated(costs: np.ndarray) -> np.ndarray:
    """Mask [N] of the points that no other point dominates; of identical points the first stays."""
    costs = np.asarray(costs, dtype=float)
    order = np.lexsort(costs.T[::-1])  # in lexicographic order a point can be dominated only by one that came before it
    keep = np.zeros(len(costs), dtype=bool)
    if costs.shape[1] == 2:
        second = costs[order, 1]
        keep[order[:1]] = True
        keep[order[1:]] = second[1:] < np.minimum.accumulate(second)[:-1]
        return keep
    front: list[int] = []
    for i in order:
        if not front or not np.any(np.all(costs[front] <= costs[i], axis=1)):
            keep[i] = True
            front.append(int(i))
    return keep


def ranks(costs: np.ndarray, *, enough: int | None = None) -> np.ndarray:
    """Number [N] of the front on which each point lies: 0 if no other dominates it, 1 if only points of front 0 do, and so on
    (non-dominated sorting, Goldberg, 1989). Identical points share their front. From the front on that completes `enough` points,
    all others share the next."""
    points, which, counts = np.unique(np.asarray(costs, dtype=float), axis=0, return_inverse=True, return_counts=True)
    result = np.zeros(len(points), dtype=int)
    left, ranked = np.arange(len(points)), 0
    while len(left) and (enough is None or ranked < enough):
        on_front = non_dominated(points[left])
        ranked += counts[left[on_front]].sum()
        left = left[~on_front]
        result[left] += 1
    return result[which.reshape(-1)]


def crowding(costs: np.ndarray) -> np.ndarray:
    """How lonely each point is, [N]: the sum over objectives of the gap between its neighbours, as a share of all; infinite at
    the ends (crowding distance, Deb et al., 2002)."""
    costs = np.asarray(costs, dtype=float)
    result = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        gaps = np.diff(column[order], prepend=-np.inf, append=np.inf)
        span = column[order[-1]] - column[order[0]]
        result[order] += (gaps[:-1] + gaps[1:]) / (span or 1.0)
    return result


def hypervolume(costs: np.ndarray, reference: Sequence[float] | np.ndarray) -> float:
    """Volume that points dominate, up to a reference point (Zitzler & Thiele, 1998).

    Points that do not strictly dominate the reference add nothing. With more than two objectives, it is the sum over slices
    between neighbouring values of the last one (Knowles, 2002): quick for the dozens of points of a front.
    """
    limit = np.asarray(reference, dtype=float)
    costs = np.asarray(costs, dtype=float).reshape(-1, len(limit))
    inside = costs[np.all(costs < limit, axis=1)]
    if not len(inside):
        return 0.0
    if len(limit) == 1:
        return float(limit[0] - inside.min())
    front = inside[non_dominated(inside)]
    front = front[np.argsort(front[:, -1], kind="stable")]
    if len(limit) == 2:
        return float(np.diff(np.append(front[:, 1], limit[1])) @ (limit[0] - front[:, 0]))
    depths = np.diff(np.append(front[:, -1], limit[-1]))
    return float(sum(depth * hypervolume(front[: i + 1, :-1], limit[:-1]) for i, depth in enumerate(depths) if depth))


def fittest(costs: np.ndarray, num: int, *, reference: Sequence[float] | np.ndarray, first: int) -> list[int]:
    """Indices of at most `num` points, front by front: of each the lowest in objective `first`, then always the one that adds
    most to the front's hypervolume up to the reference (greedy subset selection, Guerreiro et al., 2016)."""
    costs = np.asarray(costs, dtype=float)
    rank = ranks(costs)
    chosen: list[int] = []
    for number in range(rank.max(initial=-1) + 1):
        left = np.flatnonzero(rank == number).tolist()
        front: list[int] = []
        while left and len(chosen) + len(front) < num:
            gains = [hypervolume(costs[[*front, i]], reference) if front else -costs[i, first] for i in left]
            front.append(left.pop(int(np.argmax(gains))))
        chosen += front
    return chosen


def knee(costs: np.ndarray) -> int:
    """Index of the point of a front that is farthest below the line (or plane) between its ends.

    All axes are scaled to [0, 1] (Das, 1999, "On characterizing the knee of the Pareto curve").

    Raises:
        ValueError: an empty front.
    """
    costs = np.asarray(costs, dtype=float)
    if not len(costs):
        raise ValueError("knee: the front is empty")
    low, high = costs.min(axis=0), costs.max(axis=0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(scaled.sum(axis=1)))


def epsilon(costs: np.ndarray, reference: np.ndarray) -> float:
    """The least number that, taken off every objective of `costs` [N, M], leaves no point of `reference` [R, M] that none of them
    is as good as: the additive epsilon indicator (Zitzler et al., 2003). It is in the unit that all objectives share, and without
    points infinite.

    Raises:
        ValueError: no reference.
    """
    costs, reference = (np.asarray(points, dtype=float) for points in (costs, reference))
    if not len(reference):
        raise ValueError("epsilon: there is no reference")
    return float(np.max(costs[:, None] - reference[None], axis=2).min(axis=0, initial=np.inf).max())


def attainment_surface(runs: Sequence[np.ndarray], *, share: float = 0.5) -> np.ndarray:
    """The best points [K, 2] that at least a share of the runs attain, in two objectives, the lowest first one first: by default
    the median attainment surface (Knowles, 2005).

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: {share} is not in (0, 1]")
    first = np.unique(np.concatenate([run[:, 0] for run in runs]))
    lowest = [np.where(run[:, :1] <= first, run[:, 1:], np.inf).min(axis=0, initial=np.inf) for run in runs]
    second = np.sort(lowest, axis=0)[math.ceil(share * len(runs)) - 1]
    points = np.column_stack([first, second])[np.isfinite(second)]
    surface: np.ndarray = points[non_dominated(points)]
    return surface
