"""One visit to a network that is loaded: runs until it is warm, then runs that are timed, raw and in their order.

It is warm when the medians of two consecutive windows of runs agree within a share, and so much time has gone by as a processor
needs to raise its clock. On a machine that is never steady a bound in seconds ends the wait.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

WINDOW = 5  # runs of which a median is taken
LEAST_SECONDS = 0.01  # of warm-up, unless the bound is lower


class VisitOptions(TypedDict, total=False):
    """What a device's YAML says of its visits, as `Visit` takes it."""

    warmup_seconds: float
    visit_seconds: float
    min_samples: int
    max_samples: int


@dataclass(frozen=True)
class Visit:
    """When a visit is warm, and when it ends.

    Short visits are the best buy on a shared machine: more rounds of them find more quiet moments (see `hardware.timing`).

    Args:
        warmup_seconds: at most, before the first run that is timed. One run is always made.
        visit_seconds: how long runs are timed, unless `min_samples` takes longer or `max_samples` is reached before.
        stable_within: share by which the medians of the last two windows may differ in a network that is warm.
        clock: nanoseconds since some moment.

    Raises:
        ValueError: a value outside its range.
    """

    warmup_seconds: float = 0.1
    visit_seconds: float = 0.02
    min_samples: int = 10
    max_samples: int = 200
    stable_within: float = 0.05
    clock: Callable[[], int] = field(default=time.perf_counter_ns, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_seconds <= 60:
            raise ValueError(f"warmup_seconds: {self.warmup_seconds} is not between 0 and 60")
        if not 0 < self.visit_seconds <= 60:
            raise ValueError(f"visit_seconds: {self.visit_seconds} is not above 0 and at most 60")
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(f"min_samples: {self.min_samples} is not between 1 and max_samples, {self.max_samples}")
        if not 0 < self.stable_within <= 1:
            raise ValueError(f"stable_within: {self.stable_within} is not above 0 and at most 1")

    def times(self, sample: Callable[[], float]) -> tuple[float, ...]:
        """What `sample`, a run that returns its ms, returned after the warm-up, in order, the garbage collector at rest.

        Whatever it raises goes through.
        """
        with _no_garbage_collection():
            self.warm_up(sample)
            samples: list[float] = []
            end = self._in(self.visit_seconds)
            while len(samples) < self.max_samples and (len(samples) < self.min_samples or self.clock() < end):
                samples.append(sample())
        return tuple(samples)

    def warm_up(self, sample: Callable[[], float]) -> bool:
        """Runs until two windows agree or the time is over; returns whether they agreed."""
        least, end = self._in(LEAST_SECONDS), self._in(self.warmup_seconds)
        recent = [sample()]
        while self.clock() < end:
            if len(recent) == 2 * WINDOW and self.clock() >= least and self._agree(recent):
                return True
            recent = [*recent[1 - 2 * WINDOW :], sample()]
        return False

    def _in(self, seconds: float) -> int:
        return self.clock() + round(1e9 * seconds)

    def _agree(self, recent: list[float]) -> bool:
        earlier, later = statistics.median(recent[:WINDOW]), statistics.median(recent[WINDOW:])
        return abs(later - earlier) <= self.stable_within * earlier


def wall(run: Callable[[], object]) -> Callable[[], float]:
    """The run, returning its wall time in ms."""

    def sample() -> float:
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / 1e6

    return sample


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
