"""What a search can minimise, and how each is known of an architecture that nobody has trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """How it is called in a table, its unit, and what its numbers are."""

    words: str
    unit: str
    meaning: str

    @property
    def header(self) -> str:
        return f"{self.words} ({self.unit})"


OBJECTIVES = {
    "error": Objective("error", "%", "validation error"),
    "latency_ms": Objective("latency", "ms", "time of one call of the workload on the device"),
    "memory_mib": Objective("memory", "MiB", "weights, and the activations that are alive at the worst moment"),
    "parameters": Objective("parameters", "million", "weights of the network"),
    "energy_mj": Objective("energy", "mJ", "energy of one call of the workload, of the whole device"),
}


def check_objectives(names: Sequence[str]) -> None:
    """Raises ValueError for an unknown or repeated name, for no error, or for nothing beside it."""
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(f"objectives: {name!r} is not one of {tuple(OBJECTIVES)}")
        if list(names).count(name) > 1:
            raise ValueError(f"objectives: {name!r} stands twice")
    if "error" not in names or len(names) < 2:
        raise ValueError(f"objectives: {tuple(names)} must hold 'error' and something to weigh it against")


def further(names: Sequence[str]) -> tuple[str, ...]:
    """Those beside error and latency, which every run has."""
    return tuple(name for name in names if name not in ("error", "latency_ms"))
