"""Budgets of a search: what was asked, or what a search asks of itself where nobody did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from experiments.formatting import format_ms
from experiments.objectives import upper_on_device
from experiments.progress import Reporter
from nas.projection import BudgetError
from nas.types import Candidate

HALF = "half of the largest network's latency"
HALFWAY = (
    "halfway between the bounds of the fastest and the largest network, as half of the largest's latency is not sure to be kept"
)


@dataclass(frozen=True)
class Budget:
    """What was asked: in ms, and by whom; in MiB, and in ms on further devices, if so."""

    ms: float
    origin: str
    mib: float | None = None
    also_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """The numbers of a candidate that must not be exceeded: upper bounds, so that what is picked keeps the budgets."""
        memory = {} if self.mib is None else {"upper_mib": self.mib}
        return {"upper_ms": self.ms, **memory, **{upper_on_device(name): ms for name, ms in self.also_ms.items()}}

    def holds(self, candidate: Candidate) -> bool:
        return self.allows(candidate.objectives)

    def allows(self, costs: Mapping[str, float]) -> bool:
        return all(costs[name] <= limit for name, limit in self.limits.items())


@dataclass(frozen=True)
class Ends:
    """The smallest and the largest network of a space: latency and upper bound of both, in ms."""

    smallest_ms: float
    smallest_upper_ms: float
    largest_ms: float
    largest_upper_ms: float

    def budget(self, asked_ms: float | None, report: Reporter, *, mib: float | None = None) -> Budget:
        """What the user asked; or else half of the largest network's latency, or what is sure to be kept.

        Raises:
            BudgetError: asked for less than the upper bound of the smallest network; no budget below it can be promised.
        """
        if asked_ms is None:
            budget = self._default()
        elif asked_ms < self.smallest_upper_ms:
            raise BudgetError(
                f"budget_ms: {asked_ms:.4g} is below the fastest network of the space, which takes {self.smallest_ms:.4g} ms "
                f"(upper bound {self.smallest_upper_ms:.4g} ms); allowed is anything from there on, the largest network takes "
                f"{self.largest_ms:.4g} ms"
            )
        else:
            budget = Budget(asked_ms, "user")
        report.say(
            f"Budget: {format_ms(budget.ms)} ms ({budget.origin}); the largest network takes {format_ms(self.largest_ms)} ms"
        )
        return replace(budget, mib=mib)

    def _default(self) -> Budget:
        """A bound is wide after a brief or a disturbed calibration: half of the largest network's time may then be below all."""
        if (half := self.largest_ms / 2) >= self.smallest_upper_ms:
            return Budget(half, HALF)
        return Budget((self.smallest_upper_ms + max(self.largest_upper_ms, self.smallest_upper_ms)) / 2, HALFWAY)
