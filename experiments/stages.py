"""What the network that ships goes through after its training: each stage is judged by what its file measures.

A stage's file is scored on the validation split and timed beside the file that it began with, in turn. It takes that file's
place if it is faster, or not slower and more accurate, and loses at most the points that it may; else the next stage begins with
what was there before, and the report says why. The latency of a file that may stop early is the expected one, by how often it
stops on the validation split.

A stage writes `shortlist/<id>.<stage>.{safetensors,onnx,json}` and `shortlist/<id>.stages.json`; what it has finished is read.
While it trains it writes `shortlist/<id>.<stage>.ckpt`, and goes on there when it was stopped.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from experiments.calibration import MEASUREMENTS
from experiments.checkpoint_teacher import check_teacher
from experiments.checkpoints import identity_of
from experiments.early_exits import TimedWays, exit_facts, told
from experiments.finishing import Finisher
from experiments.formatting import format_ms
from experiments.ledger import spent
from experiments.network_files import FOLDER
from experiments.progress import Advance, Reporter
from experiments.quantising import Quantising
from experiments.results import StageFigures, StageReport
from experiments.run_directory import RunDirectory
from hardware.quality import margin
from hardware.timing import Exported
from nas.export import runs_onnx
from nas.finish import prune
from nas.finish.early_exit import EarlyExit
from nas.finish.exits import Exits
from nas.finish.layer_skip import LayerSkip
from nas.finish.quantise import Quantise
from nas.finish.remembered import Remembered
from nas.finish.skips import Skips
from nas.finish.stage import NothingToDoError, ReadsFile, Stage
from nas.finish.teaching import Lesson, School
from nas.protocols import Device, DeviceError, Family, GenerativeFamily, Task
from nas.space import Architecture, SearchSpace
from nas.types import Measurement
from search_spaces.pooling import pool_sizes
from search_spaces.reduction import KEEP


@dataclass(frozen=True)
class Stages:
    """Applies stages to one finished network.

    Args:
        school: where it learns; its teacher "itself" is the network as it was before the stage.
        reference_ms: the sentinel's time that latencies are expressed in.
        budget_ms: that no input may exceed after a stage, if none did before.
    """

    finisher: Finisher
    stages: Mapping[str, Stage]
    school: School
    reference_ms: float | None
    budget_ms: float
    report: Reporter

    def run(self) -> list[StageReport]:
        """The reports of all stages, in their order. Raises TrainingError and ExportError."""
        reports: list[StageReport] = []
        ships = ""
        for name, stage in self.stages.items():
            identity = identity_of([stage, ships, [r.identity for r in reports]])
            known = f"{FOLDER}/{self.arch.id}.{name}.json"
            record = self._run.read_json(known) if self._run.has(known) else {}
            if record.get("identity") != identity:
                with (
                    spent(self._run, f"stage {name}", networks_trained=1),
                    self.report.phase(f"Stage {name}", stage.train.steps) as advance,
                ):
                    record = self._one(name, stage, ships, identity, advance).to_json()
                if record["after"]["latency_ms"] is not None:  # else it is done again when the device is there
                    self._run.write_json(known, record)
                    self.finisher.checkpoint(self.arch, name, identity).remove()
            reports.append(StageReport.from_json(record))
            ships = name if reports[-1].kept else ships
            self.report.say(f"{name}: {reports[-1].sentence}")
        listed = f"{FOLDER}/{self.arch.id}.stages.json"
        if reports or self._run.has(listed):
            self._run.write_json(listed, {"ships": ships, "stages": [report.to_json() for report in reports]})
        return reports

    @property
    def arch(self) -> Architecture:
        return self.school.arch

    @property
    def _run(self) -> RunDirectory:
        return self.finisher.run

    def _one(self, name: str, stage: Stage, before: str, identity: str, advance: Advance) -> StageReport:
        def on_visit(done: int, total: int) -> None:
            advance(stage.train.steps, f"timed beside what was before: visit {done} of {total}")

        try:
            facts = self._apply(name, stage, before, identity, advance)
            return self._judge(name, before, name, identity, facts, on_visit)
        except (NothingToDoError, DeviceError) as error:  # what was there stays, and is measured once more
            report = self._judge(name, before, before, identity, {}, on_visit)
            return dataclasses.replace(report, kept=False, sentence=f"does not ship, {error}")

    def _apply(self, name: str, stage: Stage, before: str, identity: str, advance: Advance) -> dict[str, Any]:
        """Writes the files that the stage makes of those before it; its facts."""
        finisher, arch, facts = self.finisher, self.arch, dict[str, Any]()

        def teachers(wanted: str) -> Sequence[Any]:
            found = [finisher.files.to_train(arch, tag=before)] if wanted == "itself" else self.school.teachers(wanted)
            if baselines := [teacher.name for teacher in found if isinstance(teacher, Remembered)]:
                facts["taught_by"] = baselines
            return found

        checkpoint = finisher.checkpoint(arch, name, identity)
        school = dataclasses.replace(self.school, teachers=teachers, facts=facts, checkpoint=checkpoint, on_step=advance)
        torch.manual_seed(finisher.seed)  # what a stage adds to a network begins alike in a run that was stopped before it
        network = stage.apply(finisher.files.to_train(arch, tag=before), school)
        for mode in finisher.files.modes:  # of an earlier try with other settings
            (self._run / f"{finisher.files.name(arch, name)}.{mode}.onnx").unlink(missing_ok=True)
        finisher.files.export(arch, network, tag=name)
        if isinstance(stage, Quantise):
            facts |= Quantising(finisher, arch, stage, self._measured).replace_files(before, name)
        if isinstance(stage, ReadsFile):
            facts |= stage.facts_of(onnx.load(finisher.files.onnx_path(arch, tag=name)))
        return facts

    def _judge(
        self, name: str, before: str, after: str, identity: str, facts: dict[str, Any], on_visit: Callable[[int, int], None]
    ) -> StageReport:
        tags = {"before": before, "after": after}
        timed: dict[str, TimedWays] = {}
        error_of_ratio, lost = math.nan, ""
        try:
            with tempfile.TemporaryDirectory() as folder:
                ways = {when: self.finisher.times.ways(self.arch, Path(folder), tag=tag) for when, tag in tags.items()}
                measured = iter(self._measured([way.exported for both in ways.values() for way in both], on_visit))
            for when, both in ways.items():
                timed[when] = TimedWays([way.share for way in both], [next(measured) for _ in both])
                for share, measurement in zip(timed[when].shares, timed[when].measurements, strict=True):
                    self._run.append(MEASUREMENTS, {"phase": f"stage {name} {when}", "share": share, **measurement.to_json()})
            error_of_ratio = timed["after"].uncertainty(beside=timed["before"])
        except DeviceError as error:
            lost = str(error)
        figures = {
            when: StageFigures(
                error_percent=self.finisher.scores.of(self.arch, "validation", tag=tag)["error_percent"],
                latency_ms=timed[when].expected_ms if when in timed else None,
                file_bytes=self.finisher.files.shipped_path(self.arch, tag=tag).stat().st_size,
                num_parameters=sum(p.numel() for p in self.finisher.files.network(self.arch, tag=tag).parameters()),
            )
            for when, tag in tags.items()
        }
        limit = self.finisher.settings.most_points_lost
        kept, sentence = judged(**figures, error_of_ratio=error_of_ratio, most_points_lost=limit, lost=lost)
        if facts.get("not_faster"):
            sentence = f"{sentence}; maps of {', '.join(facts['not_faster'])} stay whole, in factors they are NOT clearly FASTER"
        if facts.get("layers_gone"):
            sentence = f"{sentence}; without layer {' and '.join(map(str, facts['layers_gone']))} of the network before"
        if "pattern_kept" in facts:
            sentence = f"{sentence}; {prune.told(facts)}"
            if not facts["pattern_kept"]:
                kept, sentence = False, f"does not ship, its file does NOT KEEP THE PATTERN: {prune.told(facts)}"
        if taught_by := facts.get("taught_by"):
            sentence = f"{sentence}; it learned from {' and '.join(taught_by)}, too"
        for words in facts.get("setbacks", ()):
            sentence = f"{sentence}; in its training {words}"
        network = self.finisher.files.network(self.arch, tag=after)
        if isinstance(network, Exits | Skips) and timed:
            facts = {**facts, **exit_facts(network, timed["after"])}
            sentence = f"{sentence}; {told(facts)}"
            if kept and timed["before"].slowest_ms <= self.budget_ms < facts["full_ms"]:
                kept = False
                sentence = f"does not ship, all layers are over the budget of {self.budget_ms:g} ms: {told(facts)}"
        return StageReport(name, kept, sentence, **figures, facts=facts, identity=identity)

    def _measured(
        self, files: Sequence[Exported], on_visit: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Measurement]:
        rounds = 2 * self.finisher.settings.rounds
        return self.finisher.times.measure_files(files, reference_ms=self.reference_ms, rounds=rounds, on_visit=on_visit)


def judged(
    before: StageFigures, after: StageFigures, *, error_of_ratio: float, most_points_lost: float, lost: str
) -> tuple[bool, str]:  # fmt: skip
    """Whether a stage's file takes the place of the one before it, and why in words.

    Args:
        error_of_ratio: relative standard error of the ratio of the latencies; see `hardware.quality.margin`.
        lost: how the device was lost, if it was.
    """
    points = after.error_percent - before.error_percent
    errors = f"error {before.error_percent:.2f} % before, {after.error_percent:.2f} % after"
    if before.latency_ms is None or after.latency_ms is None:
        return False, f"NOT MEASURED, so it does not ship ({lost}); {errors}"
    speedup = before.latency_ms / after.latency_ms
    first, last = (format_ms(figures.latency_ms) for figures in (before, after))
    words = f"{first} ms before, {last} ms after ({speedup:.2f} ± {error_of_ratio * speedup:.2f} times as fast); {errors}"
    if points > most_points_lost:
        return False, f"does not ship, it loses {points:.2f} points and {most_points_lost:g} are allowed: {words}"
    if speedup >= margin(error_of_ratio):
        return True, f"ships, it is faster: {words}"
    if speedup <= 1 / margin(error_of_ratio):
        return False, f"does not ship, it is SLOWER: {words}"
    if points < 0:
        return True, f"ships, it is more accurate in as much time: {words}"
    return False, f"does not ship, it is NEITHER FASTER NOR MORE ACCURATE: {words}"


def check_stages(stages: Mapping[str, Stage], *, task: Task, family: Family, device: Device) -> None:
    """Refuses what cannot work before any work is done.

    Raises:
        ValueError: a cut of layers that share keys and values or are factored; a quantisation, or an early exit, of files that
            the device does not run, or quantises itself; a calibration of decoders; an early exit of what does not classify whole
            inputs, or in a precision that has none; a quantisation of layers whose precision was chosen; class weights without
            classes; tokens of a teacher that the network does not have; a checkpoint that cannot teach the task.
    """
    for name in ("early_exit", "layer_skip", "quantise"):
        if name in stages and (not runs_onnx(device) or device.environment.get("precision", "fp32") != "fp32"):
            raise ValueError(f"stages.{name}: the device {device.name} does not run ONNX files in float32")
    classes, quantise = task.sizes.get("num_classes", 0), stages.get("quantise")
    branching = [name for name, stage in stages.items() if isinstance(stage, EarlyExit | LayerSkip)]
    for name in branching:
        if isinstance(family, GenerativeFamily) or classes < 2 or task.sizes.get("per_token"):
            raise ValueError(f"stages.{name}: it is for classification of whole inputs, the task {task.name} is none")
        if isinstance(quantise, Quantise) and quantise.kind != "dynamic":
            raise ValueError(f"stages.quantise.kind: {quantise.kind!r} does not go with {name}; allowed is 'dynamic'")
    if len(branching) > 1:
        raise ValueError(f"stages: {branching} do not go together, a file has one branch")
    if isinstance(quantise, Quantise) and quantise.kind == "static" and isinstance(family, GenerativeFamily):
        raise ValueError("stages.quantise.kind: 'static' is not for decoders; allowed are 'dynamic', 'fp16' and 'int4'")
    if isinstance(quantise, Quantise) and "layer1.precision" in family.space.by_name:
        chosen = f"the space {family.space.name} chooses the precision of layers"
        if isinstance(family, GenerativeFamily):
            raise ValueError(f"stages.quantise: {chosen}, and of a decoder nothing else is quantised")
        if quantise.kind == "fp16":
            raise ValueError(
                f"stages.quantise.kind: {chosen}, and 'fp16' would change it; allowed are 'dynamic', 'static', 'int4'"
            )
    uncut = [c.name for c in family.space if "kv_heads" in c.name or "lowrank" in c.options]
    if "cut" in stages and uncut:
        raise ValueError(f"stages.cut: the space {family.space.name} has the choice {uncut[0]}, whose layers cannot be cut")
    for name, stage in stages.items():
        check_match(f"stages.{name}.lesson", stage.lesson, family.space)
        check_teacher(f"stages.{name}.lesson", stage.lesson, task)
    if classes < 2 and any(stage.lesson.class_weights for stage in stages.values()):
        raise ValueError(f"class_weights: the task {task.name} has no classes")


def check_match(name: str, lesson: Lesson, space: SearchSpace) -> None:
    """Raises ValueError for a lesson of that name which compares tokens of networks that do not have the same ones: the largest
    scores choose others in each, patches of another size are others, and a mean of 3 neighbours is none of means of 2."""
    if not lesson.needs_teacher or lesson.match == ("answers",):
        return
    others, pools = [choice.name for choice in space if KEEP.fullmatch(choice.name)], pool_sizes(space)
    if lesson.teacher != "itself":
        others += [choice.name for choice in space if choice.name == "patch" and len(choice.options) > 1]
        others += ["pool"] * any(size % pools[0] for size in pools)
    if others:
        why = f"in the space {space.name} {others[0]} chooses which tokens there are"
        raise ValueError(f"{name}.match: {list(lesson.match)} compares tokens, and {why}; allowed is ['answers']")
