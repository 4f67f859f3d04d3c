"""Regression on architectures by Gaussian processes (Rasmussen & Williams, 2006, algorithm 2.1), quick enough between two trials.

An architecture is seen in two ways: every pick on its own, where a size holds all smaller ones as in its weights, and counts of
picks over layers, since layers of one kind are much alike. The kernel is a weighted sum of one squared exponential each. Length
scale, weight and noise are those of a small grid with the largest marginal likelihood.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
import scipy

from nas.space import SearchSpace

LENGTHS = (0.5, 1.0, 2.0)  # scales of a kernel, in root mean squared distances between architectures
WEIGHTS = (0.2, 0.5, 0.8)  # of the picks on their own; the rest is that of the counts
NOISES = (1e-4, 1e-2, 1e-1)  # variance, as a share of that of the values
JUDGES = 64  # architectures that kernel and noise are chosen by
SMALLEST = 1e-12


class Views:
    """What a kernel compares architectures of a space by: linear maps of one-hot encodings [N, E]."""

    def __init__(self, space: SearchSpace) -> None:
        self.picks = np.eye(space.encoding_size)
        columns: dict[tuple[str, object], int] = {}
        for choice in space:
            for option in choice.options:
                columns.setdefault((_kind(choice.name), option), len(columns))
        self.counts = np.zeros((space.encoding_size, len(columns)))
        for choice in space:
            part = space.offsets[choice.name]
            if choice.is_nested:
                self.picks[part, part] = np.tri(len(choice.options))
            for index, option in enumerate(choice.options):
                self.counts[part.start + index, columns[_kind(choice.name), option]] = 1.0

    def of(self, encoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return encoded @ self.picks, encoded @ self.counts


def _kind(name: str) -> str:
    """A choice's name without the number of its layer."""
    return re.sub(r"\d+", "", name)


@dataclass(frozen=True)
class Kernel:
    """The length scale of both views, and the weight of the first."""

    length: float
    weight: float

    def __call__(self, distances: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        first, second = (np.exp(-squared / (2 * self.length**2)) for squared in distances)
        result: np.ndarray = self.weight * first + (1 - self.weight) * second
        return result


class GaussianProcesses:
    """Means of several values of an architecture, each by a process of its own.

    Args:
        views: of the space.
        encoded: one-hot encodings [N, E], absent choices zero.
        values: [N, V]; a column whose values are all positive and differ by more than twice is learned by its logarithm.
    """

    def __init__(self, views: Views, encoded: np.ndarray, values: np.ndarray) -> None:
        self.views = views
        self._known = views.of(encoded)
        squared = [_squared_distances(x, x) for x in self._known]
        self._units = [max(float(of.mean()), SMALLEST) for of in squared]
        distances = (squared[0] / self._units[0], squared[1] / self._units[1])
        self._in_logs = (values.min(axis=0) > 0) & (values.max(axis=0) > 2 * values.min(axis=0))
        targets = np.where(self._in_logs, np.log(np.where(self._in_logs, values, 1.0)), values)
        self._center, self._spread = targets.mean(axis=0), np.maximum(targets.std(axis=0), SMALLEST)
        standard = (targets - self._center) / self._spread
        some = np.linspace(0, len(values) - 1, min(len(values), JUDGES)).astype(int)
        chosen = _most_likely((distances[0][np.ix_(some, some)], distances[1][np.ix_(some, some)]), standard[some])
        self._kernels = [kernel for kernel, _ in chosen]
        self._coefficients = np.stack(
            [_solved(kernel(distances), noise, y)[1] for (kernel, noise), y in zip(chosen, standard.T, strict=True)], axis=1
        )

    def means(self, encoded: np.ndarray) -> np.ndarray:
        """[N, V]."""
        views = self.views.of(encoded)
        first, second = (_squared_distances(*pair) / unit for *pair, unit in zip(views, self._known, self._units, strict=True))
        columns = [kernel((first, second)) @ c for kernel, c in zip(self._kernels, self._coefficients.T, strict=True)]
        targets = np.stack(columns, axis=1) * self._spread + self._center
        return np.where(self._in_logs, np.exp(np.where(self._in_logs, targets, 0.0)), targets)


def _most_likely(distances: tuple[np.ndarray, np.ndarray], standard: np.ndarray) -> list[tuple[Kernel, float]]:
    """Kernel and noise with the largest marginal likelihood for each column of values [N, V], at the best scale of both."""
    best, chosen = np.full(standard.shape[1], -np.inf), [(Kernel(1.0, 0.5), NOISES[-1])] * standard.shape[1]
    for length, weight, noise in itertools.product(LENGTHS, WEIGHTS, NOISES):
        kernel = Kernel(length, weight)
        factor, coefficients = _solved(kernel(distances), noise, standard)
        fit = np.maximum(np.mean(standard * coefficients, axis=0), SMALLEST)
        likelihood = -0.5 * len(standard) * np.log(fit) - np.log(np.diag(factor)).sum()
        for column in np.flatnonzero(likelihood > best):
            best[column], chosen[column] = likelihood[column], (kernel, noise)
    return chosen


def _solved(covariance: np.ndarray, noise: float, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower Cholesky factor [N, N] of the covariance with noise, and its inverse times the values."""
    factor = scipy.linalg.cho_factor(covariance + noise * np.eye(len(covariance)), lower=True, check_finite=False)
    return factor[0], scipy.linalg.cho_solve(factor, values, check_finite=False)


def _squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    squares = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1)[None] - 2 * one @ other.T
    result: np.ndarray = np.maximum(squares, 0.0)
    return result
