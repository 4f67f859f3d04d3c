"""What a run concluded, as plain data: `results.json`, from which the picture and the page can be made again.

Errors are validation errors in percent, but for `test_error_percent`; lower is better everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

import numpy as np

from nas.pareto import hypervolume, knee, non_dominated
from nas.types import Workload

PLANE = ("latency_ms", "error")  # the objectives of the picture
ROLES = ("search", "random", "hand")
RULES = ("knee", "best", "fastest_within:1.5%", "budget:8ms")


def format_ms(value: float | None, *, digits: int = 3) -> str:
    """Milliseconds with so many significant digits and no exponent: 0.0123, 1.84, 12.3, 1234; a dash for what nobody knows."""
    if value is None:
        return "–"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_seconds(seconds: float) -> str:
    """A duration as one says it: 4.2 s, 3 min 5 s, 2 h 7 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def split_layers(arch: Mapping[str, int | str]) -> tuple[dict[str, int | str], list[dict[str, int | str]]]:
    """The picks of the whole network, and layer by layer those named `layer<number>.<name>`."""
    whole: dict[str, int | str] = {}
    layers: dict[int, dict[str, int | str]] = {}
    for name, option in arch.items():
        layer, dot, part = name.partition(".")
        if dot and layer.startswith("layer") and layer[5:].isdecimal():
            layers.setdefault(int(layer[5:]), {})[part] = option
        else:
            whole[name] = option
    return whole, [layers[number] for number in sorted(layers)]


def parts_of(layers: Sequence[Mapping[str, int | str]]) -> list[str]:
    """The names of all picks that a layer may have, in the order of the fullest layer."""
    return list(dict.fromkeys(part for layer in sorted(layers, key=len, reverse=True) for part in layer))


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
            raise ValueError(f"role: {self.role!r} of {self.id} is not one of {ROLES}")
        _require_finite(self, self.id)
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


@dataclass(frozen=True)
class Verdict:
    """Asked, predicted and measured latency of what ships; nothing is kept or broken that was not measured (None). Make it with
    `Verdict.of`."""

    asked_ms: float
    asked_origin: str
    predicted_ms: float
    predicted_upper_ms: float
    measured_ms: float | None
    measured_low_ms: float | None
    measured_high_ms: float | None
    kept: bool | None
    sentence: str

    @classmethod
    def of(
        cls, *, asked_ms: float, asked_origin: str, predicted_ms: float, predicted_upper_ms: float,
        measured_ms: float | None = None, measured_low_ms: float | None = None, measured_high_ms: float | None = None,
        unmeasured: str | None = None,
    ) -> Verdict:  # fmt: skip
        """Judges by the measured time and says so in a sentence.

        Args:
            asked_origin: "user", or where the budget comes from in words ("half of the largest network").
            unmeasured: why there is no measured time.
        """
        if measured_ms is None:
            asked, predicted, upper = (format_ms(value) for value in (asked_ms, predicted_ms, predicted_upper_ms))
            why = f" ({unmeasured})" if unmeasured else ""
            sentence = f"PREDICTED, NOT MEASURED{why}: asked {asked} ms, predicted {predicted} ms (at most {upper})."
            return cls(asked_ms, asked_origin, predicted_ms, predicted_upper_ms, None, None, None, None, sentence)
        kept = measured_ms <= asked_ms
        digits = 3  # more where asked and measured would read the same and are not
        while (
            digits < 9 and asked_ms != measured_ms and format_ms(asked_ms, digits=digits) == format_ms(measured_ms, digits=digits)
        ):
            digits += 1
        asked, measured = (format_ms(value, digits=digits) for value in (asked_ms, measured_ms))
        predicted, upper = format_ms(predicted_ms), format_ms(predicted_upper_ms)
        words = f"asked {asked} ms, predicted {predicted} ms (at most {upper}), measured {measured} ms"
        over = 100 * (measured_ms / asked_ms - 1)
        sentence = f"Kept: {words}." if kept else f"BROKEN: {words}, {over:.2g} % over the budget."
        return cls(
            asked_ms,
            asked_origin,
            predicted_ms,
            predicted_upper_ms,
            measured_ms,
            measured_low_ms,
            measured_high_ms,
            kept,
            sentence,
        )


@dataclass(frozen=True)
class MemoryVerdict:
    """Asked, predicted and measured memory of what ships; make it with `MemoryVerdict.of`."""

    asked_mib: float
    predicted_mib: float
    predicted_upper_mib: float
    measured_mib: float | None
    kept: bool | None
    sentence: str

    @classmethod
    def of(cls, *, asked_mib: float, predicted_mib: float, predicted_upper_mib: float, measured_mib: float | None) -> Self:
        """Judges by the measured memory, and says so in a sentence."""
        words = f"asked {asked_mib:.4g} MiB, predicted {predicted_mib:.4g} MiB (at most {predicted_upper_mib:.4g})"
        if measured_mib is None:
            return cls(asked_mib, predicted_mib, predicted_upper_mib, None, None, f"Memory PREDICTED, NOT MEASURED: {words}.")
        kept = measured_mib <= asked_mib
        over = 100 * (measured_mib / asked_mib - 1)
        words += f", measured {measured_mib:.4g} MiB"
        sentence = f"Memory kept: {words}." if kept else f"Memory BROKEN: {words}, {over:.2g} % over the budget."
        return cls(asked_mib, predicted_mib, predicted_upper_mib, measured_mib, kept, sentence)


@dataclass(frozen=True)
class HeldOut:
    """A measured network that the latency model had not seen."""

    id: str
    measured_ms: float
    predicted_ms: float
    upper_ms: float


@dataclass(frozen=True)
class PredictorReport:
    """How the latency model did on held-out networks; `spearman` is None where there are too few to rank.

    `coverage_percent` is the share whose measured time is within the upper bound, `constant_mape_percent` the error of always
    predicting the median.
    """

    num_fit: int
    num_held_out: int
    mape_percent: float
    spearman: float | None
    within_10_percent: float
    coverage_percent: float
    constant_mape_percent: float
    held_out: tuple[HeldOut, ...]

    @classmethod
    def of(cls, quality: Mapping[str, float], held_out: Sequence[Mapping[str, Any]]) -> PredictorReport:
        """From a calibration's figures, in which NaN stands for no rank correlation, and its held-out networks."""
        spearman = None if math.isnan(quality["spearman"]) else quality["spearman"]
        return _build(cls, {**quality, "spearman": spearman, "held_out": tuple(_build(HeldOut, h) for h in held_out)})


@dataclass(frozen=True)
class Parity:
    """How the exported file's answers agree with the network's: largest difference of an output, share of equal decisions."""

    num_examples: int
    max_abs_difference: float
    equal_decisions: float
    inputs: str


@dataclass(frozen=True)
class StageFigures:
    """A file before or after a stage: validation error, measured latency (None if the device was lost), size."""

    error_percent: float
    latency_ms: float | None
    file_bytes: int
    num_parameters: int


@dataclass(frozen=True)
class StageReport:
    """What a stage did to the network that ships, and whether it is in it. `facts` are the stage's own."""

    name: str
    kept: bool
    sentence: str
    before: StageFigures
    after: StageFigures
    facts: Mapping[str, Any] = field(hash=False)
    identity: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StageReport:
        figures = {when: _build(StageFigures, record[when]) for when in ("before", "after")}
        return _build(cls, {**record, **figures})


@dataclass(frozen=True)
class LedgerEntry:
    """What one phase cost."""

    phase: str
    seconds: float
    cpu_seconds: float
    peak_memory_mib: float
    networks_trained: int


@dataclass(frozen=True)
class Results:
    """Everything that the picture, the page and the terminal say about a finished run.

    `interval` says in words what the measured intervals are, `hypervolumes` holds one area a role up to `hypervolume_reference`
    (ms, error in percent), `error_means` what an error is the percentage of, `files` what ships, by paths relative to the run
    directory. `memory` is None without such a budget, `num_validation` are the examples behind a validation error, `refined` is
    what measurements during the search changed, and `alarms` say where the differentiable search collapsed and what was done.

    Raises:
        ValueError: a repeated network, a picked network that is none of them, or a number that is not finite.
    """

    title: str
    task: str
    device: str
    workload: Workload
    space: str
    seed: int
    networks: tuple[Network, ...]
    picked_id: str
    interval: str
    verdict: Verdict
    predictor: PredictorReport
    trivial_baselines: Mapping[str, float] = field(hash=False)
    test_error_percent: float
    parity: Parity
    files: tuple[str, ...]
    hypervolumes: Mapping[str, float] = field(hash=False)
    hypervolume_reference: tuple[float, float]
    error_means: str
    ledger: tuple[LedgerEntry, ...]
    notes: tuple[str, ...]
    command: str
    versions: Mapping[str, str] = field(hash=False)
    objectives: tuple[str, ...] = PLANE
    memory: MemoryVerdict | None = None
    num_validation: int | None = None
    refined: Mapping[str, Any] | None = field(default=None, hash=False)
    stages: tuple[StageReport, ...] = ()
    alarms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids = [n.id for n in self.networks]
        repeated = [i for i in ids if ids.count(i) > 1]
        if repeated:
            raise ValueError(f"networks: {repeated[0]} stands twice")
        if self.picked_id not in ids:
            raise ValueError(f"picked_id: {self.picked_id!r} is not one of {', '.join(ids)}")
        for part in (self, self.verdict, self.predictor, self.parity):
            _require_finite(part, type(part).__name__.lower())

    @property
    def picked(self) -> Network:
        """What ships."""
        return next(n for n in self.networks if n.id == self.picked_id)

    @property
    def front(self) -> tuple[Network, ...]:
        """The networks that no other beats in all objectives, the fastest first."""
        return front(self.networks, self.objectives)

    @property
    def further(self) -> tuple[str, ...]:
        """What is known of every network beside error and latency: objectives, and what has a budget."""
        return tuple(self.networks[0].predicted)

    @property
    def kept(self) -> bool | None:
        """Whether all budgets were kept; None where one was not measured and none is broken."""
        kept = [self.verdict.kept, *([self.memory.kept] if self.memory else [])]
        return False if False in kept else None if None in kept else True

    @property
    def best_trivial(self) -> tuple[str, float] | None:
        """Name and error of the best baseline that needs no network, or None if there is none."""
        return min(self.trivial_baselines.items(), key=lambda item: item[1], default=None)

    def of_role(self, role: str) -> tuple[Network, ...]:
        return tuple(n for n in self.networks if n.role == role)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Results:
        """Raises ValueError, with its name, for a part that is missing or unknown."""
        record = {"error_means": "wrong answers", "stages": [], **record}  # what runs of before do not say
        _require_names(cls, record)
        predictor = record["predictor"]
        parts = {
            "workload": _build(Workload, record["workload"]),
            "networks": tuple(_build(Network, n) for n in record["networks"]),
            "verdict": _build(Verdict, record["verdict"]),
            "predictor": _build(
                PredictorReport, {**predictor, "held_out": tuple(_build(HeldOut, h) for h in predictor["held_out"])}
            ),
            "parity": _build(Parity, record["parity"]),
            "stages": tuple(StageReport.from_json(stage) for stage in record["stages"]),
            "ledger": tuple(_build(LedgerEntry, entry) for entry in record["ledger"]),
            "hypervolume_reference": tuple(record["hypervolume_reference"]),
            "files": tuple(record["files"]),
            "notes": tuple(record["notes"]),
            "objectives": tuple(record.get("objectives", PLANE)),
            "memory": _build(MemoryVerdict, record["memory"]) if record.get("memory") else None,
            "alarms": tuple(record.get("alarms", ())),
        }
        return _build(cls, {**record, **parts})


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
        ValueError: no such rule or id, an ambiguous id, a broken number, or a budget below the fastest network.
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
            fastest = min(networks, key=lambda n: n.safe_ms)
            raise ValueError(
                f"pick: {rule!r} is below the fastest network: {fastest.id} takes "
                f"{format_ms(fastest.latency_ms)} ms (at most {format_ms(fastest.safe_ms)})"
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


def _require_finite(part: object, owner: str) -> None:
    for name, value in vars(part).items():
        numbers = value.values() if isinstance(value, Mapping) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}: {number} of {owner} is not finite")


T = TypeVar("T")


def _require_names(cls: Any, record: Mapping[str, Any]) -> None:
    has_default = {f.name: f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls)}
    for name in sorted(set(has_default) ^ set(record)):
        if not has_default.get(name):
            raise ValueError(f"{cls.__name__}: {name!r} is {'missing' if name in has_default else 'unknown'}")


def _build(cls: type[T], record: Mapping[str, Any]) -> T:
    """An instance of a dataclass from its fields. Raises ValueError for an unknown or a missing one without a default."""
    _require_names(cls, record)
    return cls(**record)
