"""Several ONNX files over one file of weights (ONNX external data): equal weights are stored once.

A weight whose bytes are the beginning of another's is that beginning: of weights that were inherited from one supernet, those
that are prefixes in their first dimension. A matrix that is the upper left corner of another one is no stretch of a file: its
graph reads the other's first rows and cuts the columns off, which ONNX Runtime does once, when it opens the file. What the
smallest network needs comes first, in the order in which it uses it, then what the next one needs beside that: each network needs
a beginning of the file and nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

ALIGNMENT = 64  # bytes
SMALLEST = 1024  # bytes; smaller weights stay in the graph's file
BEGINNING = 8  # bytes, that tell most matrices apart; one with shorter rows is no corner of another


@dataclass(frozen=True)
class SharedWeights:
    """Bytes of the weights of all files together, and those that the shared file holds; each file needs as many of its first
    bytes as `needed_bytes` says."""

    weight_bytes: int
    stored_bytes: int
    needed_bytes: Mapping[str, int]

    @property
    def shared_percent(self) -> float:
        return 100 * (1 - self.stored_bytes / self.weight_bytes) if self.weight_bytes else 0.0


def share_weights(sources: Mapping[str, Path], folder: Path, *, data: str) -> SharedWeights:
    """Writes each source under its new name into the folder, and all their weights into the file `data` beside them."""
    models = {name: onnx.load(source) for name, source in sources.items()}
    large = {name: list(_large(model.graph)) for name, model in models.items()}
    sizes = {name: sum(len(content) for content, _ in pairs) for name, pairs in large.items()}
    every = sorted((pair for pairs in large.values() for pair in pairs), key=lambda pair: len(pair[0]), reverse=True)
    alike: dict[bytes, list[bytes]] = {}
    for content in dict.fromkeys(content for content, _ in every):
        alike.setdefault(content[:SMALLEST], []).append(content)
    matrices: dict[bytes, dict[bytes, np.ndarray]] = {}
    for content, tensor in every:
        if len(tensor.dims) == 2:
            matrices.setdefault(content[:BEGINNING], {}).setdefault(content, _array(content, tensor))
    offsets: dict[bytes, int] = {}
    needed = dict.fromkeys(models, 0)
    with (folder / data).open("wb") as file:
        for name in sorted(models, key=sizes.__getitem__):
            for own, tensor in large[name]:
                content = _rows(own, tensor, matrices.get(own[:BEGINNING], {}))
                if len(content) > len(own):
                    _cut(models[name].graph, tensor, columns=tensor.dims[1] * len(content) // len(own))
                longest = next(other for other in alike[content[:SMALLEST]] if other.startswith(content))
                if longest not in offsets:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    offsets[longest] = file.tell()
                    file.write(longest)
                _refer(tensor, data, offsets[longest], len(content))
                needed[name] = max(needed[name], offsets[longest] + len(content))
        size = file.tell()
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString())
    return SharedWeights(sum(sizes.values()), size, needed)


def _large(graph: onnx.GraphProto) -> Iterator[tuple[bytes, onnx.TensorProto]]:
    """The bytes of the weights that are worth a place in another file, in the order in which nodes use them."""
    first = {name: -number for number, node in enumerate(reversed(graph.node)) for name in node.input}
    for tensor in sorted(graph.initializer, key=lambda tensor: first.get(tensor.name, 1)):
        if tensor.data_type != onnx.TensorProto.STRING:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(content) >= SMALLEST:
                yield content, tensor


def _array(content: bytes, tensor: onnx.TensorProto) -> np.ndarray:
    """A matrix as bytes, [rows, bytes of a row]."""
    return np.frombuffer(content, np.uint8).reshape(tensor.dims[0], -1)


def _rows(content: bytes, tensor: onnx.TensorProto, matrices: Mapping[bytes, np.ndarray]) -> bytes:
    """As many first rows of the largest matrix whose upper left corner a matrix is; its own bytes if it is none."""
    if len(tensor.dims) != 2 or len(content) // tensor.dims[0] < BEGINNING:
        return content
    own = _array(content, tensor)
    rows, length = own.shape
    for whole in matrices.values():
        if len(whole) >= rows and whole.shape[1] >= length and np.array_equal(whole[:rows, :length], own):
            return whole[:rows].tobytes()
    return content


def _cut(graph: onnx.GraphProto, tensor: onnx.TensorProto, *, columns: int) -> None:
    """Makes the weight one of so many columns, of which the graph takes the first as before."""
    name, kept = tensor.name, tensor.dims[1]
    tensor.name, tensor.dims[1] = f"{name}.whole", columns
    bounds = {"first": 0, "kept": kept, "axis": 1}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array([n]), f"{name}.{word}") for word, n in bounds.items())
    graph.node.insert(0, onnx.helper.make_node("Slice", [tensor.name, *(f"{name}.{word}" for word in bounds)], [name]))


def _refer(tensor: onnx.TensorProto, data: str, offset: int, length: int) -> None:
    """Makes the weight one that lies in another file."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", data), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
