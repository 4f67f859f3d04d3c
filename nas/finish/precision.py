"""ONNX models in fewer bits, by ONNX Runtime's own quantisers, and which blocks of a model may stay as they are.

| kind | weights | activations |
|---|---|---|
| dynamic | int8, a scale for each channel | quantised as they come |
| static | int8, a scale for each channel | int8 in QDQ form, ranges from calibration |
| fp16 | half precision | half precision; inputs and outputs stay float32 |
| int4 | 4 bits, a scale for 32 of a column | float32 |

ONNX Runtime has no bfloat16 kernels of these operators for CPUs, so there is no such kind.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from nas.finish.lean import lean
from nas.runtime_attention import with_products

KINDS = ("dynamic", "static", "fp16", "int4")
CALIBRATIONS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
OPERATORS = {
    "dynamic": ("MatMul", "Gemm", "Gather", "Attention"),
    "static": ("MatMul", "Gemm", "Gather"),
    "fp16": (),
    "int4": ("MatMul",),
}
BLOCK = re.compile(r"^(/.*\.\d+/[^/]+)/")  # of a node's name: /stack/blocks.0/attention

Feeds = Sequence[Mapping[str, np.ndarray]]


def quantised(
    model: onnx.ModelProto, kind: str, *, calibration: str = "minmax", feeds: Feeds = (), keep: Sequence[str] = ()
) -> onnx.ModelProto:
    """A copy of the model in fewer bits.

    Args:
        calibration: of static: the ranges are those seen ("minmax"), or lose the least information ("entropy"), or cut the
            outermost 0.001 % ("percentile").
        feeds: real inputs by name, for static.
        keep: blocks (see `blocks`) that stay as they are.

    Raises:
        ValueError: an unknown kind or calibration, or static without inputs, or with those of another model: of other names,
            types, ranks or sizes, or longer than it takes.
    """
    check("kind", kind, KINDS)
    check("calibration", calibration, tuple(CALIBRATIONS))
    model, changed = copy.deepcopy(model), blocks(model, kind)
    if changed and set(changed) <= set(keep):
        return model
    del model.graph.value_info[:]  # shapes that an exporter wrote down contradict those of the quantised operators
    with_products(model, all_of_them=kind in ("static", "int4"))
    excluded = [name for block in keep for name in blocks(model, kind)[block]]
    excluded += [f"{name}_MatMul" for name in excluded]  # what dynamic quantisation makes of a Gemm
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        if kind == "dynamic":
            from onnxruntime.quantization import quantize_dynamic  # slow to import

            options = {"EnableSubgraph": True, "DefaultTensorType": onnx.TensorProto.FLOAT}  # of what its own operators write
            quantize_dynamic(
                model, path, op_types_to_quantize=list(OPERATORS[kind]), nodes_to_exclude=excluded, per_channel=True,
                extra_options=options,
            )  # fmt: skip
            model = onnx.load(path)
        elif kind == "static":
            _static(model, path, calibration, feeds, excluded)
            model = onnx.load(path)
        elif kind == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(model, keep_io_types=True)
        else:
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            quantiser = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4, nodes_to_exclude=excluded)
            quantiser.process()
            model = quantiser.model.model
    return lean(model)


def blocks(model: onnx.ModelProto, kind: str) -> dict[str, tuple[str, ...]]:
    """The nodes with constant weights that a kind changes, by the block that they belong to, such as `/stack/blocks.0/ffn`."""
    constants = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in OPERATORS[kind] and constants & set(node.input):
            inside = BLOCK.match(node.name)
            found.setdefault(inside[1] if inside else node.name.rpartition("/")[0], []).append(node.name)
    return {block: tuple(names) for block, names in found.items()}


def check(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {tuple(allowed)}")


def _static(model: onnx.ModelProto, path: Path, calibration: str, feeds: Feeds, excluded: Sequence[str]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    _check_feeds(model, feeds)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One feed at a time: histograms of several at once want all of them to be of one length."""

        def __init__(self) -> None:
            self.rest = iter(feeds)
            self.feed: Mapping[str, np.ndarray] | None = None

        def __len__(self) -> int:
            return len(feeds)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.rest = iter(feeds[start_index:end_index])

        def get_next(self) -> Any:
            self.feed = next(self.rest, None)
            return None if self.feed is None else dict(self.feed)

    reader = Reader()
    try:
        quantize_static(
            model, path, reader, op_types_to_quantize=list(OPERATORS["static"]), per_channel=True,
            activation_type=QuantType.QUInt8, nodes_to_exclude=list(excluded),
            calibrate_method=CalibrationMethod[CALIBRATIONS[calibration]],
            extra_options={"MatMulConstBOnly": True, "CalibStridedMinMax": 1},
        )  # fmt: skip
    except (Fail, InvalidArgument, RuntimeException) as error:
        shapes = {name: list(value.shape) for name, value in (reader.feed or {}).items()}
        raise ValueError(
            f"feeds: the model does not run on inputs of the shapes {shapes}: {' '.join(str(error).split())}"
        ) from error


def _check_feeds(model: onnx.ModelProto, feeds: Feeds) -> None:
    """Raises ValueError for inputs of other names, types or shapes than the graph's, or where a dimension has two sizes."""
    inputs = {entry.name: entry.type.tensor_type for entry in model.graph.input}
    if not feeds:
        raise ValueError("feeds: there are no inputs to calibrate with")
    for feed in feeds:
        if set(feed) != set(inputs):
            raise ValueError(f"feeds: inputs {sorted(feed)} are not the model's {sorted(inputs)}")
        sizes: dict[str, int] = {}
        for name, tensor in inputs.items():
            dims, dtype = tensor.shape.dim, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            given, allowed = list(feed[name].shape), [d.dim_value or sizes.get(d.dim_param, d.dim_param or "any") for d in dims]
            fits = len(given) == len(allowed) and all(a == g or isinstance(a, str) for a, g in zip(allowed, given, strict=True))
            if feed[name].dtype != dtype or not fits:
                raise ValueError(f"feeds: {name} is {feed[name].dtype} {given}; allowed is {dtype} {allowed}".replace("'", ""))
            sizes |= {d.dim_param: size for d, size in zip(dims, given, strict=True) if d.dim_param}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers print their progress, and advise a pre-processing that changes nothing here; errors are raised as well."""
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # as it begins
        logging.disable(logging.NOTSET)
