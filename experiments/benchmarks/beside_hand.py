"""Whether what a search finds dominates the networks that one would build by hand: less measured time and less test error.

A main job for each task and seed, up to its measured short-list: found and hand-designed networks train for equal FLOPs with the
same teacher, and are measured together. Of both, what is judged is the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.benchmarks.alone import test_error
from experiments.build import build
from experiments.config import composed
from experiments.outcome import Finalist
from experiments.progress import Reporter

Point = tuple[float, float]
"""Measured ms and test error in percent."""


@dataclass(frozen=True)
class BesideHand:
    """One task and seed: the networks by hand, by their names, and those of the search."""

    task: str
    seed: int
    by_hand: Mapping[str, Point]
    found: Sequence[Point]

    @property
    def dominated(self) -> list[str]:
        """The names of those by hand that some found network dominates."""
        return [name for name, point in self.by_hand.items() if any(dominates(other, point) for other in self.found)]

    @property
    def all_dominated(self) -> bool:
        return len(self.dominated) == len(self.by_hand)


def dominates(one: Point, other: Point) -> bool:
    """Whether it is less in both."""
    return one[0] < other[0] and one[1] < other[1]


def search_beside_hand(task: str, overrides: Sequence[str], seed: int, folder: Path, report: Reporter) -> BesideHand:
    """Runs the job, or goes on with it."""
    report.say(f"{task}, seed {seed}: a search beside the networks designed by hand")
    pipeline = build(composed(*overrides, f"seed={seed}", f"run={folder}", f"store={folder / 'store'}"), report=report)
    pipeline.settings = dataclasses.replace(pipeline.settings, stages={})
    outcome = pipeline.search()

    def point(finalist: Finalist) -> Point:
        return outcome.measurements[finalist.arch.id].latency_ms, test_error(outcome.finisher, finalist.arch)

    by_hand = {finalist.label: point(finalist) for finalist in outcome.finalists if finalist.role == "hand"}
    return BesideHand(task, seed, by_hand, [point(finalist) for finalist in outcome.finalists if finalist.role == "search"])


def summary(cases: Sequence[BesideHand]) -> dict[str, float]:
    """Shares of those by hand that are dominated, and of tasks in which all of them are in most seeds."""
    figures = {
        "hand_designed_dominated_share": float(np.mean([len(c.dominated) / len(c.by_hand) for c in cases])),
        "hand_designed_cases_all_dominated": sum(case.all_dominated for case in cases),
        "hand_designed_cases": len(cases),
    }
    tasks = {case.task: [c for c in cases if c.task == case.task] for case in cases}
    in_most = sum(bool(np.mean([case.all_dominated for case in of_task]) > 0.5) for of_task in tasks.values())
    return {**figures, "hand_designed_tasks_all_dominated": in_most, "hand_designed_tasks": len(tasks)}


def show(cases: Sequence[BesideHand], report: Reporter) -> None:
    table = Table("task", "seed", "by hand", "ms", "test error %", "", box=SIMPLE_HEAD, title="Found beside designed by hand")
    for case in cases:
        for name, (ms, error) in case.by_hand.items():
            table.add_row(
                case.task, str(case.seed), name, f"{ms:.4g}", f"{error:.2f}", "dominated" if name in case.dominated else ""
            )
        for ms, error in sorted(case.found):
            table.add_row("", "", "found", f"{ms:.4g}", f"{error:.2f}", "")
    report.console.print(table)
