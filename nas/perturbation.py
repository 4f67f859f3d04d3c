"""Options ranked by the loss of the relaxed network with an option alone in its choice, on parts of several batches.

DARTS-PT (arXiv:2108.04392, algorithm 1) measures the accuracy that an option's absence costs, which says little where sizes share
weights, and decides edge by edge, with training in between; here the choices are ranked all at once, with the others relaxed, and
the projection decides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nas.encoding import Encoding
from nas.protocols import Batch

RANKERS = 8  # batches, such a part of each, that rank options: the best of a choice as by 16 whole others in 74 %, by one in 64 %


def option_losses(encoding: Encoding, loss: Callable[[int, Encoding], float], num_parts: int) -> np.ndarray:
    """Loss of the relaxed architecture with each option alone in its choice, [E]: the mean over numbered parts."""
    losses = []
    for choice in encoding.space.offsets.values():
        for index in range(choice.start, choice.stop):
            values = encoding.values.clone()
            values[choice] = 0.0
            values[index] = 1.0
            alone = Encoding(encoding.space, values)
            losses.append(np.mean([loss(number, alone) for number in range(num_parts)]))
    return np.array(losses)


def part(batch: Batch, num: int) -> Batch:
    """The first of so many equal parts."""
    size = -(-len(batch.targets) // num)
    return Batch(tuple(x[:size] for x in batch.inputs), batch.targets[:size])
