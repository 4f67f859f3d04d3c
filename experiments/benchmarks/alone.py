"""Networks that are trained on their own, from fresh weights, and judged by their files: what several benchmarks compare."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from experiments.compute import COMPUTE, chosen_compute, tried
from experiments.finishing import Finisher
from experiments.network_files import FOLDER
from experiments.pipeline import Pipeline
from experiments.run_directory import RunDirectory
from nas.finish.teaching import Lesson
from nas.space import Architecture


def finisher_of(pipeline: Pipeline, folder: Path, *, lesson: Lesson) -> Finisher:
    """That of a run of its own, whose networks begin with fresh weights."""
    run = RunDirectory(folder)
    (run / FOLDER).mkdir(exist_ok=True)
    if not run.has(COMPUTE):
        run.write_json(COMPUTE, tried(pipeline.family, pipeline.task, tokens_per_batch=2048))
    settings = dataclasses.replace(pipeline.settings.finish, inherit=0.0, lesson=lesson)
    return dataclasses.replace(pipeline.finisher(chosen_compute(run)), settings=settings, run=run)


def train(finisher: Finisher, arch: Architecture, seed: int) -> None:
    """Unless it was trained before."""
    if not finisher.files.is_finished(arch):
        torch.manual_seed(seed)
        finisher.finish(arch, finisher.family.supernet())


def test_error(finisher: Finisher, arch: Architecture) -> float:
    """In percent, of the network's file."""
    return float(finisher.scores.of(arch, "test", tag="")["error_percent"])


def geometric(ratios: Sequence[float]) -> float:
    """Their geometric mean."""
    return math.exp(float(np.mean(np.log(ratios))))
