"""Further devices of a study: their latencies are predicted for every candidate, as objectives and under budgets of their own.

A device that measures is calibrated as the first one is, in a folder of the run, and what ships is measured on it in the end; a
table predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from experiments.budgets import check_kept_on
from experiments.calibration import Calibration, Calibrator
from experiments.finishing import Finisher
from experiments.run_directory import RunDirectory
from experiments.table_calibration import TableCalibrator
from experiments.verdicts import USER, Verdict, facts_of
from hardware.recorded import RecordedDevice
from latency_models.surroundings import AnySurroundings
from nas.protocols import Device, DeviceError, DifferentiableLatencyModel
from nas.space import Architecture
from nas.surroundings import bare

FOLDER = "also"  # of the run


@dataclass(frozen=True)
class Companion:
    """A further device, by a name of the user's, and the latency that must not be exceeded there, if any."""

    name: str
    device: Device
    latency_model: DifferentiableLatencyModel
    budget_ms: float | None = None

    def calibrate(self, like: Calibrator, *, seed: int) -> Calibration:
        """Fits its latency model, from measurements as `like` takes them, or from its table. It runs as it is configured, in
        whatever surroundings an architecture picks for the first device.

        Raises:
            BudgetError: the fastest network of the space is not sure to keep the budget.
            DeviceError, ValueError: as the calibrators do.
        """
        family = networks_alone(like.family)
        if isinstance(self.device, RecordedDevice):
            found = TableCalibrator(family, self.device, like.workload, like.report).calibrate(self.latency_model)
        else:
            found = self.calibrator(like).calibrate(self.latency_model, seed=seed)
        if self.budget_ms is not None:
            check_kept_on(
                self.device.name, f"also.{self.name}.budget_ms", self.budget_ms, family.space,
                lambda archs: found.model.predict(archs).upper_ms,
            )  # fmt: skip
        return found if family is like.family else replace(found, model=AnySurroundings(self.latency_model))

    @property
    def is_live(self) -> bool:
        """Whether it can be measured."""
        return not isinstance(self.device, RecordedDevice)

    def calibrator(self, like: Calibrator) -> Calibrator:
        """Of this device, in a folder of the run."""
        run = RunDirectory(like.run / FOLDER / self.name)
        return replace(like, family=networks_alone(like.family), device=self.device, run=run, place=f"on {self.name}")

    def verdict(self, calibration: Calibration, finisher: Finisher, arch: Architecture) -> Verdict | None:
        """Asked, predicted and, where the device measures, measured latency of what ships; None without a budget."""
        if self.budget_ms is None:
            return None
        prediction = calibration.model.predict([arch])
        facts: dict[str, Any] = {"unmeasured": f"{self.device.name} is a table"}
        if self.is_live:
            phase, rounds = f"{self.name}: {finisher.files.label(arch)}", 2 * finisher.settings.rounds
            try:
                there = replace(finisher, device=self.device)
                reference_ms = calibration.sentinel_reference_ms
                facts = facts_of(there.times.measure([arch], reference_ms=reference_ms, phase=phase, rounds=rounds)[arch.id])
            except DeviceError as error:
                facts = {"unmeasured": str(error)}
        return Verdict.of(
            asked_ms=self.budget_ms, asked_origin=USER, predicted_ms=float(prediction.mean_ms[0]),
            predicted_upper_ms=float(prediction.upper_ms[0]), **facts,
        )  # fmt: skip


def networks_alone(family: Any) -> Any:
    """A family without the surroundings that its space may have, which are those of the first device."""
    space = bare(family.space)
    return family if space == family.space else replace(family, space=space)
