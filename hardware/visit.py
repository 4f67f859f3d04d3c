"""One visit to a network that is loaded: runs until it is warm, then runs that are timed, raw and in their order.

It is warm when the medians of two consecutive windows of runs agree within a share: caches are filled, memory is allocated, the
clock has risen. On a machine that is never steady a bound in seconds ends the wait.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Run = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds since some moment."""

WINDOW = 5  # runs of which a median is taken


@dataclass(frozen=True)
class VisitRule:
    """When a visit is warm, and when it ends.

    Args:
        warmup_seconds: at most, before the first run that is timed. One run is always made.
        stable_within: share by which the medians of the last two windows may differ in a network that is warm.
        visit_seconds: how long runs are timed, unless `min_samples` takes longer or `max_samples` is reached before.

    Raises:
        ValueError: a value outside its range.
    """

    warmup_seconds: float = 0.1
    stable_within: float = 0.05
    visit_seconds: float = 0.02
    min_samples: int = 10
    max_samples: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_seconds <= 60:
            raise ValueError(f"warmup_seconds: {self.warmup_seconds} is not between 0 and 60")
        if not 0 < self.stable_within <= 1:
            raise ValueError(f"stable_within: {self.stable_within} is not above 0 and at most 1")
        if not 0 < self.visit_seconds <= 60:
            raise ValueError(f"visit_seconds: {self.visit_seconds} is not above 0 and at most 60")
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(f"min_samples: {self.min_samples} is not between 1 and max_samples, {self.max_samples}")

    def visit(self, run: Run, *, clock: Clock = time.perf_counter_ns) -> tuple[float, ...]:
        """Wall times of single runs in ms, in the order in which they were taken. Whatever `run` raises goes through."""
        with _no_garbage_collection():
            self.warm_up(run, clock=clock)
            samples: list[int] = []
            now = clock()
            end = now + round(1e9 * self.visit_seconds)
            while len(samples) < self.max_samples and (now < end or len(samples) < self.min_samples):
                start = clock()
                run()
                now = clock()
                samples.append(now - start)
        return tuple(sample / 1e6 for sample in samples)

    def warm_up(self, run: Run, *, clock: Clock = time.perf_counter_ns) -> bool:
        """Runs until two windows agree or the time is over; returns whether they agreed."""
        now = clock()
        end = now + round(1e9 * self.warmup_seconds)
        times: list[int] = []
        while not times or now < end:
            run()
            before, now = now, clock()
            times = [*times[1 - 2 * WINDOW :], now - before]
            if len(times) == 2 * WINDOW and self._agree(times):
                return True
        return False

    def _agree(self, times: list[int]) -> bool:
        earlier, later = statistics.median(times[:WINDOW]), statistics.median(times[WINDOW:])
        return abs(later - earlier) <= self.stable_within * earlier


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
