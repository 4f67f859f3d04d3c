"""What a run concluded, as plain data: `results.json`, from which the picture and the page can be made again.

Errors are validation errors in percent, but for `test_error_percent`; lower is better everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from experiments.networks import PLANE, Network, front
from experiments.records import instance, require_finite, require_names
from experiments.verdicts import LimitVerdict, Verdict
from nas.types import Workload


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
        return instance(cls, {**quality, "spearman": spearman, "held_out": tuple(instance(HeldOut, h) for h in held_out)})


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
        figures = {when: instance(StageFigures, record[when]) for when in ("before", "after")}
        return instance(cls, {**record, **figures})


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
    directory. `beside` are verdicts on what has a budget beside latency, by the names of objectives, `elsewhere` on further
    devices. `ties` says which networks the test split cannot tell apart, `refined` is what measurements during the search
    changed, `looks` what was found when networks of an old calibration were measured again, `tuned` how networks were found to
    learn best, `alarms` say where the differentiable search collapsed and what was done, `cautions` what the device's table does
    not tell, and `lost` what the file that ships lost against its network, if it is much. `position` is what the workload counts:
    token, pixel or sample.

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
    beside: Mapping[str, LimitVerdict] = field(default_factory=dict, hash=False)
    ties: Mapping[str, Any] | None = field(default=None, hash=False)
    refined: Mapping[str, Any] | None = field(default=None, hash=False)
    looks: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    tuned: Mapping[str, Any] | None = field(default=None, hash=False)
    elsewhere: Mapping[str, Verdict] = field(default_factory=dict, hash=False)
    stages: tuple[StageReport, ...] = ()
    alarms: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    lost: str = ""
    position: str = "token"

    def __post_init__(self) -> None:
        ids = [n.id for n in self.networks]
        repeated = [i for i in ids if ids.count(i) > 1]
        if repeated:
            raise ValueError(f"networks: {repeated[0]} stands twice")
        if self.picked_id not in ids:
            raise ValueError(f"picked_id: {self.picked_id!r} is not one of {', '.join(ids)}")
        for part in (self, self.verdict, self.predictor, self.parity):
            require_finite(part, type(part).__name__.lower())

    @property
    def workload_words(self) -> str:
        return self.workload.counting(self.position)

    @property
    def picked(self) -> Network:
        """What ships, as the short-list has it."""
        return next(n for n in self.networks if n.id == self.picked_id)

    @property
    def kept_stages(self) -> tuple[StageReport, ...]:
        """Those that are in what ships."""
        return tuple(stage for stage in self.stages if stage.kept)

    @property
    def shipped(self) -> Network:
        """The same after the stages that are kept, in the time that the verdict measured."""
        now: dict[str, Any] = {}
        if self.kept_stages:
            last = self.kept_stages[-1].after
            now = {"error_percent": last.error_percent, "num_parameters": last.num_parameters}
        if self.verdict.measured_ms is not None:
            now |= {name: getattr(self.verdict, name) for name in ("measured_ms", "measured_low_ms", "measured_high_ms")}
        return replace(self.picked, **now)

    @property
    def listed(self) -> tuple[Network, ...]:
        """The networks as tables show them: all as they were trained, and what ships as it ships."""
        return tuple(self.shipped if n.id == self.picked_id else n for n in self.networks)

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
        kept = [self.verdict.kept, *(v.kept for v in self.elsewhere.values()), *(v.kept for v in self.beside.values())]
        return False if False in kept else None if None in kept else True

    @property
    def tied_for_best(self) -> tuple[str, ...]:
        """Ids of the networks that the test split cannot tell apart from its best; nobody where that one is alone."""
        best: tuple[str, ...] = tuple(self.ties["groups"][0]) if self.ties else ()
        return best if len(best) > 1 else ()

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
        record.pop("num_validation", None)  # and what they alone say
        if memory := record.pop("memory", None):
            record["beside"] = {"memory_mib": {name.removesuffix("_mib"): value for name, value in memory.items()}}
        require_names(cls, record)
        predictor = record["predictor"]
        parts = {
            "workload": instance(Workload, record["workload"]),
            "networks": tuple(instance(Network, n) for n in record["networks"]),
            "verdict": instance(Verdict, record["verdict"]),
            "predictor": instance(
                PredictorReport, {**predictor, "held_out": tuple(instance(HeldOut, h) for h in predictor["held_out"])}
            ),
            "parity": instance(Parity, record["parity"]),
            "stages": tuple(StageReport.from_json(stage) for stage in record["stages"]),
            "ledger": tuple(instance(LedgerEntry, entry) for entry in record["ledger"]),
            "hypervolume_reference": tuple(record["hypervolume_reference"]),
            "files": tuple(record["files"]),
            "notes": tuple(record["notes"]),
            "objectives": tuple(record.get("objectives", PLANE)),
            "elsewhere": {name: instance(Verdict, verdict) for name, verdict in record.get("elsewhere", {}).items()},
            "beside": {name: instance(LimitVerdict, verdict) for name, verdict in record.get("beside", {}).items()},
            "looks": tuple(record.get("looks", ())),
            "alarms": tuple(record.get("alarms", ())),
            "cautions": tuple(record.get("cautions", ())),
            "lost": record.get("lost", ""),
        }
        return instance(cls, {**record, **parts})
