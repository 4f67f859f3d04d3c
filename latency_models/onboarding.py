"""A device that is new: few measurements of it, and the prices of devices that are known for the same costs.

The mixture of the known devices has nothing of its own to learn, and is right where the new device is like them; prices of its
own that are drawn towards that mixture are right where it is not, and its own alone where it is like none of them. Leaving out
each measurement in turn tells which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import scipy

from latency_models.intervals import fresh_fit
from latency_models.physical import PhysicalRegressor

PULL = 0.001  # of its own prices towards the mixture's


class OtherDevices:
    """The non-negative mixture of known devices' predictions with the smallest squared relative error; `known` are prices [K]."""

    def __init__(self, known: Sequence[np.ndarray]) -> None:
        self.known = known

    def fit(self, costs: np.ndarray, times: np.ndarray) -> Self:
        prices = np.stack(self.known, axis=1)
        shares, _ = scipy.optimize.nnls(costs @ prices / times[:, None], np.ones(len(times)))
        self.prices_: np.ndarray = prices @ shares
        return self

    def predict(self, costs: np.ndarray) -> np.ndarray:
        times: np.ndarray = costs @ self.prices_
        return times


class NewDevice:
    """`fit(costs, times)` with costs [N, K] of a few networks, `predict(costs)`; `known` are prices [K] of other devices.

    Raises:
        ValueError: in `fit`, fewer than 3 measurements.
    """

    def __init__(self, known: Sequence[np.ndarray]) -> None:
        self.known = known

    def fit(self, costs: np.ndarray, times: np.ndarray) -> Self:
        if len(times) < 3:
            raise ValueError(f"times: {len(times)} measurements are too few to choose by, at least 3 are needed")
        ways = (OtherDevices(self.known), PhysicalRegressor(known=self.known, pull=PULL), PhysicalRegressor())
        errors = [self._error(way, costs, times) for way in ways]
        self.chosen_ = fresh_fit(ways[int(np.argmin(errors))], costs, times)
        return self

    @property
    def prices_(self) -> np.ndarray:
        """Of the new device, [K]."""
        prices: np.ndarray = self.chosen_.prices_
        return prices

    def predict(self, costs: np.ndarray) -> np.ndarray:
        times: np.ndarray = self.chosen_.predict(costs)
        return times

    def _error(self, way: OtherDevices | PhysicalRegressor, costs: np.ndarray, times: np.ndarray) -> float:
        """Mean squared error in the logarithm of what a fit did not see."""
        rest = ~np.eye(len(times), dtype=bool)
        unseen = [fresh_fit(way, costs[kept], times[kept]).predict(costs[~kept])[0] for kept in rest]
        return float(np.mean(np.log(np.maximum(unseen, 1e-12) / times) ** 2))
