"""Layers that are ordinary without masks and exact under one-hot masks.

Shapes: B sequences, T tokens, D width, F feed-forward size.

Weight entanglement (TangleNAS, arXiv:2312.10440): a mixture of zero-padded prefixes of a weight is one mask,

    sum_k p_k pad(W[:s_k]) x = m * (W x),   m_i = P(size > i).

A mask is folded into a weight that touches the masked dimension: a matrix of weights instead of a matrix of activations. The
width of the residual stream is masked where the stream is written, and what is written is centred over the active channels, in
the weights too (as in SliceGPT, arXiv:2401.15024, section 3.2). Then the mean over all channels is that over the active ones,
zero, and the variances differ by a known factor: the ordinary layer norm reads the masked stream exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Width:
    """Which channels of the residual stream are active, and what follows from it for who writes and reads it."""

    mask: Tensor  # [D]
    share: Tensor  # [D], of each channel in the mean
    gain: Tensor  # scalar: the standard deviation over all channels to that over the active ones
    active: float  # expected share of active channels

    @classmethod
    def of(cls, mask: Tensor) -> Width:
        total = mask.sum()
        active = total / len(mask)
        return cls(mask, mask / total, active.sqrt(), float(active.detach()))

    def centre(self, x_BTD: Tensor) -> Tensor:
        """The masked stream to begin with."""
        return (x_BTD - (x_BTD @ self.share)[..., None]) * self.mask

    def centre_again(self, x_BTD: Tensor) -> Tensor:
        """A masked stream whose mean is not zero, as after a norm; the mask is not applied a second time."""
        return x_BTD - x_BTD.sum(dim=-1, keepdim=True) * self.share

    def write(self, x_BTC: Tensor, weight_DC: Tensor, bias_D: Tensor) -> Tensor:
        """A linear map into the masked stream."""
        weight_DC = (weight_DC - self.share @ weight_DC) * self.mask[:, None]
        return F.linear(x_BTC, weight_DC, (bias_D - self.share @ bias_D) * self.mask)


class Linear(nn.Linear):
    """A linear map; on the meta device, where there is nothing to initialise, quick to make."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Norm(nn.LayerNorm):
    """Layer norm."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def relaxed(self, x_BTD: Tensor, width: Width) -> Tensor:
        """Of the active channels of a masked stream; zero elsewhere."""
        eps = self.eps * width.active
        return F.layer_norm(x_BTD, self.normalized_shape, self.weight * width.gain, self.bias * width.mask, eps)


class Table(nn.Embedding):
    """An embedding with small weights, as transformers begin with (standard deviation 0.02)."""

    std = 0.02

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=self.std)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between; gated, the GELU is multiplied with a third map (GEGLU, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, *, gated: bool = False) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.gate = Linear(width, hidden) if gated else None
        self.down = Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = F.gelu(self.up(x_BTD))
        if self.gate is not None:
            hidden_BTF = hidden_BTF * self.gate(x_BTD)
        result: Tensor = self.down(hidden_BTF)
        return result

    def relaxed(self, x_BTD: Tensor, hidden_F: Tensor, gate: Tensor, width: Width, gated: Tensor | None) -> Tensor:
        """The mixture over hidden sizes, in a residual branch with a gate that `hidden_F` already holds.

        `gated` is the probability of the gated kind, where there is a choice.
        """
        hidden_BTF = F.gelu(self.up(x_BTD))
        if self.gate is not None and gated is not None:
            hidden_BTF = hidden_BTF * torch.lerp(torch.ones_like(gated), self.gate(x_BTD), gated)
        return width.write(hidden_BTF, self.down.weight * hidden_F, self.down.bias * gate)
