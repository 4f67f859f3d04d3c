"""Measurements kept between runs: a folder of JSON-lines files, one for a family, a workload and a device in one environment.

    <signature>-<batch>x<tokens>-<mode>[<past tokens>]-<device fingerprint>.jsonl

A line is `Measurement.to_json()` with the `fingerprint` of the device's environment and the family's `signature`. Nothing that
can be read is ever removed; what is not used is said in a note. Any file can be deleted at any time: its networks are measured
again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hardware.quality import uncertainty
from hardware.surroundings import device_of
from nas.protocols import Device
from nas.space import Architecture, SearchSpace
from nas.types import Measurement, Workload

MAX_AGE_DAYS = 30  # of measurements that are used
MAX_AHEAD_DAYS = 1  # clocks differ, and a run may outlast a correction of its own; how old what is later still is, nobody knows
SHOWN = 3  # of networks that a note is about
SAME_WITHIN = 0.2  # sessions on a busy machine differ by up to 9 %, and networks do not slow down as the sentinel does


class MeasurementStore:
    """The measurements in one folder, which is made when the first one is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def load(
        self, space: SearchSpace, device: Device, signature: str, workload: Workload
    ) -> tuple[dict[str, Measurement], list[str]]:
        """What can be used on this device, by architecture id (the last line of each), and what is left out or odd, in words.

        Raises:
            ValueError: a line, other than a last one that was cut off, is not a measurement of this space.
        """
        path = self.path(device, signature, workload)
        expected = {**device.environment, "signature": signature}
        oldest, latest = (datetime.now(UTC) + timedelta(days=days) for days in (-MAX_AGE_DAYS, MAX_AHEAD_DAYS))
        found: dict[str, Measurement] = {}
        foreign: Counter[tuple[str, str]] = Counter()
        contradicted: dict[str, str] = {}
        stale, ahead, notes = 0, 0, []
        for number, (line, is_complete) in enumerate(_lines(path), start=1):
            try:
                record = json.loads(line)
                own = device_of(device, Architecture(tuple(record["arch"].items())))
                if difference := _difference(record, {**own.environment, "signature": signature}):
                    foreign[difference] += 1
                    continue
                measurement = Measurement.from_json(space, record)
                taken = datetime.fromisoformat(record["environment"]["time"])
                is_stale, is_ahead = taken < oldest, taken > latest
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if not is_complete:
                    notes.append(f"the last line of {path} was cut off and is not used")
                    continue
                raise ValueError(
                    f"{path}, line {number}: is not a measurement of the space {space.name} ({type(error).__name__}: {error}). "
                    "The line or the whole file can be deleted safely: its networks are then measured again"
                ) from error
            if is_stale or is_ahead:
                stale, ahead = stale + is_stale, ahead + is_ahead
                continue
            earlier = found.get(measurement.arch.id)
            if earlier is not None and contradict(earlier, measurement):
                times = f"{earlier.latency_ms:.4g} ms, then {measurement.latency_ms:.4g} ms"
                contradicted[measurement.arch.id] = f"{measurement.arch.id} ({times})"
            found[measurement.arch.id] = measurement
        for other in sorted(self.folder.glob(f"{_prefix(signature, workload)}*.jsonl")):
            if other != path:
                foreign.update(_differences(other, expected))
        notes += [_unused(number, f"of {then}", f"with {now}") for (then, now), number in foreign.items()]
        if contradicted:
            shown = [
                *list(contradicted.values())[:SHOWN],
                *([f"{len(contradicted)} networks in all"] * (len(contradicted) > SHOWN)),
            ]
            notes.append(
                f"MEASUREMENTS CONTRADICT EACH OTHER in {path} by more than noise and the speed of the machine explain: "
                f"{', '.join(shown)}. The last ones are used; the file can be deleted safely, then all are measured again"
            )
        if stale:
            notes.append(_unused(stale, f"older than {MAX_AGE_DAYS} days", "any more"))
        if ahead:
            notes.append(_unused(ahead, "from days to come", "(a clock is wrong, here or where they were kept)"))
        return found, notes

    def append(self, measurements: Sequence[Measurement], *, device: Device, signature: str) -> None:
        """Keeps measurements that were taken on this device, each safe on the disk before the next is written.

        What an earlier kill left of a line is removed. Several runs may share the folder.

        Raises:
            OSError: they cannot be written, for example because no space is left; those before the failure are kept.
        """
        with self._refusals():
            for measurement in measurements:
                path = self.path(device, signature, measurement.workload)
                record = {**measurement.to_json(), "fingerprint": device.fingerprint, "signature": signature}
                line = json.dumps(record).encode() + b"\n"
                with path.open("ab", buffering=0) as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: what another run is writing is not cut off
                    _mend_end(path)
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())

    def check(self) -> None:
        """Raises OSError if nothing can be written to the folder, before anything is measured for it."""
        with self._refusals(), tempfile.TemporaryFile(dir=self.folder):
            pass

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise OSError(error.errno, f"measurements cannot be kept: {error.strerror}", str(self.folder)) from error

    def path(self, device: Device, signature: str, workload: Workload) -> Path:
        """The file of what was measured on this device; it need not exist."""
        return self.folder / f"{_prefix(signature, workload)}{device.fingerprint}.jsonl"


def contradict(first: Measurement, second: Measurement) -> bool:
    """Whether two measurements of one network differ by more than their noise explains, beside the same sentinel's own times."""
    if first.environment.get("sentinel") != second.environment.get("sentinel"):
        return False
    times = (m.latency_ms / m.sentinel_reference_ms for m in (first, second))
    known = [error for error in map(uncertainty, (first, second)) if not math.isnan(error)]
    return abs(math.log(next(times) / next(times))) > max(math.log1p(SAME_WITHIN), 3 * math.hypot(*known))


def sentinel_reference(measurements: Iterable[Measurement]) -> float | None:
    """The sentinel's reference time in ms of the earliest measurement; None if there are no measurements.

    Measure with it to express later latencies in the same conditions.
    """
    earliest = min(measurements, key=lambda m: datetime.fromisoformat(m.environment["time"]), default=None)
    return earliest.sentinel_reference_ms if earliest else None


def _prefix(signature: str, workload: Workload) -> str:
    return f"{signature}-{workload.batch}x{workload.tokens}-{workload.mode}{workload.past or ''}-"


def _unused(number: int, which: str, why: str) -> str:
    noun, verb = ("measurement", "is") if number == 1 else ("measurements", "are")
    return f"{number} {noun} {which} {verb} not used {why}"


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file that need not exist, and whether each ends as a line does."""
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            yield line, line.endswith(b"\n")


def _difference(record: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a record was taken with and what is expected, where they differ."""
    recorded = {**record["environment"], "signature": record["signature"]}
    names = [name for name in expected if recorded.get(name) != expected[name]]
    if not names:
        return None
    then, now = (", ".join(f"{name} {facts.get(name)}" for name in names) for facts in (recorded, expected))
    return then, now


def _differences(path: Path, expected: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Why each measurement in the file of another environment is not used; lines that cannot be read are passed over."""
    for line, _ in _lines(path):
        try:
            difference = _difference(json.loads(line), expected)
        except (ValueError, KeyError, TypeError):
            continue
        if difference:
            yield difference


def _mend_end(path: Path) -> None:
    """Lets a file that does not end in a whole line do so: half a record is removed, a whole one gets its line end."""
    *_, (line, is_complete) = [(b"", True), *_lines(path)]
    if is_complete:
        return
    with path.open("rb+") as file:
        try:
            json.loads(line)
        except ValueError:
            file.seek(-len(line), os.SEEK_END)
            file.truncate()
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
