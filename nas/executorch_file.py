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

import torch
from torch import Tensor, nn

from nas.fixed_sizes import FixedSizes

TYPES = {3: "int32", 4: "int64", 6: "float32"}  # by the numbers of torch's scalar types


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


def answers(path: Path) -> FixedSizes:
    """A file's outputs, its first ones the logits."""
    program, names = opened(path)
    method = program.load_method("forward")
    inputs = {name: method.metadata.input_tensor_meta(i) for i, name in enumerate(names)}
    sizes = {name: tuple(meta.sizes()) for name, meta in inputs.items()}
    types = {name: TYPES[meta.dtype()] for name, meta in inputs.items()}
    return FixedSizes(path.name, sizes, lambda values: [x.numpy() for x in method.execute(list(values))], types)
