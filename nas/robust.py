"""Spread by medians, which a few wild values do not move, and what lies beyond it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OUTLIER_SCORE = 3.5  # of |modified Z|, 0.6745 |x - median| / MAD: Iglewicz and Hoaglin (1993), How to detect and handle outliers
MODIFIED = 0.6745  # median absolute deviation of a standard normal variable
NORMAL_SCALE = 1.4826  # its inverse: with it, the median absolute deviation is a standard deviation for normal values


def mad(x: Sequence[float] | np.ndarray) -> float:
    """The median absolute deviation from the median of values [N]; 0 where more than half of them are equal."""
    return float(np.median(np.abs(np.asarray(x, dtype=float) - np.median(x))))


def mad_scale(x: Sequence[float] | np.ndarray) -> float:
    """The standard deviation that normal values [N] of this median absolute deviation have."""
    return NORMAL_SCALE * mad(x)
