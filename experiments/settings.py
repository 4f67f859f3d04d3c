"""The plain values of a search, with the defaults that the configuration repeats."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.storages import BaseStorage

from experiments.objectives import BESIDE, OBJECTIVES, check_objectives
from nas.compute import AUTO, WAYS
from nas.darts_config import DartsConfig
from nas.finish.stage import STAGES, Stage
from nas.finish.teaching import Lesson
from nas.protocols import Searcher
from nas.searchers.costs import Costs, unknown
from nas.searchers.surrogate_evolution import SurrogateEvolution
from nas.space import Architecture, SearchSpace
from nas.training import RULES, Rule, TrainConfig

_GROUPS = {"supernet": "init", "outer": "searcher"}  # settings that a configuration calls otherwise
MOST_SEED = 2**32 - 1  # that every generator of random numbers takes
TRAINED = {name: (AUTO, *dict.fromkeys(way[i] for way in WAYS)) for i, name in enumerate(("train_precision", "train_attention"))}


def _positive(owner: object, *names: str) -> None:
    for name in names:
        if getattr(owner, name) < 1:
            raise ValueError(f"{name}: {getattr(owner, name)} is not at least 1")


def check_budget(name: str, budget: object) -> None:
    """Raises ValueError for what cannot be kept; None is no budget."""
    if budget is None:
        return
    if not isinstance(budget, int | float) or isinstance(budget, bool):
        raise ValueError(f"{name}: {budget!r} is not a number")
    if not budget > 0:
        raise ValueError(f"{name}: {budget} is not positive")
    if not math.isfinite(budget):
        raise ValueError(f"{name}: {budget} is no limit; null stands for none")


@dataclass(frozen=True)
class SupernetSettings:
    """How the supernet begins, at random or from the checkpoint in the folder `path`, and learns: a random network a step, or by
    the sandwich rule, with `num_random` random networks a step and `distillation` the weight of the largest's answers in what the
    others learn."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=700))
    rule: Rule = "single"
    num_random: int = 1
    distillation: float = 0.5
    path: str | None = None

    def __post_init__(self) -> None:
        _positive(self, "num_random")
        if self.rule not in RULES:
            raise ValueError(f"rule: {self.rule!r} is not one of {RULES}")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation: {self.distillation} is not in [0, 1]")


@dataclass(frozen=True)
class CalibrationSettings:
    """How many networks are timed to fit the latency model, and how many more to judge it; `rounds` visits to each. Before a run
    relies on measurements that are older than `recheck_minutes`, some are taken again; None: never."""

    num_fit: int = 32
    num_held_out: int = 12
    rounds: int = 6
    recheck_minutes: float | None = 10.0

    def __post_init__(self) -> None:
        _positive(self, "num_held_out", "rounds")
        if self.num_fit < 8:
            raise ValueError(f"num_fit: {self.num_fit} is not at least 8")
        if self.recheck_minutes is not None and not self.recheck_minutes >= 0:
            raise ValueError(f"recheck_minutes: {self.recheck_minutes} is not at least 0; null stands for never")


@dataclass(frozen=True)
class OuterSettings:
    """The outer loop: its strategy, and how many architectures are scored with inherited weights.

    Args:
        make_searcher: called with a space and the keywords of `nas.searchers.study.StudySearcher`; returns a `Searcher`.
        population: of the strategy; what it means is said there.
        proposals: of the differentiable search to begin with, for budgets from the one asked for down to the fastest network's
            time, each the same factor under the one before; 0 for none, and no differentiable search.
        measure: how many architectures near the front, those of which the latency model is least certain, are measured half way
            through; it is then fitted again, and the front is ranked anew. Each takes about as long as in the calibration.
        baseline: whether as many random architectures are scored beside it.
        processes: that score at once what the strategy plans at once; with any number of them it finds the same.
    """

    make_searcher: Callable[..., Searcher] = field(default=SurrogateEvolution)
    population: int = 20
    evaluations: int = 50
    proposals: int = 3
    measure: int = 0
    baseline: bool = True
    processes: int = 1

    def __post_init__(self) -> None:
        _positive(self, "evaluations", "processes")
        for name in ("proposals", "measure"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")

    def searcher(
        self, space: SearchSpace, *, objectives: Sequence[str], seed: int, initial: Sequence[Architecture],
        limits: Mapping[str, float], costs: Costs = unknown, storage: BaseStorage | None = None,
    ) -> Searcher:  # fmt: skip
        """The strategy for a space. Raises ValueError for what it refuses, in its own words."""
        try:
            return self.make_searcher(
                space, objectives=objectives, seed=seed, initial=initial, limits=limits, costs=costs, storage=storage,
                population=self.population,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise ValueError(f"searcher: {error}") from error

    def check(self, space: SearchSpace, objectives: Sequence[str]) -> None:
        """Raises ValueError for what the strategy would refuse when its turn comes, after hours of other work."""
        proposals = [space.smallest()] * self.proposals
        self.searcher(space, objectives=objectives, seed=0, initial=proposals, limits={"upper_ms": 1.0})


@dataclass(frozen=True)
class FinishSettings:
    """The short-list: how many networks of each search are cut out, trained, exported and measured.

    Args:
        rungs: ascending shares of the training, after each of which the better half goes on (see `experiments.halving`): twice as
            many as are on the short-list enter the last of them, four times as many the one before.
        trials: trainings of one network that tune how all learn (see `experiments.tuning`); 0: they learn as is said here.
        train: `steps` are those of the largest network. A smaller one is trained for as many FLOPs, so for more steps.
        most_steps: however small the network is.
        inherit: share of the inherited weights in those that `most_steps` begin with; the rest is fresh. A shorter training could
            not win back what it gave away, and keeps more, up to all.
        rounds: visits to each network.
        lesson: what they learn; a teacher can only be the largest network, a baseline, or a checkpoint.
        most_points_lost: of validation error, that a stage may cost what ships.
    """

    shortlist: int = 3
    rungs: Sequence[float] = ()
    trials: int = 0
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=70))
    most_steps: int = 300
    inherit: float = 0.3
    rounds: int = 6
    lesson: Lesson = field(default_factory=lambda: Lesson(beta=(0.5, 0.0), temperature=4.0, teacher="baseline"))
    most_points_lost: float = 0.5

    def __post_init__(self) -> None:
        _positive(self, "shortlist", "most_steps", "rounds")
        object.__setattr__(self, "rungs", tuple(self.rungs))
        if list(self.rungs) != sorted(set(self.rungs)) or not all(0 < share < 1 for share in self.rungs):
            raise ValueError(f"rungs: {list(self.rungs)} are not ascending shares between 0 and 1")
        if self.lesson.teacher in ("front", "itself"):
            known = "is not one of ('largest', 'baseline'), nor a folder; the others come after the short-list"
            raise ValueError(f"lesson.teacher: {self.lesson.teacher!r} {known}")
        if self.trials < 0:
            raise ValueError(f"trials: {self.trials} is negative")
        if self.most_points_lost < 0:
            raise ValueError(f"most_points_lost: {self.most_points_lost} is negative")
        if not 0 <= self.inherit <= 1:
            raise ValueError(f"inherit: {self.inherit} is not in [0, 1]")

    def inherited(self, steps: int) -> float:
        """Share of the inherited weights in those that so many steps begin with."""
        return 1.0 - (1.0 - self.inherit) * min(1.0, steps / self.most_steps)


@dataclass(frozen=True)
class Settings:
    """Everything of a search that is not a component.

    Args:
        budget_ms: latency that must not be exceeded, or None for half of the largest network's measured latency.
        budget_mib, budget_mj: memory and energy of one call that must not be exceeded, or None for no such budget.
        objectives: what is minimised, of `experiments.objectives.OBJECTIVES` and of `latency_ms_NAME` for further devices; the
            error is one of them.
        also: further devices by name, with the latency that must not be exceeded there, or None.
        batch, tokens, mode, past: the workload that is timed; None tokens: the longest input, or the one that is decoded.
        torch_threads: threads that training uses.
        train_on: a torch device, or "auto" for CUDA where there is one.
        train_precision, train_attention: how networks are trained, of `TRAINED`; "auto" for what is fastest in a short trial.
        checkpoint_seconds: how much of any training a kill may cost.
        stages: what the network that ships goes through, by the names of `STAGES` and in their order.

    Raises:
        ValueError: a value outside its range, or stages in another order.
    """

    seed: int = 0
    budget_ms: float | None = None
    budget_mib: float | None = None
    budget_mj: float | None = None
    objectives: tuple[str, ...] = ("error", "latency_ms")
    also: Mapping[str, float | None] = field(default_factory=dict)
    batch: int = 1
    tokens: int | None = None
    mode: str = "encode"
    past: int = 0
    torch_threads: int = 2
    train_on: str = AUTO
    train_precision: str = AUTO
    train_attention: str = AUTO
    checkpoint_seconds: float = 10.0
    supernet: SupernetSettings = field(default_factory=SupernetSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    darts: DartsConfig = field(default_factory=DartsConfig)
    outer: OuterSettings = field(default_factory=OuterSettings)
    finish: FinishSettings = field(default_factory=FinishSettings)
    stages: Mapping[str, Stage] = field(default_factory=dict)

    def said(self) -> dict[str, Any]:
        """Each value by the name that it has in a configuration, as JSON holds it; without the stages, which may come later, and
        the processes, which change nothing but the time."""
        values = {_GROUPS.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "stages"}
        return {name: value for name, value in _flat(values, "").items() if name != "searcher.processes"}

    @property
    def beside(self) -> dict[str, float]:
        """What must not be exceeded beside latency, by the names of objectives."""
        asked = {name: getattr(self, OBJECTIVES[name].budget) for name in BESIDE}
        return {name: budget for name, budget in asked.items() if budget is not None}

    def __post_init__(self) -> None:
        _positive(self, "batch", "torch_threads", *(["tokens"] if self.tokens is not None else []))
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed: {self.seed} is not between 0 and {MOST_SEED}")
        budgets = {name: getattr(self, name) for name in ("budget_ms", "budget_mib", "budget_mj")}
        for name, budget in {**budgets, **{f"also.{device}.budget_ms": ms for device, ms in self.also.items()}}.items():
            check_budget(name, budget)
        check_objectives(self.objectives, self.also)
        if list(self.stages) != [name for name in STAGES if name in self.stages]:
            raise ValueError(f"stages: {list(self.stages)} are not in the order of {list(STAGES)}")
        if self.checkpoint_seconds < 0:
            raise ValueError(f"checkpoint_seconds: {self.checkpoint_seconds} is negative")
        for name, allowed in TRAINED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {allowed}")
        if self.train_on != AUTO and self.train_on.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"train_on: {self.train_on!r} is not one of ('auto', 'cpu', 'cuda')")


def _flat(value: Any, name: str) -> dict[str, Any]:
    """The plain values inside a value by their dotted names; what is called later by its own name, and its arguments."""
    if isinstance(value, functools.partial):
        return {name: _target(value.func), **_flat(value.keywords, name)}
    if callable(value):
        return {name: _target(value)}
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value}
    parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: plain for part in parts for key, plain in part.items()}


def _target(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
