"""Fewer layers for easy inputs, by a gate behind the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.finish.early_exit import answers_on, still_allowed, threshold
from nas.finish.exits import layers_of
from nas.finish.skips import Gate, Skips
from nas.finish.stage import NothingToDoError
from nas.finish.teaching import Lesson, School
from nas.supernet import evaluation_batches
from nas.training import TrainConfig

RIDGE = 0.01  # weight of the squares in the gate's logistic regression, relative to a mean loss


@dataclass(frozen=True)
class LayerSkip:
    """The middle layers are skipped where a gate says so: the network learns to answer both ways, and then the gate what is easy.

    That is what the short way gets no more wrong than the whole network, on the split "architecture"; the gate's threshold is the
    lowest that is allowed there, by gates that saw the other half.

    Args:
        after: layers before the gate. The last layer always runs.

    Raises:
        ValueError: fewer than one layer before the gate.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=Lesson)
    after: int = 1

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ValueError(f"after: {self.after} is not at least 1")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        """The network as `Skips`. Raises NothingToDoError where there are no layers, or no examples, to skip."""
        last_skipped = len(layers_of(network)) - 1
        if last_skipped <= self.after:
            raise NothingToDoError(f"there is no layer between layer {self.after} and the last, layer {last_skipped + 1}")
        [before] = answers_on(network, school)
        classifier = network.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        gate = Gate(classifier.in_features)
        skips = Skips(network, gate, after=self.after, until=last_skipped).to(school.compute.device)
        if not skips.shapes_fit(*_first_inputs(school)):
            raise NothingToDoError(f"behind layer {self.after} tokens are left out, which the layers behind them would miss")
        school.teach(skips, self.train, self.lesson)

        short, whole = answers_on(skips, school)
        features_ND, added_N = features(skips, school), short.wrong - whole.wrong
        easy_N = torch.from_numpy(added_N <= 0).double()
        halves = [torch.arange(len(easy_N)) % 2 == half for half in (0, 1)]
        unseen_N = torch.empty_like(easy_N)
        for half in halves:
            unseen_N[half] = _probability(*logistic(features_ND[~half], easy_N[~half]), features_ND[half])
        lowest, share = threshold(unseen_N.numpy(), added_N, allowed=still_allowed(school, before, whole))
        if not share:
            raise NothingToDoError(
                f"no example may skip a layer, at {school.most_points_lost:g} points of error that may be lost"
            )
        skips.threshold.fill_(lowest)
        with torch.no_grad():
            for parameter, value in zip((gate.linear.weight, gate.linear.bias), logistic(features_ND, easy_N), strict=True):
                parameter.copy_(value)
        return skips


def _first_inputs(school: School) -> Sequence[Tensor]:
    batch = next(iter(evaluation_batches(school.task, "architecture")))
    return batch.to(school.compute.device).inputs


@torch.no_grad()
def features(skips: Skips, school: School) -> Tensor:
    """What the gate decides by over the split "architecture", float64 [N, D]."""
    read = evaluation_batches(school.task, "architecture")
    rows = [skips.eval().features(*batch.to(school.compute.device).inputs) for batch in read]
    return torch.cat(rows).double().cpu()


def logistic(features_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [1, D] and bias [1] of a logistic regression with a ridge on standardised features."""
    mean_D, std_D = features_ND.mean(dim=0), features_ND.std(dim=0).clamp_min(1e-6)
    standard_ND = (features_ND - mean_D) / std_D
    weight, bias = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (len(mean_D), 1))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.binary_cross_entropy_with_logits(standard_ND @ weight + bias, targets_N) + RIDGE * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    scaled_D = (weight / std_D).detach()
    return scaled_D[None], bias.detach() - scaled_D @ mean_D


def _probability(weight_1D: Tensor, bias_1: Tensor, features_ND: Tensor) -> Tensor:
    return torch.sigmoid(features_ND @ weight_1D[0] + bias_1)
