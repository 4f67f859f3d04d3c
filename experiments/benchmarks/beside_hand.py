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
        """Each of those by hand, be it by another found network."""
        return len(self.dominated) == len(self.by_hand)

    @property
    def dominating(self) -> list[Point]:
        """The found networks each of which dominates all those by hand alone."""
        return [point for point in self.found if all(dominates(point, other) for other in self.by_hand.values())]


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
    """The share of those by hand that are dominated; cases, and tasks in most of whose seeds, all of them are: each by some found
    network, and, which is more, all by a single one."""
    tasks = dict.fromkeys(case.task for case in cases)
    figures = {"hand_designed_dominated_share": float(np.mean([len(c.dominated) / len(c.by_hand) for c in cases]))}
    for name, holds in (("all_dominated", lambda c: c.all_dominated), ("dominated_by_one", lambda c: bool(c.dominating))):
        shares = [np.mean([holds(case) for case in cases if case.task == task]) for task in tasks]
        figures[f"hand_designed_cases_{name}"] = sum(map(holds, cases))
        figures[f"hand_designed_tasks_{name}"] = sum(bool(share > 0.5) for share in shares)
    return {**figures, "hand_designed_cases": len(cases), "hand_designed_tasks": len(tasks)}


def show(cases: Sequence[BesideHand], report: Reporter) -> None:
    table = Table("task", "seed", "by hand", "ms", "test error %", "", box=SIMPLE_HEAD, title="Found beside designed by hand")
    for case in cases:
        for name, (ms, error) in case.by_hand.items():
            table.add_row(
                case.task, str(case.seed), name, f"{ms:.4g}", f"{error:.2f}", "dominated" if name in case.dominated else ""
            )
        for ms, error in sorted(case.found):
            alone = "dominates all by hand" if (ms, error) in case.dominating else ""
            table.add_row("", "", "found", f"{ms:.4g}", f"{error:.2f}", alone)
    report.console.print(table)
    figures = summary(cases)
    for name, words in (("all_dominated", "by some found network"), ("dominated_by_one", "by a single found network")):
        held, tasks = figures[f"hand_designed_cases_{name}"], figures[f"hand_designed_tasks_{name}"]
        of = f"{held:.0f} of {len(cases)} searches, most seeds of {tasks:.0f} of {figures['hand_designed_tasks']:.0f} tasks"
        report.say(f"All designed by hand are dominated {words}: {of}")
