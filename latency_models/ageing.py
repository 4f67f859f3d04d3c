"""What a device takes now of what it took when it was calibrated, told by a few networks that were measured then and again.

    log(now / then) = a + b log(then)

What slows all networks alike is taken out by the sentinel beside them. What is left, where neighbours take of caches and memory
or a clock is throttled, differs with the size of a network, and from network to network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

FEWEST = 4  # networks that tell two parameters and what they leave


@dataclass(frozen=True)
class Ageing:
    """The law, fitted by least squares; `scatter` is the relative standard deviation of networks around it."""

    intercept: float
    slope: float
    scatter: float

    @classmethod
    def of(cls, then_ms: np.ndarray, now_ms: np.ndarray) -> Self:
        """From [N] networks. Raises ValueError for fewer than 4."""
        num = len(then_ms)
        if num < FEWEST:
            raise ValueError(f"then_ms: {num} networks are fewer than {FEWEST}")
        size, change = np.log(then_ms), np.log(now_ms / then_ms)
        around = size - size.mean()
        slope = float(around @ change / max(around @ around, 1e-12))
        rest = change - change.mean() - slope * around
        return cls(float(change.mean() - slope * size.mean()), slope, float(np.sqrt(rest @ rest / (num - 2))))

    def factors(self, then_ms: np.ndarray) -> np.ndarray:
        """now / then of networks, [N]."""
        found: np.ndarray = np.exp(self.intercept + self.slope * np.log(then_ms))
        return found
