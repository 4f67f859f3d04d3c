"""Files that take inputs of one size only, as converters for phones write them, asked for inputs of any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FixedSizes:
    """A file's outputs for inputs of any batch and of at most its own number of tokens.

    They are padded with zeros to the file's size, which a mask of zeros leaves out, and it runs as often as their batch takes.

    Args:
        name: of the file, for errors.
        sizes: of its inputs by name, in their order.
        execute: the outputs [B, C] or [B, T, C] of inputs of those sizes, in that order.
    """

    name: str
    sizes: Mapping[str, tuple[int, ...]]
    execute: Callable[[Sequence[Tensor]], Sequence[np.ndarray]]

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
