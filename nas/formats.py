"""The formats of exported networks: how each is written and opened for its answers."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor, nn

from nas import executorch_file, qnn_file
from nas.fewer_bits import with_fewer_bits
from nas.fixed_sizes import FixedSizes, Guarded
from nas.runtime_attention import with_runtime_attention

OPSET = 20  # the first with one Gelu operator, which ONNX Runtime has a kernel for
TRACED_TOKENS = "tokens.txt"  # in a .pt2 file: of the sequence that it was traced with


class ExportError(RuntimeError):
    """The exported file does not do what the network does."""


@runtime_checkable
class NamesAxes(Protocol):
    """A network that says which axes of its inputs and outputs are dynamic; an output is what is no input."""

    dynamic_axes: Mapping[str, Mapping[int, str]]


@runtime_checkable
class Rewrites(Protocol):
    """A network whose ONNX graph is another than that of its operators one by one."""

    def rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto: ...


Answer = Callable[[Mapping[str, Tensor]], list[np.ndarray]]
"""A file's outputs, the logits first, of inputs by name; of LiteRT the logits alone."""


@dataclass(frozen=True)
class Format:
    """How files of one kind are called, written, and opened for their answers, and in which precision they compute."""

    suffix: str
    write: Callable[[nn.Module, Mapping[str, Tensor], Path], None]
    open: Callable[[Path], Answer]
    precision: str = "fp32"


def open_session(path: Path | bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a file, or of its bytes, on the CPU with a set number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def arrays(outputs: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    """A network's outputs."""
    return [x.numpy() for x in ((outputs,) if isinstance(outputs, Tensor) else outputs)]


def _write_onnxruntime(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    """With operators of ONNX Runtime's own where they are faster."""
    _write_onnx(with_runtime_attention(with_fewer_bits(network)), example, path)


def _write_onnx(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    """With operators of the ONNX standard, but for layers in int4."""
    axes: dict[str, Any] = _axes(example) | {"logits": {0: "batch"}}
    if isinstance(network, NamesAxes):
        axes = {name: dict(dynamic) for name, dynamic in network.dynamic_axes.items()}
    # The TorchScript exporter: its graphs run as fast as the newer one's, and it takes 0.3 s a network where that takes 9 s.
    # Only so can every measured network be exported in the way that ships.
    torch.onnx.export(
        with_fewer_bits(network), tuple(example.values()), str(path), input_names=list(example), dynamic_axes=axes,
        output_names=[name for name in axes if name not in example], opset_version=OPSET, dynamo=False,
    )  # fmt: skip
    if isinstance(network, Rewrites):
        onnx.save(network.rewritten(onnx.load(path)), path)


def _axes(example: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Dynamic axes of inputs whose network does not name them."""
    return {name: {0: "batch", 1: "sequence"} if value.ndim == 2 else {0: "batch"} for name, value in example.items()}


def _open_onnx(path: Path) -> Answer:
    try:
        session = open_session(path, threads=torch.get_num_threads())
    except Exception as error:  # ONNX Runtime's own have no base class of their own
        raise ExportError(f"{path}: ONNX Runtime cannot open it: {error}") from error
    return lambda inputs: list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))


def _write_torchscript(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    # A trace takes 0.1 to 0.5 s a network and loads in 0.05 s, at any size; torch.export takes 1 to 5 s for each, and fixes the
    # number of tokens of a network with windows.
    traced = torch.jit.trace(network, tuple(example.values()), check_trace=False)
    torch.jit.save(traced, path, _extra_files={"inputs.json": json.dumps(list(example))})


def _open_torchscript(path: Path) -> Answer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.load(path)

    def answer(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            return arrays(traced(*inputs.values()))

    return answer


class _Named(nn.Module):
    """The network with its inputs and output by name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.network(*inputs.values())
        return {"logits": outputs if isinstance(outputs, Tensor) else outputs[0]}


def _write_tflite(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    """For the shapes of the example; whole numbers become 32-bit ones, as its kernels want them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`isinstance.treespec", category=FutureWarning)
        logging.disable(logging.WARNING)  # of parts that it would like to load, and of whole numbers that become 32-bit ones
        try:
            import litert_torch

            litert_torch.config.show_progress = False
            litert_torch.convert(_Named(network), sample_kwargs=dict(example)).export(str(path))
        except ModuleNotFoundError as error:
            raise ValueError(
                "litert-torch is not installed: pip install 'paretoformer[litert]', or 'paretoformer[ethos-u]' for device=ethos_u"
            ) from error
        except Exception as error:  # a compiler's: many kinds
            raise ExportError(f"{path.name}: litert-torch cannot convert the network: {error}") from error
        finally:
            logging.disable(logging.NOTSET)


def _open_tflite(path: Path) -> Answer:
    from ai_edge_litert.interpreter import Interpreter  # comes with litert-torch

    runner = Interpreter(str(path), num_threads=1).get_signature_runner()
    details = runner.get_input_details()

    def execute(values: Sequence[Tensor]) -> list[np.ndarray]:
        named = zip(details.items(), values, strict=True)
        return [runner(**{name: value.numpy().astype(detail["dtype"]) for (name, detail), value in named})["logits"]]

    sizes = {name: tuple(detail["shape"].tolist()) for name, detail in details.items()}
    return FixedSizes(path.name, sizes, execute, {name: np.dtype(detail["dtype"]).name for name, detail in details.items()})


def _write_openvino(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    """The graph at `path`, the weights beside it in a .bin file."""
    openvino = _openvino()
    onnx_path = path.with_suffix(".onnx")
    _write_onnx(network, example, onnx_path)
    onnx.save(_with_exact_remainders(onnx.load(onnx_path)), onnx_path)
    openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)
    onnx_path.unlink()


def _with_exact_remainders(model: onnx.ModelProto) -> onnx.ModelProto:
    """OpenVINO divides integers in float32, whose remainders are right up to 2^24: they are taken of what a quotient that may
    be a little off leaves, which is small. Products and differences are exact up to 31 bits."""
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Mod" and not any(attribute.name == "fmod" and attribute.i for attribute in node.attribute):
            dividend, divisor = node.input
            quotient, product, left = (f"{node.output[0]}/{part}" for part in ("quotient", "product", "left"))
            nodes.append(helper.make_node("Div", [dividend, divisor], [quotient]))
            nodes.append(helper.make_node("Mul", [quotient, divisor], [product]))
            nodes.append(helper.make_node("Sub", [dividend, product], [left]))
            node.input[0] = left
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _open_openvino(path: Path) -> Answer:
    core = _openvino().Core()
    model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else it may take bfloat16
    return lambda inputs: list(model({name: value.numpy() for name, value in inputs.items()}).to_tuple())


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ValueError("openvino is not installed: pip install 'paretoformer[openvino]'") from error
    return openvino


def _write_pt2(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    axes = network.dynamic_axes if isinstance(network, NamesAxes) else _axes(example)
    dynamic = tuple(dict.fromkeys(axes[name], torch.export.Dim.AUTO) for name in example)
    two = tuple(torch.cat([value, value]) for value in example.values())  # of one alone it would make a fixed size
    try:
        program = torch.export.export(network, two, dynamic_shapes=dynamic)
    except Exception as error:  # a compiler's: many kinds
        raise ExportError(f"{path.name}: torch.export cannot trace the network: {error}") from error
    sequences = all(value.ndim == 2 for value in example.values())
    most = next(iter(example.values())).shape[1] if sequences else 0
    torch.export.save(program, path, extra_files={"inputs.json": json.dumps(list(example)), TRACED_TOKENS: str(most)})


def _open_pt2(path: Path) -> Answer:
    beside = {TRACED_TOKENS: ""}
    network = torch.export.load(path, extra_files=beside).module()

    def execute(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            return arrays(network(*inputs.values()))

    most = int(beside[TRACED_TOKENS])
    guarded = Guarded(most, execute) if most else execute

    def answer(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        try:
            return guarded(inputs)
        except AssertionError as error:
            shapes = {name: tuple(value.shape) for name, value in inputs.items()}
            raise ExportError(f"{path.name}: torch.export made a network that does not take {shapes} ({error})") from error

    return answer


def _write_pte(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    try:
        executorch_file.write(network, example, path)
    except ModuleNotFoundError as error:
        raise ValueError("executorch is not installed: pip install 'paretoformer[executorch]'") from error
    except Exception as error:  # a compiler's: many kinds
        raise ExportError(f"{path.name}: ExecuTorch cannot convert the network: {error}") from error


def _write_qnn(network: nn.Module, example: Mapping[str, Tensor], path: Path, *, soc: str) -> None:
    """Compiled for a chip and the sizes of the example."""
    qnn_file.plugin()
    onnx_path = path.with_name("whole.onnx")
    _write_onnx(network, example, onnx_path)
    try:
        qnn_file.compile_file(onnx_path, {name: tuple(value.shape) for name, value in example.items()}, path, soc=soc)
    except Exception as error:  # ONNX Runtime's own have no base class of their own
        raise ExportError(f"{path.name}: the network cannot be compiled for {soc}: {error}") from error
    finally:
        onnx_path.unlink()


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _open_onnx),
    "onnxruntime": Format(".onnx", _write_onnxruntime, _open_onnx),
    "openvino": Format(".xml", _write_openvino, _open_openvino),
    "pt2": Format(".pt2", _write_pt2, _open_pt2),
    "pte": Format(".pte", _write_pte, executorch_file.answers),
    **{
        kind: Format(".qnn.onnx", partial(_write_qnn, soc=soc), partial(qnn_file.answers, soc=soc), precision="fp16")
        for kind, soc in qnn_file.FORMATS.items()
    },
    "torchscript": Format(".pt", _write_torchscript, _open_torchscript),
    "tflite": Format(".tflite", _write_tflite, _open_tflite),
}
