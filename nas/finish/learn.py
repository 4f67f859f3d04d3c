"""More training of what ships, alone or with a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from nas.finish.teaching import Lesson, School
from nas.training import TrainConfig


@dataclass(frozen=True)
class Learn:
    """Learns on, as the lesson says: from the targets, and from a teacher's answers, hidden states or relations."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=lambda: Lesson(beta=(1.0, 1.0)))

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        school.teach(network, self.train, self.lesson)
        return network
