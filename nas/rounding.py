"""What fewer bits do to a linear map, in float arithmetic: the rounding of ONNX Runtime's kernels.

| precision | weights | inputs |
|---|---|---|
| fp16 | half precision | half precision |
| int8 | 8 bits, a symmetric scale for each output | 8 bits as they come, one range for the whole tensor, padding too |
| int4 | 4 bits, a scale for 32 of a row | 8 bits as they come, a symmetric scale for 32 of a token |

Integers are then multiplied and summed up exactly, so float arithmetic on the rounded values gives the same answer. In fp16 what
comes out is rounded once more, which is not followed here.

Gradients pass the rounding unchanged (straight-through estimator, arXiv:1308.3432).

Shapes: C outputs, D inputs, N blocks of B of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-12
BLOCK = 32  # values with a scale of their own


class Rounding(NamedTuple):
    """Of one precision."""

    weight: Callable[[Tensor], Tensor]
    input: Callable[[Tensor], Tensor]


def weight_scale(weight_CD: Tensor) -> Tensor:
    """Of each row in int8, [C, 1]: its largest weight becomes 127."""
    return weight_CD.detach().abs().amax(dim=-1, keepdim=True).clamp_min(TINY) / 127


def round_weight(weight_CD: Tensor) -> Tensor:
    """To -127 ... 127 times a scale for each row."""
    scale = weight_scale(weight_CD)
    return _through(weight_CD, (weight_CD.detach() / scale).round_().mul_(scale))


def round_input(x: Tensor, of: Tensor | None = None) -> Tensor:
    """To 0 ... 255 times a scale, from a zero point; the range is that of a whole tensor, of x or another, and holds 0."""
    x, whole = _wide(x), _wide(x if of is None else of).detach()
    low, high = whole.amin().clamp(max=0), whole.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(TINY)
    zero = (-low / scale).round()
    return _through(x, (x.detach() / scale).round_().add_(zero).clamp_(0, 255).sub_(zero).mul_(scale))


def integer_blocks(weight_CD: Tensor) -> tuple[Tensor, Tensor]:
    """In int4: integers -8 ... 7 of each block, [C, N, B], and its scale [C, N, 1], with which its largest weight becomes -8."""
    blocks_CNB = _blocks(weight_CD.detach())
    low, high = blocks_CNB.amin(dim=-1, keepdim=True), blocks_CNB.amax(dim=-1, keepdim=True)
    scale_CN1 = torch.where(high > -low, high, low) / -8
    scale_CN1 = torch.where(scale_CN1 == 0, torch.ones_like(scale_CN1), scale_CN1)
    return (blocks_CNB / scale_CN1).round_().clamp_(-8, 7), scale_CN1


def round_weight_blocks(weight_CD: Tensor) -> Tensor:
    """To -8 ... 7 times a scale for each block."""
    integers_CNB, scale_CN1 = integer_blocks(weight_CD)
    return _through(weight_CD, (integers_CNB * scale_CN1).flatten(-2)[..., : weight_CD.shape[-1]])


def round_input_blocks(x: Tensor) -> Tensor:
    """To -127 ... 127 times a scale for each block."""
    x = _wide(x)
    blocks = _blocks(x.detach())
    scale = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(TINY) / 127
    return _through(x, (blocks / scale).round_().mul_(scale).flatten(-2)[..., : x.shape[-1]])


def round_half(x: Tensor) -> Tensor:
    """To half precision, weights and inputs alike."""
    x = _wide(x)
    return _through(x, x.detach().half().to(x.dtype))


ROUNDINGS: Mapping[str, Rounding] = {
    "fp16": Rounding(round_half, round_half),
    "int8": Rounding(round_weight, round_input),
    "int4": Rounding(round_weight_blocks, round_input_blocks),
}


def mixed_weight(weight_CD: Tensor, chosen: Mapping[str, Tensor], seen_D: Tensor) -> Tensor:
    """The mean over precisions, with a gradient to their probabilities; what is missing to one is fp32.

    Args:
        seen_D: where it is 0, a smaller network has no weights, and they do not widen a range.
    """
    return _mixed(weight_CD, {name: (ROUNDINGS[name].weight, p) for name, p in chosen.items()}, seen_D)


def mixed_input(x: Tensor, chosen: Mapping[str, Tensor], seen_D: Tensor) -> Tensor:
    """The same of inputs [..., D]."""
    return _mixed(x, {name: (ROUNDINGS[name].input, p) for name, p in chosen.items()}, seen_D)


def _mixed(x: Tensor, ways: Mapping[str, tuple[Callable[[Tensor], Tensor], Tensor]], seen_D: Tensor) -> Tensor:
    if not ways:
        return x
    x = x * (seen_D > 0)
    result: Tensor = sum((p * (rounded(x) - x).detach() for rounded, p in ways.values()), x)
    return result


def _blocks(x: Tensor) -> Tensor:
    """[..., D] -> [..., blocks, BLOCK], with zeros at the end."""
    blocks: Tensor = F.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    return blocks


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()
