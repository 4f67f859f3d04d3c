"""What of a candidate's numbers is known before it is scored: predicted latency and its bound, memory, parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from nas.space import Architecture

Costs = Callable[[Sequence[Architecture]], Mapping[str, np.ndarray]]
"""Of architectures, by name, each [N]."""

NO_LIMITS: Mapping[str, float] = MappingProxyType({})


def unknown(archs: Sequence[Architecture]) -> Mapping[str, np.ndarray]:
    """Nothing is known before an evaluation."""
    return {}


def within(archs: Sequence[Architecture], limits: Mapping[str, float], costs: Costs) -> np.ndarray:
    """Which of them keep the limits, as far as that is known, [N]."""
    known = costs(archs)
    kept = np.ones(len(archs), dtype=bool)
    for name, limit in limits.items():
        if name in known:
            kept &= known[name] <= limit
    return kept
