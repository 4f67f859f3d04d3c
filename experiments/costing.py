"""What architectures cost before anybody trains them: the numbers of a candidate beside its error."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

import numpy as np

from experiments.budgets import Budget
from experiments.calibration import Calibration
from experiments.objectives import OBJECTIVES, on_device, upper, upper_on_device
from experiments.settings import Settings
from hardware.recorded import RecordedDevice
from hardware.surroundings import devices_of
from hardware.timing import HasEnergy
from latency_models.memory import MemoryCost, memory_of
from nas.constraints import Constraint, Predicted
from nas.costs import parameters_of
from nas.export import format_of, runs_onnx
from nas.protocols import Device, DifferentiableLatencyModel, Family, LatencyModel
from nas.space import Architecture
from nas.types import Measurement, Workload

Costs = dict[str, float]


def check_device(settings: Settings, device: Device) -> None:
    """Raises ValueError for energy as objective or with a budget on a device that does not measure it."""
    asked = "objectives: energy_mj" if "energy_mj" in settings.objectives else f"budget_mj: {settings.budget_mj}: energy"
    wanted = "energy_mj" in (*settings.objectives, *settings.beside)
    if wanted and not all(isinstance(own, HasEnergy) and own.measures_energy for own in devices_of(device)):
        raise ValueError(f"{asked} is not measured by {device.name}; device=cuda with device.energy_seconds above 0 measures it")


def check_real(device: Device) -> None:
    """Raises ValueError for a device that is emulated, or that was told to take times of an emulated board."""
    if any(getattr(own, "allow_emulated", False) for own in devices_of(device)):
        raise ValueError(
            "device.allow_emulated: times of an emulated board say nothing of its speed; `paretoformer measure` shows them, and "
            "nothing else takes them"
        )
    if any(getattr(own, "is_emulated", False) for own in devices_of(device)):
        raise ValueError(
            f"device: {device.name} is emulated on this machine, its times say nothing of its speed; `paretoformer measure` "
            "shows them, and nothing else takes them"
        )


def check_times(device: Device) -> None:
    """Raises ValueError for a table of something else than times."""
    if isinstance(device, RecordedDevice) and device.table.unit != "ms":
        raise ValueError(
            f"device.table: {device.table.name} holds energies, and networks of this space are searched by times; space=hat is "
            f"searched by energies, too"
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
        names = tuple(dict.fromkeys((*settings.objectives, *settings.beside, *map(on_device, also))))
        energy = None
        if "energy_mj" in names:
            energy = copy.deepcopy(calibration.model).fit(family, _as_energies(calibration.measurements.values()))
        return cls(family, workload, names, calibration.model, energy, also)

    def fit(self, calibration: Calibration) -> None:
        """The models of the first device again, in place."""
        calibration.fit(self.latency, self.family)
        if self.energy is not None:
            self.energy.fit(self.family, _as_energies(calibration.measurements.values()))

    def __call__(self, archs: Sequence[Architecture]) -> list[Costs]:
        """For each architecture. `memory_mib` and `energy_mj` come with their bounds; `parameters` are millions."""
        columns = self.columns(archs)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def columns(self, archs: Sequence[Architecture]) -> dict[str, np.ndarray]:
        """The same by name, each [N]."""
        prediction = self.latency.predict(archs)
        columns = {"latency_ms": prediction.mean_ms, "upper_ms": prediction.upper_ms}
        if "memory_mib" in self.names:
            columns |= memory_costs(self.family, archs, self.workload)
        if "parameters" in self.names:
            columns["parameters"] = parameters_of(self.family, archs, self.workload) / 1e6
        if self.energy is not None:
            energy = self.energy.predict(archs)
            columns |= {"energy_mj": energy.mean_ms, upper("energy_mj"): energy.upper_ms}
        for name, model in self.also.items():
            there = model.predict(archs)
            columns |= {on_device(name): there.mean_ms, upper_on_device(name): there.upper_ms}
        return columns

    def limits(self, budget: Budget) -> list[Constraint]:
        """What proposals keep beside their budgets in ms."""
        found = []
        for name, most in budget.beside.items():
            cost = MemoryCost(self.family, self.workload) if name == "memory_mib" else _bound(self.energy)
            found.append(Constraint(OBJECTIVES[name].budget, OBJECTIVES[name].unit, cost, most))
        for name, budget_ms in budget.also_ms.items():
            found.append(Constraint(on_device(name), "ms", _bound(self.also[name]), budget_ms))
        return found


def memory_costs(family: Family, archs: Sequence[Architecture], workload: Workload) -> dict[str, np.ndarray]:
    """Memory of architectures in MiB and its bound, each [N]. Raises ValueError like `memory_of`."""
    memory = memory_of(family, archs, workload)
    return {"memory_mib": np.array([m.peak_mib for m in memory]), upper("memory_mib"): np.array([m.upper_mib for m in memory])}


def _bound(model: LatencyModel | None) -> Predicted:
    assert isinstance(model, DifferentiableLatencyModel)  # as the pipeline requires
    return Predicted(model)


def measured_energy(measurement: Measurement) -> float:
    """Energy of one run in mJ, the median of its rounds. Raises ValueError if the device did not say it."""
    energies: Mapping[str, list[float]] = measurement.environment
    if "energy_mj" not in energies:
        raise ValueError(
            f"energy_mj: {measurement.arch.id} was measured on {measurement.device} without its energy; "
            f"store=FOLDER, a new one, measures all again"
        )
    return float(np.median(energies["energy_mj"]))


def measured_costs(measurement: Measurement | None, memory_mib: float | None) -> dict[str, float]:
    """What was measured of one network, by the names of objectives; what was not is missing."""
    found = {} if memory_mib is None else {"memory_mib": memory_mib}
    if measurement is None:
        return found
    if "energy_mj" in measurement.environment:
        found["energy_mj"] = measured_energy(measurement)
    return {**found, "latency_ms": measurement.latency_ms}


def _as_energies(measurements: Iterable[Measurement]) -> list[Measurement]:
    """With mJ in the place of ms, for a latency model that learns what a network takes, whatever the unit."""
    return [
        dataclasses.replace(m, samples_ms=((measured_energy(m),),), sentinel_ms=((1.0,),), sentinel_reference_ms=1.0)
        for m in measurements
    ]
