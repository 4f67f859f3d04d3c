"""A table of times or energies of HAT's networks that a search goes by: how it is fitted, and how what is picked is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.budgets import Budget, check_kept_on
from experiments.calibration import quality
from experiments.formatting import format_ms
from experiments.objectives import OBJECTIVES, upper
from experiments.verdicts import USER, LimitVerdict, Verdict
from hardware.recorded import RecordedDevice
from hardware.tables import TABLES
from latency_models.drift import no_signal
from latency_models.intervals import Bounded, pick
from latency_models.physical import PhysicalRegressor
from nas.protocols import Device
from nas.space import SearchSpace
from nas.tables import RecordedTable
from nas.types import Candidate, Prediction
from search_spaces import hat

COVERAGE = 0.95
COSTS = {"ms": "latency_ms", "mj": "energy_mj"}  # by a table's unit


@dataclass(frozen=True)
class Halves:
    """A table in two halves, of times or energies: those that were fitted; of the other half the capacity, what was recorded and
    what is predicted."""

    model: Bounded
    fitted: np.ndarray
    capacity: np.ndarray
    recorded: np.ndarray
    prediction: Prediction


@dataclass(frozen=True)
class Quantity:
    """What a table holds, by the name of its objective: `latency_ms` or `energy_mj`."""

    name: str

    @property
    def unit(self) -> str:
        """As people write it."""
        return OBJECTIVES[self.name].unit

    def key(self, figure: str) -> str:
        """What a figure is called in files: `predicted_upper_mj`."""
        return f"{figure}_{self.unit.lower()}"

    def verdict(
        self, budget: Budget, mean: float, bound: float, *, recorded: float | None = None, unmeasured: str | None = None
    ) -> dict[str, Any]:
        """On a network, by what was recorded of it."""
        if self.name == "latency_ms":
            verdict = Verdict.of(
                asked_ms=budget.ms, asked_origin=budget.origin, predicted_ms=mean, predicted_upper_ms=bound, measured_ms=recorded,
                unmeasured=unmeasured,
            )  # fmt: skip
            return asdict(verdict)
        judged = asdict(
            LimitVerdict.of(
                self.name, asked=budget.ms, predicted=mean, predicted_upper=bound, measured=recorded, unmeasured=unmeasured
            )
        )
        words = {name: judged.pop(name) for name in ("kept", "sentence")}
        return {**{self.key(figure): value for figure, value in judged.items()}, "asked_origin": budget.origin, **words}


@dataclass(frozen=True)
class Place:
    """A table that networks are searched by, and the time or energy that must not be exceeded there, if any; a further one by a
    name of the user's, the first by none.

    Raises:
        ValueError: a device that has no measurements of HAT's space.
    """

    device: Device
    asked: float | None
    name: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.device, RecordedDevice) and self.device.table.features == hat.FEATURES):
            tables, own = ", ".join(name for name in TABLES if name.startswith("hat_")), "" if self.name else "device."
            raise ValueError(
                f"device: {self.device.name} has no measurements of the space hat; give device=recorded, with {own}table=… one "
                f"of {tables}"
            )

    @property
    def table(self) -> RecordedTable:
        assert isinstance(self.device, RecordedDevice)
        return self.device.table

    @property
    def cost(self) -> Quantity:
        return Quantity(COSTS[self.table.unit])

    @property
    def objective(self) -> str:
        """What is minimised there: `energy_mj_gpu`."""
        return f"{self.cost.name}_{self.name}" if self.name else self.cost.name

    @property
    def bound(self) -> str:
        return f"{upper(self.cost.name)}_{self.name}" if self.name else upper(self.cost.name)

    def fit(self, *, seed: int, pool: int) -> Halves:
        """Half of the table, with a bound that holds for picks of so many; raises ValueError for a table whose values have
        nothing to do with its networks."""
        table = self.table
        costs, capacity = hat.costs(table.rows), hat.num_parameters(table.rows)
        fitted, others = np.array_split(np.random.default_rng(seed).permutation(len(table)), 2)
        model = Bounded(PhysicalRegressor(), coverage=COVERAGE)
        model.fit(costs[fitted], table.values[fitted], capacity=capacity[fitted], pool=pool)
        halves = Halves(model, table.values[fitted], capacity[others], table.values[others], model.predict(costs[others]))
        if why := no_signal(halves.recorded, halves.prediction.mean_ms):
            setting = f"also.{self.name}.table" if self.name else "device.table"
            raise ValueError(f"{setting}: {table.name}: {why}; no search can start on it")
        return halves

    def budget(self, model: Bounded, space: SearchSpace) -> Budget | None:
        """Of a further table. Raises BudgetError for one that no network keeps."""
        if self.asked is None:
            return None
        check_kept_on(
            self.device.name, f"also.{self.name}.{self.cost.key('budget')}", self.asked, space,
            lambda archs: model.predict(hat.costs(hat.features(archs))).upper_ms, name=self.cost.name,
        )  # fmt: skip
        return Budget(self.asked, USER)


def judged(place: Place, halves: Halves, budget: Budget | None, best: Candidate) -> dict[str, Any]:
    """How far a table is predicted, and of a budget the verdicts on what was picked and on what is known."""
    unseen = halves.prediction
    predictor = quality(halves.recorded, unseen.mean_ms, unseen.upper_ms, halves.fitted.tolist())
    if budget is None:
        return {"predictor": predictor}
    predicted = (best.objectives[name] for name in (place.objective, place.bound))
    return {
        "verdict": place.cost.verdict(budget, *predicted, unmeasured="nobody has run this network"),
        "held_out": judge(halves, budget, place.cost),
        "predictor": predictor,
    }


def judge(halves: Halves, budget: Budget, cost: Quantity) -> dict[str, Any]:
    """The verdict on the held-out network that would be picked for a budget, by what was recorded of it."""
    picked = pick(halves.prediction.upper_ms, halves.capacity, budget.ms)
    if picked is None:
        return {"kept": None, "sentence": f"none has a bound within {format_ms(budget.ms)} {cost.unit}"}
    predicted = (float(values[picked]) for values in (halves.prediction.mean_ms, halves.prediction.upper_ms))
    verdict = cost.verdict(budget, *predicted, recorded=float(halves.recorded[picked]))
    capacity = int(halves.capacity[picked])
    words = f"the largest whose bound fits, {capacity / 1e6:.1f} M: {verdict['sentence'].replace('measured', 'recorded')}"
    return {**verdict, "sentence": words, "num_parameters": capacity}
