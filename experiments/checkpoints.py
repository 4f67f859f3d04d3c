"""What long work writes on its way, so that a run that is stopped goes on with it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from experiments.run_directory import RunDirectory, RunError
from nas.compute import Compute


def read_checkpoint(run: RunDirectory, name: str, compute: Compute) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote, or None. Raises RunError for a damaged file."""
    if not run.has(name):
        return None
    state: dict[str, Any] = loaded(run / name, lambda path: torch.load(path, map_location=compute.device, weights_only=True))
    return state


def write_checkpoint(run: RunDirectory, name: str, state: Mapping[str, Any]) -> None:
    with run.replacing(name) as path:
        torch.save(dict(state), path)


def loaded(path: Path, load: Callable[[Path], Any], *, advice: str = "delete it to do this part again") -> Any:
    """Weights, or a graph; a file that is no such thing is the user's to delete. Raises RunError, with what to do."""
    try:
        return load(path)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise RunError(f"{path}: is damaged; {advice} ({type(error).__name__})") from error
