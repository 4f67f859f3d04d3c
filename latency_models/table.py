"""A predictor for one recorded table: what it is fitted to, whether it may be trusted, and what it says of new rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from latency_models.drift import Sessions, no_signal, sessions, tells_sessions
from latency_models.ensemble import Ensemble
from latency_models.intervals import check_coverage, interval
from latency_models.quality import Quality
from nas.tables import RecordedTable
from nas.types import Prediction

FEWEST_ROWS = 10
MOST_SHIFTED = 0.5  # share of rows in sessions that were not usual


class TablePredictor:
    """`fit(table)` and `predict(rows) -> Prediction` in the table's unit.

    It predicts what the device takes in its usual state: where the order of rows is that of measuring, the level of sessions that
    were slower or faster is taken out of what it is fitted to (see `latency_models.drift`). `quality_` is that of those values,
    `recorded_quality_` that of the values as they were recorded.

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
        """Raises ValueError: fewer than 10 rows, a negative feature, values that have nothing to do with the features, or
        that are mostly of sessions unlike each other."""
        if len(table) < FEWEST_ROWS:
            raise ValueError(f"{table.name}: {len(table)} rows are too few to fit a predictor, at least {FEWEST_ROWS} are needed")
        self.features_ = table.features
        costs, usual = self._costs(table.rows), table.values
        self.model_ = Ensemble().fit(costs, usual)
        if why := no_signal(usual, self.model_.unseen_):
            raise ValueError(f"{table.name}: {why}; no predictor is fitted and no search can start on it")
        self.sessions_: Sessions = sessions(usual, self.model_.unseen_)
        self.drift_removed_ = self.sessions_.share_shifted > 0 and tells_sessions(self.model_.unseen_)
        if self.drift_removed_:
            _require_steady(table.name, self.sessions_)
            self.model_ = Ensemble().fit(costs, usual / np.exp(self.sessions_.shifts))
            self.sessions_ = sessions(table.values, self.model_.unseen_)
            usual = table.values / np.exp(self.sessions_.shifts)
        unseen = self.model_.unseen_
        self.interval_ = interval(usual / unseen, self.coverage)
        self.quality_, self.recorded_quality_ = (
            Quality.of(values, unseen, covered=values / unseen <= self.interval_.upper, seen=values)
            for values in (usual, table.values)
        )
        return self

    def predict(self, rows: np.ndarray) -> Prediction:
        """Of features [N, F]."""
        return Prediction.of(self.model_.predict(self._costs(rows)), self.interval_)

    def _costs(self, rows: np.ndarray) -> np.ndarray:
        if wrong := np.argwhere(rows < 0).tolist():
            row, column = wrong[0]
            value = rows[row, column]
            raise ValueError(f"{self.features_[column]}: {value} in row {row} is negative; features are sizes, counts and costs")
        return np.hstack([np.ones((len(rows), 1)), rows]) if self.costs is None else self.costs(rows)


def _require_steady(name: str, found: Sessions) -> None:
    if found.share_shifted > MOST_SHIFTED:
        raise ValueError(
            f"{name}: {found.share_shifted:.0%} of the rows, in the order of the file, are of sessions more than 5 % off the "
            f"usual level, allowed are {MOST_SHIFTED:.0%}: which level is the device's cannot be told. Pin the threads, fix the "
            "governor, let the device cool down and measure again, or give each session a file of its own"
        )
