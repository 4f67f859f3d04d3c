"""What a pretrained start is worth: the front of networks that began as MiniLM beside that of networks that began at random.

    paretoformer bench pretrained path=DIR data=FILE [preset=quick|full] [directory=DIR]

`path` is the folder of all-MiniLM-L6-v2, `data` the file that experiments/tasks/movies.py names. Both sides are parts of a search
with `experiment=pretrained`, and differ in nothing but the weights that their supernets begin with.

The same architectures, of at most half of the largest network's FLOPs, are scored with the weights of each supernet. The best of
either side, by that error and FLOPs, are cut out of both, trained for equal FLOPs, exported, timed once and scored on the test
split. The hypervolume is in points of test error below the majority class's, a mean over all budgets up to half of the largest
network's latency.

With `directory=`, what was trained stays there, and a benchmark that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from experiments.build import build
from experiments.config import composed
from experiments.ledger import NAME as LEDGER
from experiments.ledger import spent
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.timed_networks import export_for_timing
from hardware.local_torch import num_threads
from nas.compute import Compute
from nas.costs import flops_of
from nas.pareto import fittest, hypervolume, non_dominated
from nas.search import search
from nas.searchers.costs import within
from nas.searchers.random import Random
from nas.space import Architecture
from nas.supernet import evaluation_batches, inherited_error
from nas.types import Candidate, Provenance

STARTS = ("pretrained", "scratch")
SUPERNET, FINALISTS = "supernet", "finalists"  # phases of a side's ledger


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick (10 to 15 minutes of one core) or full (tiny shows only that it runs, with other files)
    out: str | None = None  # a file for the figures
    path: str = MISSING  # folder of the checkpoint
    data: str = MISSING  # file of the task
    directory: str | None = None  # where everything stays; null: a temporary one


@dataclass(frozen=True)
class Preset:
    """Overrides of both sides' configuration, seeds, how many architectures are scored, and each side's best of them."""

    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    num_scored: int
    num_finalists: int


PRESETS = {
    "tiny": Preset(
        (
            "task=csv", "task.text=text", "task.label=label", "task.max_tokens=12", "space.width=[16,32]", "space.depth=[1,2]",
            "space.heads=[2,4]", "space.ffn=[16,48]", "space.head_size=8", "init.train.steps=4",
            "init.train.tokens_per_batch=128", "finish.train.steps=2", "finish.most_steps=4",
            "finish.train.tokens_per_batch=128", "finish.rounds=2", "torch_threads=1",
        ),
        (0,), num_scored=3, num_finalists=1,
    ),
    "quick": Preset(
        (
            "task=movie_snippets", "init.train.steps=300", "init.train.tokens_per_batch=1024", "finish.train.steps=40",
            "finish.train.tokens_per_batch=1024", "finish.most_steps=600", "torch_threads=1",
        ),
        (0,), num_scored=16, num_finalists=3,
    ),
    "full": Preset(("task=movie_snippets", "finish.most_steps=1000"), (0, 1, 2), num_scored=60, num_finalists=6),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A finalist; `latency` is a share of half of the largest network's."""

    arch: Architecture
    latency: float
    latency_ms: float
    validation_error_percent: float
    test_error_percent: float


@dataclass(frozen=True)
class Side:
    """What one start led to: architectures with the supernet's weights, [N, 2] of share of the FLOPs and validation error, the
    finalists, and the CPU seconds of all training."""

    inherited: np.ndarray
    points: tuple[Point, ...]
    cpu_seconds: float

    @property
    def within(self) -> list[Point]:
        """The finalists within the budget, the fastest first."""
        return sorted((point for point in self.points if point.latency <= 1.0), key=lambda point: point.latency)

    @property
    def front(self) -> list[Point]:
        on_front = non_dominated(costs_of(self.within))
        return [point for point, stays in zip(self.within, on_front, strict=True) if stays]

    @property
    def error_percent(self) -> float:
        """Test error of the network that does best on the validation split; 100 without one."""
        best = min(self.within, key=lambda point: point.validation_error_percent, default=None)
        return best.test_error_percent if best else 100.0


def costs_of(points: Sequence[Point]) -> np.ndarray:
    """Latency and test error, [N, 2]."""
    return np.array([(point.latency, point.test_error_percent) for point in points]).reshape(-1, 2)


def run(words: Words, report: Reporter) -> dict[str, float]:
    """Raises ValueError: files that are not those, or a directory that another configuration used."""
    preset, trials = PRESETS[words.preset], []
    with contextlib.ExitStack() as stack:
        folder = Path(words.directory or stack.enter_context(tempfile.TemporaryDirectory())) / words.preset
        for seed in preset.seeds:
            pipelines = {start: configured(start, words, preset, seed, folder / f"seed-{seed}", report) for start in STARTS}
            with num_threads(pipelines["scratch"].settings.torch_threads):
                trials.append(compared(pipelines, preset, report))
            show(trials[-1], seed, report)
    return summary(trials, pipelines["scratch"].task.trivial_baselines())


def configured(start: str, words: Words, preset: Preset, seed: int, folder: Path, report: Reporter) -> Pipeline:
    """A search as the command line would build it."""
    config = composed("experiment=pretrained", *preset.overrides, f"seed={seed}")
    config.task.path, config.task.tokenizer = words.data, f"{words.path}/tokenizer.json"
    config.init.path = words.path if start == "pretrained" else None
    config.run = str(folder / start)
    pipeline = build(config, report=report)
    pipeline.claim()
    return pipeline


def compared(pipelines: Mapping[str, Pipeline], preset: Preset, report: Reporter) -> dict[str, Side]:
    """Both sides of one seed, by start."""
    compute = pipelines["scratch"].compute()
    supernets = {start: pipeline.supernet(compute) for start, pipeline in pipelines.items()}
    scored = {start: inherited(pipeline, supernets[start], compute, preset.num_scored) for start, pipeline in pipelines.items()}
    chosen = list(dict.fromkeys(arch for found in scored.values() for arch in best(found, preset.num_finalists)))
    for start, pipeline in pipelines.items():
        report.say(f"Seed {pipeline.settings.seed}, {start} start")
        train(pipeline, chosen, supernets[start], compute)
    with report.phase("Measuring the finalists", 1):
        latency_ms, budget_ms = measured(pipelines["scratch"], chosen, compute)
    sides = {}
    for start, pipeline in pipelines.items():
        finisher, ledger = pipeline.finisher(compute), pipeline.run.read_json(LEDGER)
        points = [
            Point(
                arch, latency_ms[arch.id] / budget_ms, latency_ms[arch.id], finisher.files.record(arch)["error_percent"],
                finisher.scores.of(arch, "test", tag="")["error_percent"],
            )
            for arch in chosen
        ]  # fmt: skip
        seconds = sum(ledger[phase]["cpu_seconds"] for phase in (SUPERNET, FINALISTS))
        errors = np.array([[c.objectives["flops"], c.objectives["error"]] for c in scored[start]])
        sides[start] = Side(errors, tuple(points), seconds)
    return sides


def inherited(pipeline: Pipeline, supernet: nn.Module, compute: Compute, num: int) -> list[Candidate]:
    """The hand-designed and random architectures of at most half of the largest network's FLOPs, which count as 1."""
    family, task = pipeline.family, pipeline.task
    half = flops_of(family, [family.space.largest()], pipeline.workload)[0] / 2
    validation = [batch.to(compute.device) for batch in evaluation_batches(task, "validation")]

    def costs(archs: Sequence[Architecture]) -> dict[str, np.ndarray]:
        return {"flops": flops_of(family, archs, pipeline.workload) / half}

    def evaluate(arch: Architecture) -> Candidate:
        error = inherited_error(family, supernet, arch, validation, task, compute)
        provenance = {"error": Provenance.INHERITED, "flops": Provenance.PREDICTED}
        return Candidate(arch, {"error": error, "flops": float(costs([arch])["flops"][0])}, provenance)

    limits = {"flops": 1.0}
    by_hand = [arch for arch in family.hand_designed().values() if within([arch], limits, costs).all()]
    searcher = Random(family.space, seed=pipeline.settings.seed, initial=by_hand, limits=limits, costs=costs)
    with pipeline.report.phase("Scoring with inherited weights", num):
        return list(search(searcher, evaluate, num_evaluations=num).candidates)


def best(candidates: Sequence[Candidate], num: int) -> list[Architecture]:
    costs = np.array([[c.objectives["error"], c.objectives["flops"]] for c in candidates])
    return [candidates[i].arch for i in fittest(costs, num, reference=(100.0, 1.01), first=0)]


def train(pipeline: Pipeline, archs: Sequence[Architecture], supernet: nn.Module, compute: Compute) -> None:
    """Cuts out, trains and exports those that are not finished yet."""
    finisher = pipeline.finisher(compute)
    with pipeline.report.phase("Training the finalists", len(archs)) as advance:
        for number, arch in enumerate(archs, 1):
            if not finisher.files.is_finished(arch):
                with spent(pipeline.run, FINALISTS, networks_trained=1):
                    finisher.finish(arch, supernet)
            advance(number, f"error {finisher.files.record(arch)['error_percent']:.1f} %")


def measured(pipeline: Pipeline, archs: Sequence[Architecture], compute: Compute) -> tuple[dict[str, float], float]:
    """Latency in ms of finished networks, by id, and half of the largest one's."""
    family, finisher = pipeline.family, pipeline.finisher(compute)
    with tempfile.TemporaryDirectory() as folder:
        largest = export_for_timing(family, [family.space.largest()], pipeline.workload, Path(folder), device=pipeline.device)
        networks = [*(finisher.times.exported(arch, Path(folder), tag="") for arch in archs), *largest]
        times = finisher.times.measure_files(networks, reference_ms=None, rounds=finisher.settings.rounds)
    *milliseconds, of_largest = [measurement.latency_ms for measurement in times]
    return {arch.id: ms for arch, ms in zip(archs, milliseconds, strict=True)}, of_largest / 2


def summary(trials: Sequence[Mapping[str, Side]], trivial_percent: Mapping[str, float]) -> dict[str, float]:
    """Means over seeds."""
    limit = (1.0, trivial_percent["majority class"])

    def mean(of: Callable[[Side], float], start: str) -> float:
        return float(np.mean([of(trial[start]) for trial in trials]))

    figures = {
        f"{start}_{name}": mean(of, start)
        for name, of in {
            "hypervolume": lambda side: hypervolume(costs_of(side.points), limit),
            "error_percent": lambda side: side.error_percent,
            "inherited_hypervolume": lambda side: hypervolume(side.inherited, limit),
            "train_cpu_seconds": lambda side: side.cpu_seconds,
        }.items()
        for start in STARTS
    }
    shares = [dominated_share(trial["pretrained"].front, trial["scratch"].front) for trial in trials]
    trivial = {"majority_error_percent": limit[1], "best_trivial_error_percent": min(trivial_percent.values())}
    return {"scratch_front_dominated_share": float(np.mean(shares)), **figures, **trivial, "num_seeds": len(trials)}


def dominated_share(front: Sequence[Point], others: Sequence[Point]) -> float:
    """Share of `others`, if there are any, that some point of the front dominates: no worse in both objectives, better in one."""
    if not others:
        return float("nan")
    ours, theirs = costs_of(front), costs_of(others)
    beats = np.all(ours[:, None] <= theirs, axis=2) & np.any(ours[:, None] < theirs, axis=2)
    return float(beats.any(axis=0).mean())


def show(trial: Mapping[str, Side], seed: int, report: Reporter) -> None:
    for start, side in trial.items():
        headings = ("ms", "of the budget", "validation % wrong", "test % wrong", "width", "depth")
        table = Table(*headings, box=SIMPLE_HEAD, title=f"Front of the {start} start, seed {seed}")
        for point in side.front:
            errors = (f"{point.validation_error_percent:.1f}", f"{point.test_error_percent:.1f}")
            sizes = (str(point.arch[name]) for name in ("width", "depth"))
            table.add_row(f"{point.latency_ms:.3f}", f"{point.latency:.0%}", *errors, *sizes)
        report.console.print(table)
