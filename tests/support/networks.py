"""Networks as tests want them."""

import torch


def trained(network: torch.nn.Module) -> torch.nn.Module:
    """Moves every weight off its initial value, so that biases and norms take part."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network.double()
