"""What flows through a search: workloads, measurements, predictions, candidates and results.

Each is validated once, in its constructor. The unit is in the name: `_ms` is milliseconds of wall clock unless it says `cpu`.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nas.pareto import non_dominated
from nas.space import Architecture, SearchSpace

MIB = 2.0**20  # bytes
MODES = ("encode", "prefill", "decode")


@dataclass(frozen=True)
class Workload:
    """What is timed: one call for `batch` sequences of `tokens` tokens.

    `encode` answers for whole sequences. `prefill` reads a prompt and keeps what later tokens need; `decode` then answers for one
    more token with `past` tokens kept.

    Raises:
        ValueError: a size under 1, an unknown mode, more than one token to decode, or a past for another mode.
    """

    batch: int = 1
    tokens: int = 64
    mode: str = "encode"
    past: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.mode not in MODES:
            raise ValueError(f"mode: {self.mode!r} is not one of {MODES}")
        if self.mode == "decode" and self.tokens != 1:
            raise ValueError(f"tokens: {self.tokens} are not decoded in one call, mode=decode takes 1")
        if self.past < 0:
            raise ValueError(f"past: {self.past} is negative")
        if self.past and self.mode != "decode":
            raise ValueError(f"past: {self.past} tokens are kept for mode=decode, not for {self.mode!r}")

    @property
    def encoded(self) -> Workload:
        """The whole sequences, encoded in one call."""
        return Workload(self.batch, self.past + self.tokens)

    @property
    def words(self) -> str:
        return self.counting("token")

    def counting(self, position: str) -> str:
        """In words, for inputs whose positions are called so: tokens of a text, pixels of an image, samples of a signal."""
        past = f" after {self.past} {position}s" if self.mode == "decode" else ""
        return f"batch {self.batch}, {self.tokens} {position}{'s' * (self.tokens != 1)}, {self.mode}{past}"


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one network on one device, and what they were taken with.

    `samples_ms` and `sentinel_ms` hold one tuple a visit. The sentinel is one fixed network that is timed beside every visit:
    `latency_ms` is the wall time with the machine's drift taken out, in the conditions of `sentinel_reference_ms`. Other programs
    only ever make a run slower, and rarely all of them: so a visit is its lower quartile, and the quietest visit counts.

    Raises:
        ValueError: no samples, or a sample that is not a positive finite number.
    """

    arch: Architecture
    device: str
    workload: Workload
    samples_ms: tuple[tuple[float, ...], ...]
    sentinel_ms: tuple[tuple[float, ...], ...]
    sentinel_reference_ms: float
    environment: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples_ms", tuple(tuple(visit) for visit in self.samples_ms))
        object.__setattr__(self, "sentinel_ms", tuple(tuple(visit) for visit in self.sentinel_ms))
        if not self.samples_ms or len(self.samples_ms) != len(self.sentinel_ms):
            raise ValueError(f"{self.arch.id}: {len(self.samples_ms)} visits beside {len(self.sentinel_ms)} of the sentinel")
        for visit in (*self.samples_ms, *self.sentinel_ms, (self.sentinel_reference_ms,)):
            bad = [s for s in visit if not (math.isfinite(s) and s > 0)]
            if bad or not visit:
                raise ValueError(f"{self.arch.id}: a time of {bad[0] if bad else 'nothing'} ms is not positive and finite")

    @functools.cached_property
    def wall_ms(self) -> np.ndarray:
        """All samples as they were taken, in ms."""
        return np.concatenate([np.asarray(visit) for visit in self.samples_ms])

    @functools.cached_property
    def drift(self) -> np.ndarray:
        """How much slower than its reference the sentinel was, visit by visit (1.0: as fast); of lower quartiles."""
        return np.array([np.percentile(visit, 25) for visit in self.sentinel_ms]) / self.sentinel_reference_ms

    @functools.cached_property
    def visits_ms(self) -> np.ndarray:
        """Lower quartile of each visit, that visit's drift removed, in ms."""
        quartiles: np.ndarray = np.array([np.percentile(visit, 25) for visit in self.samples_ms]) / self.drift
        return quartiles

    @property
    def latency_ms(self) -> float:
        """The quietest visit over the quietest drift, in ms.

        A short disturbance hits the network or the sentinel, not both, so a ratio within one visit may err either way. Each one's
        quietest visit is undisturbed, and what slows a machine for long is in both.
        """
        return float(np.min(self.visits_ms * self.drift) / np.min(self.drift))

    def percentile_ms(self, percent: float) -> float:
        """Percentile of the samples, each with the drift of its visit removed, in ms."""
        samples = [np.asarray(v) / d for v, d in zip(self.samples_ms, self.drift, strict=True)]
        return float(np.percentile(np.concatenate(samples), percent))

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.arch.id,
            "arch": self.arch.to_json(),
            "device": self.device,
            "workload": asdict(self.workload),
            "samples_ms": [[round(s, 6) for s in visit] for visit in self.samples_ms],
            "sentinel_ms": [[round(s, 6) for s in visit] for visit in self.sentinel_ms],
            "sentinel_reference_ms": self.sentinel_reference_ms,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, space: SearchSpace, record: Mapping[str, Any]) -> Measurement:
        """Raises ValueError for a record of another space or with a broken sample, KeyError for a missing part."""
        return cls(
            arch=space.canonical(record["arch"]),
            device=record["device"],
            workload=Workload(**record["workload"]),
            samples_ms=record["samples_ms"],
            sentinel_ms=record["sentinel_ms"],
            sentinel_reference_ms=record["sentinel_reference_ms"],
            environment=record["environment"],
        )


@dataclass(frozen=True)
class Interval:
    """Of measured over predicted: the standard deviation, and the factors on a mean that are its bounds."""

    relative_std: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Prediction:
    """Deterministic, one entry an architecture; `lower_ms` and `upper_ms` are calibrated one-sided bounds, each of which holds
    for the same share of networks. Arrays of shape [N], in ms."""

    mean_ms: np.ndarray
    std_ms: np.ndarray
    lower_ms: np.ndarray
    upper_ms: np.ndarray

    @classmethod
    def of(cls, mean_ms: np.ndarray, interval: Interval) -> Prediction:
        """Whose spread grows with the mean."""
        return cls(mean_ms, mean_ms * interval.relative_std, mean_ms * interval.lower, mean_ms * interval.upper)

    def __len__(self) -> int:
        return len(self.mean_ms)


@dataclass(frozen=True)
class Memory:
    """Of one network at inference, in MiB: its weights, and its activations at the worst moment."""

    weights_mib: float
    activations_mib: float

    @property
    def peak_mib(self) -> float:
        return self.weights_mib + self.activations_mib


class Provenance(enum.StrEnum):
    """Where a number comes from."""

    INHERITED = "inherited"  # scored with the supernet's weights
    PREDICTED = "predicted"  # by a latency model
    RETRAINED = "retrained"  # scored after the cut-out network was trained on its own
    TUNED = "tuned"  # scored after a share of that training
    MEASURED = "measured"  # timed on the device


@dataclass(frozen=True)
class Candidate:
    """An architecture with its objectives, all minimised, and for each where the number comes from.

    Raises:
        ValueError: an objective that is not finite or has no provenance.
    """

    arch: Architecture
    objectives: Mapping[str, float] = field(hash=False)
    provenance: Mapping[str, Provenance] = field(hash=False)
    phase: str = "search"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.objectives.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}: {value} of {self.arch.id} is not finite")
            if name not in self.provenance:
                raise ValueError(f"{name}: of {self.arch.id} has no provenance")

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.arch.id,
            "arch": self.arch.to_json(),
            "phase": self.phase,
            "objectives": dict(self.objectives),
            "provenance": {name: str(p) for name, p in self.provenance.items()},
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_json(cls, space: SearchSpace, record: Mapping[str, Any]) -> Candidate:
        """Raises ValueError for a record of another space, KeyError for a missing part."""
        return cls(
            arch=space.canonical(record["arch"]),
            objectives=record["objectives"],
            provenance={name: Provenance(p) for name, p in record["provenance"].items()},
            phase=record["phase"],
            seconds=record["seconds"],
        )


@dataclass(frozen=True)
class SearchResult:
    """All candidates in the order in which they were told, and what failed with the reason."""

    candidates: tuple[Candidate, ...]
    failures: tuple[tuple[Architecture, str], ...] = ()


def pareto_front(candidates: Sequence[Candidate], *names: str) -> tuple[Candidate, ...]:
    """The non-dominated candidates in the named objectives, ascending in the first; of equals the first."""
    if not candidates:
        return ()
    costs = np.array([[c.objectives[name] for name in names] for c in candidates])
    kept = [c for c, keep in zip(candidates, non_dominated(costs), strict=True) if keep]
    return tuple(sorted(kept, key=lambda c: tuple(c.objectives[name] for name in names)))
