"""Sessions in which a device was slower or faster than usual, seen in a table whose rows stand in the order of measuring.

The logarithm of measured over predicted time, smoothed by a running median, is the level of each row's session. A row is sound
if its session is at the usual level and the row itself does not stand out of its session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import median_filter

from nas.robust import OUTLIER_SCORE, mad_scale

WINDOW = 25  # rows
SHIFT = 0.05  # of a session's level that is not usual any more


@dataclass(frozen=True)
class Sessions:
    """`levels` [N]: how much slower each row's session was than usual, in log; `sound` [N]: rows without a complaint."""

    levels: np.ndarray
    sound: np.ndarray

    @property
    def share_shifted(self) -> float:
        return float(np.mean(np.abs(self.levels) > SHIFT))


def sessions(times: np.ndarray, predicted: np.ndarray) -> Sessions:
    """Of times [N] in the order of measuring, and what a robust predictor says of them."""
    residuals = np.log(times / predicted)
    levels = median_filter(residuals, WINDOW, mode="nearest")
    levels -= np.median(levels)
    rest = residuals - np.median(residuals) - levels
    sound = (np.abs(levels) <= SHIFT) & (np.abs(rest) <= OUTLIER_SCORE * mad_scale(rest))
    return Sessions(levels, sound)


def neighbours(times: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The level of each row's session, [N], by the `WINDOW` - 1 rows around it without itself: what a sentinel beside it says."""
    residuals = np.log(times / predicted)
    around = sliding_window_view(np.pad(residuals, WINDOW // 2, mode="reflect"), WINDOW)
    levels: np.ndarray = np.median(np.delete(around, WINDOW // 2, axis=1), axis=1) - np.median(residuals)
    return levels


def no_signal(times: np.ndarray, unseen: np.ndarray) -> str | None:
    """Why times [N] seem to have nothing to do with the architectures, judged by predictions that did not see them; else None.

    A predictor must rank better than chance (Spearman's rho above 4 standard errors) and err less than the constant one.
    """
    from scipy.stats import spearmanr

    rho = float(spearmanr(times, unseen).statistic)
    error, constant = (float(np.median(np.abs(np.log(times / p)))) for p in (unseen, np.median(times)))
    limit = 4 / np.sqrt(len(times) - 1)
    if rho > limit and error < constant:
        return None
    return (
        f"there is no signal: on networks that the fit did not see, the rank correlation is {rho:.2f} (chance stays under "
        f"{limit:.2f}), the median error {error:.1%} and that of the constant predictor {constant:.1%}"
    )
