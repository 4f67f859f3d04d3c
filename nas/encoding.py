"""Probabilities of options, and what follows from them: expected sizes, gates and masks.

An `Encoding` is a space with one probability for every option. A one-hot encoding is an architecture; anything between is a
relaxed one. The same few functions serve both, for numpy arrays and torch tensors alike, with any leading shape [..., E]: so an
expected cost, a supernet's mask and the cost of a thousand architectures are written once.

Choices are independent given that they exist, so the expectation of a product of sizes of *different* choices is the product of
their expectations, and the probability that a choice exists is the product over its requirements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.space import Architecture, Choice, Option, SearchSpace

Array = Any  # numpy.ndarray or torch.Tensor; this module imports neither's operations by name


@dataclass(frozen=True)
class Encoding:
    """`values[..., E]`: probabilities of the options of every choice, *given that the choice exists*."""

    space: SearchSpace
    values: Array

    @classmethod
    def of(cls, space: SearchSpace, archs: Sequence[Architecture]) -> Encoding:
        """One-hot rows [N, E]; absent choices are zero, and whatever depends on them is switched off by `exists`."""
        return cls(space, space.encode(archs))

    def probabilities(self, name: str) -> Array:
        """[..., number of options]."""
        return self.values[..., self.space.offsets[name]]

    def probability(self, name: str, option: Option) -> Array:
        """P(pick = option | the choice exists), [...]."""
        return self.values[..., self.space.offsets[name].start + self.space.by_name[name].index(option)]

    def expected(self, name: str) -> Array:
        """Expected size of a nested choice, given that it exists, [...]."""
        choice = self.space.by_name[name]
        start = self.space.offsets[name].start
        return sum(self.values[..., start + i] * float(option) for i, option in enumerate(choice.options))

    def exists(self, name: str) -> Array:
        """P(the choice exists), [...]; the number 1.0 for a choice without requirements."""
        return self._exists(self.space.by_name[name])

    def _exists(self, choice: Choice) -> Array:
        result: Array = 1.0
        for r in choice.requires:
            result = result * sum(self.probability(r.choice, option) for option in r.options) * self.exists(r.choice)
        return result

    def at_least(self, name: str, size: int) -> Array:
        """P(pick >= size | the choice exists), [...]: with `depth` the gate of a layer."""
        choice = self.space.by_name[name]
        kept = [option for option in choice.options if isinstance(option, int) and option >= size]
        if len(kept) == len(choice.options):
            return 1.0
        return sum(self.probability(name, option) for option in kept)


def prefix_membership(choice: Choice) -> np.ndarray:
    """Matrix [number of options, largest option] with 1 where an index lies in an option's prefix.

    With probabilities p [K], the mask of weight entanglement is p @ matrix: m_i = P(size > i) = sum_k p_k [s_k > i]
    (weight entanglement of TangleNAS, arXiv:2312.10440, written as one mask).
    """
    sizes = np.array([int(o) for o in choice.options])
    return (np.arange(sizes[-1])[None, :] < sizes[:, None]).astype(float)
