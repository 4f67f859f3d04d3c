"""Trains every network of a small space of encoders, so that the best of them are known.

    paretoformer bench exhaustive [preset=full|tiny] [directory=DIR]

What is trained, and how, is a `Recipe`: the texts of the task `languages` in a few related languages, one short training a
network, the same for all, and further seeds for a part. A few dozen networks are measured on this machine's CPU; the times of the
others are predictions of a latency model that was fitted to them. The test split is never read.

Every trained network is a line of `networks.jsonl` in the directory, every measured one of `measurements.jsonl`: a benchmark that
was stopped goes on where it was. When all is there the table is written beside them (`experiments.benchmarks.trained_table`).
The table of `preset=full` is a part of this package, and a problem of `bench search`. It was made in 11 minutes of CPU time, on a
machine that was busy with other work, which lengthens the times in it. Errors of different seeds agree with a Kendall's tau of
0.74; trainings are so short that a second layer seldom pays.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import kendalltau

from experiments.benchmarks.tabular import front_of
from experiments.benchmarks.trained_table import Recipe, TrainedTable
from experiments.calibration import Calibration, Calibrator
from experiments.formatting import rounded
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from experiments.settings import CalibrationSettings
from experiments.tasks.django_source import DJANGO_VERSION
from experiments.versions import versions
from hardware.local_cpu import LocalCpu
from hardware.local_torch import num_threads
from hardware.store import MeasurementStore
from latency_models.additive import AdditiveLatency
from nas.compute import Compute
from nas.costs import flops_of, parameters_of
from nas.protocols import Batch, Family, Task
from nas.space import Architecture
from nas.supernet import error_percent, evaluation_batches
from nas.training import TrainConfig, Trainer, stream

NETWORKS = "networks.jsonl"
PACKAGES = ("torch", "numpy", "tokenizers", "onnxruntime")


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "full"  # full (a quarter of an hour of CPU time) or tiny (shows only that it runs)
    out: str | None = None  # a file for the figures
    directory: str = "runs/exhaustive"  # where trained networks and the table stay


FULL = Recipe(
    languages=("af", "ca", "cs", "da", "de", "es", "fr", "gl", "it", "nb", "nl", "nn", "pt", "ro", "sk", "sv"),
    vocab_size=4000,
    max_tokens=16,
    space={
        "name": "small_encoders", "width": [4, 6, 8, 12, 16, 20, 24, 32, 40, 48], "depth": [1, 2], "heads": [2],
        "ffn": [4, 8, 16, 32, 64, 96, 128], "attention": ["full", "none"],
    },
    head_size=8,
    train=TrainConfig(steps=33, tokens_per_batch=1024, learning_rate=1e-2),
    seeds=3,
    repeated=200,
    batch=32,
    calibration=CalibrationSettings(num_fit=40, num_held_out=16),
)  # fmt: skip
TINY = Recipe(
    languages=("cs", "sk"),
    vocab_size=200,
    max_tokens=16,
    space={
        "name": "tiny_encoders", "width": [8, 16], "depth": [1], "heads": [1], "ffn": [16, 32, 64], "attention": ["full", "none"],
    },
    head_size=8,
    train=TrainConfig(steps=5, tokens_per_batch=128),
    seeds=2,
    repeated=5,
    batch=1,
    calibration=CalibrationSettings(num_fit=8, num_held_out=2, rounds=2),
)  # fmt: skip
PRESETS = {"full": FULL, "tiny": TINY}

Records = dict[tuple[str, int], Mapping[str, float]]
"""What is known of trained networks, by id and seed."""


def run(words: Words, report: Reporter) -> dict[str, float]:
    recipe, directory = PRESETS[words.preset], RunDirectory(words.directory)
    with num_threads(1), directory.lock():
        task = recipe.task()
        family = recipe.family(task)
        made_with = versions(PACKAGES)
        directory.claim({"recipe": recipe.to_json(), "data": task.fingerprint, "versions": made_with})
        trained = train_all(recipe, family, task, directory, report)
        calibration = _calibrated(recipe, family, directory, report)
        about = {
            "what": "all networks of a small space of text encoders, each trained alike",
            "command": f"paretoformer bench exhaustive preset={words.preset}",
            "data": _data(task),
            "device": {**LocalCpu().environment, **rounded(calibration.quality)},
            "versions": made_with,
        }
        columns = _columns(recipe, family, trained, calibration)
        table = TrainedTable(recipe, about, family.space.architectures(), columns)
        size = table.write(directory.path)
    figures = figures_of(table) | {f"latency_{name}": value for name, value in calibration.quality.items()}
    _show(figures, report)
    return {**figures, "table_bytes": size}


def _data(task: Task) -> dict[str, str | int]:
    sizes = {f"num_{split}": task.num_examples(split) for split in ("train", "validation")}
    source = f"message catalogues of Django {DJANGO_VERSION}, as the task `languages` reads them"
    return {"source": source, "licence": "BSD-3-Clause", "fingerprint": task.fingerprint, **sizes}


def trainings(recipe: Recipe) -> list[tuple[Architecture, int]]:
    """Networks and seeds, in the order in which they are trained: shuffled, and of the first ones all seeds."""
    archs = recipe.search_space().architectures()
    shuffled = [archs[i] for i in np.random.default_rng(0).permutation(len(archs))]
    first, others = shuffled[: recipe.repeated], shuffled[recipe.repeated :]
    return [*itertools.product(first, range(recipe.seeds)), *((arch, 0) for arch in others)]


def train_all(recipe: Recipe, family: Family, task: Task, directory: RunDirectory, report: Reporter) -> Records:
    """Those that the directory lacks are trained, and written to it one by one."""
    wanted = trainings(recipe)
    done: Records = {(record["id"], record["seed"]): record for record in directory.read_lines(NETWORKS)}
    validation = list(evaluation_batches(task, "validation"))
    with report.phase("Training networks", len(wanted), done=len(done)) as advance:
        for arch, seed in wanted:
            if (arch.id, seed) not in done:
                found = train(recipe.train, family, task, arch, validation, seed=seed)
                directory.append(NETWORKS, {"id": arch.id, "seed": seed, **found})
                done[arch.id, seed] = found
                advance(len(done), f"error {found['error_percent']:.1f} %")
    return done


def train(
    config: TrainConfig, family: Family, task: Task, arch: Architecture, validation: Sequence[Batch], *, seed: int
) -> dict[str, float]:
    """Error of one network over batches of the validation split, and the CPU seconds of its training, in float32."""
    start = time.process_time()
    torch.manual_seed(seed)
    network = family.network(arch)
    batches = stream(task, "train", tokens_per_batch=config.tokens_per_batch, seed=seed)

    def gradient(number: int) -> float:
        batch = next(batches)
        loss = task.loss(network(*batch.inputs), batch.targets)
        loss.backward()
        return float(loss.detach())

    Trainer(network, config, gradient).run()
    seconds = time.process_time() - start
    return {"error_percent": error_percent(network.eval(), validation, task, Compute()), "cpu_seconds": round(seconds, 3)}


def _calibrated(recipe: Recipe, family: Family, directory: RunDirectory, report: Reporter) -> Calibration:
    store = MeasurementStore(directory / "store")
    calibrator = Calibrator(family, LocalCpu(), recipe.workload, recipe.calibration, directory, store, report)
    return calibrator.calibrate(AdditiveLatency(), seed=0)


def _columns(recipe: Recipe, family: Family, trained: Records, calibration: Calibration) -> dict[str, np.ndarray]:
    """As `trained_table.COLUMNS` explains them, in the order of `SearchSpace.architectures`."""
    archs = family.space.architectures()
    measured = {id_: m.latency_ms for id_, m in calibration.measurements.items()}
    nothing: Mapping[str, float] = {}

    def column(name: str, seed: int) -> np.ndarray:
        return np.array([trained.get((arch.id, seed), nothing).get(name, np.nan) for arch in archs])

    return {
        **{f"error_percent_{seed}": column("error_percent", seed) for seed in range(recipe.seeds)},
        "parameters": parameters_of(family, archs, recipe.workload),
        "flops": flops_of(family, archs, recipe.workload),
        "predicted_ms": calibration.model.predict(archs).mean_ms,
        "measured_ms": np.array([measured.get(arch.id, np.nan) for arch in archs]),
        "train_cpu_seconds": column("cpu_seconds", 0),
    }


def figures_of(table: TrainedTable) -> dict[str, float]:
    """How far the errors spread, and how much of that is the seed's doing."""
    columns, repeated = table.columns, table.errors()
    errors = columns["error_percent_0"]
    taus = [kendalltau(one, other).statistic for one, other in itertools.combinations(repeated.T, 2)]
    worst, quarter, median, best = np.quantile(errors, (1.0, 0.75, 0.5, 0.0)).tolist()
    return {
        "num_networks": len(errors),
        "num_trained": len(errors) + repeated.size - len(repeated),
        "train_cpu_seconds": float(np.mean(columns["train_cpu_seconds"])),
        "error_percent_best": best, "error_percent_median": median, "error_percent_upper_quartile": quarter,
        "error_percent_worst": worst,
        "error_percent_std": float(np.std(errors)),
        "seed_std": float(np.sqrt(np.mean(np.var(repeated, axis=1, ddof=1)))),
        "kendall_tau_between_seeds": float(np.mean(taus)),
        "num_on_front": len(front_of(np.stack([columns["predicted_ms"], errors], axis=1))),
    }  # fmt: skip


def _show(figures: Mapping[str, float], report: Reporter) -> None:
    table = Table("figure", "value", title="All networks of a small space", box=SIMPLE_HEAD)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    report.console.print(table)
