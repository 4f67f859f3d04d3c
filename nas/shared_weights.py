"""Several ONNX files over one file of weights (ONNX external data): equal weights are stored once.

A weight whose bytes are the beginning of another's is that beginning: of weights that were inherited from one supernet, those
that are prefixes in their first dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

ALIGNMENT = 64  # bytes
SMALLEST = 1024  # bytes; smaller weights stay in the graph's file


@dataclass(frozen=True)
class SharedWeights:
    """Bytes of the weights of all files together, and those that the shared file holds."""

    weight_bytes: int
    stored_bytes: int

    @property
    def shared_percent(self) -> float:
        return 100 * (1 - self.stored_bytes / self.weight_bytes) if self.weight_bytes else 0.0


def share_weights(sources: Mapping[str, Path], folder: Path, *, data: str) -> SharedWeights:
    """Writes each source under its new name into the folder, and all their weights into the file `data` beside them."""
    models = {name: onnx.load(source) for name, source in sources.items()}
    tensors = [t for model in models.values() for t in model.graph.initializer]
    contents = [(onnx.numpy_helper.to_array(t).tobytes(), t) for t in tensors if t.data_type != onnx.TensorProto.STRING]
    large = sorted((pair for pair in contents if len(pair[0]) >= SMALLEST), key=lambda pair: -len(pair[0]))
    stored: dict[bytes, list[tuple[int, bytes]]] = {}
    with (folder / data).open("wb") as file:
        for content, tensor in large:
            alike = stored.setdefault(content[:SMALLEST], [])
            offset = next((start for start, longer in alike if longer.startswith(content)), None)
            if offset is None:
                file.write(bytes(-file.tell() % ALIGNMENT))
                offset = file.tell()
                file.write(content)
                alike.append((offset, content))
            _refer(tensor, data, offset, len(content))
        size = file.tell()
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString())
    return SharedWeights(sum(len(content) for content, _ in large), size)


def _refer(tensor: onnx.TensorProto, data: str, offset: int, length: int) -> None:
    """Makes the weight one that lies in another file."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", data), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
