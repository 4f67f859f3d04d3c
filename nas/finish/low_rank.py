"""Matrices as products of two thinner ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.finish.shapes import factored, linear_layers, replace
from nas.finish.teaching import Lesson, School
from nas.training import TrainConfig


@dataclass(frozen=True)
class LowRank:
    """The blocks' linear maps are factored by their truncated singular value decomposition where that saves enough, then taught.

    Args:
        energy: share of the squares of the singular values that a factored map keeps, at least.
        most_flops: a map is factored if that leaves at most this share of its FLOPs.

    Raises:
        ValueError: a share outside (0, 1].
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=Lesson)
    energy: float = 0.9
    most_flops: float = 0.7

    def __post_init__(self) -> None:
        for name in ("energy", "most_flops"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in (0, 1]")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        for name, layer in list(linear_layers(network)):
            first, second = truncated(layer.weight.detach(), energy=self.energy)
            if first.numel() + second.numel() <= self.most_flops * layer.weight.numel():
                replace(network, name, factored(first, second, layer.bias))
        school.teach(network, self.train, self.lesson)
        return network


def truncated(weight_CD: Tensor, *, energy: float) -> tuple[Tensor, Tensor]:
    """Factors [R, D] and [C, R] of the smallest rank R that keeps so much of the squares, each with half of the singular values'
    scale; their product is the closest matrix of that rank (Eckart and Young)."""
    u_CR, s_R, v_RD = torch.linalg.svd(weight_CD.double(), full_matrices=False)
    share = s_R.square().cumsum(dim=0) / s_R.square().sum()
    rank = min(len(s_R), int((share < energy).sum()) + 1)
    root = s_R[:rank].sqrt()
    return (root[:, None] * v_RD[:rank]).to(weight_CD.dtype), (u_CR[:, :rank] * root).to(weight_CD.dtype)
