"""The trained networks of a run: what is known of each, which of them no other beats, and which one a rule names.

Errors are validation errors in percent; lower is better everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.formatting import format_ms
from experiments.records import require_finite
from experiments.roles import ROLES
from nas.pareto import hypervolume, knee, non_dominated

PLANE = ("latency_ms", "error")  # the objectives of the picture
RULES = ("knee", "best", "fastest_within:1.5%", "budget:8ms")


@dataclass(frozen=True)
class Network:
    """A network that was trained on its own; `role` is who found it. What was not measured is None.

    `predicted` and `measured` hold what the search minimises beside error and latency, by the names of objectives.

    Raises:
        ValueError: an unknown role, a time that is not positive, or a number that is not finite.
    """

    id: str
    arch: Mapping[str, int | str] = field(hash=False)
    role: str
    label: str
    error_percent: float
    predicted_ms: float
    predicted_upper_ms: float
    measured_ms: float | None
    measured_low_ms: float | None
    measured_high_ms: float | None
    num_parameters: int
    train_seconds: float
    predicted: Mapping[str, float] = field(default_factory=dict, hash=False)
    measured: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role: {self.role!r} of {self.id} is not one of {tuple(ROLES)}")
        require_finite(self, self.id)
        for name in ("predicted_ms", "predicted_upper_ms", "measured_ms", "measured_low_ms", "measured_high_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: {value} of {self.id} is not positive")

    @property
    def latency_ms(self) -> float:
        """Measured, or else predicted."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    def value(self, objective: str) -> float:
        """Measured where it was, else predicted; the error is that of the trained network."""
        if objective in ("error", "latency_ms"):
            return self.error_percent if objective == "error" else self.latency_ms
        return self.measured.get(objective, self.predicted[objective])

    @property
    def safe_ms(self) -> float:
        """What the latency is at most: the end of the measured interval, the measured time where there is none, or the
        predicted bound."""
        if self.measured_ms is None:
            return self.predicted_upper_ms
        return self.measured_ms if self.measured_high_ms is None else self.measured_high_ms


def by_time(networks: Sequence[Network]) -> list[Network]:
    return sorted(networks, key=lambda n: (n.latency_ms, n.error_percent))


def front(networks: Sequence[Network], objectives: Sequence[str] = PLANE) -> tuple[Network, ...]:
    """The networks that no other beats in these objectives, the fastest first."""
    if not networks:
        return ()
    keep = non_dominated(_costs(networks, objectives))
    return tuple(sorted((n for n, k in zip(networks, keep, strict=True) if k), key=lambda n: n.latency_ms))


def hypervolumes(networks: Sequence[Network], reference: tuple[float, float]) -> dict[str, float]:
    """For each role that has networks, the area in ms times percent that they dominate up to the reference."""
    by_role = {role: [n for n in networks if n.role == role] for role in ROLES}
    return {role: hypervolume(_costs(of_role), reference) for role, of_role in by_role.items() if of_role}


def pick(networks: Sequence[Network], rule: str) -> Network:
    """The network that a rule names.

    `knee`, `best` (lowest error), `fastest_within:1.5%` (the fastest that is at most so many points worse than the best) and
    `budget:8ms` (lowest error whose measured interval ends within) choose among all networks; anything else is an id, or the
    beginning of one.

    Raises:
        ValueError: no such rule or id, an ambiguous id, a broken number, or a budget that no network is sure to keep.
    """
    name, _, value = rule.partition(":")
    by_error = sorted(networks, key=lambda n: (n.error_percent, n.latency_ms))
    if rule == "best":
        return by_error[0]
    if rule == "knee":
        best = front(networks)
        return best[knee(_costs(best))]
    if name == "fastest_within":
        limit = by_error[0].error_percent + _number(rule, value, "%")
        return min((n for n in by_error if n.error_percent <= limit), key=lambda n: n.latency_ms)
    if name == "budget":
        budget_ms = _number(rule, value, "ms")
        within = [n for n in by_error if n.safe_ms <= budget_ms]
        if not within:
            fastest, surest = (min(networks, key=key) for key in (lambda n: n.latency_ms, lambda n: n.safe_ms))
            how = "takes" if fastest.measured_ms is not None else "is predicted to take"
            other = "" if surest is fastest else f"; the lowest bound is {format_ms(surest.safe_ms)} ms, of {surest.id}"
            raise ValueError(
                f"pick: {rule!r} is below what any network is sure to keep: the fastest, {fastest.id}, {how} "
                f"{format_ms(fastest.latency_ms)} ms (at most {format_ms(fastest.safe_ms)}){other}"
            )
        return within[0]
    exact = [n for n in networks if n.id == rule]
    matches = exact or [n for n in networks if rule and n.id.startswith(rule)]
    if len(matches) > 1:
        raise ValueError(f"pick: {rule!r} begins more than one id: {', '.join(n.id for n in matches)}")
    if not matches:
        raise ValueError(f"pick: {rule!r} is not one of {', '.join(RULES)}, nor an id: {', '.join(n.id for n in networks)}")
    return matches[0]


def _costs(networks: Sequence[Network], objectives: Sequence[str] = PLANE) -> np.ndarray:
    return np.array([[n.value(name) for name in objectives] for n in networks])


def _number(rule: str, text: str, unit: str) -> float:
    try:
        value = float(text.strip().removesuffix(unit))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        example = next(r for r in RULES if r.endswith(unit))
        raise ValueError(f"pick: {rule!r} does not hold a number like {example}")
    return value
