"""From an architecture to a file whose accuracy and latency were measured: cut out, train, export, measure."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.calibration import CUT_SHORT, MEASUREMENTS, export_for_timing, left_by, read_measurements, sentinel_of
from experiments.checkpoints import TrainingCheckpoint, identity_of, loaded
from experiments.early_exits import ExitFile, Way
from experiments.onnx_inputs import read_graph
from experiments.roles import SCORED_ON
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from hardware.quality import margin, uncertainty
from hardware.surroundings import device_of
from hardware.timing import CutShortError, Exported, HasDeployment, measure_on
from nas.attention import Backend
from nas.compute import Compute
from nas.costs import flops_of
from nas.export import ExportReport, compare, export_for, export_onnx, form_of, format_of, runs_onnx
from nas.finish.exits import Exits
from nas.finish.remembered import Remembered, Remembering, can_remember
from nas.finish.shapes import with_weights
from nas.finish.skips import Skips
from nas.finish.teaching import Checkpoint, Lesson, Nowhere, teach
from nas.formats import FORMATS, Answer
from nas.protocols import Batch, Device, Family, GenerativeFamily, Task, TaskWithMetrics
from nas.space import Architecture
from nas.supernet import cut_out, error_percent, evaluation_batches, in_precision, state_of
from nas.surroundings import everywhere, network_of
from nas.training import shrink_and_perturb
from nas.types import MODES, Measurement, Workload

FOLDER = "shortlist"


@dataclass(frozen=True)
class Finisher:
    """Trains, exports and scores stand-alone networks of one run; what is finished is read from its files.

    A network that ships may have gone through stages after its training (see `experiments.stages`). The files of each stage have
    its name as their `tag`, those of the training alone the empty one; `None` is whatever ships.
    """

    family: Family
    task: Task
    device: Device
    workload: Workload
    compute: Compute
    settings: FinishSettings
    seed: int
    run: RunDirectory
    baseline: Callable[[], nn.Module] | None = None  # that may teach the short-list, where one is better
    teaching: Architecture | None = None  # a finished network that teaches in the place of the largest
    teachers: dict[str, nn.Module] = field(default_factory=dict)  # networks that have taught, by their ids
    checkpoint_seconds: float = 10.0  # how much of a training a kill may cost
    ships: str | None = None  # the tag of what ships of each network, where it is not for stages to say

    def is_finished(self, arch: Architecture) -> bool:
        return self.run.has(f"{FOLDER}/{arch.id}.json")

    def record(self, arch: Architecture) -> dict[str, Any]:
        """Facts of a trained network: validation error in percent, parameters, seconds, export report."""
        facts: dict[str, Any] = self.run.read_json(f"{FOLDER}/{arch.id}.json")
        return facts

    def name(self, arch: Architecture, tag: str | None = None) -> str:
        """How a network's files begin, from the run's directory."""
        tag = self.stages(arch)["ships"] if tag is None else tag
        return f"{FOLDER}/{arch.id}{tag and '.' + tag}"

    def label(self, arch: Architecture, tag: str | None = None) -> str:
        """What tells the files of an architecture apart: its id, and after a stage that stage with all that went before."""
        name = self.name(arch, tag)
        own = Path(name).name
        return own if own == arch.id else f"{own} {self.run.read_json(f'{name}.json')['identity']}"

    def stages(self, arch: Architecture) -> dict[str, Any]:
        """Which stage's files ship ("" if none's), and the records of all `stages` that the network went through."""
        if self.ships is not None:
            return {"ships": self.ships, "stages": []}
        name = f"{FOLDER}/{arch.id}.stages.json"
        record: dict[str, Any] = self.run.read_json(name) if self.run.has(name) else {"ships": "", "stages": []}
        return record

    def steps(self, arch: Architecture) -> int:
        """Steps that cost as many FLOPs as `train.steps` of the largest network, at most `most_steps`. A step is three times a
        forward pass, and one of a network that teaches, each example once for all of a short-list (see `nas.finish.remembered`);
        what a baseline answers is known."""
        largest, own, teaching = flops_of(self.family, [self.family.space.largest(), arch, self._teacher], self.workload)
        lesson, steps = self.lesson(arch), self.settings.train.steps
        if not lesson.needs_teacher or lesson.is_of_baseline:
            return min(self.settings.most_steps, int(steps * largest / own))
        remembers = self._remembers(lesson)
        asking = teaching / 3 / (self.settings.shortlist if remembers else 1)
        new = steps * largest / (own + asking)
        if remembers and new > self._steps_of_an_epoch:
            new = (steps * largest - self._steps_of_an_epoch * asking) / own
        return min(self.settings.most_steps, int(new))

    def _remembers(self, lesson: Lesson) -> bool:
        return lesson.match == ("answers",) and can_remember(self.task)

    @property
    def _teacher(self) -> Architecture:
        return self.teaching or self.family.space.largest()

    @functools.cached_property
    def _steps_of_an_epoch(self) -> int:
        return sum(1 for _ in self.task.batches("train", tokens_per_batch=self.settings.train.tokens_per_batch, seed=self.seed))

    def lesson(self, arch: Architecture) -> Lesson:
        """Without a teacher for whom there is none: a network does not teach itself."""
        lesson = self.settings.lesson
        alone = self.baseline is None if lesson.is_of_baseline else network_of(arch) == network_of(self._teacher)
        return dataclasses.replace(lesson, beta=(0.0, 0.0)) if alone else lesson

    def finish(
        self, arch: Architecture, supernet: nn.Module, *,
        on_step: Callable[[Architecture, int], None] = lambda arch, step: None,
    ) -> None:  # fmt: skip
        """Cuts out, trains, exports and scores on the validation split; writes `shortlist/<id>.{safetensors,onnx,json}`.

        If its lesson needs a teacher, the largest network is finished first. What is finished for other surroundings is not
        trained again. `on_step` is called after each step with what is trained and how many of its steps are done. A training
        that was stopped goes on from `shortlist/<id>.ckpt`, as `teach` says.

        Raises:
            RunError: that file is damaged.
        """
        teachers = self._teachers(arch, supernet, on_step)
        steps = self.steps(arch)
        checkpoint = self.checkpoint(arch, "", [self.settings.train, self.lesson(arch), self.settings.inherit, steps])
        twin = next((a for a in everywhere(self.family.space, [arch]) if self.is_finished(a)), None)
        setbacks: list[str] = []
        network = self.to_train(twin, tag="") if twin else self._trained(
            arch, supernet, teachers, setbacks, steps=steps, on_step=functools.partial(on_step, arch), checkpoint=checkpoint
        )  # fmt: skip
        report = self.export(arch, network, tag="")
        error = self.file_scores(arch, "validation", tag="")["error_percent"]
        name = "the largest network" if self.teaching is None else self.teaching.id
        taught_by = [teacher.name if isinstance(teacher, Remembered) else name for teacher in teachers]
        facts = {
            "arch": arch.to_json(), "error_percent": error, "train_steps": steps,
            "train_seconds": round(checkpoint.spent, 2),
            "taught_by": taught_by, "setbacks": setbacks, "export": report.to_json(),
        }  # fmt: skip
        self.run.write_json(f"{FOLDER}/{arch.id}.json", facts)
        checkpoint.remove()

    def checkpoint(self, arch: Architecture, tag: str, how: Any) -> TrainingCheckpoint:
        """Of the training whose files have this tag; one that learned in another way than `how` is not gone on with."""
        name = f"{self.name(arch, tag)}.ckpt"
        return TrainingCheckpoint(self.run, name, identity_of(how), self.compute, self.checkpoint_seconds)

    def error_after(self, arch: Architecture, supernet: nn.Module, *, share: float) -> float:
        """Error in percent of the split that scores candidates, after a training of that share of the steps; writes nothing."""
        steps = max(1, round(share * self.steps(arch)))
        network = self._trained(arch, supernet, self._teachers(arch, supernet), [], steps=steps)
        with in_precision(network, arch):
            return self._error_percent(network, SCORED_ON)

    def to_finish(self, arch: Architecture) -> tuple[Architecture, ...]:
        """What `finish` trains, in its order: the network, and its teacher before it where that is not finished."""
        lesson = self.lesson(arch)
        first = lesson.needs_teacher and not lesson.is_of_baseline and not self.is_finished(self._teacher)
        return (self._teacher, arch) if first else (arch,)

    def _teachers(
        self, arch: Architecture, supernet: nn.Module, on_step: Callable[[Architecture, int], None] = lambda arch, step: None
    ) -> list[nn.Module]:
        """Of the lesson, if it needs any: a finished network, or a baseline."""
        lesson = self.lesson(arch)
        if not lesson.needs_teacher:
            return []
        if lesson.is_of_baseline and self.baseline is not None:
            return [self.baseline().to(self.compute.device)]
        if not self.is_finished(self._teacher):
            self.finish(self._teacher, supernet, on_step=on_step)
        if self._teacher.id not in self.teachers:
            network = self.to_train(self._teacher, tag="")
            self.teachers[self._teacher.id] = Remembering(network) if self._remembers(lesson) else network
        return [self.teachers[self._teacher.id]]

    def _trained(
        self, arch: Architecture, supernet: nn.Module, teachers: Sequence[nn.Module], setbacks: list[str], *, steps: int,
        on_step: Callable[[int], None] = lambda step: None,
        checkpoint: Checkpoint = Nowhere(),  # noqa: B008 (it has no state)
    ) -> nn.Module:  # fmt: skip
        """Cut out and trained; what went wrong on the way is added to `setbacks`."""
        torch.manual_seed(self.seed)
        fresh = self.family.network(arch)
        network = cut_out(self.family, supernet, arch, self.compute)
        shrink_and_perturb(network, fresh, inherit=self.settings.inherited(steps))
        config = dataclasses.replace(self.settings.train, steps=steps)
        teach(
            network, self.task, config, self.lesson(arch), teachers=teachers, compute=self.compute, seed=self.seed,
            on_step=on_step, on_setback=setbacks.append, checkpoint=checkpoint,
        )  # fmt: skip
        return network

    def _error_percent(self, network: nn.Module, split: str = "validation") -> float:
        batches = [batch.to(self.compute.device) for batch in evaluation_batches(self.task, split)]
        return error_percent(network.eval(), batches, self.task, self.compute)

    def export(self, arch: Architecture, network: nn.Module, *, tag: str) -> ExportReport:
        """Writes a trained network's weights and its file."""
        with self.run.replacing(f"{self.name(arch, tag)}.safetensors") as path:
            save_file(state_of(network), path)
        example = self.family.example_input(self.workload)
        return export_onnx(self.network(arch, tag=tag), example, self.onnx_path(arch, tag=tag), kind=self.onnx_kind)

    @property
    def onnx_kind(self) -> str:
        """Which kind of ONNX file is scored and ships: the one that the device runs, if it runs any."""
        return format_of(self.device) if runs_onnx(self.device) else "onnxruntime"

    def network(self, arch: Architecture, *, tag: str | None = None, backend: Backend = "blocks") -> nn.Module:
        """A finished network, by default in the form that is exported, in float32 on the CPU. Raises RunError for weights that
        are damaged."""
        path, blank = self.run / f"{self.name(arch, tag)}.safetensors", self.family.network(arch, backend=backend)
        network: nn.Module = loaded(path, lambda path: with_weights(blank, load_file(path)), advice=_again(arch))
        return network.eval()

    def check(self, arch: Architecture) -> None:
        """Raises RunError for a damaged file of those that ship, or its weights."""
        self.network(arch)
        for mode in self.modes:
            loaded(self.onnx_path(arch, mode), read_graph, advice=_again(arch))

    def to_train(self, arch: Architecture, *, tag: str | None = None) -> nn.Module:
        """The same in the form that is trained, on the device that trains."""
        return self.network(arch, tag=tag, backend=self.compute.backend).to(self.compute.device)

    def measure(
        self, archs: Sequence[Architecture], *, reference_ms: float | None, phase: str, rounds: int, tag: str | None = None,
        on_visit: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Measurement]:  # fmt: skip
        """Times the finished files beside the sentinel, expressed in its `reference_ms`; what this phase has measured is read."""
        have = read_measurements(self.family, self.run, phase=phase)
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
            self.run.append(MEASUREMENTS, {"phase": phase, **measurement.to_json()})

    def measure_files(
        self, networks: Sequence[Exported], *, reference_ms: float | None, rounds: int,
        on_visit: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Measurement]:  # fmt: skip
        """Times any files of this family's networks side by side, with the sentinel between them. Raises DeviceError.

        A device that is lost in the middle has measured them if it leaves rounds enough.
        """
        with tempfile.TemporaryDirectory() as folder:
            sentinel = sentinel_of(self.family)
            [timed] = export_for_timing(self.family, [sentinel], self.workload, Path(folder), device=self.device)
            try:
                return measure_on(
                    self.device, networks, sentinel=timed, workload=self.workload, rounds=rounds,
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
                exact = with_weights(self.family.network(arch, backend="blocks"), state_of(one))
                form, example = form_of(self.family, exact, self.workload)
                path = export_for(self.device, form, example, Path(folder) / str(number))
                files.append(Exported(arch, path, {name: value.numpy() for name, value in example.items()}))
            first, *rest = self.measure_files(files, reference_ms=reference_ms, rounds=2 * self.settings.rounds)
        ratios = [(m.latency_ms / first.latency_ms, uncertainty(m, beside=first)) for m in rest]
        return [1 - ratio if ratio * margin(error) <= 1 else 0.0 for ratio, error in ratios]

    def exported(self, arch: Architecture, folder: Path, *, tag: str | None = None) -> Exported:
        """The file that ships, or the same network in the other format that the device runs."""
        if runs_onnx(self.device):
            path = self.onnx_path(arch, self.workload.mode, tag=tag)
        else:
            form, example = form_of(self.family, self.network(arch, tag=tag), self.workload)
            path = export_for(self.device, form, example, folder / Path(self.name(arch, tag)).name)
        return Exported(arch, path, self.inputs(arch, tag=tag))

    def inputs(self, arch: Architecture, *, tag: str | None = None) -> dict[str, np.ndarray]:
        """What a network is timed with: random inputs, of one that may stop early real ones at which it does not."""
        network = self.network(arch, tag=tag)
        if isinstance(network, Exits | Skips):
            return self._exit_file(arch, tag).inputs(stops=False)
        return {name: value.numpy() for name, value in form_of(self.family, network, self.workload)[1].items()}

    def ways(self, arch: Architecture, folder: Path, *, tag: str) -> list[Way]:
        """All ways through a file, the slowest last; but for one that may stop early there is a single one."""
        exported = self.exported(arch, folder, tag=tag)
        if not isinstance(self.network(arch, tag=tag), Exits | Skips):
            return [Way(1.0, exported)]
        file = self._exit_file(arch, tag)
        rate = file.rate()
        return [Way(rate, dataclasses.replace(exported, inputs=file.inputs(stops=True))), Way(1.0 - rate, exported)]

    def _exit_file(self, arch: Architecture, tag: str | None) -> ExitFile:
        return ExitFile(self.onnx_path(arch, tag=tag), self.task, self.workload, self.feed)

    def verdict(
        self, arch: Architecture, *, reference_ms: float | None, tag: str | None = None,
        on_visit: Callable[[int, int], None] = lambda done, total: None,
    ) -> Measurement:  # fmt: skip
        """One more measurement of a finished network, with twice the rounds."""
        phase, rounds = f"verdict {self.label(arch, tag)}", 2 * self.settings.rounds
        return self.measure([arch], reference_ms=reference_ms, phase=phase, rounds=rounds, tag=tag, on_visit=on_visit)[arch.id]

    def file_scores(self, arch: Architecture, split: str, *, tag: str | None = None) -> dict[str, Any]:
        """`error_percent` and the task's own `metrics` of the file that ships itself, run by ONNX Runtime over a split."""
        return self.scores_of(self.shipped_path(arch, tag=tag), split)

    def scores_of(self, path: Path, split: str) -> dict[str, Any]:
        """The same of any ONNX file of such a network."""
        return self.scored(FORMATS["onnx"].open(path), split)

    def scored(self, answer: Answer, split: str) -> dict[str, Any]:
        """`error_percent`, the task's own `metrics`, the mean `loss` and `num_examples` of whatever answers, over a split."""
        wrong, loss, total = 0.0, 0.0, 0
        sums: Counter[str] = Counter()
        for outputs, targets in self._answers(answer, split):
            wrong += self.task.error(outputs, targets)
            loss += float(self.task.loss(outputs, targets)) * len(targets)
            total += len(targets)
            if isinstance(self.task, TaskWithMetrics):
                sums.update(self.task.totals(outputs, targets))
        metrics = dict(self.task.metrics(sums)) if isinstance(self.task, TaskWithMetrics) else {}
        return {"error_percent": 100.0 * wrong / total, "metrics": metrics, "loss": loss / total, "num_examples": total}

    def errors_by_example(self, arch: Architecture, split: str, *, tag: str | None = None) -> np.ndarray:
        """Error in percent of each example [N], in the split's order, of the file that ships itself."""
        answer = FORMATS["onnx"].open(self.shipped_path(arch, tag=tag))
        pairs = (pair for outputs, targets in self._answers(answer, split) for pair in zip(outputs, targets, strict=True))
        return 100.0 * np.array([self.task.error(output[None], target[None]) for output, target in pairs])

    def _answers(self, answer: Answer, split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Outputs and targets of each batch."""
        for batch in evaluation_batches(self.task, split):
            with torch.no_grad():
                outputs = torch.from_numpy(answer(self._named(batch))[0])
            yield outputs, batch.targets

    def parity(self, arch: Architecture, *, num_examples: int = 256, tag: str | None = None) -> dict[str, Any]:
        """How the file's answers agree with the network's on at least so many real test inputs (their labels are not read)."""
        inputs = self.real_inputs(num_examples)
        difference, equal, total = compare(self.network(arch, tag=tag), self.shipped_path(arch, tag=tag), inputs)
        return {"num_examples": total, "max_abs_difference": difference, "equal_decisions": equal / total, "inputs": "test split"}

    def real_inputs(self, num_examples: int) -> list[dict[str, torch.Tensor]]:
        """At least so many of the test split, if it has them, without their labels."""
        inputs, total = [], 0
        for batch in self.task.batches("test", tokens_per_batch=2048, seed=self.seed):
            inputs.append(self._named(batch))
            total += len(batch.targets)
            if total >= num_examples:
                break
        return inputs

    def onnx_path(self, arch: Architecture, mode: str = "encode", *, tag: str | None = None) -> Path:
        """The file of a finished network; for another mode than `encode` it is written when it is first asked for."""
        name = self.name(arch, tag)
        if mode == "encode":
            return self.run / f"{name}.onnx"
        path = self.run / f"{name}.{mode}.onnx"
        if not path.is_file():
            whole = self.workload.encoded
            tokens, past = (whole.tokens, 0) if mode == "prefill" else (1, whole.tokens - 1)
            workload = Workload(whole.batch, tokens, mode, past)
            export_onnx(*form_of(self.family, self.network(arch, tag=tag), workload), path, kind=self.onnx_kind)
        return path

    @property
    def modes(self) -> tuple[str, ...]:
        """The forms that ship; the first answers for whole inputs."""
        return MODES if isinstance(self.family, GenerativeFamily) else MODES[:1]

    def files(self, arch: Architecture) -> dict[str, Path]:
        """What ships, by its names there."""
        return {f"{'model' if mode == 'encode' else mode}.onnx": self.shipped_path(arch, mode) for mode in self.modes}

    def shipped_path(self, arch: Architecture, mode: str = "encode", *, tag: str | None = None) -> Path:
        """The file that the device really runs, of those that are ONNX: the exported one, or its quantisation."""
        path = self.onnx_path(arch, mode, tag=tag)
        device = device_of(self.device, arch)
        return device.deployed(path) if isinstance(device, HasDeployment) else path

    def feed(self, batch: Batch) -> dict[str, np.ndarray]:
        """A batch's inputs as the file takes them."""
        return {name: value.numpy() for name, value in self._named(batch).items()}

    def _named(self, batch: Batch) -> dict[str, torch.Tensor]:
        return dict(zip(self.family.example_input(self.workload), batch.inputs, strict=True))


def _again(arch: Architecture) -> str:
    return f"delete {FOLDER}/{arch.id}.* of the run, and the same search makes them again"
