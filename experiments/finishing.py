"""From an architecture to a trained network and its file: cut out, train, export, score."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from experiments.checkpoints import TrainingCheckpoint, identity_of
from experiments.file_scores import FileScores
from experiments.file_times import FileTimes
from experiments.network_files import FOLDER, NetworkFiles
from experiments.roles import SCORED_ON
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from nas.compute import Compute
from nas.costs import flops_of
from nas.finish.remembered import Remembered, Remembering, can_remember
from nas.finish.teaching import Checkpoint, Lesson, Nowhere, teach
from nas.protocols import Device, Family, Task
from nas.space import Architecture
from nas.supernet import cut_out, error_percent, evaluation_batches, in_precision
from nas.surroundings import everywhere, network_of
from nas.training import TrainingError, shrink_and_perturb
from nas.types import Workload

TRIED = "tried"  # the tag of trainings that tell an error and leave no network


@dataclass(frozen=True)
class Finisher:
    """Trains stand-alone networks of one run; what is finished is read from its `files`, which its `scores` and `times` judge."""

    family: Family
    task: Task
    device: Device
    workload: Workload
    compute: Compute
    settings: FinishSettings
    seed: int
    run: RunDirectory
    outsider: Callable[[], nn.Module] | None = None  # that teaches: a checkpoint, or a baseline if one is better
    teaching: Architecture | None = None  # a finished network that teaches in the place of the largest
    teachers: dict[str, nn.Module] = field(default_factory=dict)  # networks that have taught, by their ids
    checkpoint_seconds: float = 10.0  # how much of a training a kill may cost
    ships: str | None = None  # the tag of what ships of each network, where it is not for stages to say
    also: Mapping[str, Device] = field(default_factory=dict)  # further devices by name, whose answers are compared

    @functools.cached_property
    def files(self) -> NetworkFiles:
        return NetworkFiles(self.family, self.device, self.workload, self.compute, self.run, self.ships)

    @functools.cached_property
    def scores(self) -> FileScores:
        return FileScores(self.files, self.task, self.seed)

    @functools.cached_property
    def times(self) -> FileTimes:
        return FileTimes(self.files, self.scores, self.settings.rounds)

    def steps(self, arch: Architecture) -> int:
        """Steps that cost as many FLOPs as `train.steps` of the largest network, at most `most_steps`. A step is three times a
        forward pass, and one of a network that teaches, each example once for all of a short-list (see `nas.finish.remembered`);
        what a baseline, or a checkpoint, answers is known."""
        largest, own, teaching = flops_of(self.family, [self.family.space.largest(), arch, self._teacher], self.workload)
        lesson, steps = self.lesson(arch), self.settings.train.steps
        if not lesson.needs_teacher or lesson.is_of_outsider:
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
        alone = self.outsider is None if lesson.is_of_outsider else network_of(arch) == network_of(self._teacher)
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
        checkpoint = self._checkpoint(arch, "", steps)
        twin = next((a for a in everywhere(self.family.space, [arch]) if self.files.is_finished(a)), None)
        setbacks: list[str] = []
        network = self.files.to_train(twin, tag="") if twin else self._trained(
            arch, supernet, teachers, setbacks, steps=steps, on_step=functools.partial(on_step, arch), checkpoint=checkpoint
        )  # fmt: skip
        report = self.files.export(arch, network, tag="")
        error = self.scores.of(arch, "validation", tag="")["error_percent"]
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
        name = f"{self.files.name(arch, tag)}.ckpt"
        return TrainingCheckpoint(self.run, name, identity_of(how), self.compute, self.checkpoint_seconds)

    def _checkpoint(self, arch: Architecture, tag: str, steps: int) -> TrainingCheckpoint:
        return self.checkpoint(arch, tag, [self.settings.train, self.lesson(arch), self.settings.inherit, steps])

    def error_after(self, arch: Architecture, supernet: nn.Module, *, share: float) -> float:
        """Error in percent of the split that scores candidates, after a training of that share of the steps. Nothing is left of
        it; one that was stopped goes on from `shortlist/<id>.tried.ckpt`. Raises TrainingError, and RunError like `finish`."""
        steps = max(1, round(share * self.steps(arch)))
        teachers, checkpoint = self._teachers(arch, supernet), self._checkpoint(arch, TRIED, steps)
        try:
            network = self._trained(arch, supernet, teachers, [], steps=steps, checkpoint=checkpoint)
            with in_precision(network, arch):
                error = self._error_percent(network, SCORED_ON)
        except TrainingError:
            checkpoint.remove()
            raise
        checkpoint.remove()
        return error

    def to_finish(self, arch: Architecture) -> tuple[Architecture, ...]:
        """What `finish` trains, in its order: the network, and its teacher before it where that is not finished."""
        lesson = self.lesson(arch)
        first = lesson.needs_teacher and not lesson.is_of_outsider and not self.files.is_finished(self._teacher)
        return (self._teacher, arch) if first else (arch,)

    def _teachers(
        self, arch: Architecture, supernet: nn.Module, on_step: Callable[[Architecture, int], None] = lambda arch, step: None
    ) -> list[nn.Module]:
        """Of the lesson, if it needs any: a finished network, or a baseline."""
        lesson = self.lesson(arch)
        if not lesson.needs_teacher:
            return []
        if lesson.is_of_outsider and self.outsider is not None:
            return [self.outsider().to(self.compute.device)]
        if not self.files.is_finished(self._teacher):
            self.finish(self._teacher, supernet, on_step=on_step)
        if self._teacher.id not in self.teachers:
            network = self.files.to_train(self._teacher, tag="")
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
