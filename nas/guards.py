"""What tells a sound differentiable search from one that collapses, and the alarm.

Skips that cost nothing win early, while the weights of what they replace are still untrained, and what is not picked is not
trained any further (R-DARTS, arXiv:1909.09656; DARTS-, arXiv:2009.01027). Under a tight budget skips are what was asked for. So
the alarm wants both: nearly everything that can be skipped is, and the budget is far from used. Entropy, gap and sharpness are
recorded and not judged: in the planted case of the tests a few batches make them scatter more than the collapse moves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.space import SearchSpace

SKIPPED = 0.8  # share of skips from which a search has collapsed …
UNUSED = 0.7  # … if it expects to use at most this share of its budget
POWER_STEPS = 4
DIFFERENCE = 0.1  # of logits, over which a gradient's change is taken


@dataclass(frozen=True)
class Health:
    """The state of a search after a step.

    `entropy` is that of each choice, 0 (decided) to 1 (uniform), `skip_share` the expected share of what can be skipped and is,
    `used` the expected share of the limit that is used most, `gap` the loss on the architecture split minus that on the training
    split, `sharpness` the Hessian's eigenvalue of largest magnitude of the architecture split's loss in the logits. `frozen`
    counts branches whose weights stand still, `alarm` says in words what is wrong, or nothing.
    """

    step: int
    budget_ms: float
    entropy: Mapping[str, float]
    skip_share: float
    used: float
    gap: float
    sharpness: float
    frozen: int = 0
    alarm: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mean(entropy: Mapping[str, float]) -> float:
    """Over choices, 0.0 if there is nothing to choose."""
    return float(np.mean(list(entropy.values()))) if entropy else 0.0


def entropies(space: SearchSpace, probabilities_E: np.ndarray) -> dict[str, float]:
    """Entropy of each choice of more than one option over that of a uniform one."""
    found = {}
    for choice in (c for c in space if len(c.options) > 1):
        p = probabilities_E[space.offsets[choice.name]]
        found[choice.name] = float(-np.sum(p * np.log(np.clip(p, 1e-12, 1.0))) / math.log(len(p)))
    return found


def alarm(*, skip_share: float, used: float) -> str:
    """What is wrong, in words, or nothing."""
    if skip_share < SKIPPED or used > UNUSED:
        return ""
    return f"{100 * skip_share:.0f} % of what can be skipped is skipped, though only {100 * used:.0f} % of the budget is used"


def sharpness(loss: Callable[[Tensor], Tensor], logits_E: Tensor, *, seed: Sequence[int]) -> float:
    """The Hessian's eigenvalue of largest magnitude, by power iteration with central differences of gradients.

    Exact products with the Hessian need the graph of the gradient, which is 16 GB for the twelve layers of `encoder_full`; with
    steps of 0.1 these differ from them by 1 % (`encoder`) to 4 % (`encoder_tiny`).
    """
    rng = np.random.default_rng(list(seed))
    vector = torch.as_tensor(rng.normal(size=len(logits_E))).to(logits_E)
    value = 0.0
    for _ in range(POWER_STEPS):
        vector = vector / vector.norm().clamp_min(1e-30)
        ends = [(logits_E.detach() + step * vector).requires_grad_(True) for step in (DIFFERENCE, -DIFFERENCE)]
        ahead, behind = (torch.autograd.grad(loss(end), [end])[0] for end in ends)
        product = (ahead - behind) / (2 * DIFFERENCE)
        value, vector = float(vector @ product), product
    return value
