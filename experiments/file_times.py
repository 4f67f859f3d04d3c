"""How fast the files of a run's networks are, side by side with the sentinel on the run's device."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from experiments.calibration import CUT_SHORT, MEASUREMENTS, left_by, read_measurements
from experiments.early_exits import ExitFile, Way
from experiments.file_scores import FileScores
from experiments.network_files import NetworkFiles
from experiments.timed_networks import export_for_timing, sentinel_of
from hardware.quality import margin, uncertainty
from hardware.timing import CutShortError, Exported, measure_on
from nas.export import export_for, form_of, runs_onnx
from nas.finish.exits import Exits
from nas.finish.shapes import with_weights
from nas.finish.skips import Skips
from nas.space import Architecture
from nas.supernet import state_of
from nas.types import Measurement


@dataclass(frozen=True)
class FileTimes:
    """Times the files of one run; a verdict, and a comparison, takes twice the `rounds` of the short-list.

    The inputs are random ones, but for a network that may stop early: they are those of `scores`, on which it does or does not.
    """

    files: NetworkFiles
    scores: FileScores
    rounds: int

    def measure(
        self, archs: Sequence[Architecture], *, reference_ms: float | None, phase: str, rounds: int, tag: str | None = None,
        on_visit: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Measurement]:  # fmt: skip
        """Times the finished files beside the sentinel, expressed in its `reference_ms`; what this phase has measured is read."""
        have = read_measurements(self.files.family, self.files.run, phase=phase)
        missing = [a for a in archs if a.id not in have]
        if missing:
            with tempfile.TemporaryDirectory() as folder:
                networks = [self.exported(a, Path(folder), tag=tag) for a in missing]
                try:
                    fresh = self.measure_files(networks, reference_ms=reference_ms, rounds=rounds, on_visit=on_visit)
                except CutShortError as error:
                    self._keep(error.measured, phase=phase + CUT_SHORT)
                    raise
            self._keep(fresh, phase=phase)
            have |= {measurement.arch.id: measurement for measurement in fresh}
        return have

    def _keep(self, measurements: Sequence[Measurement], *, phase: str) -> None:
        for measurement in measurements:
            self.files.run.append(MEASUREMENTS, {"phase": phase, **measurement.to_json()})

    def measure_files(
        self, networks: Sequence[Exported], *, reference_ms: float | None, rounds: int,
        on_visit: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Measurement]:  # fmt: skip
        """Times any files of this family's networks side by side, with the sentinel between them. Raises DeviceError.

        A device that is lost in the middle has measured them if it leaves rounds enough.
        """
        family, device, workload = self.files.family, self.files.device, self.files.workload
        with tempfile.TemporaryDirectory() as folder:
            [timed] = export_for_timing(family, [sentinel_of(family)], workload, Path(folder), device=device)
            try:
                return measure_on(
                    device, networks, sentinel=timed, workload=workload, rounds=rounds,
                    sentinel_reference_ms=reference_ms, on_visit=on_visit,
                )  # fmt: skip
            except CutShortError as error:
                return left_by(error, rounds=rounds)

    def saved(
        self, arch: Architecture, network: nn.Module, others: Sequence[nn.Module], *, reference_ms: float | None
    ) -> list[float]:
        """Shares of a network's latency that others of its architecture save, all as they would be exported and side by side; 0
        where one is not clearly faster. Raises DeviceError."""
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, one in enumerate([network, *others]):
                exact = with_weights(self.files.family.network(arch, backend="blocks"), state_of(one))
                form, example = form_of(self.files.family, exact, self.files.workload)
                path = export_for(self.files.device, form, example, Path(folder) / str(number))
                files.append(Exported(arch, path, {name: value.numpy() for name, value in example.items()}))
            first, *rest = self.measure_files(files, reference_ms=reference_ms, rounds=2 * self.rounds)
        ratios = [(m.latency_ms / first.latency_ms, uncertainty(m, beside=first)) for m in rest]
        return [1 - ratio if ratio * margin(error) <= 1 else 0.0 for ratio, error in ratios]

    def exported(self, arch: Architecture, folder: Path, *, tag: str | None = None) -> Exported:
        """The file that ships, or the same network in the other format that the device runs."""
        if runs_onnx(self.files.device):
            path = self.files.onnx_path(arch, self.files.workload.mode, tag=tag)
        else:
            form, example = form_of(self.files.family, self.files.network(arch, tag=tag), self.files.workload)
            path = export_for(self.files.device, form, example, folder / Path(self.files.name(arch, tag)).name)
        return Exported(arch, path, self.inputs(arch, tag=tag))

    def inputs(self, arch: Architecture, *, tag: str | None = None) -> dict[str, np.ndarray]:
        """What a network is timed with: random inputs, of one that may stop early real ones at which it does not."""
        network = self.files.network(arch, tag=tag)
        if isinstance(network, Exits | Skips):
            return self._exit_file(arch, tag).inputs(stops=False)
        return {name: value.numpy() for name, value in form_of(self.files.family, network, self.files.workload)[1].items()}

    def ways(self, arch: Architecture, folder: Path, *, tag: str) -> list[Way]:
        """All ways through a file, the slowest last; but for one that may stop early there is a single one."""
        exported = self.exported(arch, folder, tag=tag)
        if not isinstance(self.files.network(arch, tag=tag), Exits | Skips):
            return [Way(1.0, exported)]
        file = self._exit_file(arch, tag)
        rate = file.rate()
        return [Way(rate, dataclasses.replace(exported, inputs=file.inputs(stops=True))), Way(1.0 - rate, exported)]

    def _exit_file(self, arch: Architecture, tag: str | None) -> ExitFile:
        return ExitFile(self.files.onnx_path(arch, tag=tag), self.scores.task, self.files.workload, self.scores.feed)

    def verdict(
        self, arch: Architecture, *, reference_ms: float | None, tag: str | None = None,
        on_visit: Callable[[int, int], None] = lambda done, total: None,
    ) -> Measurement:  # fmt: skip
        """One more measurement of a finished network, with twice the rounds."""
        phase, rounds = f"verdict {self.files.label(arch, tag)}", 2 * self.rounds
        return self.measure([arch], reference_ms=reference_ms, phase=phase, rounds=rounds, tag=tag, on_visit=on_visit)[arch.id]
