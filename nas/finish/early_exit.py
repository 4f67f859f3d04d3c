"""An answer after fewer layers where the network is sure of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from nas.finish.exits import NEVER, Exits, Head, answers_of, confidence, layers_of
from nas.finish.stage import NothingToDoError
from nas.finish.teaching import Lesson, School
from nas.protocols import Task
from nas.supernet import evaluation_batches
from nas.training import TrainConfig


@dataclass(frozen=True)
class EarlyExit:
    """A head after a layer, taught with the rest of the network; then the lowest threshold that the split "architecture" allows.

    Args:
        after: layers before the exit; 0: those that leave the least to be run on average, by the layers' weights. Then all are
            taught, and one is kept.

    Raises:
        ValueError: a negative number of layers.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=Lesson)
    after: int = 0

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError(f"after: {self.after} is negative")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        """The network as `Exits` with one head. Raises NothingToDoError where there is no layer, or no example, to exit at."""
        costs = np.array([sum(p.numel() for p in layer.parameters()) for layer in layers_of(network)], dtype=float).cumsum()
        if len(costs) < 2:
            raise NothingToDoError("there is nothing to exit from, the network has one layer")
        if self.after >= len(costs):
            raise NothingToDoError(f"there is no exit after layer {self.after}, the network has {len(costs)} layers")
        [before] = answers_on(network, school)
        classifier = network.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        numbers = [self.after] if self.after else range(1, len(costs))
        exits = Exits(network, {k: Head(classifier.in_features, classifier.out_features) for k in numbers}).to(
            school.compute.device
        )
        school.teach(exits, self.train, self.lesson)

        *early, last = answers_on(exits, school)
        allowed = still_allowed(school, before, last)
        found = [threshold(each.confidence, each.wrong - last.wrong, allowed=allowed) for each in early]
        left = [1 - share * (1 - costs[after - 1] / costs[-1]) for after, (_, share) in zip(numbers, found, strict=True)]
        best = int(np.argmin(left))
        if not found[best][1]:
            raise NothingToDoError(f"no example may exit, at {school.most_points_lost:g} points of error that may be lost")
        head = exits.heads[str(numbers[best])]
        assert isinstance(head, Head)
        return Exits(network, {numbers[best]: head}, threshold=found[best][0])


@dataclass(frozen=True)
class Answers:
    """Of N examples, the largest probability, and 1 where the class is wrong and 0 where it is right."""

    confidence: np.ndarray
    wrong: np.ndarray


@torch.no_grad()
def answers_on(network: nn.Module, school: School) -> list[Answers]:
    """All answers of a network, or the only one, over the split "architecture"."""
    network.eval()
    task: Task = school.task
    rows = []
    for batch in evaluation_batches(task, "architecture"):
        batch = batch.to(school.compute.device)
        answers = answers_of(network, batch.inputs)
        rows.append([(confidence(x)[:, 0].cpu(), (x.argmax(dim=-1) != batch.targets).double().cpu()) for x in answers])
    return [Answers(*(torch.cat(column).numpy() for column in zip(*each, strict=True))) for each in zip(*rows, strict=True)]


def still_allowed(school: School, before: Answers, after: Answers) -> float:
    """The share of the examples that a stage may still get wrong, after what teaching the network changed."""
    return float(school.most_points_lost / 100 - (after.wrong.mean() - before.wrong.mean()))


def threshold(confidence_N: np.ndarray, added_N: np.ndarray, *, allowed: float) -> tuple[float, float]:
    """The lowest threshold at which exits add no more error than is allowed, and the share of the examples that are above it.

    What they add is a mean over all examples and one standard error, so that it holds for other examples too. It lies between the
    probabilities of two examples: the least sure one never exits.

    Args:
        added_N: of each example, how much more wrong (1, 0 or -1) the early answer is than the last.
        allowed: share of the examples.
    """
    order = np.argsort(-confidence_N, kind="stable")
    sure, added = confidence_N[order].astype(float), added_N[order]
    mean = added.cumsum() / len(added)
    error = np.sqrt(((added**2).cumsum() / len(added) - mean**2) / len(added))
    fits = (mean + error <= allowed)[:-1] & (sure[:-1] > sure[1:])
    if not fits.any():
        return NEVER, 0.0
    exits = int(np.flatnonzero(fits)[-1]) + 1
    return float((sure[exits - 1] + sure[exits]) / 2), exits / len(added)
