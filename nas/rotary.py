"""Rotary positions (RoFormer, arXiv:2104.09864): queries and keys are turned by angles that grow with their positions, so that a
score tells how far apart two tokens are.

Shapes: B sequences, T tokens, P positions, H heads, K channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rotation(NamedTuple):
    """By which some tokens are turned, [T, K] or [B, 1, T, K]."""

    cos: Tensor
    sin: Tensor  # the first half of the channels with the other sign

    def turn(self, x_BHTK: Tensor) -> Tensor:
        """Equation 34 of the paper; in the precision of the angles, and then in that of x."""
        first, second = x_BHTK.chunk(2, dim=-1)
        return (x_BHTK * self.cos + torch.cat([second, first], dim=-1) * self.sin).to(x_BHTK.dtype)


class Rotary(nn.Module):
    """The angles of all positions: channels i and i + K / 2 of a head turn together, by position * base^(-2 i / K).

    The paper turns channels 2 i and 2 i + 1: the same in another order, which is that of Llama's checkpoints. The tables are
    constants that are held like weights: angles computed in half precision would be wrong.

    Args:
        head_size: K, which is even.
    """

    def __init__(self, num_positions: int, head_size: int, base: float) -> None:
        super().__init__()
        frequency = base ** (torch.arange(0, head_size, 2, dtype=torch.float64) / -head_size)
        angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
        self.cos = nn.Parameter(angle.cos().to(torch.get_default_dtype()), requires_grad=False)
        self.sin = nn.Parameter(angle.sin().to(torch.get_default_dtype()), requires_grad=False)

    def first(self, num_tokens: int) -> Rotation:
        return _rotation(self.cos[:num_tokens], self.sin[:num_tokens])

    def at(self, position_ids_BT: Tensor) -> Rotation:
        return _rotation(*(F.embedding(position_ids_BT, table)[:, None] for table in (self.cos, self.sin)))


def _rotation(cos: Tensor, sin: Tensor) -> Rotation:
    return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))
