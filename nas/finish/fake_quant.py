"""Training under the rounding of int8: linear maps and embeddings that round as ONNX Runtime will.

torchao's pt2e route would bring a graph of its own and a package to keep in step with torch. ONNX Runtime's quantiser needs
neither, if training rounds as it does: weights to 8 bits with a symmetric scale for each output channel, inputs and tables of
embeddings to 8 bits with the range of the tensor. What is trained is an ordinary float network, and its ordinary export is what
is quantised.

Gradients pass the rounding unchanged (straight-through estimator, arXiv:1308.3432).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-12


def round_weight(weight_CD: Tensor) -> Tensor:
    """To -127 ... 127 times a scale for each row."""
    scale = weight_CD.detach().abs().amax(dim=-1, keepdim=True).clamp_min(TINY) / 127
    return _through(weight_CD, (weight_CD / scale).round() * scale)


def round_input(x: Tensor, of: Tensor | None = None) -> Tensor:
    """To 0 ... 255 times a scale, from a zero point; the range is that of a whole tensor, of x or another, and holds 0."""
    x, whole = x.float(), (x if of is None else of).detach().float()
    low, high = whole.amin().clamp(max=0), whole.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(TINY)
    zero = (-low / scale).round()
    return _through(x, (((x / scale).round() + zero).clamp(0, 255) - zero) * scale)


def _through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


@dataclass
class Rounding:
    """Sums up, over one call of the network, how far weights lie from what they are rounded to."""

    errors: list[Tensor] = field(default_factory=list)

    def error(self) -> Tensor:
        """Mean over the layers of the last call: squares of the distance of the weights to the grid, relative to their own."""
        found = torch.stack(self.errors).mean()
        self.errors.clear()
        return found

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        weight = round_weight(layer.weight)
        self.errors.append((layer.weight - weight.detach()).square().sum() / layer.weight.detach().square().sum().clamp_min(TINY))
        return F.linear(round_input(x), weight, layer.bias)


def _embedding(layer: nn.Embedding, ids: Tensor) -> Tensor:
    """One range for the whole table, as for an input."""
    return round_input(F.embedding(ids, layer.weight), of=layer.weight)


@contextmanager
def rounding(network: nn.Module) -> Iterator[Rounding]:
    """Inside the block, the network's linear maps and embeddings round."""
    state, changed = Rounding(), []
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.forward = functools.partial(state.linear, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Embedding):
            module.forward = functools.partial(_embedding, module)  # type: ignore[method-assign]
        else:
            continue
        changed.append(module)
    try:
        yield state
    finally:
        for module in changed:
            del module.forward
