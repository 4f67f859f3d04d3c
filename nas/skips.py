"""What of a space can be skipped, and skips beside it that are there for a while.

A skip is an option that leaves something out: `"none"` where other choices hang on its not being picked, a branch with its sizes,
and the smallest `depth`.
"""

from __future__ import annotations

import numpy as np
import torch

from nas.encoding import Encoding
from nas.space import Option, SearchSpace

NOTHING, LAYERS = "none", "depth"  # words that all families share


def skips(space: SearchSpace) -> dict[str, Option]:
    """The skip of each choice that has one."""
    found: dict[str, Option] = {}
    for choice in space:
        wanted = [set(c.options) for other in space for c in other.requires if c.choice == choice.name]
        skip = choice.options[0] if choice.name == LAYERS else NOTHING
        if skip in choice.options and wanted and not any(skip in options for options in wanted):
            found[choice.name] = skip
    return found


def skip_share(encoding: Encoding) -> float:
    """Mean over what can be skipped of P(it is skipped, or does not exist at all); 0 where a space has no skips."""
    kept = [
        float(encoding.exists(name)) * (1.0 - float(encoding.probability(name, option)))
        for name, option in skips(encoding.space).items()
    ]
    return 1.0 - float(np.mean(kept)) if kept else 0.0


def with_auxiliary_skip(encoding: Encoding, weight: float) -> Encoding:
    """With a skip of some weight beside the options of each choice that has one (DARTS-, arXiv:2009.01027), [E].

    The paper's beta x + sum_k p_k o_k(x), over 1 + beta. It leaves the residual stream, which is a skip of weight one beside each
    branch already, at its scale, whatever the depth, and is the same as more of the option that is a skip, one that no logit
    asked for: (p + beta e_skip) / (1 + beta). So a layer or a branch that was picked counts 1 / (1 + beta) of itself, pre-norm
    and post-norm alike.
    """
    if weight == 0.0:
        return encoding
    values_E, space = encoding.values, encoding.space
    scale_E, added_E = torch.ones_like(values_E), torch.zeros_like(values_E)
    for name, option in skips(space).items():
        scale_E[space.offsets[name]] = 1.0 / (1.0 + weight)
        added_E[space.offsets[name].start + space.by_name[name].index(option)] = weight / (1.0 + weight)
    return Encoding(space, values_E * scale_E + added_E)
