"""What architectures cost before anybody trains them: the numbers of a candidate beside its error."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

import numpy as np

from experiments.calibration import Calibration
from experiments.objectives import on_device, upper_on_device
from experiments.settings import Settings
from hardware.surroundings import devices_of
from hardware.timing import HasEnergy
from latency_models.memory import memory_of
from nas.costs import parameters_of
from nas.export import format_of, runs_onnx
from nas.protocols import Device, Family, LatencyModel
from nas.space import Architecture
from nas.types import Measurement, Workload

Costs = dict[str, float]


def check_device(objectives: Sequence[str], device: Device) -> None:
    """Raises ValueError for the objective of energy on a device that does not measure it."""
    if "energy_mj" in objectives and not (isinstance(device, HasEnergy) and device.measures_energy):
        raise ValueError(
            f"objectives: energy_mj is not measured by {device.name}; device=cuda with device.energy_seconds above 0 measures it"
        )


def check_real(device: Device) -> None:
    """Raises ValueError for a device that was told to take times of an emulated board."""
    if any(getattr(own, "allow_emulated", False) for own in devices_of(device)):
        raise ValueError(
            "device.allow_emulated: times of an emulated board say nothing of its speed; `paretoformer measure` shows them, and "
            "nothing else takes them"
        )


def check_precisions(family: Family, device: Device) -> None:
    """Raises ValueError for a choice of precisions on a device that has other operators, or brings files to its own precision."""
    own = device.environment.get("precision", "fp32")
    if "layer1.precision" in family.space.by_name and (not runs_onnx(device) or own != "fp32"):
        runs = f"files in {own}" if runs_onnx(device) else f"{format_of(device)} files"
        raise ValueError(f"space.precision: layers choose theirs in ONNX files as they are, and {device.name} runs {runs}")


@dataclass(frozen=True)
class Costing:
    """Costs of architectures: `latency_ms` and its bound `upper_ms`, the same on further devices, and what else is an objective
    or has a budget."""

    family: Family
    workload: Workload
    names: tuple[str, ...]
    latency: LatencyModel
    energy: LatencyModel | None = None
    also: Mapping[str, LatencyModel] = field(default_factory=dict)

    @classmethod
    def of(
        cls, settings: Settings, family: Family, workload: Workload, calibration: Calibration, *,
        also: Mapping[str, LatencyModel] = MappingProxyType({}),
    ) -> Self:  # fmt: skip
        """With a model of energy, of the same kind as that of latency, if energy is an objective; `also` are models of further
        devices by name."""
        budgets = ("memory_mib",) if settings.budget_mib is not None else ()
        names = tuple(dict.fromkeys((*settings.objectives, *budgets, *map(on_device, also))))
        energy = None
        if "energy_mj" in names:
            energy = copy.deepcopy(calibration.model).fit(family, [_as_energy(m) for m in calibration.measurements.values()])
        return cls(family, workload, names, calibration.model, energy, also)

    def __call__(self, archs: Sequence[Architecture]) -> list[Costs]:
        """For each architecture. `memory_mib` comes with `upper_mib`; `parameters` are millions."""
        prediction = self.latency.predict(archs)
        columns = {"latency_ms": prediction.mean_ms, "upper_ms": prediction.upper_ms}
        if "memory_mib" in self.names:
            memory = memory_of(self.family, archs, self.workload)
            columns["memory_mib"] = np.array([m.peak_mib for m in memory])
            columns["upper_mib"] = np.array([m.upper_mib for m in memory])
        if "parameters" in self.names:
            columns["parameters"] = parameters_of(self.family, archs, self.workload) / 1e6
        if self.energy is not None:
            columns["energy_mj"] = self.energy.predict(archs).mean_ms
        for name, model in self.also.items():
            there = model.predict(archs)
            columns |= {on_device(name): there.mean_ms, upper_on_device(name): there.upper_ms}
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


def measured_energy(measurement: Measurement) -> float:
    """Energy of one run in mJ, the median of its rounds. Raises ValueError if the device did not say it."""
    energies: Mapping[str, list[float]] = measurement.environment
    if "energy_mj" not in energies:
        raise ValueError(
            f"objectives: energy_mj: {measurement.arch.id} was measured on {measurement.device} without its energy; "
            f"store=FOLDER, a new one, measures all again"
        )
    return float(np.median(energies["energy_mj"]))


def _as_energy(measurement: Measurement) -> Measurement:
    """With mJ in the place of ms, for a latency model that learns what a network takes, whatever the unit."""
    return dataclasses.replace(
        measurement, samples_ms=((measured_energy(measurement),),), sentinel_ms=((1.0,),), sentinel_reference_ms=1.0
    )
