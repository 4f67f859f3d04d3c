"""Networks as tests want them."""

import numpy as np
import torch


def trained(network: torch.nn.Module) -> torch.nn.Module:
    """Moves every weight off its initial value, so that biases and norms take part."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network.double()


def picked(family, seed: int, **picks):
    """A random architecture with some picks set, those of layers in every layer."""
    space, rng = family.space, np.random.default_rng(seed)
    named = {c.name: picks[short] for c in space if (short := c.name.rpartition(".")[2]) in picks}
    return space.canonical({**space.complete(space.sample(rng), rng), **named})
