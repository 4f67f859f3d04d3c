"""Inputs for any ONNX file, made from the types and shapes that its graph declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

FEW = 2  # values of an integer input of which nothing is known: 0 and 1 are allowed in any table, mask or flag


@dataclass(frozen=True)
class DynamicSizes:
    """What dynamic dimensions become.

    Args:
        batch: the first dimension.
        tokens: every other one, unless `dims` names it.
        dims: sizes by the dimension's own name, which is then neither.
        ids: integers are drawn below it; None: below the number of rows of the table that they are looked up in.

    Raises:
        ValueError: a size under 1.
    """

    batch: int = 1
    tokens: int = 64
    dims: Mapping[str, int] | None = None
    ids: int | None = None

    def __post_init__(self) -> None:
        for name, size in {"batch": self.batch, "tokens": self.tokens, "ids": self.ids, **(self.dims or {})}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}: {size} is not at least 1")


def make_inputs(path: Path, sizes: DynamicSizes, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name, the same for the same seed: normal floats, uniform integers, masks and booleans that hide nothing.

    Raises:
        ValueError: not an ONNX file, or an input whose type or rank cannot be made up.
    """
    graph = read_graph(path)
    weights = {tensor.name for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer))}
    rng = np.random.default_rng(seed)
    return {v.name: _value(v, graph, sizes, rng, path) for v in graph.input if v.name not in weights}


def read_graph(path: Path) -> onnx.GraphProto:
    """The graph of a file, without weights that lie in other files. Raises ValueError for a file that is none."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise ValueError(f"{path}: is not an ONNX file ({error})") from error
    if not graph.node:
        raise ValueError(f"{path}: is not an ONNX file, or a graph without nodes")
    return graph


def dynamic_dimensions(path: Path) -> set[str]:
    """Which of `batch`, `tokens` and names a file's inputs leave open; a named one also counts as what it is without its name."""
    graph = read_graph(path)
    weights = {tensor.name for tensor in graph.initializer}
    shapes = [v.type.tensor_type.shape for v in graph.input if v.name not in weights]
    open_ = [(axis, d.dim_param) for shape in shapes for axis, d in enumerate(shape.dim) if d.dim_value < 1]
    return {"tokens" if axis else "batch" for axis, _ in open_} | {name for _, name in open_ if name}


def _value(
    value: onnx.ValueInfoProto, graph: onnx.GraphProto, sizes: DynamicSizes, rng: np.random.Generator, path: Path
) -> np.ndarray:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ValueError(f"{path}: the input {value.name} is no tensor of known rank")
    shape = [_size(axis, dimension, sizes) for axis, dimension in enumerate(tensor.shape.dim)]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b" or (dtype.kind in "iu" and "mask" in value.name.lower()):
        return np.ones(shape, dtype=dtype)
    if dtype.kind in "iu":
        return rng.integers(sizes.ids or _rows(value.name, graph) or FEW, size=shape).astype(dtype)
    raise ValueError(f"{path}: the input {value.name} is of the type {dtype}, which is not one of float, integer and bool")


def _size(axis: int, dimension: onnx.TensorShapeProto.Dimension, sizes: DynamicSizes) -> int:
    if dimension.dim_value > 0:
        return int(dimension.dim_value)
    return (sizes.dims or {}).get(dimension.dim_param, sizes.tokens if axis else sizes.batch)


def _rows(name: str, graph: onnx.GraphProto) -> int | None:
    """Rows of the smallest table that an input looks up, straight or after a cast; None if there is none."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    names = {name, *(node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] == name)}
    lookups = [n for n in graph.node if n.op_type == "Gather" and n.input[1] in names and shapes.get(n.input[0])]
    axes = [next((a.i for a in n.attribute if a.name == "axis"), 0) for n in lookups]
    return min((shapes[n.input[0]][axis] for n, axis in zip(lookups, axes, strict=True)), default=None)
