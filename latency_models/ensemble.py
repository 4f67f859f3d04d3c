"""The default for tables: several kinds of regressor, mixed by how well each predicts what it has not seen.

`logarithmic` makes any scikit-learn regressor one of relative errors. The mixture's weights come from cross-validated predictions
(stacking; Wolpert, 1992), so a member that only remembers gets none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from latency_models.intervals import check_folds, fresh_fit, splits
from latency_models.physical import PhysicalRegressor
from latency_models.stacking import mixture

BLOCK = 5000  # rows that are predicted at once: a kernel's matrix then stays where it is, and is not new memory each time
MOST_IN_KERNEL = 300


def logarithmic(regressor: Any) -> Any:
    """A regressor of log time from standardised log features [N, K] (log(1 + x), none below -1)."""
    steps = make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), regressor)
    return TransformedTargetRegressor(steps, func=np.log, inverse_func=np.exp, check_inverse=False)


def gaussian_process() -> Any:
    """A linear trend, smooth deviations and noise."""
    kernel = DotProduct(1.0) + ConstantKernel(0.1, (1e-4, 10.0)) * RBF(3.0, (0.3, 30.0)) + WhiteKernel(1e-3, (1e-6, 0.3))
    return Subset(logarithmic(GaussianProcessRegressor(kernel, normalize_y=True)), MOST_IN_KERNEL)


class Subset:
    """A regressor that sees at most `num` random measurements, for one whose cost grows with their cube."""

    def __init__(self, regressor: Any, num: int) -> None:
        self.regressor, self.num = regressor, num

    def fit(self, costs: np.ndarray, times: np.ndarray) -> Self:
        chosen = np.random.default_rng(0).permutation(len(times))[: self.num]
        self.regressor_ = copy.deepcopy(self.regressor).fit(costs[chosen], times[chosen])
        return self

    def predict(self, costs: np.ndarray) -> np.ndarray:
        return _in_blocks(self.regressor_.predict, costs)


def _in_blocks(predict: Callable[[np.ndarray], np.ndarray], costs: np.ndarray) -> np.ndarray:
    with threadpool_limits(1):
        return np.concatenate([predict(block) for block in np.array_split(costs, max(1, len(costs) // BLOCK))])


def trees() -> Any:
    """Extremely randomised trees (Geurts et al., 2006)."""
    return logarithmic(ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0))


MEMBERS: Mapping[str, Callable[[], Any]] = {"prices": PhysicalRegressor, "gaussian process": gaussian_process, "trees": trees}


class Ensemble:
    """A mixture of regressors, for scikit-learn's `fit(costs, times)` and `predict(costs)`.

    `unseen_` [N] are cross-validated predictions of what it was fitted to, each by members and weights without it.

    Args:
        folds: of the cross-validation that weighs the members.

    Raises:
        ValueError: fewer than 2 folds.
    """

    def __init__(self, *, folds: int = 8) -> None:
        check_folds(folds)
        self.folds = folds

    def fit(self, costs: np.ndarray, times: np.ndarray) -> Self:
        """Raises ValueError: fewer measurements than folds, or what a member refuses."""
        if len(times) < self.folds:
            raise ValueError(f"times: {len(times)} measurements are fewer than the {self.folds} folds")
        members = {name: make() for name, make in MEMBERS.items()}
        unseen, folds = np.empty((len(times), len(members))), list(splits(len(times), folds=self.folds))
        for kept, fold in folds:
            for column, member in enumerate(members.values()):
                unseen[fold, column] = fresh_fit(member, costs[kept], times[kept]).predict(costs[fold])
        logs = np.log(np.maximum(unseen, 1e-12))
        weights, _ = mixture(logs, np.log(times), shift=False)
        self.unseen_ = np.empty(len(times))
        for kept, fold in folds:
            without, _ = mixture(logs[kept], np.log(times[kept]), shift=False)
            self.unseen_[fold] = np.exp(logs[fold] @ without)
        self.weights_ = {name: float(weight) for name, weight in zip(members, weights, strict=True) if weight > 0.02}
        self.fitted_ = {name: fresh_fit(members[name], costs, times) for name in self.weights_}
        return self

    def predict(self, costs: np.ndarray) -> np.ndarray:
        return _in_blocks(self._predict, costs)

    def _predict(self, costs: np.ndarray) -> np.ndarray:
        logs = sum(w * np.log(np.maximum(self.fitted_[name].predict(costs), 1e-12)) for name, w in self.weights_.items())
        times: np.ndarray = np.exp(logs / sum(self.weights_.values()))
        return times
