"""Measuring a few dozen architectures on the device and fitting the latency model to them.

The networks of `experiments.timed_networks` are measured in random order: a machine's state changes from minute to minute, and in
the order of the design such a change would be taken for the effect of a choice, and what is held out would be judged in another
state than the one that was fitted in.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.looks import LOOKED_AT, Look, in_words
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory, RunError
from experiments.settings import CalibrationSettings
from experiments.timed_networks import POOL, design, export_for_timing, sentinel_of
from hardware.quality import LEAST_ROUNDS, Session
from hardware.store import MeasurementStore, sentinel_reference
from hardware.surroundings import absences
from hardware.timing import CutShortError, Exported, measure, measure_on
from latency_models.drift import no_signal
from latency_models.quality import Quality
from nas.protocols import (
    CrossValidatedLatencyModel,
    Device,
    DeviceError,
    DoubtfulLatencyModel,
    Family,
    LatencyModel,
    UncertainLatencyModel,
)
from nas.space import Architecture
from nas.surroundings import surroundings_of
from nas.types import Measurement, Workload

MEASUREMENTS = "measurements.jsonl"
CALIBRATION, LATER = "calibration", "during the search"  # phases of measurements
CUT_SHORT = ", cut short"  # what the phase of measurements ends with that too few rounds were left of: kept, and never used
LOOK = "look before "  # what the phase of measurements begins with that are taken again; then comes the moment of the run
LOOKS = "looks.json"  # when the run came to each moment
CHUNK = 6  # networks that are measured together, round by round; a stop loses one chunk
LOOK_ATTEMPTS = 2  # at a quiet moment: a device that stays slower is what a look is to find
ATTEMPTS = 5  # at a chunk, each with as many rounds more, if its times are too disturbed to be kept
FEWEST_TO_TELL = 10  # networks from which a missing signal can be told
CHANCE = 0.01  # how often times without a signal may pass: few networks of a disturbed machine must not be refused
CHANGED = 0.2  # relative change of the sentinel's time from which stored measurements are not used


@dataclass(frozen=True)
class Calibration:
    """A latency model that knows every measurement, and how one that knew only a part did on what was held out.

    A calibration from a recorded table has no measurements of architectures, and no sentinel; `cautions` say what its rows
    do not tell of a network that ships. `measurements` are in the conditions of the last of the `looks`, `quality` and `held_out`
    in those in which they were taken.
    """

    model: LatencyModel
    measurements: dict[str, Measurement]
    sentinel_reference_ms: float | None
    quality: dict[str, float]
    held_out: list[dict[str, Any]]
    cautions: tuple[str, ...] = ()
    looks: list[Look] = field(default_factory=list)

    def fit(self, model: LatencyModel, family: Family) -> None:
        """Fits a model to the measurements, with bounds as wide as the looks leave it uncertain what they are now."""
        model.fit(family, list(self.measurements.values()))
        if (doubt := self.doubt) and isinstance(model, DoubtfulLatencyModel):
            model.doubt(doubt)

    @property
    def doubt(self) -> float:
        """Relative standard deviation of what is corrected, in the surroundings where it is largest."""
        scatters: dict[str, list[float]] = {}
        for look in self.looks:
            if look.has_changed:
                scatters.setdefault(look.where, []).append(look.law.scatter)
        return max((math.hypot(*of) for of in scatters.values()), default=0.0)

    @property
    def measured_ms(self) -> dict[str, float]:
        """Latencies as they were measured, by the ids of architectures; without those that a look at the device has corrected."""
        corrected = {id_ for look in self.looks if look.has_changed for id_ in look.then}
        return {id_: m.latency_ms for id_, m in self.measurements.items() if id_ not in corrected}


@dataclass(frozen=True)
class Calibrator:
    """Measures what neither the run nor the store has yet, and fits a latency model. `place` says where in words, of a further
    device."""

    family: Family
    device: Device
    workload: Workload
    settings: CalibrationSettings
    run: RunDirectory
    store: MeasurementStore
    report: Reporter
    place: str = ""

    def calibrate(self, model: LatencyModel, *, seed: int) -> Calibration:
        """Fits `model` to everything measured, by earlier runs on this device too, and a twin of it to all but the networks that
        are held out, to judge it.

        Raises:
            ValueError: the space has fewer architectures than are to be measured, or times have nothing to do with them.
            DeviceError: the device failed; what was measured is kept.
        """
        self._moment(CALIBRATION)
        to_fit, held_out = design(self.family, self.workload, self.settings, seed=seed)
        wanted = {arch.id: arch for arch in (*to_fit, *held_out)}
        have = read_measurements(self.family, self.run, phase=CALIBRATION)
        if not set(wanted) <= set(have):
            have |= self._from_store(wanted, have)
            missing = [arch for id_, arch in wanted.items() if id_ not in have]
            order = np.random.default_rng([seed, 5]).permutation(len(missing))
            self._measure([missing[i] for i in order], have, phase=CALIBRATION)
            have = read_measurements(self.family, self.run, phase=CALIBRATION)  # to the last digit as a run that goes on
        for words in absences(self.device):
            self.report.say(f"{words}: THE BOARD DOES NOT ANSWER; it is known from before, and what is not measured is predicted")
        fitting, judging = ([have[a.id] for a in archs] for archs in (to_fit, held_out))
        fitting += [measurement for id_, measurement in have.items() if id_ not in wanted]
        twin = copy.deepcopy(model).fit(self.family, fitting)
        prediction = twin.predict(held_out)
        measured = np.array([m.latency_ms for m in judging])
        model.fit(self.family, [*fitting, *judging])
        self._check_signal(model, [*fitting, *judging])
        calibration = Calibration(
            model=model,
            measurements={m.arch.id: m for m in (*fitting, *judging)},
            sentinel_reference_ms=fitting[0].sentinel_reference_ms,
            quality=quality(measured, prediction.mean_ms, prediction.upper_ms, [m.latency_ms for m in fitting]),
            held_out=[
                {"id": a.id, "measured_ms": m, "predicted_ms": float(p), "upper_ms": float(u)}
                for a, m, p, u in zip(held_out, measured.tolist(), prediction.mean_ms, prediction.upper_ms, strict=True)
            ],
        )
        if self.look(calibration, before=CALIBRATION):
            calibration.fit(model, self.family)
        return calibration

    def look(self, calibration: Calibration, *, before: str) -> bool:
        """Measures some networks again that were measured long before a moment of the run, and if the device has changed since,
        expresses all of these in its conditions now, in place; whether it did, so that models are to be fitted again.

        A run comes to each moment once: what it found then is read when it goes on. A device that is lost, or networks too few to
        tell, leave everything as it was.
        """
        minutes = self.settings.recheck_minutes
        if minutes is None or not calibration.measurements:
            return False
        moment = self._moment(before)
        ages = {id_: (moment - _time(m)).total_seconds() / 60 for id_, m in calibration.measurements.items()}
        groups: dict[str, dict[str, Measurement]] = {}
        for id_, m in calibration.measurements.items():
            if ages[id_] >= minutes:
                picks = [f"{name} {pick}" for name, pick in surroundings_of(m.arch).items()]
                groups.setdefault(", ".join([*filter(None, [self.place]), *picks]), {})[id_] = m
        looks = []
        for where, then in groups.items():
            if len(then) >= LOOKED_AT and (now := self._again(then, phase=LOOK + before)):
                looks.append(Look.of(then, now, minutes=min(ages[id_] for id_ in then), where=where))
                self.report.say(f"measurements: {in_words(looks[-1].to_json())}")
        calibration.looks.extend(looks)
        for look in (changed := [look for look in looks if look.has_changed]):
            calibration.measurements.update(look.corrected())
        return bool(changed)

    def _again(self, then: Mapping[str, Measurement], *, phase: str) -> dict[str, Measurement]:
        """Networks from the fastest to the slowest of those that were measured, in the same conditions; none of a lost device."""
        by_time = sorted(then.values(), key=lambda m: m.latency_ms)
        archs = [by_time[i].arch for i in np.linspace(0, len(by_time) - 1, LOOKED_AT).round().astype(int)]
        have = read_measurements(self.family, self.run, phase=phase)
        if not all(arch.id in have for arch in archs):
            with self.report.phase("A fresh look at the device"), tempfile.TemporaryDirectory() as folder:
                try:
                    sentinel, *networks = self._export([sentinel_of(self.family), *archs], folder)
                    fresh = measure_on(
                        self.device, networks, sentinel=sentinel, workload=self.workload, rounds=self.settings.rounds,
                        sentinel_reference_ms=by_time[0].sentinel_reference_ms, attempts=LOOK_ATTEMPTS,
                    )  # fmt: skip
                except DeviceError as error:
                    self.report.say(f"{error}; whether its speed has changed cannot be told")
                    return {}
            self._keep(fresh, phase=phase)
            have = read_measurements(self.family, self.run, phase=phase)
        return {arch.id: have[arch.id] for arch in archs}

    def _moment(self, name: str) -> datetime:
        """When the run first came there."""
        moments: dict[str, str] = self.run.read_json(LOOKS) if self.run.has(LOOKS) else {}
        if name not in moments:
            self.run.write_json(LOOKS, {**moments, name: datetime.now(UTC).isoformat(timespec="seconds")})
        return datetime.fromisoformat(self.run.read_json(LOOKS)[name])

    def refine(self, model: LatencyModel, calibration: Calibration, *, minutes: float, margin_percent: float, seed: int) -> int:
        """Measures on where the fitted model is least certain, and fits it again each time; the number of networks it then knows.

        Stops when the upper bound is at most `margin_percent` above the mean, or after so many minutes, or when nothing is left.

        Raises:
            ValueError: the model does not say where it is uncertain.
            DeviceError: the device failed; what was measured is kept.
        """
        if not isinstance(model, UncertainLatencyModel):
            raise ValueError(f"latency_model: {type(model).__name__} does not say where it is uncertain (`disagreement`)")
        rng = np.random.default_rng([seed, 3])
        pool = {arch.id: arch for arch in (self.family.space.sample(rng) for _ in range(POOL))}
        known = {**read_measurements(self.family, self.run, phase=CALIBRATION), **calibration.measurements}
        model.fit(self.family, list(known.values()))
        end = time.monotonic() + 60 * minutes
        while (margin := 100 * (model.upper_factor() - 1)) > margin_percent and time.monotonic() < end:
            rest = [arch for id_, arch in pool.items() if id_ not in known]
            if not rest:
                break
            self.report.say(f"{len(known)} networks: the upper bound is {margin:.1f} % above the mean; measuring on")
            order = np.argsort(-model.disagreement(rest), kind="stable")
            known |= self._measure([rest[i] for i in order[:CHUNK]], known, phase=CALIBRATION)
            model.fit(self.family, list(known.values()))
        return len(known)

    def more(self, archs: Sequence[Architecture], calibration: Calibration) -> dict[str, Measurement]:
        """Measurements of further architectures, in the conditions of a calibration; what the run has already is read.

        Raises:
            DeviceError: the device failed; what was measured is kept.
        """
        known = {**calibration.measurements, **read_measurements(self.family, self.run, phase=LATER)}
        missing = [arch for arch in archs if arch.id not in known]
        if missing:
            known |= self._measure(missing, known, phase=LATER)
        return {arch.id: known[arch.id] for arch in archs}

    def _from_store(self, wanted: Collection[str], have: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """Those of earlier runs on this device, unless its speed has changed since; written to the run as well."""
        stored, notes = self.store.load(self.family.space, self.device, self.family.signature, self.workload)
        for note in notes:
            self.report.say(f"measurements: {note}")
        usable = [m for m in stored.values() if m.environment["sentinel"] == sentinel_of(self.family).id]
        known = _same_conditions(usable, list(have.values()))
        reused = {m.arch.id: m for m in known if m.arch.id not in have}
        try:
            if reused and not have and self._has_changed(known[0].sentinel_reference_ms):
                return {}
        except DeviceError as error:
            if not set(wanted) <= set(reused):
                raise
            self.report.say(f"{error}; whether its speed has changed cannot be told, and its stored measurements are used")
        self._keep(reused.values(), phase=CALIBRATION)
        if reused:
            self.report.say(f"measurements: {len(reused)} networks are known from an earlier run on this device")
        return reused

    def _has_changed(self, reference_ms: float) -> bool:
        """Whether the sentinel is much slower or faster than when the store was written; says so if it is."""
        with tempfile.TemporaryDirectory() as folder:
            [timed] = self._export([sentinel_of(self.family)], folder)
            [fresh] = measure(self.device, [timed], sentinel=timed, workload=self.workload, rounds=self.settings.rounds)
        change = fresh.sentinel_reference_ms / reference_ms - 1.0
        if abs(change) <= CHANGED:
            return False
        self.report.say(f"measurements: the sentinel network takes {change:+.0%} since they were stored; all are measured again")
        return True

    def _measure(self, missing: Sequence[Architecture], have: Mapping[str, Measurement], *, phase: str) -> dict[str, Measurement]:
        fresh: dict[str, Measurement] = {}
        reference = sentinel_reference(have.values())
        total = len(missing) + len(have)
        if missing:
            self._check_store()
        with (
            self.report.phase("Measuring networks on the device", total, done=len(have)) as advance,
            tempfile.TemporaryDirectory() as folder,
        ):
            [sentinel] = self._export([sentinel_of(self.family)], folder)
            for start in range(0, len(missing), CHUNK):
                networks = self._export(missing[start : start + CHUNK], folder)
                try:
                    chunk = self._measure_together(networks, sentinel, reference)
                except CutShortError as error:
                    self._keep(error.measured, phase=phase + CUT_SHORT)
                    raise
                reference = chunk[0].sentinel_reference_ms
                try:
                    self.store.append(chunk, device=self.device, signature=self.family.signature)
                finally:  # where the store is full, the run still knows what it has measured
                    self._keep(chunk, phase=phase)
                fresh |= {m.arch.id: m for m in chunk}
                advance(len(have) + len(fresh), f"{chunk[-1].latency_ms:.2f} ms")
        if fresh and (advice := Session.of(list(fresh.values())).advice()):
            self.report.say(f"measurements: {advice}")
        return fresh

    def _measure_together(self, networks: Sequence[Exported], sentinel: Exported, reference: float | None) -> list[Measurement]:
        """Measured on, in more rounds, if that was far too disturbed. Raises ValueError if it stays so; nothing of it is kept.

        If the device is lost, what it leaves is enough or comes with the CutShortError.
        """

        def enough(chunk: Sequence[Measurement]) -> bool:
            session = Session.of(chunk)
            try:
                session.check()
            except ValueError:
                if len(chunk[0].samples_ms) >= ATTEMPTS * self.settings.rounds:
                    raise
                self.report.say(f"measurements: {session.troubles()}; these networks are measured longer")
                return False
            return True

        try:
            return measure_on(
                self.device, networks, sentinel=sentinel, workload=self.workload, rounds=self.settings.rounds,
                sentinel_reference_ms=reference, enough=enough, attempts=ATTEMPTS,
            )  # fmt: skip
        except CutShortError as error:
            left = left_by(error, rounds=self.settings.rounds)
            if Session.of(left).is_too_disturbed:
                raise
            self.report.say(f"{error}; {error.rounds} complete rounds until then are used")
            return left

    def _export(self, archs: Sequence[Architecture], folder: str) -> list[Exported]:
        return export_for_timing(self.family, archs, self.workload, Path(folder), device=self.device)

    def _check_signal(self, model: LatencyModel, measurements: Sequence[Measurement]) -> None:
        """Raises ValueError if the times seem to have nothing to do with the networks, where these are enough to tell."""
        if not isinstance(model, CrossValidatedLatencyModel) or len(measurements) < FEWEST_TO_TELL:
            return
        if why := no_signal(np.array([m.latency_ms for m in measurements]), model.unseen_ms(), chance=CHANCE):
            raise ValueError(
                f"calibration: {why}; no search can start on it. See that nothing else runs on the device, pin its threads, and "
                f"measure anew: store=DIR names another place than {self.store.folder}"
            )

    def _check_store(self) -> None:
        try:
            self.store.check()
        except OSError as error:
            error.add_note("store=DIR names another place.")
            raise

    def _keep(self, measurements: Iterable[Measurement], *, phase: str) -> None:
        for measurement in measurements:
            self.run.append(MEASUREMENTS, {"phase": phase, **measurement.to_json()})


def left_by(error: CutShortError, *, rounds: int) -> list[Measurement]:
    """What a device that was lost leaves, if so few of `rounds` are missing that it can be judged; else raises the error."""
    if error.rounds < min(rounds, LEAST_ROUNDS):
        raise error
    return error.measured


def read_measurements(family: Family, run: RunDirectory, *, phase: str) -> dict[str, Measurement]:
    """The measurements that a phase of this run took, by architecture. Raises RunError for a line that is none."""
    try:
        measurements = [Measurement.from_json(family.space, r) for r in run.read_lines(MEASUREMENTS) if r["phase"] == phase]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run / MEASUREMENTS}: holds a line that is not a measurement of this space: {error}") from error
    return {m.arch.id: m for m in measurements}


def _time(measurement: Measurement) -> datetime:
    return datetime.fromisoformat(measurement.environment["time"])


def _same_conditions(stored: list[Measurement], have: list[Measurement]) -> list[Measurement]:
    """Those that are expressed in the sentinel's time that the run uses, or else in that of the newest."""
    if not stored:
        return []
    reference = (have or sorted(stored, key=lambda m: str(m.environment["time"])))[-1].sentinel_reference_ms
    return [m for m in stored if m.sentinel_reference_ms == reference]


def quality(measured: np.ndarray, predicted: np.ndarray, upper: np.ndarray, seen: Sequence[float]) -> dict[str, float]:
    """How many networks were seen and predicted, and how well: the figures of `latency_models.quality.Quality`."""
    judged = Quality.of(measured, predicted, covered=measured <= upper, seen=seen)
    return {"num_fit": len(seen), "num_held_out": len(measured), **asdict(judged)}
