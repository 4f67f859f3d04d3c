"""Training under the rounding of int8: linear maps and embeddings that round as ONNX Runtime will.

torchao's pt2e route would bring a graph of its own and a package to keep in step with torch. ONNX Runtime's quantiser needs
neither, if training rounds as it does (see `nas.rounding`), tables of embeddings with the range of the tensor. What is trained is
an ordinary float network, and its ordinary export is what is quantised. A map whose precision was chosen keeps it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers import Linear
from nas.rounding import TINY, round_input, round_weight


@dataclass
class RoundingErrors:
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
def rounding(network: nn.Module) -> Iterator[RoundingErrors]:
    """Inside the block, the network's linear maps and embeddings round, but maps whose precision was chosen."""
    state, changed = RoundingErrors(), []
    for module in network.modules():
        if isinstance(module, Linear) and module.precision:
            continue
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
