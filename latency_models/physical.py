"""Time as a sum of costs, each with a price that is not negative: few measurements determine it, and it extrapolates.

    time = sum_k price_k cost_k,   price_k >= 0

The prices minimise squared *relative* errors. Measured tables hold whole sessions in which a device was slower, so errors far
beyond the usual one lose their weight (Tukey's biweight, by iteratively reweighted least squares; Holland & Welsch, 1977).

With the prices of devices that are known already, few measurements of a new one are enough: its prices are drawn towards the
mixture of theirs that explains the measurements best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import scipy

from nas.robust import mad_scale

TUKEY = 4.685  # scales beyond which an error counts nothing: 95 % efficiency on normal errors
SMALLEST_SCALE = 0.003  # relative error that no clock is better than
ROUNDS = 30


class PhysicalRegressor:
    """Prices of costs, for scikit-learn's `fit(costs, times)` and `predict(costs)`; costs are [N, K], none negative.

    Args:
        ridge: weight of the prices' squares, relative to a mean squared relative error of 1.
        known: prices [K] of other devices for the same costs.
        pull: weight of the deviation from their mixture.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, *, ridge: float = 1e-4, known: Sequence[np.ndarray] = (), pull: float = 0.003) -> None:
        for name, value in {"ridge": ridge, "pull": pull}.items():
            if value < 0:
                raise ValueError(f"{name}: {value} is negative")
        self.ridge, self.known, self.pull = ridge, known, pull

    def fit(self, costs: np.ndarray, times: np.ndarray) -> Self:
        """Raises ValueError for a cost that is negative or not finite, or a time that is not positive and finite."""
        if not (np.isfinite(costs).all() and (costs >= 0).all()):
            raise ValueError("costs: one is negative or not finite")
        if not (np.isfinite(times).all() and (times > 0).all()):
            raise ValueError("times: one is not positive and finite")
        relative = costs / times[:, None]
        size = relative.mean(axis=0)
        size[size == 0] = 1.0  # a cost that never occurs
        target = self._mixture(relative) * size
        pull = self.pull if len(self.known) else self.ridge
        weights = np.ones(len(times))
        for _ in range(ROUNDS):
            prices = _solve(relative / size, weights, target, pull)
            self.prices_ = prices / size
            errors = np.log(np.maximum(relative @ self.prices_, 1e-12))
            scale = max(mad_scale(errors), SMALLEST_SCALE)
            updated = np.clip(1 - (errors / (TUKEY * scale)) ** 2, 0, None)
            if np.count_nonzero(updated) <= len(times) / 2:
                break  # no majority left that agrees
            weights = updated
        return self

    def predict(self, costs: np.ndarray) -> np.ndarray:
        times: np.ndarray = costs @ self.prices_
        return times

    def _mixture(self, relative: np.ndarray) -> np.ndarray:
        """Prices of the known devices' mixture, or zero."""
        if not len(self.known):
            return np.zeros(relative.shape[1])
        prices = np.stack([np.asarray(p) for p in self.known], axis=1)
        shares, _ = scipy.optimize.nnls(relative @ prices, np.ones(len(relative)))
        mixture: np.ndarray = prices @ shares
        return mixture


def _solve(relative: np.ndarray, weights: np.ndarray, target: np.ndarray, pull: float) -> np.ndarray:
    """Minimises mean((w (R p - 1))^2) + pull |p - target|^2 over p >= 0."""
    root = math.sqrt(weights @ weights)
    rows = np.vstack([relative * (weights / root)[:, None], math.sqrt(pull) * np.eye(relative.shape[1])])
    solution: np.ndarray = scipy.optimize.nnls(rows, np.concatenate([weights / root, math.sqrt(pull) * target]))[0]
    return solution
