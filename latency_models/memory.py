"""Memory that a network needs at inference: its weights, and the activations that are alive at the worst moment.

Of an architecture, both are closed formulas of its family (`Operator.parameters` and `Operator.live_bytes`). The most that is
alive together is what an allocator without gaps needs; ONNX Runtime leaves some, and needs up to twice as much. It also rounds up
each of what is alive, which counts in networks of a few hundred kilobytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nas.encoding import Array, Encoding
from nas.protocols import Family
from nas.relaxations import draws
from nas.space import Architecture
from nas.types import MIB, Memory, Workload

GAPS = 2.1  # ONNX Runtime's arena for activations, over what is alive together: the most that was seen (tests/test_memory.py)
ROUNDED_MIB = 64 * 256 / MIB  # its arena gives blocks of 256 bytes; of 45 tiny networks, GAPS alone were 7 KiB too few for five
DRAWS = 64  # of a relaxed architecture, for the expectation of a peak


@dataclass(frozen=True)
class PredictedMemory(Memory):
    """Of an architecture; its activations are those of an allocator without gaps."""

    @property
    def upper_mib(self) -> float:
        """Enough for an allocator that leaves gaps and rounds up: see `GAPS` and `ROUNDED_MIB`."""
        return self.weights_mib + GAPS * self.activations_mib + ROUNDED_MIB


def memory_of(family: Family, archs: Sequence[Architecture], workload: Workload) -> list[PredictedMemory]:
    """The memory of architectures, in the precisions of their layers; activations as an allocator without gaps needs them.

    Raises:
        ValueError: the family does not say what is alive.
    """
    weights, activations = expected_memory(family, Encoding.of(family.space, archs), workload)
    columns = (np.broadcast_to(column, len(archs)).tolist() for column in (weights, activations))
    return [PredictedMemory(*pair) for pair in zip(*columns, strict=True)]


def expected_memory(family: Family, encoding: Encoding, workload: Workload) -> tuple[Array, Array]:
    """Weights and activations in MiB, [...] like the encoding; of a relaxed architecture differentiable, the activations as the
    largest of expectations.

    Raises:
        ValueError: the family does not say what is alive.
    """
    operators = family.operators(encoding, workload)
    live = [operator.live_bytes for operator in operators if not isinstance(operator.live_bytes, float)]
    if not live:
        raise ValueError(f"space: {family.space.name} does not say which activations are alive together")
    weights: Array = sum(4.0 * operator.parameters - operator.saved_bytes for operator in operators) / MIB
    return weights, functools.reduce(lambda a, b: (a + b + abs(a - b)) / 2.0, live) / MIB


@dataclass(frozen=True)
class MemoryCost:
    """What `nas.constraints` asks of a cost: `PredictedMemory.upper_mib` of architectures, and its expectation of a relaxed one.

    Weights are multilinear in the choices, so theirs is exact. A peak of activations is a largest over layers, and the largest of
    expectations lies below its expectation (by half where nothing is decided), so it would promise too much: instead the peaks of
    `nas.relaxations.draws` are averaged.
    """

    family: Family
    workload: Workload

    def upper(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Of `memory_of`, in MiB, [N]. Raises ValueError like it."""
        return np.array([memory.upper_mib for memory in memory_of(self.family, archs, self.workload)])

    def expected_upper(self, encoding: Encoding) -> torch.Tensor:
        """In MiB. Raises ValueError like `memory_of`."""
        weights, _ = expected_memory(self.family, encoding, self.workload)
        _, activations_N = expected_memory(self.family, draws(encoding, DRAWS), self.workload)
        mib: torch.Tensor = weights + GAPS * activations_N.mean() + ROUNDED_MIB
        return mib
