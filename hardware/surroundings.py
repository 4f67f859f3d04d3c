"""One device in several surroundings, of which each architecture picks its own (see `nas.surroundings`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hardware import environment
from nas.protocols import Device
from nas.space import Architecture, Option
from nas.surroundings import surroundings_of


class Surrounded:
    """A device whose files run in the surroundings that their architectures pick.

    Args:
        make: the device in surroundings that are given by its own names.
        surroundings: all that there are.

    Raises:
        ValueError: what the device refuses.
    """

    def __init__(self, make: Callable[[Mapping[str, Option]], Device], surroundings: Sequence[Mapping[str, Option]]) -> None:
        self.devices = {frozenset(picks.items()): make(picks) for picks in surroundings}
        self._first = next(iter(self.devices.values()))
        self.name, self.format = self._first.name, getattr(self._first, "format", "onnx")

    def of(self, arch: Architecture) -> Device:
        """What runs an architecture's files; the first runs those of an architecture that picks no surroundings."""
        picks = surroundings_of(arch)
        return self.devices[frozenset(picks.items())] if picks else self._first

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where the surroundings differ, all values."""
        facts = [device.environment for device in self.devices.values()]
        values = {name: list(dict.fromkeys(of.get(name) for of in facts)) for name in facts[0]}
        return {name: of[0] if len(of) == 1 else of for name, of in values.items()}

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        return self._first.run(onnx_path, inputs)


@runtime_checkable
class MayBeAbsent(Protocol):
    """A device whose facts are known though it does not answer, and then why it does not."""

    @property
    def absent(self) -> str: ...


def absences(device: Device) -> list[str]:
    """Why a device does not answer that is known from an earlier time; nothing if it does, as far as is known."""
    found = (one.absent for one in devices_of(device) if isinstance(one, MayBeAbsent))
    return list(dict.fromkeys(filter(None, found)))


def devices_of(device: Device) -> list[Device]:
    """The device in all its surroundings."""
    return list(device.devices.values()) if isinstance(device, Surrounded) else [device]


def device_of(device: Device, arch: Architecture) -> Device:
    """What runs an architecture's files."""
    return device.of(arch) if isinstance(device, Surrounded) else device
