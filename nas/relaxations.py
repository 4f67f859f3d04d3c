"""From logits to probabilities: three relaxations behind one callable, and the temperature of a step.

    softmax     p = softmax(logits / temperature)                                         DARTS, arXiv:1806.09055, eq. 2
    gumbel      one-hot of the largest of logits + Gumbel noise forward, softmax backward   GDAS, arXiv:1910.04465, eq. 3 to 5
    dirichlet   p ~ Dirichlet((elu(logits) + 1) / temperature), pathwise gradients       DrNAS, arXiv:2006.10355, section 3.2

DrNAS has no temperature and pulls towards the uniform distribution instead; here a falling temperature concentrates the draws
about their mean, and the pull is the option `beta_decay` of `nas.darts`, the same for all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.encoding import Encoding
from nas.seeds import seed_of
from nas.space import SearchSpace

Relaxation = Literal["softmax", "gumbel", "dirichlet"]
RELAXATIONS: tuple[str, ...] = get_args(Relaxation)
TINY = 1e-12


def relax(
    space: SearchSpace, logits_E: Tensor, *, temperature: float = 1.0, kind: Relaxation = "softmax", seed: Sequence[int] = ()
) -> Encoding:
    """Probabilities of the options of each choice; the logits of all choices are one vector [E].

    Args:
        seed: of the draw; without one, the mean of all draws (for `gumbel`: the probabilities of the options to be drawn).
    """
    sizes = torch.tensor([len(choice.options) for choice in space], device=logits_E.device)
    is_option = torch.arange(int(sizes.max()), device=logits_E.device) < sizes[:, None]  # one row for each choice

    def rows(values_E: Tensor, fill: float) -> Tensor:
        return values_E.new_full(is_option.shape, fill).masked_scatter(is_option, values_E)

    if kind == "dirichlet":
        weights_E = F.elu(logits_E) + 1.0 + TINY
        if seed:
            weights_E = torch._standard_gamma((weights_E / temperature).double().cpu(), generator=_generator(seed)) + TINY
        weights = rows(weights_E.to(logits_E), 0.0)
        return Encoding(space, (weights / weights.sum(dim=1, keepdim=True))[is_option])
    if kind == "gumbel":
        if not seed:
            return relax(space, logits_E)
        noise_E = -torch.empty(len(logits_E), dtype=torch.float64).exponential_(generator=_generator(seed)).log()
        soft = torch.softmax(rows((logits_E + noise_E.to(logits_E)) / temperature, -math.inf), dim=1)
        hard = F.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft)
        return Encoding(space, (hard + soft - soft.detach())[is_option])
    return Encoding(space, torch.softmax(rows(logits_E / temperature, -math.inf), dim=1)[is_option])


def draws(encoding: Encoding, num: int) -> Encoding:
    """Architectures of a relaxed one, `encoding.values` [E], as one-hot rows [num, E], whose gradient goes straight through.

    The same for the same probabilities: each choice is drawn at quantiles that are spread evenly, in an order of its own (Latin
    hypercube; McKay et al., 1979). What is linear in each choice has an unbiased gradient.
    """
    values_E = encoding.values
    rng, columns = np.random.default_rng(0), []
    for part in encoding.space.offsets.values():
        quantiles_N = torch.as_tensor((rng.permutation(num) + 0.5) / num).to(values_E)
        picks_N = torch.searchsorted(values_E[part].detach().cumsum(0)[:-1].contiguous(), quantiles_N)
        columns.append(F.one_hot(picks_N, part.stop - part.start))
    return Encoding(encoding.space, torch.cat(columns, dim=1).to(values_E) + (values_E - values_E.detach()))


def cooled(temperature: tuple[float, float], done: float) -> float:
    """The temperature after a share `done` of a search: it falls geometrically from the first to the second."""
    start, end = temperature
    return start * math.exp(done * math.log(end / start))


def _generator(seed: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*seed))
