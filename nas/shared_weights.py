"""Several ONNX files over one file of weights (ONNX external data): equal weights are stored once.

A weight whose bytes are the beginning of another's is that beginning: of weights that were inherited from one supernet, those
that are prefixes in their first dimension. What the smallest network needs comes first, in the order in which it uses it, then
what the next one needs beside that: each network needs a beginning of the file and nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

ALIGNMENT = 64  # bytes
SMALLEST = 1024  # bytes; smaller weights stay in the graph's file


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
    alike: dict[bytes, list[bytes]] = {}
    for content in sorted({content for pairs in large.values() for content, _ in pairs}, key=len, reverse=True):
        alike.setdefault(content[:SMALLEST], []).append(content)
    offsets: dict[bytes, int] = {}
    needed = dict.fromkeys(models, 0)
    with (folder / data).open("wb") as file:
        for name in sorted(models, key=sizes.__getitem__):
            for content, tensor in large[name]:
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


def _refer(tensor: onnx.TensorProto, data: str, offset: int, length: int) -> None:
    """Makes the weight one that lies in another file."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", data), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
