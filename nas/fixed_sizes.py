"""Files that do not take inputs of any size, as converters and compilers write them, asked for inputs of many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class FixedSizes:
    """A file's outputs for inputs of any batch and of at most its own number of tokens.

    They are padded with zeros to the file's size, which a mask of zeros leaves out, and it runs as often as their batch takes.

    Args:
        name: of the file, for errors.
        sizes: of its inputs by name, in their order.
        execute: the outputs [B, C] or [B, T, C] of inputs of those sizes, in that order.
        types: of its inputs by name, like int32.
    """

    name: str
    sizes: Mapping[str, tuple[int, ...]]
    execute: Callable[[Sequence[Tensor]], Sequence[np.ndarray]]
    types: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        """Raises ValueError for inputs that are larger than the file's."""
        step = next(iter(self.sizes.values()))[0]
        parts = zip(*(inputs[name].split(step) for name in self.sizes), strict=True)
        return [np.concatenate(outputs) for outputs in zip(*map(self._run, parts), strict=True)]

    def _run(self, values: tuple[Tensor, ...]) -> list[np.ndarray]:
        outputs = self.execute([self._padded(*named) for named in zip(self.sizes, values, strict=True)])
        batch, tokens = values[0].shape[:2]
        return [x[:batch, :tokens] if x.ndim == 3 else x[:batch] for x in outputs]

    def _padded(self, name: str, value: Tensor) -> Tensor:
        size = self.sizes[name]
        if value.ndim != len(size) or any(own > most for own, most in zip(value.shape, size, strict=True)):
            raise ValueError(f"{self.name}: {name} is of the size {tuple(value.shape)}, the file takes at most {size}")
        whole = torch.zeros(size, dtype=value.dtype)
        whole[tuple(map(slice, value.shape))] = value
        return whole


@dataclass(frozen=True)
class Guarded:
    """The same of a compiled file that refuses some lengths of sequences: these are padded with zeros, which a mask of zeros
    leaves out, until it takes them.

    Args:
        most: tokens that it surely takes.
        execute: its outputs [B, C] or [B, T, C] for inputs [B, T] by name; raises AssertionError for what it refuses.
        padded: the tokens that it wants, by those that a sequence has; what was asked so far.
    """

    most: int
    execute: Callable[[Mapping[str, Tensor]], Sequence[np.ndarray]]
    padded: dict[int, int] = field(default_factory=dict)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        """Raises AssertionError for sequences that are longer than `most` and refused."""
        own = next(iter(inputs.values())).shape[1]
        for tokens in range(self.padded.get(own, own), self.most):
            with contextlib.suppress(AssertionError):
                return self._of(inputs, own, tokens)
        return self._of(inputs, own, max(own, self.most))

    def _of(self, inputs: Mapping[str, Tensor], own: int, tokens: int) -> list[np.ndarray]:
        outputs = self.execute({name: F.pad(value, (0, tokens - own)) for name, value in inputs.items()})
        self.padded[own] = tokens
        return [x[:, :own] if x.ndim == 3 else x for x in outputs]
