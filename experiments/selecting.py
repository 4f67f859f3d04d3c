"""From what was explored to what ships: a short-list is trained on its own and measured, and the best within the budgets wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from experiments.baseline_teachers import BaselineTeachers
from experiments.budgets import Budget
from experiments.calibration import Calibration, read_measurements
from experiments.checkpoint_teacher import CheckpointTeachers
from experiments.costing import Costing, Costs, measured_costs
from experiments.finishing import Finisher
from experiments.ledger import spent
from experiments.objectives import upper
from experiments.outcome import Chosen, Finalist
from experiments.progress import Reporter
from experiments.results import StageReport
from experiments.roles import ROLES
from experiments.settings import Settings
from experiments.stages import Stages
from hardware.arena import activations_mib
from hardware.file_memory import memory_of_file
from nas.export import form_of
from nas.finish.teaching import TEACHERS, School
from nas.protocols import DeviceError
from nas.space import Architecture
from nas.types import Candidate, Measurement, Provenance, pareto_front

MEMORY = "memory.json"
SHORT_LIST = "short-list"


@dataclass(frozen=True)
class Selection:
    """The end of one run; what is trained, measured and decided is read from the run's files."""

    finisher: Finisher
    calibration: Calibration
    costing: Costing
    budget: Budget
    baselines: BaselineTeachers
    checkpoints: CheckpointTeachers
    settings: Settings
    report: Reporter

    def finalists(self, shortlists: Mapping[str, Sequence[Candidate]]) -> list[Finalist]:
        """The short-lists of both searches and the hand-designed networks; an architecture that comes twice stays the first."""
        finalists: dict[str, Finalist] = {}
        for role, candidates in shortlists.items():
            for arch in (c.arch for c in candidates):
                finalists.setdefault(arch.id, Finalist(arch, role, ROLES[role]))
        for label, arch in self.finisher.family.hand_designed().items():
            finalists.setdefault(arch.id, Finalist(arch, "hand", label))
        return list(finalists.values())

    def train(self, finalists: Sequence[Finalist], supernet: nn.Module) -> None:
        """Cuts out, trains and exports those that are not finished yet."""
        missing = [f for f in finalists if not self.finisher.files.is_finished(f.arch)]
        if not missing:
            return
        begun = {f.arch: self.finisher.steps(f.arch) for f in finalists if self.finisher.files.is_finished(f.arch)}
        archs = dict.fromkeys([*begun, *(arch for f in missing for arch in self.finisher.to_finish(f.arch))])
        total, last = sum(self.finisher.steps(arch) for arch in archs), ""
        with self.report.phase("Training the short-list", total, done=sum(begun.values())) as advance:

            def on_step(arch: Architecture, step: int) -> None:
                begun[arch] = step
                advance(sum(begun.values()), f"{len(begun)} of {len(archs)}{last}")

            for finalist in missing:
                if not self.finisher.files.is_finished(finalist.arch):  # the largest may have been, to teach
                    with spent(self.finisher.run, SHORT_LIST, networks_trained=1):
                        self.finisher.finish(finalist.arch, supernet, on_step=on_step)
                error = self.finisher.files.record(finalist.arch)["error_percent"]
                last = f", {finalist.label} {finalist.arch.id}: error {error:.1f} %"
                on_step(finalist.arch, self.finisher.steps(finalist.arch))

    def measure(self, finalists: Sequence[Finalist]) -> tuple[Mapping[str, Measurement], str | None]:
        """Measurements of the short-list, all or those of an earlier time, and how the device was lost if it was."""
        archs, rounds = [f.arch for f in finalists], self.settings.finish.rounds
        with spent(self.finisher.run, "measuring the short-list"), self.report.phase(
            "Measuring the short-list", len(archs) * rounds
        ) as advance:  # fmt: skip
            try:
                return self.finisher.times.measure(
                    archs, reference_ms=self.calibration.sentinel_reference_ms, phase=SHORT_LIST, rounds=rounds, tag="",
                    on_visit=lambda done, total: advance(done, total=total),
                ), None  # fmt: skip
            except DeviceError as error:
                lost = str(error)
        self.report.say(f"{lost}; the search goes on with predicted latencies")
        return read_measurements(self.finisher.family, self.finisher.run, phase=SHORT_LIST), lost

    def measure_memory(self, finalists: Sequence[Finalist]) -> dict[str, float]:
        """MiB of each file under ONNX Runtime on this machine, its weights and what it asks its arena for; empty if memory is
        neither an objective nor has a budget. Where it cannot be measured, the file is missing."""
        if "memory_mib" not in self.costing.names:
            return {}
        run = self.finisher.run
        known: dict[str, float] = run.read_json(MEMORY) if run.has(MEMORY) else {}
        with spent(run, "measuring the memory"):
            for arch in (f.arch for f in finalists if f.arch.id not in known):
                try:
                    known[arch.id] = self._memory_mib(arch)
                except DeviceError as error:
                    self.report.say(f"{error}; its memory is predicted")
                run.write_json(MEMORY, known)
        return known

    def _memory_mib(self, arch: Architecture) -> float:
        workload = self.finisher.workload
        _, example = form_of(self.finisher.family, self.finisher.files.network(arch, tag=""), workload)
        path = self.finisher.files.shipped_path(arch, workload.mode, tag="")
        inputs = {name: v.numpy() for name, v in example.items()}
        return memory_of_file(path, inputs).weights_mib + activations_mib(path, inputs)

    def choose(
        self, finalists: Sequence[Finalist], measurements: Mapping[str, Measurement], measured_mib: Mapping[str, float],
        lost: str | None,
    ) -> Chosen:  # fmt: skip
        """The most accurate of all finished networks that also stays within the budgets when it is measured once more.

        Whoever found it: a user wants the best network, and the report says whose it is. The measurement that chose a network
        flatters it, so the verdict has one of its own. When none holds, the fastest ships and the verdict says that the promise
        is broken. What could not be measured of a network is its predicted upper bound, and so is each on further devices.
        """
        archs = [f.arch for f in finalists]
        measured = (_bounds(measured_costs(measurements.get(a.id), measured_mib.get(a.id))) for a in archs)
        most = {a.id: {**c, **known} for a, c, known in zip(archs, self.costing(archs), measured, strict=True)}
        small = sorted(archs, key=lambda a: (self.finisher.files.record(a)["error_percent"], most[a.id]["upper_ms"]))
        limits = {"upper_ms": self.budget.ms}  # and those that some network keeps
        for name, limit in self.budget.limits.items():
            if name != "upper_ms" and (within := [a for a in small if most[a.id][name] <= limit]):
                small, limits[name] = within, limit
        fits = [a for a in small if most[a.id]["upper_ms"] <= self.budget.ms]
        for arch in [*fits, min(small, key=lambda a: most[a.id]["upper_ms"])]:
            if lost is not None:
                return Chosen(arch, None, lost)
            try:
                verdict = self._verdict(arch, tag="")
            except DeviceError as error:
                return Chosen(arch, None, str(error))
            now = {**most[arch.id], **_bounds(measured_costs(verdict, None))}
            if all(now[name] <= limit for name, limit in limits.items()):
                break
        return Chosen(arch, verdict)

    def finish(
        self, choice: Chosen, finalists: Sequence[Finalist], measurements: Mapping[str, Measurement]
    ) -> tuple[Chosen, list[StageReport]]:
        """Takes what ships through the stages; if one of them is kept, the verdict is measured anew."""
        stages = self.settings.stages
        if choice.measurement is None and stages:
            self.report.say(f"{choice.unmeasured}; stages are left out, nothing could be said for them")
            return choice, []

        def teachers(name: str) -> list[nn.Module]:
            if name not in TEACHERS:
                return [self.checkpoints.teacher(name).to(self.finisher.compute.device)]
            if name == "baseline":
                best = self.baselines.better_than(self.finisher.files.record(choice.arch)["error_percent"])
                return [self.baselines.teacher(best).to(self.finisher.compute.device)] if best else []
            archs = self._front(finalists, measurements) if name == "front" else [self.finisher.family.space.largest()]
            return [self.finisher.files.to_train(arch, tag="") for arch in archs]

        reference_ms = self.calibration.sentinel_reference_ms
        school = School(
            self.finisher.task, self.finisher.compute, self.settings.seed, self.finisher.family.space, choice.arch, teachers,
            lambda archs: self.calibration.model.predict(archs).mean_ms.tolist(),
            lambda network, others: self.finisher.times.saved(choice.arch, network, others, reference_ms=reference_ms),
            self.settings.finish.most_points_lost,
        )  # fmt: skip
        reports = Stages(self.finisher, stages, school, reference_ms, self.budget.ms, self.report).run()
        if any(report.kept for report in reports):
            choice = replace(choice, measurement=self._verdict(choice.arch))
        return choice, reports

    def _verdict(self, arch: Architecture, *, tag: str | None = None) -> Measurement:
        with self.report.phase("Measuring what ships", 2 * self.settings.finish.rounds) as advance:
            return self.finisher.times.verdict(
                arch, reference_ms=self.calibration.sentinel_reference_ms, tag=tag,
                on_visit=lambda done, total: advance(done, total=total),
            )  # fmt: skip

    def _front(self, finalists: Sequence[Finalist], measurements: Mapping[str, Measurement]) -> list[Architecture]:
        """The finished networks that no other beats in measured latency and error."""
        finished = [
            Candidate(
                arch,
                objectives={
                    "error": self.finisher.files.record(arch)["error_percent"], "latency_ms": measurements[arch.id].latency_ms,
                },
                provenance={"error": Provenance.RETRAINED, "latency_ms": Provenance.MEASURED},
            )
            for arch in (f.arch for f in finalists)
            if arch.id in measurements
        ]  # fmt: skip
        return [c.arch for c in pareto_front(finished, "latency_ms", "error")]


def _bounds(measured: Costs) -> Costs:
    """What is measured in the place of predicted bounds."""
    return {upper(name): value for name, value in measured.items()}
