"""ExecuTorch's files (.pte): a network for inputs of one size, whose operators XNNPACK takes where it has them.

A file has two methods: `forward`, and `inputs`, which says the names of its inputs in their order. With sizes left open,
ExecuTorch 1.5 gives XNNPACK fewer operators, and ends the whole process at some lengths of networks with windows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def write(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    """Writes a file for the sizes of the example. Raises what ExecuTorch raises."""
    with quietly():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(network, tuple(example.values()))
        named = {"inputs": ",".join(example)}
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=named)
        path.write_bytes(lowered.to_executorch().buffer)


def opened(path: Path, *, profiled: bool = False) -> tuple[Any, list[str]]:
    """A file as ExecuTorch's `Program`, and the names of its inputs. Raises what ExecuTorch raises."""
    with quietly():
        from executorch.runtime import Runtime
    program = Runtime.get().load_program(path, enable_etdump=profiled)
    if "inputs" not in program.method_names:
        raise ValueError("the file does not name its inputs (a method `inputs`)")
    return program, program.load_method("inputs").execute(())[0].split(",")


@contextmanager
def quietly() -> Iterator[None]:
    """Without what ExecuTorch and what it imports say of parts that are not there and of their own calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


class Answers:
    """A file's outputs for inputs of any batch and of at most its own number of tokens.

    They are padded with zeros to the file's size, which a mask of zeros leaves out, and it runs as often as their batch takes.
    """

    def __init__(self, path: Path) -> None:
        program, self.names = opened(path)
        self.name, self.method = path.name, program.load_method("forward")
        metadata = self.method.metadata
        self.sizes = {name: tuple(metadata.input_tensor_meta(i).sizes()) for i, name in enumerate(self.names)}

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        """Raises ValueError for inputs that are larger than the file's."""
        step = self.sizes[self.names[0]][0]
        parts = zip(*(inputs[name].split(step) for name in self.names), strict=True)
        return [np.concatenate(outputs) for outputs in zip(*map(self._run, parts), strict=True)]

    def _run(self, values: tuple[Tensor, ...]) -> list[np.ndarray]:
        outputs = self.method.execute([self._padded(*named) for named in zip(self.names, values, strict=True)])
        batch, tokens = values[0].shape[:2]
        return [(x[:batch, :tokens] if x.ndim == 3 else x[:batch]).numpy() for x in outputs]  # [B, T, C] or [B, C]

    def _padded(self, name: str, value: Tensor) -> Tensor:
        size = self.sizes[name]
        if value.ndim != len(size) or any(own > most for own, most in zip(value.shape, size, strict=True)):
            raise ValueError(f"{self.name}: {name} is of the size {tuple(value.shape)}, the file takes at most {size}")
        whole = torch.zeros(size, dtype=value.dtype)
        whole[tuple(map(slice, value.shape))] = value
        return whole
