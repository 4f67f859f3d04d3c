"""The best trivial baseline of a task as a teacher, where it is better than a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas.finish.remembered import Remembered
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
