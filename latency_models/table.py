"""A predictor for one recorded table: what it is fitted to, whether it may be trusted, and what it says of new rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from latency_models.drift import Sessions, no_signal, sessions
from latency_models.ensemble import Ensemble
from latency_models.intervals import bound, check_coverage
from latency_models.quality import Quality
from nas.tables import RecordedTable
from nas.types import Prediction

FEWEST_ROWS = 10


class TablePredictor:
    """`fit(table)` and `predict(rows) -> Prediction` in the table's unit.

    Args:
        costs: from features [N, F] to what has a price [N, K]; None: one network, and its features.
        coverage: share of rows whose measured value is at most the upper bound.

    Raises:
        ValueError: a coverage outside (0, 1).
    """

    def __init__(self, *, costs: Callable[[np.ndarray], np.ndarray] | None = None, coverage: float = 0.9) -> None:
        check_coverage(coverage)
        self.costs, self.coverage = costs, coverage

    def fit(self, table: RecordedTable) -> Self:
        """Raises ValueError: fewer than 10 rows, a negative feature, or values that have nothing to do with the features."""
        if len(table) < FEWEST_ROWS:
            raise ValueError(f"{table.name}: {len(table)} rows are too few to fit a predictor, at least {FEWEST_ROWS} are needed")
        self.features_ = table.features
        self.model_ = Ensemble().fit(self._costs(table.rows), table.values)
        unseen = self.model_.unseen_
        if why := no_signal(table.values, unseen):
            raise ValueError(f"{table.name}: {why}; no predictor is fitted and no search can start on it")
        ratios = table.values / unseen
        self.relative_std_, self.upper_factor_ = bound(ratios, self.coverage)
        self.quality_ = Quality.of(table.values, unseen, covered=ratios <= self.upper_factor_, seen=table.values)
        self.sessions_: Sessions = sessions(table.values, unseen)
        return self

    def predict(self, rows: np.ndarray) -> Prediction:
        """Of features [N, F]."""
        mean = self.model_.predict(self._costs(rows))
        return Prediction(mean_ms=mean, std_ms=mean * self.relative_std_, upper_ms=mean * self.upper_factor_)

    def _costs(self, rows: np.ndarray) -> np.ndarray:
        if wrong := np.argwhere(rows < 0).tolist():
            row, column = wrong[0]
            value = rows[row, column]
            raise ValueError(f"{self.features_[column]}: {value} in row {row} is negative; features are sizes, counts and costs")
        return np.hstack([np.ones((len(rows), 1)), rows]) if self.costs is None else self.costs(rows)
