"""The best trivial baseline of a task as a teacher, where it is better than a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from experiments.outcome import Explored
from experiments.progress import Reporter
from nas.finish.remembered import Remembered
from nas.finish.teaching import Lesson
from nas.protocols import Task, TaskWithAnswers


@dataclass(frozen=True)
class BaselineTeachers:
    """Those of a task; `trivial` are their errors in percent by name."""

    task: Task
    trivial: Mapping[str, float]
    known: dict[str, Remembered] = field(default_factory=dict)

    def better_than(self, error_percent: float) -> str | None:
        """The best one that can teach, if its error is smaller."""
        able = self.task.able_to_teach if isinstance(self.task, TaskWithAnswers) else ()
        better = {name: self.trivial[name] for name in able if self.trivial[name] < error_percent}
        return min(better, key=better.__getitem__) if better else None

    def teacher(self, name: str) -> Remembered:
        """Its answers to what it has not seen, computed once; they take several fits."""
        if name not in self.known:
            assert isinstance(self.task, TaskWithAnswers)
            self.known[name] = Remembered(name, *self.task.unseen_answers(name))
        return self.known[name]

    def of_short_list(self, explored: Explored, lesson: Lesson, report: Reporter) -> Callable[[], Remembered] | None:
        """What teaches the short-list, if a baseline is to: the best one, where no network that was explored is as good.

        Networks have errors of the split that searches, baselines of the one that chooses.
        """
        errors = [c.objectives["error"] for candidates in explored.by_phase.values() for c in candidates]
        best = self.better_than(min(errors)) if lesson.is_of_baseline else None
        if best is None:
            return None
        report.say(f"The short-list learns from a baseline, too, which is better than its networks so far: {best}")
        return functools.partial(self.teacher, best)
