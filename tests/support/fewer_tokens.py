"""Inputs with padding for encoders and signals, and the gradients of architecture logits."""

import torch

from nas.encoding import Encoding
from nas.types import Workload
from search_spaces.vision import VisionFamily
from tests.support.networks import trained


def inputs_of(family) -> list[torch.Tensor]:
    if isinstance(family, VisionFamily):
        return [next(iter(family.example_input(Workload(batch=4, tokens=24)).values())).double()]
    ids = torch.randint(50, (4, 19), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 1:] = 0
    mask[3, [0, 5, 6]] = 0
    return [ids, mask]


def logit_gradients(family) -> torch.Tensor:
    """Of every architecture logit, where all options are as likely."""
    supernet, space = trained(family.supernet()), family.space
    logits = torch.zeros(space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in space.offsets.values()])
    supernet(*inputs_of(family), masks=family.masks(Encoding(space, probabilities))).square().sum().backward()
    return logits.grad
