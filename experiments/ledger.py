"""What a run cost, phase by phase: seconds, CPU seconds, peak memory and networks trained. Adds up over stops."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.run_directory import RunDirectory

NAME = "ledger.json"


@contextmanager
def spent(run: RunDirectory, phase: str, *, networks_trained: int = 0) -> Iterator[None]:
    """Books what the block costs on a phase, also when it is stopped on the way."""
    wall, cpu = time.perf_counter(), time.process_time()
    finished = False
    try:
        yield
        finished = True
    finally:
        ledger = run.read_json(NAME) if run.has(NAME) else {}
        entry = ledger.setdefault(phase, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mib": 0.0, "networks_trained": 0})
        entry["seconds"] = round(entry["seconds"] + time.perf_counter() - wall, 2)
        entry["cpu_seconds"] = round(entry["cpu_seconds"] + time.process_time() - cpu, 2)
        entry["peak_memory_mib"] = max(entry["peak_memory_mib"], round(_peak_mib(), 1))
        entry["networks_trained"] += networks_trained if finished else 0
        run.write_json(NAME, ledger)


def _peak_mib() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
