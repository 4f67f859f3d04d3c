"""What a search finds, phase by phase, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.budgets import Budget
from experiments.calibration import Calibration
from experiments.costing import Costing
from experiments.finishing import Finisher
from experiments.results import StageReport
from experiments.verdicts import Verdict
from nas.compute import Compute
from nas.proposals import Proposal
from nas.space import Architecture
from nas.types import Candidate, Measurement


@dataclass(frozen=True)
class Finalist:
    """An architecture that is trained on its own and measured: of the "search", of "random" search or designed by "hand"."""

    arch: Architecture
    role: str
    label: str


@dataclass(frozen=True)
class Chosen:
    """What ships, and its measurement after the choice; or why there is none."""

    arch: Architecture
    measurement: Measurement | None
    unmeasured: str | None = None


@dataclass(frozen=True)
class Explored:
    """Candidates by phase: of the outer loop ("search"), of "random" search, of parameter count alone ("parameters"), and those
    designed by "hand".

    `refined` says what measurements during the search changed, if there were any.
    """

    by_phase: Mapping[str, tuple[Candidate, ...]]
    refined: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Climbed:
    """The short-list of each search, by its role, and everything that a rung scored, once for each rung."""

    shortlists: Mapping[str, Sequence[Candidate]]
    scored: tuple[Candidate, ...]


@dataclass(frozen=True)
class Outcome:
    """Everything that a search found; `experiments.conclude` makes of it what people read.

    `tuned` says how networks were found to learn best, if that was tried; `elsewhere` are verdicts on further devices by
    name, and `further` the calibrations of these.
    """

    explored: Explored
    climbed: Climbed
    finalists: tuple[Finalist, ...]
    measurements: Mapping[str, Measurement]
    measured_mib: Mapping[str, float]
    choice: Chosen
    budget: Budget
    calibration: Calibration
    proposals: tuple[Proposal, ...]
    trivial: Mapping[str, float]
    compute: Compute
    finisher: Finisher
    costing: Costing
    stages: tuple[StageReport, ...]
    tuned: Mapping[str, Any] | None = None
    elsewhere: Mapping[str, Verdict] = field(default_factory=dict)
    further: tuple[Calibration, ...] = ()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return (*(c for candidates in self.explored.by_phase.values() for c in candidates), *self.climbed.scored)
