"""How a network learns from teachers while it trains: from their mean answers, and from what is inside one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.finish.losses import Seen, matched, recorded, soft_labels
from nas.finish.remembered import Remembered, Remembering, can_remember
from nas.protocols import Batch, Task


@dataclass(frozen=True)
class Imitation:
    """Of teachers by the network whose answers it is given.

    Args:
        teachers: may be none.
        match: of `nas.finish.losses.MATCHES`.
        temperature: that softens answers.
        student, teacher: what is inside the network and the only teacher; of answers alone nothing is looked at.
        projection: from the student's width to the teacher's.
    """

    teachers: Sequence[nn.Module]
    match: Sequence[str]
    temperature: float
    student: Seen = field(default_factory=Seen)
    teacher: Seen = field(default_factory=Seen)
    projection: nn.Module = field(default_factory=nn.Identity)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of the network's last call, which gave `outputs` for the batch."""
        with torch.no_grad():
            answers = [teacher(*batch.inputs) for teacher in self.teachers]
        inside = _inside(self.match)
        told = (
            soft_labels(outputs, answers, batch.targets, self.temperature) if "answers" in self.match else outputs.new_zeros(())
        )
        return told + matched(inside, self.student, self.teacher, self.projection, batch.inputs) if inside else told


@contextmanager
def imitating(
    network: nn.Module, teachers: Sequence[nn.Module], task: Task, *, match: Sequence[str], temperature: float,
    example: Callable[[], Batch],
) -> Iterator[Imitation]:  # fmt: skip
    """Inside the block the network learns from the teachers; only where answers alone are matched may they be none or several.
    `example` gives a batch that shows how wide both are."""
    if not teachers or not _inside(match):
        yield Imitation([_answering(teacher, task) for teacher in teachers], match, temperature)
        return
    [teacher] = teachers
    with recorded(network) as ours, recorded(teacher.eval()) as theirs:
        projection = _projection(network, teacher, example()) if "hidden" in match else nn.Identity()
        yield Imitation(teachers, match, temperature, ours, theirs, projection)


def _inside(match: Sequence[str]) -> list[str]:
    return [name for name in match if name != "answers"]


def _answering(teacher: nn.Module, task: Task) -> nn.Module:
    """The teacher, which is asked once for each example where its answers can be kept."""
    knows = isinstance(teacher, Remembered | Remembering) or not can_remember(task)
    return teacher.eval() if knows else Remembering(teacher.eval())


def _projection(network: nn.Module, teacher: nn.Module, batch: Batch) -> nn.Module:
    """From the student's width to the teacher's, learned, where they differ."""
    with recorded(network) as ours, recorded(teacher) as theirs, torch.no_grad():
        network(*batch.inputs), teacher(*batch.inputs)
    own, wanted = ours.hidden.shape[-1], theirs.hidden.shape[-1]
    return nn.Identity() if own == wanted else nn.Linear(own, wanted).to(ours.hidden.device)
