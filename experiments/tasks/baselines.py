"""What needs no network: validation errors in percent that a search must beat to be worth its time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

LEAST_PROBABILITY = 1e-6


def majority_error(train: np.ndarray, validation: np.ndarray) -> float:
    """Error in percent of always answering the most frequent class of `train`; both are classes, [N]."""
    return 100 * float(np.mean(validation != np.bincount(train).argmax()))


def linear_error(train: tuple[Any, np.ndarray], validation: tuple[Any, np.ndarray]) -> float:
    """Error in percent of a logistic regression; both are sparse features [N, F] with rows of norm 1, and classes [N]."""
    (features, targets), (unseen, expected) = train, validation
    columns = _occurring(features)
    return 100 * (1 - float(logistic().fit(features[:, columns], targets).score(unseen[:, columns], expected)))


def unseen_logs(features: Any, targets: np.ndarray, *, num_classes: int, folds: int = 3) -> np.ndarray:
    """What the logistic regression of `linear_error` says of examples, each by a fit to the other folds: logarithms of
    probabilities [N, num_classes], of sparse features [N, F] and classes [N]."""
    features, found = features[:, _occurring(features)], np.zeros((len(targets), num_classes))
    for fold in np.array_split(np.random.default_rng(0).permutation(len(targets)), folds):
        kept = np.setdiff1d(np.arange(len(targets)), fold)
        known = np.unique(targets[kept])
        alone = len(known) == 1  # nothing to be told apart
        found[np.ix_(fold, known)] = 1.0 if alone else logistic().fit(features[kept], targets[kept]).predict_proba(features[fold])
    logs: np.ndarray = np.log(np.maximum(found, LEAST_PROBABILITY))
    return logs


def _occurring(features: Any) -> np.ndarray:
    """The columns of features [N, F] that are not zero throughout: others, of which what is hashed has many, get no weight."""
    return np.flatnonzero(np.asarray(abs(features).sum(axis=0)))


def logistic() -> Any:
    """A logistic regression that is not fitted yet, for sparse features."""
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=5, tol=None, random_state=0, n_jobs=-1)


def ridge_error(train: tuple[Any, np.ndarray], validation: tuple[Any, np.ndarray]) -> float:
    """Mean squared error in percent of a ridge regression; sparse features [N, F] with rows of norm 1, and
    standardised numbers [N]."""
    from sklearn.linear_model import Ridge

    off = Ridge(alpha=1.0, solver="sparse_cg").fit(*train).predict(validation[0]) - validation[1]
    return 100 * float(np.mean(off**2))


def values_error(train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> float:
    """Error in percent of a logistic regression on dense values [N, F] that are about standardised, and classes [N]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=ConvergenceWarning)  # it is stopped early, and says so of itself
        return 100 * (1 - float(LogisticRegression(max_iter=50).fit(*train).score(*validation)))
