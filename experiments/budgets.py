"""Budgets of a search: what was asked, or what a search asks of itself where nobody did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from experiments.formatting import format_figure, format_ms
from experiments.layers import arch_in_short
from experiments.objectives import OBJECTIVES, upper, upper_on_device
from experiments.progress import Reporter
from experiments.verdicts import USER, origin_in_words
from nas.extremes import least
from nas.projection import BudgetError
from nas.space import Architecture, SearchSpace
from nas.types import Prediction

HALF = "half of the largest network's {cost}"
HALFWAY = (
    "halfway between the bounds of the {least} and the largest network, as half of the largest's {cost} is not sure to be kept"
)
LEAST = {"latency_ms": "fastest", "energy_mj": "most frugal"}


@dataclass(frozen=True)
class Budget:
    """What was asked: in ms, and by whom; beside it, by the names of objectives, and in ms on further devices, if so."""

    ms: float
    origin: str
    beside: Mapping[str, float] = field(default_factory=dict)
    also_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """The numbers of a candidate that must not be exceeded: upper bounds, so that what is picked keeps the budgets."""
        beside = {upper(name): most for name, most in self.beside.items()}
        return {"upper_ms": self.ms, **beside, **{upper_on_device(name): ms for name, ms in self.also_ms.items()}}

    @property
    def names(self) -> list[str]:
        """What asks for each limit in a configuration."""
        beside = [OBJECTIVES[name].budget for name in self.beside]
        return ["budget_ms", *beside, *(f"also.{name}.budget_ms" for name in self.also_ms)]

    def allows(self, costs: Mapping[str, float]) -> bool:
        return all(costs[name] <= limit for name, limit in self.limits.items())


@dataclass(frozen=True)
class End:
    """A network at an end of a space: latency and upper bound of it, in ms (or energy in mJ, as `Ends.name` says)."""

    arch: Architecture
    ms: float
    upper_ms: float


@dataclass(frozen=True)
class Ends:
    """The networks of a space with the least and with the largest upper bound, as far as a search by the latency model finds
    them, and the largest one, which need not be the slowest. `name` is that of latency, or of energy where it stands for time."""

    fastest: End
    largest: End
    slowest: End
    name: str = "latency_ms"

    @classmethod
    def of(
        cls, space: SearchSpace, predict: Callable[[Sequence[Architecture]], Prediction], measured_ms: Mapping[str, float], *,
        name: str = "latency_ms",
    ) -> Self:  # fmt: skip
        """Latencies are measured, by the ids of architectures, or else predicted."""
        fastest = least(space, lambda archs: predict(archs).upper_ms)
        slowest = least(space, lambda archs: -predict(archs).upper_ms)

        def end(arch: Architecture) -> End:
            prediction = predict([arch])
            [mean_ms], [upper_ms] = prediction.mean_ms.tolist(), prediction.upper_ms.tolist()
            return End(arch, measured_ms.get(arch.id, mean_ms), upper_ms)

        return cls(end(fastest), end(space.largest()), end(slowest), name)

    def budget(self, asked_ms: float | None, report: Reporter) -> Budget:
        """What the user asked; or else half of the largest network's latency, or what is sure to be kept.

        Raises:
            BudgetError: asked for less than the upper bound of the fastest network; no budget below it can be promised.
        """
        unit, budget_name = OBJECTIVES[self.name].unit, OBJECTIVES[self.name].budget
        if asked_ms is None:
            budget = self._default()
        elif asked_ms < self.fastest.upper_ms:
            raise BudgetError(
                f"{budget_name}: {format_figure(asked_ms)} is below the {LEAST[self.name]} network of the space, "
                f"{in_words(self.fastest.arch)}, which takes {format_figure(self.fastest.ms)} {unit} (upper bound "
                f"{format_figure(self.fastest.upper_ms)} {unit}); allowed is anything from there on, the largest network takes "
                f"{format_figure(self.largest.ms)} {unit}"
            )
        else:
            budget = Budget(asked_ms, USER)
        largest_ms = format_ms(self.largest.ms)
        origin = origin_in_words(budget.origin)
        report.say(f"Budget: {format_ms(budget.ms)} {unit} ({origin}); the largest network takes {largest_ms} {unit}")
        if budget.ms >= self.slowest.upper_ms:
            report.say("Every network of the space keeps this budget: it excludes none")
        return budget

    def _default(self) -> Budget:
        """A bound is wide after a brief or a disturbed calibration: half of the largest network's time may then be below all."""
        said = {"least": LEAST[self.name], "cost": OBJECTIVES[self.name].words}
        if (half := self.largest.ms / 2) >= self.fastest.upper_ms:
            return Budget(half, HALF.format(**said))
        return Budget((self.fastest.upper_ms + self.largest.upper_ms) / 2, HALFWAY.format(**said))


def check_reachable(
    name: str, asked: float, space: SearchSpace, costs: Callable[[Sequence[Architecture]], Mapping[str, np.ndarray]]
) -> None:
    """Whether any network keeps a budget beside latency, by the name of its objective; `costs` has [N] of it and of its bound.

    Raises:
        BudgetError: none that was found does.
    """
    arch = least(space, lambda archs: costs(archs)[upper(name)])
    found = costs([arch, space.largest()])
    (least_, largest), (bound, _) = (found[column].tolist() for column in (name, upper(name)))
    if asked < bound:
        budget, unit = OBJECTIVES[name].budget, OBJECTIVES[name].unit
        raise BudgetError(
            f"{budget}: {format_figure(asked)} is below what any network of the space needs; {in_words(arch)} needs the least, "
            f"{format_figure(least_)} {unit} (at most {format_figure(bound)}); the largest needs {format_figure(largest)} {unit}"
        )


def check_kept_on(
    device: str, setting: str, asked: float, space: SearchSpace, bounds: Callable[[Sequence[Architecture]], np.ndarray], *,
    name: str = "latency_ms",
) -> None:  # fmt: skip
    """Whether any network is sure to keep a budget on a further device; `bounds` are those of the objective `name` there, [N].

    Raises:
        BudgetError: none that was found is.
    """
    fastest = least(space, bounds)
    [bound] = bounds([fastest])
    if asked < bound:
        raise BudgetError(
            f"{setting}: {format_figure(asked)} is below the {LEAST[name]} network of the space, {in_words(fastest)}, which "
            f"takes at most {format_figure(bound)} {OBJECTIVES[name].unit} on {device}"
        )


def fastest_within(
    budget: Budget, space: SearchSpace, costing: Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]
) -> float:
    """The upper bound in ms of the fastest network that keeps all limits, as far as a search finds it.

    Raises:
        BudgetError: none was found that keeps all of them.
    """

    def use(archs: Sequence[Architecture]) -> np.ndarray:
        """Of the budget in ms; beyond a limit, of the one that is exceeded most."""
        rows = costing(archs)
        most = np.array([max(costs[name] / limit for name, limit in budget.limits.items()) for costs in rows])
        return np.where(most > 1.0, most, [costs["upper_ms"] / budget.ms for costs in rows])

    found = least(space, use)
    [costs] = costing([found])
    if not budget.allows(costs):
        asked = " and ".join(f"{name}: {limit:.4g}" for name, limit in zip(budget.names, budget.limits.values(), strict=True))
        takes = " and ".join(f"{costs[name]:.4g}" for name in budget.limits)
        raise BudgetError(
            f"{asked}: networks keep each of them, and none that was found keeps all; {in_words(found)} comes nearest with at "
            f"most {takes}"
        )
    return costs["upper_ms"]


def in_words(arch: Architecture) -> str:
    """Its id, and what it is."""
    return f"{arch.id} ({arch_in_short(arch.as_dict)})"
