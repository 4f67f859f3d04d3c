"""The architecture of a space that takes the least of a cost.

The smallest one need not be it: merging tokens saves time where there is much to do for each and costs some where there is
little, and in one of several surroundings the same network is faster than in another. So changes of one pick are made as long
as they save, from the smallest architecture, from the largest, and from the best of some random ones; each step is the change
that saves most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nas.space import Architecture, Option, SearchSpace

DRAWN = 256  # random architectures
BEGINNINGS = 3  # of them that are changed

Cost = Callable[[Sequence[Architecture]], np.ndarray]
"""Of architectures, [N]; the same whenever it is asked."""


def least(space: SearchSpace, cost: Cost) -> Architecture:
    """The architecture of the least cost, as far as changes of one pick find it; the same whenever it is asked for."""
    rng = np.random.default_rng(0)
    drawn = [{c.name: c.options[rng.integers(len(c.options))] for c in space} for _ in range(DRAWN)]
    best = np.argsort(_costs(space, cost, drawn), kind="stable")[:BEGINNINGS]
    ends = [_end(space, first=first) for first in (True, False)]
    found = [_descended(space, cost, picks) for picks in (*ends, *(drawn[i] for i in best))]
    return found[int(np.argmin(cost(found)))]


def _end(space: SearchSpace, *, first: bool) -> dict[str, Option]:
    """A pick for every choice: the smallest or the largest one."""
    return {c.name: c.options[0] if c.is_nested == first else c.options[-1] for c in space}


def _descended(space: SearchSpace, cost: Cost, picks: Mapping[str, Option]) -> Architecture:
    now = _costs(space, cost, [picks])[0]
    while True:
        present = space.canonical(picks)
        changes = [(c.name, o) for c in space if c.name in present for o in c.options if o != picks[c.name]]
        if not changes:
            return present
        changed = [{**picks, name: option} for name, option in changes]
        costs = _costs(space, cost, changed)
        best = int(np.argmin(costs))
        if not costs[best] < now:
            return present
        picks, now = changed[best], costs[best]


def _costs(space: SearchSpace, cost: Cost, candidates: Sequence[Mapping[str, Option]]) -> np.ndarray:
    return cost([space.canonical(picks) for picks in candidates])
