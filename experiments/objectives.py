"""What a search can minimise, and how each is known of an architecture that nobody has trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    @property
    def budget(self) -> str:
        """What its budget is called in a configuration."""
        return f"budget_{self.unit.lower()}"


OBJECTIVES = {
    "error": Objective("error", "%", "error of the split that scores candidates, and of validation once they are trained"),
    "latency_ms": Objective("latency", "ms", "time of one call of the workload on the device"),
    "memory_mib": Objective("memory", "MiB", "weights, and the activations that are alive at the worst moment"),
    "parameters": Objective("parameters", "million", "weights of the network"),
    "energy_mj": Objective("energy", "mJ", "energy of one call of the workload, of the whole device"),
}
BESIDE = ("memory_mib", "energy_mj")  # what may have a budget beside latency


def upper(name: str) -> str:
    """What the bound of a cost is called: `upper_mib` of `memory_mib`."""
    return f"upper_{name.rpartition('_')[2]}"


def on_device(name: str) -> str:
    """What the latency on a further device is called."""
    return f"latency_ms_{name}"


def upper_on_device(name: str) -> str:
    """What its bound is called."""
    return f"upper_ms_{name}"


def objective(name: str) -> Objective:
    """One of `OBJECTIVES`, or the latency on a further device."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    device = name.removeprefix(on_device(""))
    return Objective(f"latency on {device}", "ms", f"time of one call of the workload on {device}")


def column(name: str) -> str:
    """The head of its column in a narrow table."""
    return OBJECTIVES[name].unit if name in OBJECTIVES else f"ms {name.removeprefix(on_device(''))}"


def check_objectives(names: Sequence[str], also: Iterable[str] = ()) -> None:
    """Raises ValueError for an unknown or repeated name, for no error, or for nothing beside it; `also` are further devices."""
    allowed = (*OBJECTIVES, *map(on_device, also))
    for name in names:
        if name not in allowed:
            raise ValueError(f"objectives: {name!r} is not one of {allowed}")
        if list(names).count(name) > 1:
            raise ValueError(f"objectives: {name!r} stands twice")
    if "error" not in names or len(names) < 2:
        raise ValueError(f"objectives: {tuple(names)} must hold 'error' and something to weigh it against")


def further(names: Sequence[str]) -> tuple[str, ...]:
    """Those beside error and latency, which every run has."""
    return tuple(name for name in names if name not in ("error", "latency_ms"))
