"""What it is given to begin with, and nothing else: what the differentiable search is worth alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from optuna.storages import BaseStorage

from nas.protocols import ExhaustedError
from nas.searchers.costs import NO_LIMITS, Costs, unknown
from nas.space import Architecture, SearchSpace
from nas.types import Candidate


class Proposals:
    """Asks for `initial`, one after the other, as a `Searcher`; it has no use for anything else.

    Raises:
        ValueError: nothing to ask for.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, initial: Iterable[Architecture] = (), objectives: Sequence[str] = (),
        limits: Mapping[str, float] = NO_LIMITS, costs: Costs = unknown, storage: BaseStorage | None = None, population: int = 0,
    ) -> None:  # fmt: skip
        self.space, self.waiting = space, list(initial)
        if not self.waiting:
            raise ValueError("proposals: there are none to score; this strategy asks for nothing else")

    @property
    def batch(self) -> int:
        return max(1, len(self.waiting))

    def ask(self) -> Architecture:
        """Raises ExhaustedError when all have been asked for."""
        if not self.waiting:
            raise ExhaustedError(f"there are no more proposals for the space {self.space.name}")
        return self.waiting.pop(0)

    def tell(self, candidate: Candidate) -> None:
        pass

    def fail(self, arch: Architecture, reason: str) -> None:
        pass
