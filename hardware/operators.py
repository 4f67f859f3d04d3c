"""Who ran which operators of a file, in the same words whatever the runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ran:
    """What a runtime said that it ran, added up by operator and by who took it; times in any unit."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    times: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, operator: str, provider: str, time: Any, *, count: int = 1) -> None:
        self.counts[operator, provider] += count
        self.times[operator, provider] += time

    def table(self, *, runs: int = 1) -> list[dict[str, Any]]:
        """`operator`, `provider`, `count` in each of so many runs, and `percent` of the time of all; the longest first."""
        whole = sum(self.times.values()) or 1
        return [
            {"operator": o, "provider": p, "count": self.counts[o, p] // runs, "percent": round(100 * time / whole, 1)}
            for (o, p), time in self.times.most_common()
        ]
