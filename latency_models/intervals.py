"""Bounds that hold for networks that a search has picked.

A bound that covers 95 % of all networks fails more or less often for the one that a search picks: the largest network that seems
to fit is one whose time may be underestimated, and the more networks are compared, the nearer it is to the budget (selection
breaks the exchangeability that conformal prediction needs). So picking is repeated on networks that the fit did not see: for many
budgets, the largest of a pool that seems to fit is picked, and the bound is widened until the share of picks over their budget is
small enough.

Without a capacity there is no picking, and the bound is the one-sided CV+ quantile (Barber et al., arXiv:1905.02928).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import scipy
from threadpoolctl import threadpool_limits

from nas.types import Interval, Prediction

BUDGETS = 400  # that picks are made for
PRUDENCE = 0.7  # of the allowed share of picks over their budget: a few hundred measurements show it only roughly


class Bounded:
    """A regressor with a calibrated upper bound: `fit(costs, times)` and `predict(costs) -> Prediction`.

    Args:
        regressor: with scikit-learn's `fit` and `predict`; one whose `unseen_` are cross-validated predictions of what it was
            fitted to is not validated again.
        coverage: share of networks, or of picks, whose time is at most the bound.
        folds: of the cross-validation that shows unseen networks.

    Raises:
        ValueError: a coverage outside (0, 1) or fewer than 2 folds.
    """

    def __init__(self, regressor: Any, *, coverage: float = 0.95, folds: int = 10) -> None:
        check_coverage(coverage)
        check_folds(folds)
        self.regressor, self.coverage, self.folds = regressor, coverage, folds

    def fit(self, costs: np.ndarray, times: np.ndarray, *, capacity: np.ndarray | None = None, pool: int = 100) -> Self:
        """With `capacity` [N], positive, which a search wants most of (parameters, FLOPs), the bound holds for what it picks from
        `pool` networks."""
        self.fitted_ = fresh_fit(self.regressor, costs, times)
        validated = hasattr(self.fitted_, "unseen_")
        self.unseen_: np.ndarray = self.fitted_.unseen_ if validated else self.unseen(costs, times)
        self.interval_ = interval(times / self.unseen_, self.coverage)
        if capacity is not None:
            upper = picking_factor(self.unseen_, times, capacity, coverage=self.coverage, pool=pool)
            self.interval_ = replace(self.interval_, upper=upper)
        return self

    def unseen(self, costs: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Cross-validated predictions, [N]: each by a fit to the other folds."""
        predicted = np.empty(len(times))
        for kept, fold in splits(len(times), folds=self.folds):
            predicted[fold] = fresh_fit(self.regressor, costs[kept], times[kept]).predict(costs[fold])
        return predicted

    def doubt(self, relative_std: float) -> None:
        """Widens the bounds: what it was fitted to is off by so much."""
        self.interval_ = widened(self.interval_, relative_std, self.coverage)

    def predict(self, costs: np.ndarray) -> Prediction:
        return Prediction.of(self.fitted_.predict(costs), self.interval_)


def fresh_fit(regressor: Any, costs: np.ndarray, times: np.ndarray) -> Any:
    """A fitted copy, one thread, without complaints about its convergence: what it predicts is judged."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import: a command that fits nothing need not wait

    with warnings.catch_warnings(), threadpool_limits(1):  # the matrices are small: threads would wait for each other
        warnings.simplefilter("ignore", ConvergenceWarning)
        return copy.deepcopy(regressor).fit(costs, times)


def check_coverage(coverage: float) -> None:
    """Raises ValueError: it is outside (0, 1)."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: {coverage} is not between 0 and 1")


def check_folds(folds: int) -> None:
    """Raises ValueError: there are fewer than 2."""
    if folds < 2:
        raise ValueError(f"folds: {folds} is not at least 2")


def splits(num: int, *, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of what is kept, ascending, and of what is held out: each of `num` once, in random groups that are always the same;
    of fewer than `folds`, each alone."""
    order = np.random.default_rng(0).permutation(num)
    for held_out in np.array_split(order, min(folds, num)):
        yield np.setdiff1d(order, held_out), held_out


def interval(ratios: np.ndarray, coverage: float) -> Interval:
    """From the ratios measured / predicted [N] of what a fit did not see."""
    return Interval(
        relative_std=float(np.std(ratios)),
        lower=min(1.0, -conformal_quantile(-ratios, coverage)),
        upper=max(1.0, conformal_quantile(ratios, coverage)),
    )


def widened(known: Interval, relative_std: float, coverage: float) -> Interval:
    """For times that are off by a further relative error, normal and independent of what the interval was calibrated on."""
    further = max(0.0, NormalDist().inv_cdf(coverage)) * relative_std
    return Interval(
        relative_std=math.hypot(known.relative_std, relative_std),
        lower=math.exp(-math.hypot(math.log(known.lower), further)),
        upper=math.exp(math.hypot(math.log(known.upper), further)),
    )


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest score; beyond the sample, the largest."""
    rank = math.ceil((len(scores) + 1) * coverage)
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def picking_factor(predicted: np.ndarray, times: np.ndarray, capacity: np.ndarray, *, coverage: float, pool: int) -> float:
    """The smallest factor on predictions [N] with which a share `PRUDENCE` (1 - coverage) of picks at most is over its budget.

    The pools are drawn from these networks, with replacement. Of a large pool few of them can be the pick, and whether just these
    were disturbed says little; so a pick is as far beyond its prediction as any network may be, further only if networks of more
    capacity than others of their predicted time are (a trend that is certain to 95 %; Theil and Sen).
    """
    order, num = np.argsort(-capacity, kind="stable"), len(times)
    predicted, times, capacity = predicted[order], times[order], capacity[order]
    gain = np.log(capacity) - np.polyval(np.polyfit(np.log(predicted), np.log(capacity), 2), np.log(predicted))
    trend = scipy.stats.theilslopes(np.log(times / predicted), gain)
    likely = predicted * np.exp(max(0.0, trend.slope * (trend.low_slope > 0)) * gain)
    budgets = np.geomspace(*np.quantile(times, (0.05, 0.95)), BUDGETS)[:, None]  # type: ignore[call-overload]
    over = (1 + num - np.searchsorted(np.sort(times / likely), budgets / likely, side="right")) / (1 + num)

    def share_over(factor: float) -> float:
        fits = factor * predicted <= budgets
        rank = np.cumsum(fits, axis=1)  # among those that fit, the largest first
        picked = fits * (((num + 1 - rank) / num) ** pool - ((num - rank) / num) ** pool)  # chance to be in a pool as its largest
        return float(np.sum(picked * over) / max(np.sum(picked), 1e-12))

    factors = np.unique(np.maximum(1.0, times / predicted))
    low, high = 0, len(factors) - 1
    while low < high:
        middle = (low + high) // 2
        if share_over(factors[middle]) <= PRUDENCE * (1 - coverage):
            high = middle
        else:
            low = middle + 1
    return float(factors[low])


def pick(upper_ms: np.ndarray, capacity: np.ndarray, budget_ms: float) -> int | None:
    """The network of largest capacity whose bound is within the budget; None if there is none."""
    fits = np.flatnonzero(upper_ms <= budget_ms)
    return int(fits[np.argmax(capacity[fits])]) if len(fits) else None
