"""How good predictions are of networks that the fit did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy


@dataclass(frozen=True)
class Quality:
    """MAPE, rank correlation, share within 10 % and coverage of the bound, and the MAPE of a constant prediction to compare with.

    `spearman` is NaN for fewer than 3 predictions and for equal ones.
    """

    mape_percent: float
    spearman: float
    within_10_percent: float
    coverage_percent: float
    constant_mape_percent: float

    @classmethod
    def of(cls, measured: np.ndarray, predicted: np.ndarray, *, covered: np.ndarray, seen: Sequence[float] | np.ndarray) -> Self:
        """Of times [N], what was predicted of them and whether the bound covers them; the constant is the median of `seen`."""
        relative = np.abs(predicted / measured - 1.0)
        enough = len(measured) > 2 and np.ptp(predicted) > 0
        return cls(
            mape_percent=100 * float(relative.mean()),
            spearman=float(scipy.stats.spearmanr(measured, predicted).statistic) if enough else float("nan"),
            within_10_percent=100 * float((relative <= 0.1).mean()),
            coverage_percent=100 * float(covered.mean()),
            constant_mape_percent=100 * float(np.abs(np.median(seen) / measured - 1.0).mean()),
        )
