"""A tiny space, a task that is learnable in a few steps, and a differentiable search there."""

import functools

import numpy as np
import torch

from latency_models.additive import AdditiveLatency
from nas.compute import Compute
from nas.darts import Darts
from nas.darts_config import DartsConfig
from nas.protocols import Batch
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space

FAMILY = EncoderFamily(
    encoder_space(width=(8, 16), depth=(1, 2, 3), heads=(1, 2), ffn=(8, 16)),
    vocab_size=40,
    num_classes=4,
    max_tokens=12,
    head_size=4,
)
WORKLOAD = Workload(tokens=12)


class Task:
    """Whether a token of the class occurs: learnable in a few steps."""

    def batches(self, split, *, tokens_per_batch, seed):
        rng = np.random.default_rng([seed, len(split)])
        for _ in range(4):
            targets = torch.as_tensor(rng.integers(4, size=16))
            ids = torch.as_tensor(rng.integers(4, 40, size=(16, 12)))
            ids[:, 3] = targets
            yield Batch((ids, torch.ones_like(ids)), targets)

    @staticmethod
    def loss(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)


def darts(latency, seed: int = 0, **changes) -> Darts:
    torch.manual_seed(0)
    config = DartsConfig(steps=12, steps_more=6, logit_rate=0.3, **changes)
    return Darts(FAMILY, FAMILY.supernet(), latency, Task(), config, compute=Compute(), seed=seed)


@functools.cache
def latency_model() -> AdditiveLatency:
    """Fitted on times of a simple law."""
    archs = list({a.id: a for a in (FAMILY.space.sample(np.random.default_rng(s)) for s in range(60))}.values())
    times = [0.1 + 0.1 * a.size("depth") + 0.01 * a.size("width") * a.size("depth") for a in archs]
    return AdditiveLatency().fit(
        FAMILY, [Measurement(a, "d", WORKLOAD, ((t,),), ((1.0,),), 1.0, {}) for a, t in zip(archs, times, strict=True)]
    )
