"""Matrices as products of two thinner ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.finish.precision import check
from nas.finish.shapes import factored, linear_layers, replace
from nas.finish.stage import NothingToDoError
from nas.finish.teaching import Lesson, School
from nas.training import TrainConfig

BY = ("energy", "latency")
SHARES = (0.25, 0.5, 0.75)  # of a map's FLOPs, that factors of the tried ranks need
NUM_BATCHES = 4  # that the loss of a rank is judged on


@dataclass(frozen=True)
class LowRank:
    """The blocks' linear maps are factored by their truncated singular value decomposition where that saves enough, then taught.

    Args:
        by: what sets the ranks: "energy" of the maps alone, or "latency", the least loss for each share of the
            latency that is saved on the device.
        energy: share of the squares of the singular values that a factored map keeps, at least.
        most_flops: by energy a map is factored if that leaves at most this share of its FLOPs.
        faster: share of the latency to save by latency.

    Raises:
        ValueError: a share outside (0, 1], or another word than those of `by`.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=Lesson)
    by: str = "energy"
    energy: float = 0.9
    most_flops: float = 0.7
    faster: float = 0.15

    def __post_init__(self) -> None:
        check("by", self.by, BY)
        for name in ("energy", "most_flops", "faster"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in (0, 1]")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        """Raises NothingToDoError where no map is worth its factors."""
        ranks = self._by_energy(network) if self.by == "energy" else by_latency(network, school, faster=self.faster)
        school.facts["ranks"] = ranks
        factor(network, ranks)
        school.teach(network, self.train, self.lesson)
        return network

    def _by_energy(self, network: nn.Module) -> dict[str, int]:
        layers = dict(linear_layers(network))
        ranks = {name: rank_of(layer.weight.detach(), energy=self.energy) for name, layer in layers.items()}
        shares = {name: rank * sum(layers[name].weight.shape) / layers[name].weight.numel() for name, rank in ranks.items()}
        if (least := min(shares.values())) > self.most_flops:
            raise NothingToDoError(
                f"no map keeps {100 * self.energy:g} % of its energy in factors of at most {100 * self.most_flops:g} % of its"
                f" FLOPs (the least is {100 * least:.0f} %)"
            )
        return {name: rank for name, rank in ranks.items() if shares[name] <= self.most_flops}


def factor(network: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """The same network, some of its linear maps in factors of these ranks."""
    for name, rank in ranks.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        replace(network, name, factored(*truncated(layer.weight.detach(), rank), layer.bias))
    return network


def rank_of(weight_CD: Tensor, *, energy: float) -> int:
    """The smallest rank that keeps so much of the squares of the singular values."""
    squares_R = torch.linalg.svdvals(weight_CD.double()).square()
    share = squares_R.cumsum(dim=0) / squares_R.sum()
    return min(len(share), int((share < energy).sum()) + 1)


def truncated(weight_CD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors [R, D] and [C, R], each with half of the singular values' scale; their product is the closest matrix of that rank
    (Eckart and Young)."""
    u_CR, s_R, v_RD = torch.linalg.svd(weight_CD.double(), full_matrices=False)
    root = s_R[:rank].sqrt()
    return (root[:, None] * v_RD[:rank]).to(weight_CD.dtype), (u_CR[:, :rank] * root).to(weight_CD.dtype)


def by_latency(network: nn.Module, school: School, *, faster: float) -> dict[str, int]:
    """Ranks that save so much of the latency, or as much as there is to save, with the least loss for each share.

    A time depends on sizes alone: all maps of one size are factored at once and measured beside the network as it was, and each
    saves its share. Maps of a size that is not faster in factors stay whole; `school.facts` names the size.

    Raises:
        NothingToDoError: no map is clearly faster in factors.
    """
    names: dict[tuple[int, int], list[str]] = {}
    for name, layer in linear_layers(network):
        names.setdefault((layer.out_features, layer.in_features), []).append(name)
    tried = [(size, rank) for size in names for rank in _ranks(*size)]
    alike = [factor(copy.deepcopy(network), dict.fromkeys(names[size], rank)) for size, rank in tried]
    saved = {key: share for key, share in zip(tried, school.saved(network, alike), strict=True) if share > 0}
    school.facts["not_faster"] = [f"{C} x {D}" for C, D in names if not any(size == (C, D) for size, _ in saved)]
    if not saved:
        raise NothingToDoError(
            f"no map is clearly faster in factors on the device (tried: {', '.join(school.facts['not_faster'])})"
        )
    added = added_loss(network, school, {name: [r for s, r in saved if s == size] for size in names for name in names[size]})
    options: dict[str, dict[int, tuple[float, float]]] = {}
    for (size, rank), share in saved.items():
        for name in names[size]:
            options.setdefault(name, {})[rank] = share / len(names[size]), added[name, rank]
    return cheapest(options, save=faster)


def _ranks(C: int, D: int) -> list[int]:
    return sorted({max(1, int(share * C * D / (C + D))) for share in SHARES})


@torch.no_grad()
def added_loss(network: nn.Module, school: School, ranks: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], float]:
    """What the mean loss on the split "architecture" gains with a single map at a rank, and no training."""
    loss = school.loss_on(network, "architecture", num_batches=NUM_BATCHES)
    first, added = loss(), {}
    for name, few in ranks.items():
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        own = weight.clone()
        for rank in few:
            right, left = truncated(own, rank)
            weight.copy_(left @ right)
            added[name, rank] = loss() - first
        weight.copy_(own)
    return added


def cheapest(options: Mapping[str, Mapping[int, tuple[float, float]]], *, save: float) -> dict[str, int]:
    """A rank for each map that is factored: step by step the one that adds the least loss for what it saves more, until so much
    is saved or nothing saves more.

    Args:
        options: of each map by rank: share of the latency saved, and loss added.
    """
    ranks: dict[str, int] = {}
    now = dict.fromkeys(options, (0.0, 0.0))
    while sum(saved for saved, _ in now.values()) < save:
        moves = [
            (max(0.0, added - now[name][1]) / (saved - now[name][0]), name, rank)
            for name, of_rank in options.items()
            for rank, (saved, added) in of_rank.items()
            if saved > now[name][0]
        ]
        if not moves:
            break
        _, name, rank = min(moves)
        ranks[name], now[name] = rank, options[name][rank]
    return ranks
