"""What long work writes on its way, so that a run that is stopped goes on with it."""

from __future__ import annotations

import hashlib
import pickle
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError

from experiments.run_directory import RunDirectory, RunError
from nas.compute import Compute

DAMAGES = (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError, BadZipFile, zlib.error)


def read_checkpoint(run: RunDirectory, name: str, compute: Compute) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote, or None. Raises RunError for a damaged file."""
    if not run.has(name):
        return None
    state: dict[str, Any] = loaded(run / name, lambda path: _whole_state(path, compute))
    return state


def _whole_state(path: Path, compute: Compute) -> dict[str, Any]:
    """The file is a ZIP archive, whose checksums torch writes and does not read. Raises BadZipFile and what torch raises."""
    with ZipFile(path) as archive:
        if (part := archive.testzip()) is not None:
            raise BadZipFile(f"the checksum of {part} is another")
    state: dict[str, Any] = torch.load(path, map_location=compute.device, weights_only=True)
    return state


def write_checkpoint(run: RunDirectory, name: str, state: Mapping[str, Any]) -> None:
    with run.replacing(name) as path, path.open("wb") as file:  # opened here: by itself torch does not tell why it cannot write
        torch.save(dict(state), file)


def identity_of(how: Any) -> str:
    """Of something that is done so: another one is not what was done before."""
    return hashlib.sha256(repr(how).encode()).hexdigest()[:12]


def checksum(path: Path) -> str:
    """SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class TrainingCheckpoint:
    """Of one training of a run, written at most every so many seconds; what another one has left there is not read.

    `earlier` are the seconds that this training took before the stop that it goes on from.
    """

    run: RunDirectory
    name: str
    identity: str
    compute: Compute
    seconds: float
    begun: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    earlier: float = 0.0

    def read(self) -> Mapping[str, Any] | None:
        """Raises RunError for a damaged file."""
        found = read_checkpoint(self.run, self.name, self.compute)
        if found is None or found["identity"] != self.identity:
            return None
        self.earlier = found["spent"]
        state: Mapping[str, Any] = found["state"]
        return state

    @property
    def spent(self) -> float:
        """Seconds of this training, but for those that a stop has lost."""
        return self.earlier + time.monotonic() - self.begun

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        if time.monotonic() - self.saved >= self.seconds:
            write_checkpoint(self.run, self.name, {"identity": self.identity, "spent": self.spent, "state": dict(state())})
            self.saved = time.monotonic()

    def remove(self) -> None:
        (self.run / self.name).unlink(missing_ok=True)


def loaded(path: Path, load: Callable[[Path], Any], *, advice: str = "delete it to do this part again") -> Any:
    """Weights, or a graph; a file that is no such thing is the user's to delete. Raises RunError, with what to do."""
    try:
        return load(path)
    except DAMAGES as error:
        raise RunError(f"{path}: is damaged; {advice} ({type(error).__name__})") from error
