"""What a run cost, phase by phase: seconds, CPU seconds, peak memory and networks trained. Adds up over stops."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from experiments.run_directory import RunDirectory

NAME = "ledger.json"


@contextmanager
def spent(run: RunDirectory, phase: str, *, networks_trained: int = 0) -> Iterator[None]:
    """Books what the block costs on a phase, also when it is stopped on the way; CPU seconds with those of other processes that
    this one began, the peak of the memory without."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    finished = False
    try:
        yield
        finished = True
    finally:
        ledger = run.read_json(NAME) if run.has(NAME) else {}
        entry = ledger.setdefault(phase, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mib": 0.0, "networks_trained": 0})
        entry["seconds"] = round(entry["seconds"] + time.perf_counter() - wall, 2)
        entry["cpu_seconds"] = round(entry["cpu_seconds"] + _cpu_seconds() - cpu, 2)
        entry["peak_memory_mib"] = max(entry["peak_memory_mib"], round(_peak_mib(), 1))
        entry["networks_trained"] += networks_trained if finished else 0
        run.write_json(NAME, ledger)


def _cpu_seconds() -> float:
    """Of this process, of those that it began, and of those of them that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile
            times = child.cpu_times()
            seconds += times.user + times.system
    return seconds


def _peak_mib() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
