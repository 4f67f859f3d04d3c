"""Measurements of an invented device whose law is known."""

import numpy as np

from nas.encoding import Encoding
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space

FAMILY = EncoderFamily(encoder_space(), vocab_size=1000, num_classes=10)
WORKLOAD = Workload(tokens=64)


def law(arch) -> float:
    """Milliseconds of an invented device: counts, FLOPs and bytes with prices of their own for each kind."""
    prices = {"attention.window": (0.03, 2e-8, 1e-8), "projections": (0.01, 1e-8, 2e-8)}
    total = 0.05
    for operator in FAMILY.operators(Encoding.of(FAMILY.space, [arch]), WORKLOAD):
        a, b, c = prices.get(operator.kind, (0.005, 1.5e-8, 3e-9))
        total += float(np.sum(a * operator.count + b * operator.flops + c * operator.bytes))
    return total


def measurements(num: int, *, noise: float, seed: int = 0) -> list[Measurement]:
    rng = np.random.default_rng(seed)
    archs = [FAMILY.space.sample(rng) for _ in range(num)]
    times = [law(a) * float(np.exp(noise * rng.normal())) for a in archs]
    return [Measurement(a, "invented", WORKLOAD, ((t,),), ((1.0,),), 1.0, {}) for a, t in zip(archs, times, strict=True)]
