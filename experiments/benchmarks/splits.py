"""Judging a predictor on rows of a table that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr


def random_splits(length: int, num: int, splits: int, *, first: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    orders = (np.random.default_rng(seed).permutation(length) for seed in range(first, first + splits))
    return [(order[:num], order[num:]) for order in orders]


def mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    return 100 * float(np.mean(np.abs(predicted / measured - 1)))


def judged(
    make: Callable[[], Any], costs: np.ndarray, times: np.ndarray, num: int, splits: int, *, rows: np.ndarray | None = None
) -> tuple[float, float]:
    """Median MAPE in percent and Spearman's rho on the rows (of `rows`, by default all) that are not among the `num` fitted."""
    found = []
    for train, test in random_splits(len(times), num, splits):
        judge = test if rows is None else test[rows[test]]
        predicted = make().fit(costs[train], times[train]).predict(costs[judge])
        found.append((mape(predicted, times[judge]), float(spearmanr(predicted, times[judge]).statistic)))
    error, rho = np.median(found, axis=0)
    return float(error), float(rho)
