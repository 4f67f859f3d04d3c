"""Measuring a few dozen architectures on the device and fitting the latency model to them.

The architectures cover the space: the family's named ones first, then, from random candidates, always the one that lies farthest
from those chosen, in the logarithms of what each kind of operator costs. The held-out ones are uniformly random.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.progress import Reporter
from experiments.run_directory import RunDirectory, RunError
from experiments.settings import CalibrationSettings
from hardware.store import MeasurementStore
from hardware.timing import Exported, measure
from nas.encoding import Encoding
from nas.export import export_onnx
from nas.protocols import Device, Family, LatencyModel
from nas.space import Architecture
from nas.types import Measurement, Workload

MEASUREMENTS = "measurements.jsonl"
CHUNK = 6  # networks that are measured together, round by round; a stop loses one chunk
POOL = 600  # random candidates that a covering design chooses from


@dataclass(frozen=True)
class Calibration:
    """A latency model that knows every measurement, and how a twin that knew only the fitting half did on the held-out ones."""

    model: LatencyModel
    measurements: dict[str, Measurement]
    sentinel: Architecture
    sentinel_reference_ms: float
    quality: dict[str, float]
    held_out: list[dict[str, Any]]


def covering_design(
    family: Family, workload: Workload, *, num: int, first: Sequence[Architecture], seed: int
) -> list[Architecture]:
    """`num` architectures, those of `first` and then farthest points (Gonzalez, 1985) from a random pool."""
    rng = np.random.default_rng([seed, 1])
    pool = list({a.id: a for a in (*first, *(family.space.sample(rng) for _ in range(POOL)))}.values())
    operators = family.operators(Encoding.of(family.space, pool), workload)
    sums: dict[str, np.ndarray] = {}
    for operator in operators:
        sums[operator.kind] = sums.get(operator.kind, np.zeros(len(pool))) + operator.bytes + operator.flops
    features = np.log1p(np.stack([np.broadcast_to(column, len(pool)) for column in sums.values()], axis=1))
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
    chosen = list(range(min(num, len({a.id for a in first}))))
    distance = np.full(len(pool), np.inf)
    for index in chosen:
        distance = np.minimum(distance, np.linalg.norm(features - features[index], axis=1))
    while len(chosen) < min(num, len(pool)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return [pool[i] for i in chosen]


def export_for_timing(family: Family, archs: Sequence[Architecture], workload: Workload, folder: Path) -> list[Exported]:
    """Networks with random weights, exported as the ones that ship are: times do not depend on the weights."""
    example = family.example_input(workload)
    exported = []
    for arch in archs:
        path = folder / f"{arch.id}.onnx"
        export_onnx(family.network(arch, backend="blocks"), example, path)
        exported.append(Exported(arch, path, {name: value.numpy() for name, value in example.items()}))
    return exported


def calibrate(
    family: Family, device: Device, model: LatencyModel, workload: Workload, settings: CalibrationSettings, *,
    named: Sequence[Architecture], seed: int, run: RunDirectory, store: MeasurementStore, report: Reporter,
) -> Calibration:  # fmt: skip
    """Measures what neither the run nor the store has yet, and fits.

    Args:
        named: architectures that must be measured; the last is the sentinel, best a small one.

    Raises:
        DeviceError: the device failed; what was measured is kept.
    """
    sentinel = named[-1]
    to_fit = covering_design(family, workload, num=settings.num_fit, first=named, seed=seed)
    known_ids = {arch.id for arch in to_fit}
    rng = np.random.default_rng([seed, 2])
    held_out: list[Architecture] = []
    while len(held_out) < settings.num_held_out:
        arch = family.space.sample(rng)
        if arch.id not in known_ids:
            known_ids.add(arch.id)
            held_out.append(arch)

    have = {
        m.arch.id: m
        for m in (Measurement.from_json(family.space, r) for r in run.read_lines(MEASUREMENTS) if r["phase"] == "calibration")
    }
    wanted = {a.id: a for a in (*to_fit, *held_out)}
    if any(id_ not in have for id_ in wanted):
        stored, notes = store.load(family.space, device, family.signature, workload)
        for note in notes:
            report.say(f"measurements: {note}")
        reused = [stored[a.id] for a in wanted if a.id in stored and a.id not in have]
        if (
            reused
            and not have
            and _is_stale(family, device, workload, sentinel, reused[0].sentinel_reference_ms, settings, report)
        ):
            reused = []
        for measurement in reused:
            have[measurement.arch.id] = measurement
            run.append(MEASUREMENTS, {"phase": "calibration", **measurement.to_json()})
        if reused:
            report.say(f"measurements: {len(reused)} of {len(wanted)} networks are known from an earlier run on this device")
    missing = [a for id_, a in wanted.items() if id_ not in have]
    reference = next(iter(have.values())).sentinel_reference_ms if have else None
    with (
        report.phase("Measuring networks on the device", len(wanted), done=len(have)) as advance,
        tempfile.TemporaryDirectory() as folder,
    ):
        [timed_sentinel] = export_for_timing(family, [sentinel], workload, Path(folder))
        for start in range(0, len(missing), CHUNK):
            networks = export_for_timing(family, missing[start : start + CHUNK], workload, Path(folder))
            fresh = measure(
                device,
                networks,
                sentinel=timed_sentinel,
                workload=workload,
                rounds=settings.rounds,
                sentinel_reference_ms=reference,
            )
            reference = fresh[0].sentinel_reference_ms
            store.append(fresh, device=device, signature=family.signature)
            for measurement in fresh:
                have[measurement.arch.id] = measurement
                run.append(MEASUREMENTS, {"phase": "calibration", **measurement.to_json()})
            advance(len(have), f"{fresh[-1].latency_ms:.2f} ms")
    return _fit(family, model, to_fit, held_out, have, sentinel)


def read_measurements(family: Family, run: RunDirectory, *, phase: str) -> dict[str, Measurement]:
    """The measurements that a phase of this run took, by architecture. Raises RunError for a line that is none."""
    try:
        measurements = [Measurement.from_json(family.space, r) for r in run.read_lines(MEASUREMENTS) if r["phase"] == phase]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run / MEASUREMENTS}: holds a line that is not a measurement of this space: {error}") from error
    return {m.arch.id: m for m in measurements}


def _same_conditions(stored: list[Measurement], have: list[Measurement]) -> list[Measurement]:
    """Those that are expressed in the sentinel's time that the run uses, or else in that of the newest."""
    if not stored:
        return []
    reference = (have or sorted(stored, key=lambda m: str(m.environment["time"])))[-1].sentinel_reference_ms
    return [m for m in stored if m.sentinel_reference_ms == reference]


def _is_stale(
    family: Family, device: Device, workload: Workload, sentinel: Architecture, reference_ms: float,
    settings: CalibrationSettings, report: Reporter,
) -> bool:  # fmt: skip
    """Whether the device's speed has changed since the stored measurements were taken, by the sentinel; says so if it has."""
    with tempfile.TemporaryDirectory() as folder:
        [timed] = export_for_timing(family, [sentinel], workload, Path(folder))
        fresh = measure(device, [timed], sentinel=timed, workload=workload, rounds=settings.rounds)
    change = fresh[0].sentinel_reference_ms / reference_ms - 1.0
    if abs(change) <= 0.2:
        return False
    report.say(
        f"measurements: the sentinel network is {change:+.0%} in time since they were stored; everything is measured again"
    )
    return True


def _fit(
    family: Family, model: LatencyModel, to_fit: Sequence[Architecture], held_out: Sequence[Architecture],
    have: dict[str, Measurement], sentinel: Architecture,
) -> Calibration:  # fmt: skip
    twin = copy.deepcopy(model).fit(family, [have[a.id] for a in to_fit])
    prediction = twin.predict(held_out)
    measured = np.array([have[a.id].latency_ms for a in held_out])
    fitted = [have[a.id] for a in (*to_fit, *held_out)]
    model.fit(family, fitted)
    return Calibration(
        model=model,
        measurements={m.arch.id: m for m in fitted},
        sentinel=sentinel,
        sentinel_reference_ms=fitted[0].sentinel_reference_ms,
        quality=quality(measured, prediction.mean_ms, prediction.upper_ms, [m.latency_ms for m in fitted[: len(to_fit)]]),
        held_out=[
            {"id": a.id, "measured_ms": m, "predicted_ms": float(p), "upper_ms": float(u)}
            for a, m, p, u in zip(held_out, measured.tolist(), prediction.mean_ms, prediction.upper_ms, strict=True)
        ],
    )


def quality(measured: np.ndarray, predicted: np.ndarray, upper: np.ndarray, seen: Sequence[float]) -> dict[str, float]:
    """MAPE, Spearman, share within 10 % and coverage of the bound, and the MAPE of a constant prediction to compare with."""
    relative = np.abs(predicted / measured - 1.0)
    enough = len(measured) > 2 and np.ptp(predicted) > 0
    return {
        "num_fit": len(seen),
        "num_held_out": len(measured),
        "mape_percent": 100 * float(relative.mean()),
        "spearman": float(spearmanr(measured, predicted).statistic) if enough else float("nan"),
        "within_10_percent": 100 * float((relative <= 0.1).mean()),
        "coverage_percent": 100 * float((measured <= upper).mean()),
        "constant_mape_percent": 100 * float(np.abs(np.median(seen) / measured - 1.0).mean()),
    }
