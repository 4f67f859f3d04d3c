"""Searches of other packages as searchers of ours: they join `bench search` where they are installed.

    pip install 'paretoformer[peers]'

- pymoo's NSGA-II (Blank & Deb, 2020, IEEE Access 8), over whole numbers as its manual has them.
- Syne Tune's regularised evolution for several objectives (Salinas et al., 2022, AutoML).

They know choices by the places of their options, and what does not exist in an architecture is evolved along with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from nas.protocols import ExhaustedError, Searcher
from nas.space import Architecture, SearchSpace
from nas.types import Candidate

MANY = 10**9  # generations: whoever asks decides when it ends
FAILED = 1e9  # the objectives of what could not be evaluated


class Pymoo:
    """NSGA-II of pymoo. Every question is answered before the next one."""

    def __init__(self, space: SearchSpace, *, objectives: Sequence[str], seed: int, population: int) -> None:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling

        self.space, self.objectives = space, tuple(objectives)
        last = np.array([len(choice.options) - 1 for choice in space])
        self._problem = Problem(n_var=len(last), n_obj=len(self.objectives), xl=0, xu=last, vtype=int)
        whole: dict[str, Any] = {"prob": 1.0, "eta": 3.0, "vtype": float, "repair": RoundingRepair()}
        self._algorithm = NSGA2(population, sampling=IntegerRandomSampling(), crossover=SBX(**whole), mutation=PM(**whole))
        self._algorithm.setup(self._problem, termination=("n_gen", MANY), seed=seed, verbose=False)
        self._asked: Any = []
        self._answers: list[list[float]] = []

    def ask(self) -> Architecture:
        """Raises ExhaustedError when it has no children that are new."""
        if len(self._answers) == len(self._asked):
            self._next_generation()
        return _of_places(self.space, self._asked[len(self._answers)].X)

    def _next_generation(self) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        if self._answers:
            Evaluator().eval(StaticProblem(self._problem, F=np.array(self._answers)), self._asked)
            self._algorithm.tell(infills=self._asked)
        self._asked, self._answers = self._algorithm.ask(), []
        if self._asked is None or not len(self._asked):
            raise ExhaustedError("pymoo has no children that are new")

    def tell(self, candidate: Candidate) -> None:
        self._answers.append([candidate.objectives[name] for name in self.objectives])

    def fail(self, arch: Architecture, reason: str) -> None:
        self._answers.append([FAILED] * len(self.objectives))


class SyneTune:
    """Regularised evolution of Syne Tune. Every question is answered before the next one."""

    def __init__(self, space: SearchSpace, *, objectives: Sequence[str], seed: int, population: int) -> None:
        from syne_tune.config_space import choice
        from syne_tune.optimizer.schedulers.multiobjective.multi_objective_regularized_evolution import (
            MultiObjectiveRegularizedEvolution,
        )

        self.space, self.objectives = space, tuple(objectives)
        sizes = np.array([len(c.options) for c in space])
        places = {str(number): choice(list(range(size))) for number, size in enumerate(sizes)}
        first = np.random.default_rng(seed).integers(sizes, size=(population, len(sizes)))  # its own would ignore the seed
        self._evolution = MultiObjectiveRegularizedEvolution(
            places, [dict(zip(places, row, strict=True)) for row in first.tolist()], population_size=population,
            sample_size=max(2, population // 4), random_seed=seed,
        )  # fmt: skip
        self._config: dict[str, int] = {}
        self._told = 0

    def ask(self) -> Architecture:
        self._config = self._evolution.suggest()
        return _of_places(self.space, [self._config[str(number)] for number in range(len(self.space.choices))])

    def tell(self, candidate: Candidate) -> None:
        self._answer([candidate.objectives[name] for name in self.objectives])

    def fail(self, arch: Architecture, reason: str) -> None:
        self._answer([FAILED] * len(self.objectives))

    def _answer(self, values: list[float]) -> None:
        self._evolution.on_trial_complete(str(self._told), self._config, values)
        self._told += 1


def _of_places(space: SearchSpace, places: Sequence[Any]) -> Architecture:
    """The architecture of these options of all choices."""
    return space.canonical({c.name: c.options[int(place)] for c, place in zip(space, places, strict=True)})


PACKAGES: dict[str, tuple[str, Callable[..., Searcher]]] = {
    "pymoo_nsga2": ("pymoo", Pymoo),
    "syne_tune_evolution": ("syne_tune", SyneTune),
}


def installed() -> dict[str, Callable[..., Searcher]]:
    """By their names in the figures."""
    return {name: make for name, (package, make) in PACKAGES.items() if find_spec(package) is not None}
