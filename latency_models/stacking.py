"""Several predictors as one: the mixture with the smallest absolute error in the logarithm.

    log time = a + sum_j w_j log prediction_j,   w_j >= 0,  sum_j w_j = 1

A linear program (least absolute deviations). Networks that one device runs badly are the rule in tables of real devices; absolute
errors bear them where squares would follow them.
"""

from __future__ import annotations

import numpy as np
import scipy


def mixture(log_predictions: np.ndarray, log_times: np.ndarray, *, shift: bool) -> tuple[np.ndarray, float]:
    """Weights [J] and offset a (0 without `shift`) for predictions [N, J] and times [N], both in logarithms."""
    num, members = log_predictions.shape
    identity = np.eye(num)
    offset = np.ones((num, 1)) if shift else np.zeros((num, 1))
    # over = prediction - time where positive, under where negative; both at least 0
    rows = np.hstack([log_predictions, offset, -offset, -identity, identity])
    simplex = np.concatenate([np.ones(members), np.zeros(2 + 2 * num)])
    cost = np.concatenate([np.zeros(members + 2), np.ones(2 * num)])
    found = scipy.optimize.linprog(cost, A_eq=np.vstack([rows, simplex]), b_eq=np.append(log_times, 1.0), bounds=(0, None))
    assert found.success, found.message
    return found.x[:members], float(found.x[members] - found.x[members + 1])
