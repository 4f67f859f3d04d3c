"""Measuring networks side by side: short visits in rounds, with one fixed network, the sentinel, between any two.

    S a S b S c S   S b S c S a S   S c S a S b S      (the sentinel's visit at a seam is shared)

What slows the machine for a while meets a network in one round and not in the next, and what slows it for long meets the sentinel
as well: `Measurement.latency_ms` takes both out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hardware.surroundings import device_of
from nas.formats import Answer
from nas.protocols import Device, DeviceError
from nas.space import Architecture
from nas.types import Measurement, Workload

SETTLED = 0.03  # above the sentinel's reference
PATIENCE = 4  # attempts at conditions in which it is no slower


class CutShortError(DeviceError):
    """A device failed between visits; `measured` holds what was measured until then, of as many rounds as were complete."""

    def __init__(self, message: str, measured: Sequence[Measurement]) -> None:
        super().__init__(message)
        self.measured = list(measured)

    @property
    def rounds(self) -> int:
        """At least 1."""
        return len(self.measured[0].samples_ms)


@dataclass(frozen=True)
class Exported:
    """An architecture's ONNX file, and the inputs by name that it is timed with."""

    arch: Architecture
    path: Path
    inputs: Mapping[str, np.ndarray]


@runtime_checkable
class HasConditions(Protocol):
    """A device that also says in what state it is: recorded before and after measuring, no part of the device's identity.

    `other_load`, if it is there, holds `hardware.load.Load` records.
    """

    def conditions(self) -> Mapping[str, Any]: ...


@runtime_checkable
class HasEnergy(Protocol):
    """A device that also says what energy one run took in its last visit, if it was told to measure it."""

    @property
    def measures_energy(self) -> bool: ...

    def energy_mj(self) -> float | None: ...


@runtime_checkable
class HasEstimate(Protocol):
    """A device that computes its times also says, as JSON, what else it computed of a network."""

    def estimated(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]: ...


@runtime_checkable
class HasOperators(Protocol):
    """A device that also says, as JSON, who was given which operators of a network: some of it may run elsewhere."""

    def operators(self, path: Path, inputs: Mapping[str, np.ndarray]) -> Sequence[Mapping[str, Any]]: ...


@runtime_checkable
class HasDeployment(Protocol):
    """A device that runs another file than the one it is given, such as its quantisation; that one ships."""

    def deployed(self, onnx_path: Path) -> Path: ...


@runtime_checkable
class HasAnswers(Protocol):
    """A device that also opens a file for its answers, which it gives as it does when it is timed.

    It raises DeviceError where the device or its runtime is not there, or refuses the file.
    """

    def opened(self, path: Path) -> Answer: ...


def measure(
    device: Device,
    networks: Sequence[Exported],
    *,
    sentinel: Exported,
    workload: Workload,
    rounds: int = 6,
    sentinel_reference_ms: float | None = None,
    on_visit: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """Measures a few networks together; the measurements are in the order of `networks`.

    Measure many networks in groups of about six, and keep each group: if a visit fails, the complete rounds of this one are left.
    A measurement's `environment` says what it was taken with; of a device that meters energy it has `energy_mj`, of one run, a
    number a round, of one that computes its times the whole `estimate`, and of one that says it who was given which `operators`.

    Args:
        rounds: visits to each network. They begin with the next network in each round.
        sentinel_reference_ms: the sentinel's time in the conditions that all latencies are expressed in; by default that of its
            quietest visit here.
        on_visit: called after each visit with how many are done, and of how many.

    Raises:
        ValueError: no networks or no rounds.
        CutShortError: the device failed after at least one complete round.
        DeviceError: it failed before.
    """
    if not networks:
        raise ValueError("networks: there is nothing to measure")
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} is not at least 1")
    visits = [_Visits(network, device_of(device, network.arch)) for network in networks]
    beside_them = device_of(device, sentinel.arch)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    shared = {**_conditions(beside_them), "time": when, "sentinel": sentinel.arch.id}
    order = [(index + start) % len(networks) for start in range(rounds) for index in range(len(networks))]

    def measured(complete: int) -> list[Measurement]:
        """Of the first rounds, which all networks have."""
        together = {**shared, "rounds": complete, "conditions_after": _conditions(beside_them)}
        reference_ms = sentinel_reference_ms
        if reference_ms is None:
            reference_ms = min(float(np.percentile(visit, 25)) for own in visits for visit in own.sentinel_ms[:complete])
        return [
            Measurement(
                arch=own.network.arch,
                device=device.name,
                workload=workload,
                samples_ms=tuple(own.samples_ms[:complete]),
                sentinel_ms=tuple(own.sentinel_ms[:complete]),
                sentinel_reference_ms=reference_ms,
                environment={**own.facts, **together, **own.costs(complete)},
            )
            for own in visits
        ]

    try:
        before = beside_them.run(sentinel.path, sentinel.inputs)
        for done, index in enumerate(order, start=1):
            visits[index].run()
            after = beside_them.run(sentinel.path, sentinel.inputs)
            visits[index].sentinel_ms.append(before + after)
            before = after
            on_visit(done, len(order))
    except DeviceError as error:
        if complete := min(len(own.sentinel_ms) for own in visits):
            raise CutShortError(str(error), measured(complete)) from error
        raise
    return measured(rounds)


class _Visits:
    """To one of the networks that are measured together, on the device that runs it: what they gave, and the sentinel beside."""

    def __init__(self, network: Exported, device: Device) -> None:
        self.network, self.device = network, device
        self.facts = device.environment  # a board is reached for them, and then knows its conditions
        self.samples_ms: list[tuple[float, ...]] = []
        self.sentinel_ms: list[tuple[float, ...]] = []
        self.energy_mj: list[float | None] = []

    def run(self) -> None:
        self.samples_ms.append(self.device.run(self.network.path, self.network.inputs))
        self.energy_mj.append(self.device.energy_mj() if isinstance(self.device, HasEnergy) else None)

    def costs(self, complete: int) -> dict[str, Any]:
        """What the device says of the network beside its times, of the first rounds."""
        found: dict[str, Any] = {}
        if None not in self.energy_mj:
            found["energy_mj"] = self.energy_mj[:complete]
        if isinstance(self.device, HasEstimate):
            found["estimate"] = dict(self.device.estimated(self.network.path, self.network.inputs))
        if isinstance(self.device, HasOperators):
            found["operators"] = list(self.device.operators(self.network.path, self.network.inputs))
        return found


def settled(measurements: Sequence[Measurement]) -> bool:
    """Whether beside each network the sentinel was once about as fast as in the conditions that latencies are expressed in.

    One factor takes out what slows all networks alike, but what neighbours take of caches and memory slows each one differently:
    where the sentinel was 6 to 12 % slower throughout, networks were off by -9 to +7 %, and by at most 2 % where it was not.
    """
    return all(float(m.drift.min()) <= 1 + SETTLED for m in measurements)


def measure_on(
    device: Device,
    networks: Sequence[Exported],
    *,
    sentinel: Exported,
    workload: Workload,
    rounds: int,
    sentinel_reference_ms: float | None,
    enough: Callable[[Sequence[Measurement]], bool] = settled,
    attempts: int = PATIENCE,
    on_visit: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """Measures like `measure`, and then in as many rounds more, until `enough` says so of all rounds together.

    Args:
        attempts: how often `rounds` are measured at most.
        on_visit: as that of `measure`; of all visits until now, and all that have begun with them.

    Raises:
        ValueError, DeviceError: as `measure`; what earlier attempts measured is in a CutShortError, too.
    """
    found: list[Measurement] = []
    for attempt in range(attempts):

        def on_this_visit(done: int, total: int, before: int = attempt) -> None:
            on_visit(before * total + done, (before + 1) * total)

        try:
            more = measure(
                device, networks, sentinel=sentinel, workload=workload, rounds=rounds,
                sentinel_reference_ms=sentinel_reference_ms, on_visit=on_this_visit,
            )  # fmt: skip
        except CutShortError as error:
            raise CutShortError(str(error), _all_pooled(found, error.measured)) from error
        except DeviceError as error:
            if found:
                raise CutShortError(str(error), found) from error
            raise
        found = _all_pooled(found, more)
        if enough(found):
            break
    return found


def _all_pooled(first: list[Measurement], second: list[Measurement]) -> list[Measurement]:
    """Network by network; the first may be none."""
    return [pooled(*pair) for pair in zip(first, second, strict=True)] if first else second


def pooled(first: Measurement, second: Measurement) -> Measurement:
    """The visits of both, in the conditions of the quieter sentinel: where quiet moments are rare, more visits find some."""
    rounds = len(first.samples_ms) + len(second.samples_ms)
    environment = {**first.environment, "rounds": rounds, "conditions_after": second.environment.get("conditions_after", {})}
    if "energy_mj" in environment:
        environment["energy_mj"] = [*environment["energy_mj"], *second.environment["energy_mj"]]
    return replace(
        first,
        samples_ms=first.samples_ms + second.samples_ms,
        sentinel_ms=first.sentinel_ms + second.sentinel_ms,
        sentinel_reference_ms=min(first.sentinel_reference_ms, second.sentinel_reference_ms),
        environment=environment,
    )


def _conditions(device: Device) -> dict[str, Any]:
    return dict(device.conditions()) if isinstance(device, HasConditions) else {}


def states(environment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conditions that a measurement's environment holds, of all moments that it knows."""
    nested = (environment.get(name) for name in ("before", "after", "conditions_after"))
    return [environment, *(state for inner in nested if isinstance(inner, Mapping) for state in states(inner))]
