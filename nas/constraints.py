"""Limits that a search keeps, several at once: on latency, memory or energy, each in its own unit, of one device or of more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from nas.encoding import Encoding
from nas.protocols import DifferentiableLatencyModel
from nas.space import Architecture


class Cost(Protocol):
    """What networks take at most, known without building them."""

    def upper(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Upper bounds, [N]: what a limit is compared with."""
        ...

    def expected_upper(self, encoding: Encoding) -> Tensor:
        """That of a relaxed architecture in expectation, `encoding.values` [E] in float64 on the CPU; a differentiable scalar."""
        ...


@dataclass(frozen=True)
class Constraint:
    """A limit on a cost, and what people call it.

    Raises:
        ValueError: a limit that is not positive.
    """

    name: str
    unit: str
    cost: Cost
    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"{self.name}: {self.limit} is not positive")

    def expected_use(self, encoding: Encoding) -> Tensor:
        """Share of the limit that a relaxed architecture takes in expectation."""
        return self.cost.expected_upper(encoding) / self.limit


@dataclass(frozen=True)
class Predicted:
    """The calibrated bound of a latency model in ms, or in mJ of one that was fitted to these: an energy budget is
    `Constraint("budget_mj", "mJ", Predicted(model), limit)`.

    The bound is a multiple of a mean that is multilinear in the choices, so that its expectation is exact.
    """

    model: DifferentiableLatencyModel

    def upper(self, archs: Sequence[Architecture]) -> np.ndarray:
        return np.asarray(self.model.predict(archs).upper_ms)

    def expected_upper(self, encoding: Encoding) -> Tensor:
        return self.model.upper_factor() * self.model.expected_ms(encoding)


def within_ms(model: DifferentiableLatencyModel, budget_ms: float) -> Constraint:
    """The budget of a latency."""
    return Constraint("budget_ms", "ms", Predicted(model), budget_ms)
