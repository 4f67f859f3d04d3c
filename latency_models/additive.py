"""Latency as a sum over operators: a count, the FLOPs and the bytes of each kind, each with a price that is not negative.

    latency(arch) = sum over kinds k of  a_k count_k + b_k GFLOPs_k + c_k MB_k

The prices are fitted to measurements by non-negative least squares on *relative* errors with a small ridge. The features are
multilinear in the sizes of independent choices (`Family.operators`), so the same prices give the expected latency of a relaxed
architecture, differentiably.

Pooled, all kinds share their prices: a launch, a FLOP and a byte, as in a roofline (Williams et al., 2009) whose two roofs are
added up. Three prices say less of a network, but any transformer that was measured on a device determines them.

The upper bound is a multiple of the mean, calibrated on the residuals of networks that their fit did not see: the conformal
quantile of leave-fold-out ratios measured / predicted (CV+, Barber et al., arXiv:1905.02928, in its simplest, one-sided form).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch

from latency_models.intervals import check_coverage, check_folds, interval, splits, widened
from latency_models.physical import PhysicalRegressor
from nas.encoding import Encoding
from nas.protocols import Family, Operator
from nas.space import Architecture
from nas.types import Measurement, Prediction, Workload

SCALES = {"count": 1.0, "flops": 1e-6, "bytes": 1e-4, "parameters": 1e-4}  # prices of the same order, so that one ridge fits all
FEWEST = 8


class Priced(Protocol):
    """Times that are costs times prices."""

    @property
    def prices_(self) -> np.ndarray: ...

    def predict(self, costs: np.ndarray) -> np.ndarray: ...


class AdditiveLatency:
    """Prices of operators, fitted to measurements of one device.

    Args:
        coverage: share of networks whose measured latency is at most `upper_ms`.
        ridge: weight of the prices' squares, relative to a mean squared relative error of 1.
        folds: groups that are held out in turn to calibrate the bound.
        pooled: whether all kinds of operator share their prices.
        costs: what has a price; pooled and of one cost alone, the model is one of the trivial ones (latency by FLOPs).

    Raises:
        ValueError: a coverage outside (0, 1), a negative ridge, fewer than 2 folds, or an unknown cost.
    """

    def __init__(
        self, *, coverage: float = 0.9, ridge: float = 1e-4, folds: int = 10, pooled: bool = False,
        costs: Sequence[str] = ("count", "flops", "bytes"),
    ) -> None:  # fmt: skip
        check_coverage(coverage)
        if ridge < 0:
            raise ValueError(f"ridge: {ridge} is negative")
        check_folds(folds)
        if not costs or set(costs) - set(SCALES):
            raise ValueError(f"costs: {list(costs)} are not some of {list(SCALES)}")
        self.coverage, self.ridge, self.folds, self.pooled, self.costs = coverage, ridge, folds, pooled, tuple(costs)

    def fit(self, family: Family, measurements: Sequence[Measurement]) -> Self:
        """Raises ValueError: fewer than 8 measurements, or measurements of several workloads."""
        workloads = {m.workload for m in measurements}
        if len(workloads) > 1:
            raise ValueError(f"measurements: of {len(workloads)} workloads, a latency model knows one")
        _require_enough(len(measurements))
        self.family_, self.workload_ = family, workloads.pop()
        return self._fit(self.features([m.arch for m in measurements]), np.array([m.latency_ms for m in measurements]))

    def fit_operators(
        self, family: Family, workload: Workload, networks: Sequence[Sequence[Operator]], measured_ms: np.ndarray
    ) -> Self:
        """Fits to networks of any kind, known by what they cost, to predict those of `family`.

        Raises:
            ValueError: fewer than 8 networks, or prices that are not pooled: other networks have other kinds of operators.
        """
        if not self.pooled:
            raise ValueError("latency_model: prices of each kind of operator need networks of this space; latency_model=roofline")
        _require_enough(len(networks))
        self.family_, self.workload_ = family, workload
        rows = [[float(np.sum(column)) for column in self._columns(operators)] for operators in networks]
        return self._fit(np.array(rows), measured_ms)

    def _fit(self, features: np.ndarray, measured: np.ndarray) -> Self:
        """Prices, and the bound from measurements that a fit did not see."""
        self.prices_ = self._fitted(features, measured).prices_
        self.unseen_, self.fold_prices_ = np.empty(len(measured)), []
        for kept, held_out in splits(len(measured), folds=self.folds):
            twin = self._fitted(features[kept], measured[kept])
            self.unseen_[held_out] = twin.predict(features[held_out])
            self.fold_prices_.append(twin.prices_)
        self.interval_ = interval(measured / self.unseen_, self.coverage)
        return self

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        return Prediction.of(self.features(archs) @ self.prices_, self.interval_)

    def disagreement(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Relative standard deviation of the predictions of fits that each left some measurements out, [N]."""
        predictions = self.features(archs) @ np.stack(self.fold_prices_, axis=1)
        spread: np.ndarray = predictions.std(axis=1) / predictions.mean(axis=1)
        return spread

    def expected_ms(self, encoding: Encoding) -> torch.Tensor:
        """Expected latency of a relaxed architecture, `encoding.values` [E] in float64 on the CPU; a scalar."""
        total: torch.Tensor = torch.stack(
            [torch.as_tensor(f, dtype=encoding.values.dtype) for f in self._columns_of(encoding)]
        ) @ torch.as_tensor(self.prices_, dtype=encoding.values.dtype)
        return total

    def doubt(self, relative_std: float) -> None:
        self.interval_ = widened(self.interval_, relative_std, self.coverage)

    def unseen_ms(self) -> np.ndarray:
        return self.unseen_

    def upper_factor(self) -> float:
        return self.interval_.upper

    def _fitted(self, features: np.ndarray, measured: np.ndarray) -> Priced:
        return PhysicalRegressor(ridge=self.ridge).fit(features, measured)

    def features(self, archs: Sequence[Architecture]) -> np.ndarray:
        """What has a price, [N, K], of architectures of the family that it was fitted to."""
        columns = self._columns_of(Encoding.of(self.family_.space, archs))
        return np.stack([np.broadcast_to(column, len(archs)) for column in columns], axis=1)

    def _columns_of(self, encoding: Encoding) -> list[Any]:
        return self._columns(self.family_.operators(encoding, self.workload_))

    def _columns(self, operators: Sequence[Operator]) -> list[Any]:
        """Feature columns: of each kind of operator, or of all, the costs of the network, in a fixed order."""
        sums: dict[str, list[Any]] = {}
        for operator in operators:
            kind = "any" if self.pooled else operator.kind
            held = sums.setdefault(kind, [0.0] * len(self.costs))
            sums[kind] = [a + getattr(operator, cost) * SCALES[cost] for a, cost in zip(held, self.costs, strict=True)]
        return [column for kind in sorted(sums) for column in sums[kind]]


def _require_enough(number: int) -> None:
    if number < FEWEST:
        raise ValueError(f"measurements: {number} are too few to fit a latency model, at least {FEWEST} are needed")
