"""How the networks of a run are trained: chosen once, by a short trial, and kept in a file of the run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from experiments.run_directory import RunDirectory
from nas.compute import Compute, choose_compute
from nas.protocols import Family, Task

COMPUTE = "compute.json"


def check_trains_on(device: str) -> None:
    """Raises ValueError for a torch device that this machine does not have."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    allowed = ("auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{gpu}" for gpu in gpus))
    if device not in allowed:
        raise ValueError(f"train_on: {device!r} is not one of {allowed} on this machine")


def tried(family: Family, task: Task, *, tokens_per_batch: int, device: str = "cpu") -> dict[str, Any]:
    """The content of the file, from a trial on a batch of the task."""
    batch = next(iter(task.batches("train", tokens_per_batch=tokens_per_batch, seed=0)))
    compute, trials = choose_compute(family, task, batch, device=device)
    return {"chosen": asdict(compute), "trials": [trial.to_json() for trial in trials]}


def chosen_compute(run: RunDirectory) -> Compute:
    """What the file of a run holds."""
    return Compute(**run.read_json(COMPUTE)["chosen"])
