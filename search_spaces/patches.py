"""An image or a signal as tokens: patches of one size, by one of two stems, and what they cost.

Shapes: B inputs of C channels, I values in one patch, T tokens, D width.

| stem | tokens |
|---|---|
| patches | a linear map of the values of a patch (ViT, arXiv:2010.11929) |
| conv | a convolution over 3 neighbours and a ReLU, in steps of 2 where patches have an even size, then patches of that |

A few convolutions in the place of the linear map make a small vision transformer learn faster and better (arXiv:2106.14881); here
it is one, for inputs of a few thousand values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.encoding import Array, Encoding
from nas.layers import Linear, Table
from nas.protocols import Operator
from nas.space import Choice
from search_spaces.common import options, ordered

STEMS = ("conv", "patches")
NAME = "stem"
CHANNELS = 16  # of the convolution
KERNEL = 3


def stem_choices(stem: Sequence[str]) -> list[Choice]:
    """None for patches alone. Raises ValueError: unknown stems, or none."""
    found = ordered(NAME, stem, STEMS)
    return [Choice(NAME, found)] if found else []


def stems(encoding: Encoding) -> Tensor | None:
    """P(each stem), in the order of the space; None if it is no choice."""
    return encoding.probabilities(NAME) if NAME in encoding.space.by_name else None


class Positions(Table):
    """Begins large enough to be seen beside a patch's linear map: after 200 steps on `digits` the largest network is wrong in
    13 % with 0.02, in 5 % with 0.2."""

    std = 0.2


class LinearPatches(nn.Module):
    """A linear map [B, T, D] of the values of each patch."""

    def __init__(self, shape: Sequence[int], size: int, width: int) -> None:
        super().__init__()
        channels, *sides = shape
        self.cut = (channels, *(n for side in sides for n in (side // size, size)))
        axes = range(2, 2 + 2 * len(sides))
        self.order = (0, *axes[::2], 1, *axes[1::2])
        self.num_patches, self.num_values = math.prod(side // size for side in sides), channels * size ** len(sides)
        self.embedding = Linear(self.num_values, width)

    def forward(self, x: Tensor) -> Tensor:
        x_BTI = x.reshape(-1, *self.cut).permute(self.order).reshape(-1, self.num_patches, self.num_values)
        patches_BTD: Tensor = self.embedding(x_BTI)
        return patches_BTD


class Convolved(LinearPatches):
    """The same of what a convolution makes of the input."""

    def __init__(self, shape: Sequence[int], size: int, width: int) -> None:
        step, sides = _step(size), shape[1:]
        super().__init__((CHANNELS, *(side // step for side in sides)), size // step, width)
        kind = nn.Conv2d if len(sides) == 2 else nn.Conv1d
        self.conv = kind(shape[0], CHANNELS, KERNEL, stride=step, padding=KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(self.conv(x)))


def _step(size: int) -> int:
    return 2 if size % 2 == 0 else 1


class Patches(nn.Module):
    """Tokens [B, T, D] of an input that is cut into patches of one size; a first one without a patch is the class token, which is
    its position alone.

    Args:
        stems: a network has one; a supernet has those that it mixes, and acts as the first without their probabilities.
    """

    def __init__(self, shape: Sequence[int], size: int, width: int, *, stems: Sequence[str], class_token: bool) -> None:
        super().__init__()
        kinds = {"patches": LinearPatches, "conv": Convolved}
        self.stems = nn.ModuleDict({stem: kinds[stem](shape, size, width) for stem in stems})
        self.num_tokens, self.class_token = math.prod(side // size for side in shape[1:]) + class_token, class_token
        self.positions = Positions(self.num_tokens, width)

    def forward(self, x: Tensor, shares: Tensor | None = None) -> Tensor:
        first, *_ = self.stems.values()
        patches_BTD = first(x) if shares is None else self._mixed(x, shares)
        return (F.pad(patches_BTD, (0, 0, 1, 0)) if self.class_token else patches_BTD) + self.positions.weight

    def _mixed(self, x: Tensor, shares: Tensor) -> Tensor:
        return torch.stack([p * stem(x) for p, stem in zip(shares.unbind(), self.stems.values(), strict=True)]).sum(dim=0)


def patch_operators(
    encoding: Encoding, shape: Sequence[int], counts: Mapping[int, int], *, batch: int, width: Array
) -> list[Operator]:
    """Of convolutions, and of cutting and mapping; the sizes that follow from patch and stem are expectations over them.

    Args:
        counts: tokens by the size of patches.
    """
    (channels, *sides), dimensions = shape, len(shape) - 1
    values, none = batch * channels * math.prod(sides), 0.0 * width  # which makes numbers expectations like the others
    taken: list[tuple[Array, int, float, float]] = []  # P(patch and stem), tokens, values that are cut, values of a patch
    convolved = []
    for size, tokens in counts.items():
        of_size = encoding.probability("patch", str(size))
        for stem in options(encoding.space, NAME):
            p = of_size * encoding.probability(NAME, stem) if NAME in encoding.space.by_name else of_size
            step = _step(size) if stem == "conv" else 1
            each = float((CHANNELS if stem == "conv" else channels) * (size // step) ** dimensions)
            cut = float(batch * math.prod(side // size for side in sides) * each)
            taken.append((p, tokens, cut, each))
            if stem == "conv":
                weights = float(CHANNELS * (channels * KERNEL**dimensions + 1))
                products = 2.0 * cut / CHANNELS * (weights - CHANNELS)
                moved, live = 4.0 * (values + 2.0 * cut + weights), 4.0 * (max(float(values), cut) + cut)  # or it and its cuts
                convolved.append(Operator("stem", p + none, *(p * n + none for n in (products, moved, weights, live))))
    tokens, cut, each = (sum(row[0] * float(row[i]) for row in taken) for i in (1, 2, 3))
    weights = width * (each + 1.0 + tokens)
    stream = 4.0 * batch * tokens * width
    cutting = Operator(
        "patches",
        1.0,
        2.0 * cut * width,
        12.0 * cut + 3.0 * stream + 4.0 * weights,  # cut and mapped; written, and written again with positions
        weights,
        4.0 * cut + 2.0 * stream,
    )
    return [*convolved, cutting]
