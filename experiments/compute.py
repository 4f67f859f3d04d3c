"""How the networks of a run are trained: chosen once, by a short trial, and kept in a file of the run.

Weights differ in the last digits from one way to another, and a trial's times from one moment to another. So the choice is also
kept beside the store of measurements, for all later runs of the same kind: with the same seed and the same measurements they find
the same networks, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.run_directory import RunDirectory, RunError, one_at_a_time, replacing
from hardware.environment import cpu_model
from nas.compute import AUTO, Compute, choose_compute
from nas.protocols import Family, Task

COMPUTE = "compute.json"


def check_trains_on(device: str) -> None:
    """Raises ValueError for a torch device that this machine does not have."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    allowed = ("auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{gpu}" for gpu in gpus))
    if device not in allowed:
        raise ValueError(f"train_on: {device!r} is not one of {allowed} on this machine")


def tried(
    family: Family, task: Task, *, tokens_per_batch: int, device: str = "cpu", precision: str = AUTO, backend: str = AUTO
) -> dict[str, Any]:  # fmt: skip
    """The content of the file, from a trial on a batch of the task. Raises ValueError like `choose_compute`."""
    batch = next(iter(task.batches("train", tokens_per_batch=tokens_per_batch, seed=0)))
    compute, trials = choose_compute(family, task, batch, device=device, precision=precision, backend=backend)
    return {"chosen": asdict(compute), "trials": [trial.to_json() for trial in trials]}


def tried_once(
    store: Path, family: Family, task: Task, *, tokens_per_batch: int, device: str, precision: str, backend: str
) -> dict[str, Any]:  # fmt: skip
    """The same from a file in the folder `store`, where an earlier run on this machine has left it.

    Raises:
        RunError: that file is damaged.
        ValueError: like `choose_compute`.
    """
    wanted = {"tokens_per_batch": tokens_per_batch, "device": device, "precision": precision, "backend": backend}
    machine = {"cpu": cpu_model(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts = {"space": family.signature, "task": task.name, **wanted, **machine}
    path = store / f"training-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}.json"
    if not path.is_file():
        with one_at_a_time(path):
            if not path.is_file():  # no other run has tried meanwhile
                found = tried(
                    family, task, tokens_per_batch=tokens_per_batch, device=device, precision=precision, backend=backend
                )
                with replacing(path) as unfinished:
                    unfinished.write_text(json.dumps({**found, "of": facts}, indent=1) + "\n")
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        Compute(**record["chosen"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: is damaged ({error}); delete it to try the ways to train again") from error
    return record


def chosen_compute(run: RunDirectory) -> Compute:
    """What the file of a run holds."""
    return Compute(**run.read_json(COMPUTE)["chosen"])
