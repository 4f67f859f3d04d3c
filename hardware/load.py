"""What else a machine computes while it should measure, by name."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

LEAST_CORES = 0.2  # that are worth a word: the clock that counts CPU time ticks in hundredths of a second
UNSEEN = "processes that ended or cannot be seen"
STOLEN = "other virtual machines on this host"


@dataclass(frozen=True)
class Load:
    """A program other than this one, its process (None: not a process of this system) and the share of a core that it uses."""

    name: str
    pid: int | None
    cores: float

    def __str__(self) -> str:
        process = f" (process {self.pid})" if self.pid is not None else ""
        return f"{self.name}{process}: {self.cores:.0%} of a core"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def other_load(seconds: float = 0.1) -> list[Load]:
    """Who else uses at least `LEAST_CORES` of a core during the next `seconds`, the greediest first. This process sleeps."""
    start = time.perf_counter()
    whole, each = _whole(), _each()
    time.sleep(seconds)
    passed = time.perf_counter() - start
    busy, stolen = (now - then for now, then in zip(_whole(), whole, strict=True))
    used = {pid: (name, spent - each.get(pid, (name, 0.0))[1]) for pid, (name, spent) in _each().items()}
    unseen = busy - sum(spent for _, spent in used.values())
    used.pop(psutil.Process().pid, None)
    spenders = [(name, pid, spent) for pid, (name, spent) in used.items()]
    loads = [
        Load(name, pid, round(spent / passed, 2))
        for name, pid, spent in (*spenders, (UNSEEN, None, unseen), (STOLEN, None, stolen))
    ]
    return sorted((load for load in loads if load.cores >= LEAST_CORES), key=lambda load: -load.cores)


def _whole() -> tuple[float, float]:
    """CPU seconds of the whole system so far, and those that its host gave to others."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", 0.0)


def _each() -> dict[int, tuple[str, float]]:
    """Name and CPU seconds so far of each process that shows them."""
    infos = ((process.pid, process.info) for process in psutil.process_iter(["name", "cpu_times"]))
    return {
        pid: (info["name"] or "?", info["cpu_times"].user + info["cpu_times"].system)
        for pid, info in infos
        if info["cpu_times"] is not None  # another user's, where the system does not tell
    }
