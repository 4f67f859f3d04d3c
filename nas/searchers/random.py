"""Uniformly random architectures, none twice: what every other strategy has to beat (Li & Talwalkar, arXiv:1902.07638)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from optuna.storages import BaseStorage

from nas.protocols import ExhaustedError
from nas.searchers.costs import NO_LIMITS, Costs, unknown, within
from nas.space import Architecture, SearchSpace
from nas.types import Candidate

BLOCK = 50  # draws whose costs are asked for at once
MOST_BLOCKS = 200


class Random:
    """Random search over what is not known to be beyond a limit; the n-th draw follows from (seed, n).

    It learns nothing and keeps nothing, so of what `StudySearcher` takes it has no use for objectives, storage and population:
    who goes on with it asks again, and is asked for the same.
    """

    batch = sys.maxsize  # no draw depends on a score

    def __init__(
        self, space: SearchSpace, *, seed: int, initial: Iterable[Architecture] = (),
        objectives: Sequence[str] = (), limits: Mapping[str, float] = NO_LIMITS, costs: Costs = unknown,
        storage: BaseStorage | None = None, population: int = 0,
    ) -> None:  # fmt: skip
        self.space, self.seed, self.limits, self.costs = space, seed, limits, costs
        self._initial = list(initial)
        self._seen: set[str] = set()
        self._drawn = 0
        self._waiting: list[Architecture] = []

    def ask(self) -> Architecture:
        """Raises ExhaustedError when 10,000 draws in a row were known or refused."""
        if self._initial:
            self._seen.add(self._initial[0].id)
            return self._initial.pop(0)
        for _ in range(MOST_BLOCKS):
            while self._waiting:
                arch = self._waiting.pop(0)
                if arch.id not in self._seen:
                    self._seen.add(arch.id)
                    return arch
            self._waiting = self._block()
        raise ExhaustedError(f"the space {self.space.name} has no more architectures to draw after {len(self._seen)}")

    def _block(self) -> list[Architecture]:
        """Of the next draws those that are not known to be beyond a limit."""
        numbers = range(self._drawn, self._drawn + BLOCK)
        self._drawn = numbers.stop
        archs = [self.space.sample(np.random.default_rng([self.seed, number])) for number in numbers]
        kept = within(archs, self.limits, self.costs)
        return [arch for arch, is_within in zip(archs, kept.tolist(), strict=True) if is_within]

    def tell(self, candidate: Candidate) -> None:
        self._seen.add(candidate.arch.id)

    def fail(self, arch: Architecture, reason: str) -> None:
        self._seen.add(arch.id)
