"""What the devices of this machine share: checks, facts, runtimes that may not be installed, and how a failure is said."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from hardware import environment
from hardware.visit import Visit, VisitOptions
from nas.protocols import DeviceError


class OnThisMachine(ABC):
    """A device that times networks in this process. Every visit opens the file anew, so that no two are ever open together.

    Args:
        threads: that one run may use.
        visit: see `Visit`.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, *, threads: int = 1, **visit: Unpack[VisitOptions]) -> None:
        self.threads = check_threads(threads)
        self.visit = Visit(**visit)

    @property
    @abstractmethod
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on."""

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def conditions(self) -> dict[str, Any]:
        """The state of the machine right now: governor, frequency and load."""
        return environment.conditions()


def check_threads(threads: int) -> int:
    """The number of threads, if this process may use so many cores. Raises ValueError."""
    if not 1 <= threads <= environment.num_cores():
        raise ValueError(f"threads: {threads} is not between 1 and {environment.num_cores()}")
    return threads


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value, if it is allowed. Raises ValueError."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {allowed}")
    return value


def describe(runtime: str, version: str, *, threads: int, precision: str, **facts: Any) -> dict[str, Any]:
    """The stable facts that a time on this machine's CPU depends on."""
    return {
        "cpu": environment.cpu_model(),
        "cores": environment.num_cores(),
        "os": environment.system(),
        runtime: version,
        "threads": threads,
        "precision": precision,
        **facts,
    }


def optional(module: str, *, extra: str) -> Any:
    """A module that one of our extras installs. Raises DeviceError, which names the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = (error.name or module).partition(".")[0]
        raise DeviceError(f"{absent} is not installed: pip install 'paretoformer[{extra}]'") from error


def in_order(inputs: Mapping[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    """The inputs as the file orders them. Raises ValueError if these are not its inputs."""
    if set(inputs) != set(names):
        raise ValueError(f"inputs: {sorted(inputs)} are given, the file takes {sorted(names)}")
    return [inputs[name] for name in names]


def own_folder(owner: object) -> Path:
    """A temporary folder that goes when its owner does."""
    folder = tempfile.mkdtemp(prefix="paretoformer-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextmanager
def refusals(path: Path, runtime: str) -> Iterator[None]:
    """Turns whatever a runtime raises into DeviceError, and a missing file too."""
    if not path.is_file():
        raise DeviceError(f"{path}: there is no such file")
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:  # the runtimes' own have no base class of their own
        raise DeviceError(f"{path}: {runtime} failed: {error}") from error
