"""What finishing does to a network: its speed on this machine's CPU and its test error, before and after each stage.

For each task and seed the hand-designed networks and some random ones are trained alone for equal FLOPs, and again with a teacher
for equal FLOPs: the best trivial baseline where it is better than all networks, else the best of these, its passes counted. The
largest network and the fastest of the others then go through each stage on its own. Files are timed in turn, their errors are of
the test split, and a stage that is not faster is in the figures as it came out.

A stage that trains also trains on: `trained_on` is the float network after as many steps as the quantised one learned, and
`int8_points_lost_to_trained_on` compares with that.

A main job of each task says how many of its hand-designed networks the search's own dominate, and whether a single one dominates
all (see `beside_hand`).

int8 is faster where products take the time: `int8_most_there_is` says by how much the products of the largest networks are,
without anything else (see `int8_products`), and wider encoders are timed, too (see `int8_widths`). `int8_size_ratio` is of files
all of whose blocks are in int8; the stage leaves blocks in float where int8 would lose too much.

`quick` is two tasks and one seed, `full` four tasks and three seeds: of texts, images, tags, and a decoder of code, whose times
are those of one more byte and whose answers are compared byte by byte, too. The decoder is not in `quick`, which is to end within
20 minutes: with a fifth of its steps, 86 s of a busy CPU were enough for one of its four networks, before teachers and stages.
What differs most between tasks is also said of each. With `directory=`, everything trained and measured stays there, and a
benchmark that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.baseline_teachers import BaselineTeachers
from experiments.benchmarks import beside_hand
from experiments.benchmarks.alone import finisher_of, geometric, test_error, train
from experiments.benchmarks.int8_products import int8_of_products
from experiments.benchmarks.int8_widths import int8_by_width
from experiments.build import build
from experiments.config import composed
from experiments.finishing import Finisher
from experiments.network_files import FOLDER
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.stages import Stages
from experiments.stepwise import compare_steps
from nas.costs import flops_of
from nas.finish.cut import Cut
from nas.finish.learn import Learn
from nas.finish.low_rank import LowRank
from nas.finish.prune import Prune
from nas.finish.quantise import Quantise
from nas.finish.stage import Stage
from nas.finish.teaching import Lesson, School
from nas.protocols import DeviceError, GenerativeFamily
from nas.space import Architecture
from nas.training import TrainConfig

POINT = 1.0  # of test error that a faster network may lose against the largest
NUM_PARITY = 1000  # test inputs that every float file is compared on
# of each task, too
BY_TASK = ("int8_speedup", "int8_most_there_is", "int8_points_lost", "speedup_at_minus_one_point", "parity_max_abs")


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick or full (tiny shows only that it runs)
    out: str | None = None  # a file for the figures
    directory: str | None = None  # where everything stays; null: a temporary one


@dataclass(frozen=True)
class Preset:
    """Tasks by name, with overrides of the main job's configuration; seeds; steps of a stage; random networks of each task; and
    main jobs by the names of their tasks."""

    tasks: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    steps: int
    num_random: int
    searched: Mapping[str, tuple[str, ...]]


TINY = ("space=encoder_tiny", "task.vocab_size=1000", "task.max_tokens=32", "task.max_examples=3000")
DIGITS = ("task=digits", "space=vision_tiny", "finish.train.steps=300", "finish.most_steps=900")
CODE = ("experiment=code",)
TINY_CODE = (
    "space=decoder_tiny",
    "task=python_source",
    "mode=decode",
    "past=15",
    "task.max_tokens=16",
    "task.max_characters=20000",
)
LANGUAGES = ("task.max_examples=20000", "space.depth=[1,2,3,4]", "finish.train.steps=200", "finish.most_steps=600")
BRIEF = ("finish.train.steps=4", "finish.most_steps=6", "finish.rounds=2")
JOBS: dict[str, tuple[str, ...]] = {"languages": (), "digits": ("experiment=digits",), "tags": ("experiment=tags",)}
PRESETS = {
    "tiny": Preset({"languages": (*TINY, *BRIEF), "code": (*TINY_CODE, *BRIEF)}, (0,), 4, 0, {}),
    "quick": Preset({"languages": LANGUAGES, "digits": DIGITS}, (0,), 80, 1, {"digits": ("experiment=digits",)}),
    "full": Preset(
        {"languages": LANGUAGES, "digits": DIGITS, "tags": ("experiment=tags",), "code": CODE}, (0, 1, 2), 80, 1, JOBS
    ),
}


@dataclass(frozen=True)
class Row:
    """A stage of one network: how many times as fast it became, points of test error lost, size to the size before."""

    network: str
    stage: str
    speedup: float
    points_lost: float
    size_ratio: float
    ships: bool


@dataclass(frozen=True)
class Trial:
    """One task and seed; errors are of the test split, in percent, by the networks' names, the largest first."""

    task: str
    seed: int
    latency_ms: dict[str, float]
    alone: dict[str, float]
    distilled: dict[str, float]
    rows: tuple[Row, ...]
    int8_of_products: float
    parity_max_abs: float
    parity_equal_decisions: float

    @property
    def distilled_gain(self) -> float:
        """Points of error that the short-list gains on the mean."""
        return float(np.mean([self.alone[name] - error for name, error in self.distilled.items()]))

    def speedup_at(self, points: float) -> float:
        """The largest network's time to that of the fastest file that ships and loses at most so many points against it."""
        largest, *_ = self.latency_ms
        files = [(self.latency_ms[name], error) for name, error in self.alone.items()]
        files += [
            (self.latency_ms[row.network] / row.speedup, self.alone[row.network] + row.points_lost)
            for row in self.rows
            if row.ships
        ]
        return self.latency_ms[largest] / min(ms for ms, error in files if error <= self.alone[largest] + points)


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    with contextlib.ExitStack() as stack:
        folder = Path(words.directory or stack.enter_context(tempfile.TemporaryDirectory())) / words.preset
        trials = [
            trial(name, overrides, seed, preset, folder / f"{name}-{seed}", report)
            for name, overrides in preset.tasks.items()
            for seed in preset.seeds
        ]
        cases = [
            beside_hand.search_beside_hand(name, overrides, seed, folder / f"search-{name}-{seed}", report)
            for name, overrides in preset.searched.items()
            for seed in preset.seeds
        ]
    for found in trials:
        _show(found, report)
    if cases:
        beside_hand.show(cases, report)
    return {**summary(trials), **(beside_hand.summary(cases) if cases else {}), **int8_by_width(report)}


def stages_of(steps: int, *, static: bool) -> dict[str, Stage]:
    """Each stage that is tried, by its name in the figures."""
    train = TrainConfig(steps=steps, learning_rate=1e-3)
    aware = TrainConfig(steps=steps, learning_rate=5e-4)
    stages: dict[str, Stage] = {
        "trained_on": Learn(train=aware, lesson=Lesson()),
        "int8": Quantise(train=aware),
        "int8_untrained": Quantise(aware=False, mixed=False),
        "fp16": Quantise(aware=False, mixed=False, kind="fp16"),
        "pruned": Prune(train=train),
        "pruned_2_4": Prune(train=train, pattern="2:4"),
        "low_rank": LowRank(train=train),
        "cut": Cut(train=train),
    }
    return {**stages, "int8_static": Quantise(aware=False, mixed=False, kind="static")} if static else stages


def trial(task: str, overrides: Sequence[str], seed: int, preset: Preset, folder: Path, report: Reporter) -> Trial:
    """Trains, measures and finishes, or goes on with it."""
    report.say(f"{task}, seed {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = build(composed(*overrides, f"seed={seed}", f"run={folder / 'alone'}"), report=report)
    torch.set_num_threads(pipeline.settings.torch_threads)
    space = pipeline.family.space
    rng = np.random.default_rng(seed)
    networks = dict(pipeline.family.hand_designed())
    networks |= {f"random {i + 1}": space.sample(rng) for i in range(preset.num_random)}
    alone = finisher_of(pipeline, folder / "alone", lesson=Lesson())
    archs = list(networks.values())
    with report.phase("Training alone", len(archs)) as advance:
        for number, arch in enumerate(archs, start=1):
            train(alone, arch, seed)
            advance(number, "")
    best = min(archs, key=lambda arch: alone.files.record(arch)["error_percent"])
    taught = _taught(pipeline, folder / "taught", alone, best, report)
    students = {name: arch for name, arch in networks.items() if arch != space.largest() and arch != taught.teaching}
    with report.phase("Training with a teacher", len(students)) as advance:
        for number, arch in enumerate(students.values(), start=1):
            train(taught, arch, seed)
            advance(number, "")
    with report.phase("Measuring", 1):
        times = alone.times.measure(archs, reference_ms=None, phase="alone", rounds=alone.settings.rounds, tag="")
    latency_ms = {name: times[arch.id].latency_ms for name, arch in networks.items()}
    largest, *others = networks
    fastest = min(others, key=latency_ms.__getitem__)
    rows = [row for name in (largest, fastest) for row in _rows(pipeline, alone, name, networks[name], preset, report)]
    parities = [found for arch in archs for found in _parities(alone, arch)]
    return Trial(
        task, seed, latency_ms,
        alone={name: test_error(alone, arch) for name, arch in networks.items()},
        distilled={name: test_error(taught, arch) for name, arch in students.items()},
        rows=tuple(rows),
        int8_of_products=_int8_of_products(pipeline, alone, networks[largest]),
        parity_max_abs=max(parity["max_abs_difference"] for parity in parities),
        parity_equal_decisions=min(parity["equal_decisions"] for parity in parities),
    )  # fmt: skip


def _int8_of_products(pipeline: Pipeline, finisher: Finisher, arch: Architecture) -> float:
    with tempfile.TemporaryDirectory() as folder:
        network = finisher.times.exported(arch, Path(folder), tag="")
        return int8_of_products(network, pipeline.workload, Path(folder))


def _parities(finisher: Finisher, arch: Architecture) -> list[Mapping[str, float]]:
    """How its float file agrees with a network on whole inputs, and a decoder's files token by token."""
    whole = finisher.scores.parity(arch, num_examples=NUM_PARITY, tag="")
    if not isinstance(finisher.family, GenerativeFamily):
        return [whole]
    prefill, decode = (finisher.files.onnx_path(arch, mode, tag="") for mode in ("prefill", "decode"))
    return [whole, compare_steps(finisher.files.network(arch, tag=""), prefill, decode, finisher.scores.real_inputs(1)[0])]


def _taught(pipeline: Pipeline, folder: Path, alone: Finisher, best: Architecture, report: Reporter) -> Finisher:
    """With the best trivial baseline as the teacher where it is better than the best network, else with that one."""
    baselines = BaselineTeachers(pipeline.task, dict(pipeline.task.trivial_baselines()))
    name, lesson = baselines.better_than(alone.files.record(best)["error_percent"]), pipeline.settings.finish.lesson
    report.say(f"The teacher is {name or f'the best network, {best.id}'}")
    if name is not None:
        finisher = finisher_of(pipeline, folder, lesson=dataclasses.replace(lesson, teacher="baseline"))
        return dataclasses.replace(finisher, outsider=functools.partial(baselines.teacher, name))
    finisher = finisher_of(pipeline, folder, lesson=dataclasses.replace(lesson, teacher="largest"))
    for path in (alone.run / FOLDER).glob(f"{best.id}.*"):
        shutil.copy(path, finisher.run / FOLDER)
    return dataclasses.replace(finisher, teaching=best)


def _rows(pipeline: Pipeline, finisher: Finisher, name: str, arch: Architecture, preset: Preset, report: Reporter) -> list[Row]:
    """Every stage on its own; a cut goes by FLOPs, no latency model is fitted here."""
    family = pipeline.family
    largest = family.space.largest()
    school = School(
        finisher.task,
        finisher.compute,
        finisher.seed,
        family.space,
        arch,
        lambda _: [finisher.files.to_train(largest, tag="")],
        lambda archs: flops_of(family, archs, pipeline.workload).tolist(),
        lambda network, others: finisher.times.saved(arch, network, others, reference_ms=None),
        finisher.settings.most_points_lost,
    )
    rows = []
    before = finisher.files.onnx_path(arch, tag="")
    error = finisher.scores.of_file(before, "test")["error_percent"]
    for stage_name, stage in stages_of(preset.steps, static=not isinstance(family, GenerativeFamily)).items():
        [found] = Stages(finisher, {stage_name: stage}, school, None, math.inf, report).run()
        if found.before.latency_ms is None or found.after.latency_ms is None:
            raise DeviceError(found.sentence)
        file = finisher.files.onnx_path(arch, tag=stage_name)  # a stage that found nothing to do has none
        after = finisher.scores.of_file(file, "test")["error_percent"] if file.is_file() else error
        speedup, size = found.before.latency_ms / found.after.latency_ms, found.after.file_bytes / found.before.file_bytes
        rows.append(Row(name, stage_name, speedup, after - error, size, found.kept))
    return rows


def summary(trials: Sequence[Trial]) -> dict[str, float]:
    """Geometric means of ratios and means of points over tasks and seeds; of the stages, those of the largest networks. Where
    there are several tasks, `BY_TASK` also of each, by the name of the figure and of the task."""
    rows = [(t, row) for t in trials for row in t.rows]
    of_largest = [row for t, row in rows if row.network == next(iter(t.latency_ms))]
    figures: dict[str, float] = {}
    for stage in dict.fromkeys(row.stage for row in of_largest):
        of_stage = [row for row in of_largest if row.stage == stage]
        figures[f"{stage}_speedup"] = geometric([row.speedup for row in of_stage])
        figures[f"{stage}_points_lost"] = float(np.mean([row.points_lost for row in of_stage]))
    of_others = [row for t, row in rows if row.network != next(iter(t.latency_ms))]
    int8 = [row for row in of_largest if row.stage == "int8"]
    distilled = [(t.alone[name], error) for t in trials for name, error in t.distilled.items()]
    return {
        "int8_speedup": figures.pop("int8_speedup"),
        "int8_points_lost": figures.pop("int8_points_lost"),
        "speedup_at_minus_one_point": geometric([t.speedup_at(POINT) for t in trials]),
        "parity_max_abs": max(t.parity_max_abs for t in trials),
        "parity_equal_decisions": min(t.parity_equal_decisions for t in trials),
        "int8_most_there_is": geometric([max(1.0, t.int8_of_products) for t in trials]),  # what is slower can stay in float
        "int8_size_ratio": geometric([row.size_ratio for row in of_largest if row.stage == "int8_untrained"]),
        "int8_stage_size_ratio": geometric([row.size_ratio for row in int8]),
        "int8_points_lost_worst": max(row.points_lost for row in int8),
        "int8_points_lost_to_trained_on": float(np.mean([r.points_lost for r in int8])) - figures["trained_on_points_lost"],
        "int8_speedup_of_fastest": geometric([row.speedup for row in of_others if row.stage == "int8"]),
        "distilled_better": sum(taught < alone for alone, taught in distilled),
        "distilled_cases": len(distilled),
        "distilled_short_lists_better": sum(t.distilled_gain > 0 for t in trials),
        "distilled_points_gained": float(np.mean([alone - taught for alone, taught in distilled])),
        **figures,
        **_by_task(trials),
        "num_trials": len(trials),
    }


def _by_task(trials: Sequence[Trial]) -> dict[str, float]:
    tasks = dict.fromkeys(t.task for t in trials)
    if len(tasks) == 1:
        return {}
    found = {task: summary([t for t in trials if t.task == task]) for task in tasks}
    return {f"{name}_{task}": found[task][name] for name in BY_TASK for task in tasks}


def _show(trial: Trial, report: Reporter) -> None:
    table = Table("network", "ms", "error %", "taught %", box=SIMPLE_HEAD, title=f"{trial.task}, seed {trial.seed}: test errors")
    for name, ms in trial.latency_ms.items():
        taught = f"{trial.distilled[name]:.2f}" if name in trial.distilled else ""
        table.add_row(name, f"{ms:.3f}", f"{trial.alone[name]:.2f}", taught)
    report.console.print(table)
    headings = ("network", "stage", "times as fast", "points lost", "size ratio", "")
    table = Table(*headings, box=SIMPLE_HEAD, title=f"{trial.task}, seed {trial.seed}: stages")
    for row in trial.rows:
        figures = (f"{row.speedup:.2f}", f"{row.points_lost:+.2f}", f"{row.size_ratio:.2f}")
        table.add_row(row.network, row.stage, *figures, "ships" if row.ships else "does not ship")
    report.console.print(table)
    report.say(f"{trial.speedup_at(POINT):.2f} times as fast as the largest network for at most one point")
