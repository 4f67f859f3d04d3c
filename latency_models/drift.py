"""Sessions in which a device was slower or faster than usual, seen in a table whose rows stand in the order of measuring.

The logarithm of measured over predicted time, smoothed by a running median, is the level of each row's session. A row is sound
if its session is at the usual level and the row itself does not stand out of its session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.lib.stride_tricks import sliding_window_view

from nas.robust import OUTLIER_SCORE, mad_scale

WINDOW = 25  # rows
SHIFT = 0.05  # of a session's level that is not usual any more
CHANCE = 1e-4  # how often times without a signal may seem to have one


@dataclass(frozen=True)
class Sessions:
    """`levels` [N]: how much slower each row's session was than usual, in log; `sound` [N]: rows without a complaint."""

    levels: np.ndarray
    sound: np.ndarray

    @property
    def shifts(self) -> np.ndarray:
        """The levels of sessions that are not usual, [N]; 0 in the others."""
        shifts: np.ndarray = np.where(np.abs(self.levels) > SHIFT, self.levels, 0.0)
        return shifts

    @property
    def share_shifted(self) -> float:
        return float(np.mean(self.shifts != 0))


def sessions(times: np.ndarray, predicted: np.ndarray) -> Sessions:
    """Of times [N] in the order of measuring, and what a robust predictor says of them."""
    residuals = np.log(times / predicted)
    levels = scipy.ndimage.median_filter(residuals, WINDOW, mode="nearest")
    levels -= np.median(levels)
    rest = residuals - np.median(residuals) - levels
    sound = (np.abs(levels) <= SHIFT) & (np.abs(rest) <= OUTLIER_SCORE * mad_scale(rest))
    return Sessions(levels, sound)


def tells_sessions(predicted: np.ndarray) -> bool:
    """Whether the order of rows [N] may be that of measuring, and they are enough to tell: sorted by what they hold, what a
    predictor misses of the large ones would look like a session."""
    return len(predicted) >= 2 * WINDOW and abs(_rank_correlation(np.arange(len(predicted)), predicted)) < _chance(len(predicted))


def neighbours(times: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The level of each row's session, [N], by the `WINDOW` - 1 rows around it without itself: what a sentinel beside it says."""
    residuals = np.log(times / predicted)
    around = sliding_window_view(np.pad(residuals, WINDOW // 2, mode="reflect"), WINDOW)
    levels: np.ndarray = np.median(np.delete(around, WINDOW // 2, axis=1), axis=1) - np.median(residuals)
    return levels


def no_signal(times: np.ndarray, unseen: np.ndarray, *, chance: float = CHANCE) -> str | None:
    """Why times [N] seem to have nothing to do with the architectures, judged by predictions that did not see them; else None.

    A predictor must rank better than chance (Spearman's rho, by Student's t, which times without a signal exceed in a share
    `chance` of cases) and err less than the constant one.
    """
    constant_error, error = (float(np.median(np.abs(np.log(times / p)))) for p in (np.median(times), unseen))
    if not constant_error:
        return f"there is no signal: half of all times or more are the same, {np.median(times):g}"
    rho, limit = _rank_correlation(times, unseen), _chance(len(times), chance)
    if rho > limit and error < constant_error:
        return None
    return (
        f"there is no signal: on networks that the fit did not see, the rank correlation is {rho:.2f} (chance stays under "
        f"{limit:.2f}), the median error {error:.1%} and that of the constant predictor {constant_error:.1%}"
    )


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rho; 0 where one is constant."""
    return float(scipy.stats.spearmanr(one, other).statistic) if np.ptp(one) and np.ptp(other) else 0.0


def _chance(num: int, chance: float = CHANCE) -> float:
    """What Spearman's rho of so many independent pairs stays under, but for a share `chance` of cases."""
    freedom = num - 2
    most = float(scipy.stats.t.ppf(1 - chance, freedom))
    return most / float(np.sqrt(freedom + most**2))
