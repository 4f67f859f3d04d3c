"""What tests of decoders compare."""

import torch

from search_spaces.decoder import Decoder


def assert_same_where_it_counts(actual: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> None:
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], rtol=1e-10, atol=1e-10)


def generated(network: Decoder, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy, by the full forward."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, network(ids, torch.ones_like(ids))[:, -1:].argmax(-1)], dim=1)
    return ids
