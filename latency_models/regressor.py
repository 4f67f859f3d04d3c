"""Any regressor of scikit-learn's contract as a latency model of a family.

It predicts, and its bound is calibrated on what it did not see. How latency changes with a probability it cannot say: additive
prices are fitted beside it for the differentiable search, everything else follows the regressor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from latency_models.additive import AdditiveLatency
from latency_models.intervals import Bounded
from nas.encoding import Encoding
from nas.protocols import Family
from nas.space import Architecture
from nas.types import Measurement, Prediction


class RegressorLatency:
    """A regressor of the count, FLOPs and bytes of each kind of operator.

    Args:
        regressor: with scikit-learn's `fit(costs, ms)` and `predict(costs)`.
        coverage: share of networks whose measured latency is at most `upper_ms`.
        folds: groups that are held out in turn to calibrate the bound.

    Raises:
        ValueError: a coverage outside (0, 1) or fewer than 2 folds.
    """

    def __init__(self, regressor: Any, *, coverage: float = 0.9, folds: int = 10) -> None:
        self.regressor, self.coverage, self.folds = regressor, coverage, folds
        self._bounded = Bounded(regressor, coverage=coverage, folds=folds)
        self._prices = AdditiveLatency(coverage=coverage, folds=folds)

    def fit(self, family: Family, measurements: Sequence[Measurement]) -> Self:
        """Raises ValueError: fewer measurements than 8 or than the regressor takes, or those of several workloads."""
        self._prices.fit(family, measurements)
        measured = np.array([m.latency_ms for m in measurements])
        try:
            self._bounded.fit(self._prices.features([m.arch for m in measurements]), measured)
        except ValueError as error:
            raise ValueError(
                f"latency_model.regressor: {len(measurements)} networks, of which {self.folds} folds leave some out, cannot be "
                f"fitted ({error}); measure more (calibration.num_fit), or choose another latency_model"
            ) from error
        return self

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        return self._bounded.predict(self._prices.features(archs))

    def disagreement(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Of the additive prices, [N]."""
        return self._prices.disagreement(archs)

    def expected_ms(self, encoding: Encoding) -> torch.Tensor:
        """By the additive prices."""
        return self._prices.expected_ms(encoding)

    def upper_factor(self) -> float:
        return self._bounded.interval_.upper

    def doubt(self, relative_std: float) -> None:
        self._bounded.doubt(relative_std)

    def unseen_ms(self) -> np.ndarray:
        """Predictions of what it was fitted to, each by a fit without it, [N]."""
        return self._bounded.unseen_
