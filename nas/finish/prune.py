"""Weights that are zero: by magnitude or by movement, one by one, two of four, or in blocks.

A runtime without sparse kernels multiplies zeros as anything else: a sparse network is smaller when it is compressed, and faster
only where its device says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nas.finish.precision import check
from nas.finish.shapes import linear_layers
from nas.finish.stage import NothingToDoError
from nas.finish.teaching import Lesson, School
from nas.training import TrainConfig

PATTERNS = ("single", "2:4", "block")
SCORES = ("magnitude", "movement")


@dataclass(frozen=True)
class Prune:
    """Weights of the blocks' linear maps go while the network learns.

    Args:
        pattern: "single" weights, "2:4" (two of four neighbours of a row), or "block" (squares of `block` by `block`).
        score: what stays: weights of large "magnitude" (Zhu and Gupta, arXiv:1710.01878), or those that training moves away from
            zero ("movement", arXiv:2005.07683).
        sparsity: share of the weights that are zero at the end; 0.5 for 2:4.
        begin, end: shares of the training between which the sparsity grows, by the cubic schedule of Zhu and Gupta.

    Raises:
        ValueError: a value outside its range.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=Lesson)
    pattern: str = "single"
    score: str = "magnitude"
    sparsity: float = 0.5
    block: int = 4
    begin: float = 0.0
    end: float = 0.6

    def __post_init__(self) -> None:
        check("pattern", self.pattern, PATTERNS)
        check("score", self.score, SCORES)
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity: {self.sparsity} is not between 0 and 1")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"sparsity: {self.sparsity} is not 0.5, which the pattern 2:4 means")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"begin, end: {self.begin} and {self.end} are not ascending in [0, 1]")
        if self.lesson.check_every:
            raise ValueError(f"check_every: {self.lesson.check_every} is not 0; a network does best before it is pruned")
        if self.block < 2:
            raise ValueError(f"block: {self.block} is not at least 2")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        """Raises NothingToDoError where the pattern divides no map."""
        steps = self.train.steps
        school.facts["undivided"] = [name for name, layer in linear_layers(network) if not fits(layer, self)]
        with masked(network, self) as masks:

            def on_step(step: int) -> None:
                for mask in masks:
                    mask.update(cubic(step / steps, begin=self.begin, end=self.end, final=self.sparsity))

            school.teach(network, self.train, self.lesson, on_step=on_step)
        return network

    def facts_of(self, model: onnx.ModelProto) -> dict[str, Any]:
        """Of the exported file: sparsity of the matrices that are sparse, and whether each keeps the pattern."""
        sparse = {name: value for name, value in matrices(model).items() if (value == 0).mean() > self.sparsity / 50}
        zeros = sum(int((value == 0).sum()) for value in sparse.values())
        return {
            "pattern": self.pattern,
            "sparsity_percent": 100.0 * zeros / max(1, sum(value.size for value in sparse.values())),
            "num_sparse_matrices": len(sparse),
            "pattern_kept": bool(sparse) and all(keeps(value, self) for value in sparse.values()),
        }


def cubic(progress: float, *, begin: float, end: float, final: float) -> float:
    """Sparsity at a share of the training: final * (1 - (1 - t)^3), t from 0 at `begin` to 1 at `end` (arXiv:1710.01878)."""
    t = min(1.0, max(0.0, (progress - begin) / (end - begin)))
    return final * (1.0 - (1.0 - t) ** 3)


def kept(score_CD: Tensor, settings: Prune, sparsity: float) -> Tensor:
    """1 for the weights with the largest scores and 0 for the others, [C, D], in the pattern; of 2:4 a share of all fours, those
    that lose least, until the sparsity is 0.5."""
    if settings.pattern == "2:4":
        fours = score_CD.unflatten(1, (-1, 4))
        two = torch.zeros_like(fours).scatter_(2, fours.topk(2, dim=2).indices, 1.0)
        lost = (fours * (1 - two)).sum(dim=2)
        cut = _smallest(lost, sparsity / settings.sparsity)[..., None]
        return torch.where(cut, two, torch.ones_like(two)).flatten(1)
    if settings.pattern == "block":
        size = settings.block
        sums = score_CD.unflatten(1, (-1, size)).unflatten(0, (-1, size)).sum(dim=(1, 3))
        stays = (~_smallest(sums, sparsity)).float()
        return stays.repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)
    return (~_smallest(score_CD, sparsity)).float()


def _smallest(values: Tensor, share: float) -> Tensor:
    """Which entries belong to the smallest, so many of all."""
    cut = torch.zeros_like(values, dtype=torch.bool)
    cut.view(-1)[values.flatten().argsort(stable=True)[: round(share * values.numel())]] = True
    return cut


class _Straight(torch.autograd.Function):
    """The mask itself; its gradient goes to the scores as it is."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Mask(nn.Module):
    """A weight under its mask. Scores that move are parameters, and learn beside the weights."""

    def __init__(self, weight: Tensor, settings: Prune) -> None:
        super().__init__()
        self.settings, self.weight = settings, [weight]  # in a list: no parameter of this module
        self.scores = nn.Parameter(torch.zeros_like(weight)) if settings.score == "movement" else None
        self.register_buffer("mask", torch.ones_like(weight), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        mask: Tensor = self.mask if self.scores is None else _Straight.apply(self.scores, self.mask)  # type: ignore[no-untyped-call]
        return weight * mask

    @torch.no_grad()
    def update(self, sparsity: float) -> None:
        self.mask = kept(self.weight[0].abs() if self.scores is None else self.scores, self.settings, sparsity)


def fits(layer: nn.Linear, settings: Prune) -> bool:
    """Whether the pattern divides the layer's weight."""
    rows, columns = _size(settings)
    return layer.out_features % rows == 0 and layer.in_features % columns == 0


def _size(settings: Prune) -> tuple[int, int]:
    """Rows and columns that the pattern repeats in."""
    return {"single": (1, 1), "2:4": (1, 4), "block": (settings.block, settings.block)}[settings.pattern]


@contextmanager
def masked(network: nn.Module, settings: Prune) -> Iterator[Sequence[_Mask]]:
    """The blocks' linear maps under masks inside the block; afterwards what is masked is zero."""
    masks, layers = [], [layer for _, layer in linear_layers(network) if fits(layer, settings)]
    if not layers:
        raise NothingToDoError(f"the pattern {settings.pattern} divides no map of the network")
    for layer in layers:
        masks.append(_Mask(layer.weight, settings))
        parametrize.register_parametrization(layer, "weight", masks[-1])
    try:
        yield masks
    finally:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight")


def matrices(model: onnx.ModelProto) -> Mapping[str, np.ndarray]:
    """The constant matrices that a model multiplies with, rows for outputs and columns for inputs."""
    used = {node.input[1] for node in model.graph.node if node.op_type in ("MatMul", "Attention")}
    return {t.name: numpy_helper.to_array(t).T for t in model.graph.initializer if t.name in used and len(t.dims) == 2}


def keeps(matrix_CD: np.ndarray, settings: Prune) -> bool:
    """Whether the zeros of a matrix are in the pattern: two or more of each four, or whole blocks. One that the pattern does not
    divide has it not."""
    C, D = matrix_CD.shape
    rows, columns = _size(settings)
    if settings.pattern == "single" or C % rows or D % columns:
        return settings.pattern == "single"
    if settings.pattern == "2:4":
        return bool(((matrix_CD.reshape(C, D // 4, 4) == 0).sum(axis=2) >= 2).all())
    size = settings.block
    zeros = (matrix_CD.reshape(C // size, size, D // size, size) == 0).mean(axis=(1, 3))
    return bool(((zeros == 0) | (zeros == 1)).all())


def told(facts: Mapping[str, Any]) -> str:
    """The facts of a stage and of its file, in words."""
    pattern = "" if facts["pattern"] == "single" else f" in the pattern {facts['pattern']}"
    words = f"{facts['sparsity_percent']:.1f} % of the weights of {facts['num_sparse_matrices']} matrices are zero{pattern}"
    return f"{words}, which does not divide {', '.join(facts['undivided'])}" if facts["undivided"] else words
