"""Feed-forward layers: plain, gated or factored, with a choice of activations, and their exact mixtures.

Shapes: B sequences, T tokens, D width, F hidden size, R rank.

Kinds share what they can: all of them the biases, plain and gated ones the matrices. A factored matrix is mixed with the plain
one before it meets the tokens, p W + (1 - p) U V: a product of weights, not of activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers import Linear, Width
from nas.rounding import mixed_input, mixed_weight
from nas.twice import again

aten = torch.ops.aten
Into = Callable[..., Any]
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Into, Into]] = {
    "gelu": (
        F.gelu,
        lambda x, out: aten.gelu.out(x, out=out),
        lambda g, x, out: aten.gelu_backward.grad_input(g, x, grad_input=out),
    ),
    "gelu_tanh": (
        functools.partial(F.gelu, approximate="tanh"),
        lambda x, out: aten.gelu.out(x, approximate="tanh", out=out),
        lambda g, x, out: aten.gelu_backward.grad_input(g, x, approximate="tanh", grad_input=out),
    ),
    "silu": (
        F.silu,
        lambda x, out: aten.silu.out(x, out=out),
        lambda g, x, out: aten.silu_backward.grad_input(g, x, grad_input=out),
    ),
    "hardswish": (
        F.hardswish,
        lambda x, out: aten.hardswish.out(x, out=out),
        lambda g, x, out: aten.hardswish_backward.out(g, x, out=out),
    ),
    "relu": (
        F.relu,
        lambda x, out: torch.clamp_min(x, 0, out=out),
        lambda g, x, out: aten.threshold_backward.grad_input(g, x, 0, grad_input=out),
    ),
}
"""Each as a function, into a buffer, and its gradient by that of its output and its input into a buffer. The most expensive
first."""
FFN_KINDS = ("glu", "mlp", "lowrank", "none")
"""The largest first: gated (GEGLU if the activation is a GELU, arXiv:2002.05202), plain, with factored matrices, and none."""


@dataclass(frozen=True)
class FeedForwardMasks:
    """A relaxed layer in a residual branch; kinds, given that there is one, are None where a space has no choice."""

    gate: Tensor  # P(there is one)
    hidden: Tensor  # [F], times the gate
    gated: Tensor | None = None  # P(it is gated)
    factored: Tensor | None = None  # P(its matrices are factored)
    rank: Tensor | None = None  # [R]
    activation: Tensor | None = None  # [activations]

    def given(self, gate: Tensor) -> FeedForwardMasks:
        """The same, given what has the probability `gate`."""
        return replace(self, gate=self.gate / gate, hidden=self.hidden / gate)


class Factored(nn.Module):
    """A linear map by a product of two matrices, [outputs, R] and [R, inputs]; that of a supernet has a dense one too."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, dense: bool) -> None:
        super().__init__()
        linear = Linear(inputs, outputs)
        self.weight, self.bias = linear.weight if dense else None, linear.bias
        self.reduce = Linear(inputs, rank, bias=False).weight
        self.expand = nn.Parameter(torch.empty(outputs, rank))
        if not self.expand.is_meta:  # so that the product begins with the variance of a dense matrix
            nn.init.uniform_(self.expand, -((3.0 / rank) ** 0.5), (3.0 / rank) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return F.linear(F.linear(x, self.reduce), self.expand, self.bias)

    def mixed(self, masks: FeedForwardMasks) -> Tensor:
        """The matrix, of a probability that it is factored and a mask of ranks."""
        assert masks.rank is not None
        if self.weight is None or masks.factored is None:
            return (self.expand * masks.rank) @ self.reduce
        return torch.addmm(self.weight * (1.0 - masks.factored), self.expand * (masks.rank * masks.factored), self.reduce)


class FeedForward(nn.Module):
    """Two linear maps with an activation between; a gated one multiplies the activation with a third map.

    Of several kinds it is the supernet's, which `relaxed` mixes; without masks it is of the first kind and activation.
    """

    def __init__(
        self, width: int, hidden: int, *, kinds: Collection[str] = ("mlp",), rank: int = 0,
        activations: Collection[str] = ("gelu",),
    ) -> None:  # fmt: skip
        super().__init__()
        dense = "mlp" in kinds or "glu" in kinds
        self.up = Factored(width, hidden, rank, dense=dense) if "lowrank" in kinds else Linear(width, hidden)
        self.gate = Linear(width, hidden) if "glu" in kinds else None
        self.down = Factored(hidden, width, rank, dense=dense) if "lowrank" in kinds else Linear(hidden, width)
        self.activations = tuple(activations)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = ACTIVATIONS[self.activations[0]][0](self.up(x_BTD))
        if self.gate is not None:
            hidden_BTF = hidden_BTF * self.gate(x_BTD)
        result: Tensor = self.down(hidden_BTF)
        return result

    def relaxed(self, x_BTD: Tensor, masks: FeedForwardMasks, width: Width, precisions: Mapping[str, Tensor]) -> Tensor:
        """The mixture over hidden sizes, kinds, ranks, activations and precisions, written to a stream of some width.

        Args:
            precisions: P(the linear maps are in one) of those but fp32, where there is a choice; factored ones have none.
        """
        up, down = (m.mixed(masks) if isinstance(m, Factored) else m.weight for m in (self.up, self.down))
        x_BTD, up = mixed_input(x_BTD, precisions, width.mask), mixed_weight(up, precisions, width.mask)
        hidden_BTF = self._activated(F.linear(x_BTD, up, self.up.bias), masks.activation)
        if self.gate is not None:
            weight, bias = self._gate(self.gate, masks.gated)
            hidden_BTF = hidden_BTF * F.linear(x_BTD, mixed_weight(weight, precisions, width.mask), bias)
        hidden_BTF = mixed_input(hidden_BTF, precisions, masks.hidden)
        down = mixed_weight(down, precisions, masks.hidden)
        return width.write(hidden_BTF, down, self.down.bias * masks.gate, masks.hidden)

    def _gate(self, gate: Linear, gated: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias of p gate(x) + (1 - p), which leaves a plain layer as it is."""
        if gated is None:
            return gate.weight, gate.bias
        return gate.weight * gated, torch.lerp(torch.ones_like(gate.bias), gate.bias, gated)

    def _activated(self, x_BTF: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            return ACTIVATIONS[self.activations[0]][0](x_BTF)
        return _MixedActivation.apply(x_BTF, weights, self.activations)  # type: ignore[no-any-return, no-untyped-call]


class _MixedActivation(torch.autograd.Function):
    """sum_k w_k activation_k(x), which keeps x alone for the backward pass, like one activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, names: tuple[str, ...]) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.names = names
        total, part = torch.zeros_like(x), torch.empty_like(x)
        for name, weight in zip(names, weights.tolist(), strict=True):
            ACTIVATIONS[name][1](x, part)
            total.add_(part, alpha=weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_mixed_plainly, (x, weights, ctx.names), ctx.needs_input_grad, grad)
        grad, grad_weights = grad.contiguous(), torch.zeros_like(weights)
        total, part = torch.zeros_like(x), torch.empty_like(x)
        for k, (name, weight) in enumerate(zip(ctx.names, weights.tolist(), strict=True)):
            _, value, derivative = ACTIVATIONS[name]
            derivative(grad, x, part)
            total.add_(part, alpha=weight)
            if ctx.needs_input_grad[1]:
                value(x, part)
                grad_weights[k] = torch.dot(grad.flatten(), part.flatten())
        return total, grad_weights, None


def _mixed_plainly(x: Tensor, weights: Tensor, names: tuple[str, ...]) -> Tensor:
    return sum((w * ACTIVATIONS[name][0](x) for w, name in zip(weights, names, strict=True)), torch.zeros_like(x))
