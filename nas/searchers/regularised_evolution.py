"""Regularised (aging) evolution of Real et al., arXiv:1802.01548, for several objectives.

The youngest `population` architectures live. A tournament draws some of them, the best one's child differs in one pick, and the
oldest dies. The paper has one objective, the accuracy; here the best of a tournament is the one on the lowest non-dominated front
of the population, and of equals the one in the emptiest place (rank and crowding, Deb et al., 2002). Those that keep the limits
come before those that do not, which are ordered by how far they are beyond.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from optuna.storages import BaseStorage

from nas.pareto import crowding, ranks
from nas.protocols import ExhaustedError
from nas.searchers.costs import NO_LIMITS, Costs, unknown
from nas.space import Architecture, SearchSpace
from nas.types import Candidate

TRIES = 100  # to find a child that is new, and then a random architecture


class RegularisedEvolution:
    """Aging evolution as a `Searcher`; the n-th question follows from (seed, n) and from what was told before it.

    It keeps nothing: who goes on with it asks again, tells what is known, and is asked for the same.

    Args:
        initial: architectures to begin with; random ones fill up the first population.
        limits: numbers of a candidate that should not be exceeded.
        costs, storage: not used.
        population: architectures that live.
        tournament: share of them that is drawn for one child (the paper has 25 of 100).

    Raises:
        ValueError: a population under 2, or a tournament that is not in (0, 1].
    """

    def __init__(
        self, space: SearchSpace, *, objectives: Sequence[str], seed: int, initial: Iterable[Architecture] = (),
        limits: Mapping[str, float] = NO_LIMITS, costs: Costs = unknown, storage: BaseStorage | None = None, population: int = 20,
        tournament: float = 0.25,
    ) -> None:  # fmt: skip
        if population < 2:
            raise ValueError(f"population: {population} is not at least 2")
        if not 0 < tournament <= 1:
            raise ValueError(f"tournament: {tournament} is not in (0, 1]")
        self.space, self.objectives, self.seed, self.limits = space, tuple(objectives), seed, dict(limits)
        self.population, self.tournament = population, max(2, round(tournament * population))
        self._initial = list(initial)
        self._alive: deque[Candidate] = deque(maxlen=population)
        self._told: set[str] = set()
        self._seen: set[str] = set()  # told or asked for
        self._asked = 0

    @property
    def batch(self) -> int:
        """What the first population lacks; then a child at a time, as each may be a parent of the next."""
        return max(1, self.population - len(self._alive))

    def ask(self) -> Architecture:
        """Raises ExhaustedError when children and random draws bring nothing new."""
        arch = self._next()
        self._seen.add(arch.id)
        return arch

    def _next(self) -> Architecture:
        rng = np.random.default_rng([self.seed, self._asked])
        self._asked += 1
        if self._initial:
            return self._initial.pop(0)
        if len(self._alive) == self.population:
            order = self._order()
            for _ in range(TRIES):
                drawn = rng.choice(len(order), self.tournament, replace=False)
                parent = self._alive[min(drawn, key=lambda i: order[i])]
                child = self.space.mutate(parent.arch, rng, probability=0.0)
                if child.id not in self._seen:
                    return child
        for _ in range(TRIES):
            arch = self.space.sample(rng)
            if arch.id not in self._seen:
                return arch
        raise ExhaustedError(f"the space {self.space.name} has no more architectures to find after {len(self._seen)}")

    def tell(self, candidate: Candidate) -> None:
        if candidate.arch.id not in self._told:
            self._alive.append(candidate)
        self._told.add(candidate.arch.id)
        self._seen.add(candidate.arch.id)

    def fail(self, arch: Architecture, reason: str) -> None:
        self._seen.add(arch.id)

    def _order(self) -> list[tuple[float, int, float]]:
        """Of each living candidate how far it is beyond the limits, its front and how crowded it is; the lower the better."""
        costs = np.array([[c.objectives[name] for name in self.objectives] for c in self._alive])
        beyond = [sum(max(0.0, c.objectives[n] / limit - 1.0) for n, limit in self.limits.items()) for c in self._alive]
        return list(zip(beyond, ranks(costs).tolist(), (-crowding(costs)).tolist(), strict=True))
