"""From a torch network to an ONNX file, or what else a device runs, with the proof that both give the same answers."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from nas import executorch_file
from nas.fewer_bits import fewer_bits_of, with_fewer_bits
from nas.fixed_sizes import FixedSizes
from nas.protocols import Device, Family, GenerativeFamily
from nas.types import Workload

OPSET = 20  # the first with one Gelu operator, which ONNX Runtime has a kernel for
INTEGER_TOLERANCE = 0.1  # of the largest output, or of 1, with layers in integers: what lies between two may be rounded to either
HALF_TOLERANCE = 0.03  # the same with layers in fp16
SAME_NUMBER = 0.01  # answers that are one standardised number each and this close are the same


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


@dataclass(frozen=True)
class ExportReport:
    """What was written and how well it agrees: largest absolute difference and share of equal decisions over all examples."""

    path: str
    num_examples: int
    max_abs_difference: float
    equal_decisions: float
    tolerance: float
    num_parameters: int
    file_bytes: int
    opset: int = OPSET

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export_onnx(
    network: nn.Module, example: Mapping[str, Tensor], path: Path, *, tolerance: float = 1e-4,
    check_on: Sequence[Mapping[str, Tensor]] = (),
) -> ExportReport:  # fmt: skip
    """Writes `network` with dynamic batch, and dynamic sequence where an input is one, and runs the file beside it.

    Args:
        example: inputs by name, sequences [B, T] or whole inputs [B, ...] if the network does not name its axes; also the first
            that the file is checked on.
        tolerance: largest absolute difference of the outputs that counts as the same (see `allowed`).
        check_on: further inputs, of any batch size and, if they are sequences, length.

    Raises:
        ExportError: outputs differ by more than the tolerance; the file is not left behind.
    """
    difference, equal, total = write_as("onnx", network, [example, *check_on], path, tolerance=tolerance)
    return ExportReport(
        path=path.name,
        num_examples=total,
        max_abs_difference=difference,
        equal_decisions=equal / total,
        tolerance=allowed(network, example, tolerance),
        num_parameters=sum(p.numel() for p in network.parameters()),
        file_bytes=path.stat().st_size,
    )


def export_for(device: Device, network: nn.Module, example: Mapping[str, Tensor], path: Path, *, tolerance: float = 1e-4) -> Path:
    """Writes `network` in the format that a device runs, with the same proof.

    Args:
        path: without a suffix; the one with it is returned.

    Raises:
        ExportError: as `export_onnx`, or the converter refuses the network.
        ValueError: the format's converter is not installed.
    """
    kind = format_of(device)
    path = path.with_name(path.name + FORMATS[kind].suffix)
    write_as(kind, network, [example], path, tolerance=tolerance)
    return path


def allowed(network: nn.Module, example: Mapping[str, Tensor], tolerance: float) -> float:
    """How far the outputs of a network's file may lie from its own: the tolerance; more if linear maps are in fewer bits, where a
    number that is rounded otherwise changes all that follow."""
    used = fewer_bits_of(network)
    if not used:
        return tolerance
    with torch.no_grad():
        largest = max(float(np.abs(x).max(initial=1)) for x in _arrays(network(*example.values())))
    return max(tolerance, (HALF_TOLERANCE if used == {"fp16"} else INTEGER_TOLERANCE) * largest)


def form_of(family: Family, network: nn.Module, workload: Workload) -> tuple[nn.Module, dict[str, Tensor]]:
    """What is exported of a network for a workload, and its inputs by name."""
    if isinstance(family, GenerativeFamily):
        return family.form(network, workload)
    return network, family.example_input(workload)


def format_of(device: Device) -> str:
    """Which kind of file a device runs: its `format`, onnx if it says none."""
    return getattr(device, "format", "onnx")


def compare(
    network: nn.Module, path: Path, inputs: Sequence[Mapping[str, Tensor]], *, kind: str = "onnx"
) -> tuple[float, float, int]:
    """Largest absolute difference between network and file, number of equal decisions, number of examples; an example with many
    decisions counts by the share of them that is equal."""
    answer = FORMATS[kind].open(path)
    difference, equal, total = 0.0, 0.0, 0
    for example in inputs:
        with torch.no_grad():
            expected = _arrays(network(*example.values()))
        actual = answer(example)
        difference = max(difference, *(float(np.abs(a - b).max(initial=0)) for a, b in zip(actual, expected, strict=False)))
        same = equal_decisions(actual[0], expected[0])
        equal += len(same) * float(same.mean())
        total += len(same)
    return difference, equal, total


def open_session(path: Path | bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a file, or of its bytes, on the CPU with a set number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


Answer = Callable[[Mapping[str, Tensor]], list[np.ndarray]]
"""A file's outputs, the logits first, of inputs by name; of LiteRT the logits alone."""


@dataclass(frozen=True)
class Format:
    """How files of one kind are called, written, and opened for their answers."""

    suffix: str
    write: Callable[[nn.Module, Mapping[str, Tensor], Path], None]
    open: Callable[[Path], Answer]


def write_as(
    kind: str, network: nn.Module, examples: Sequence[Mapping[str, Tensor]], path: Path, *, tolerance: float
) -> tuple[float, float, int]:
    """Writes a file of one of the `FORMATS`, made with the first example and compared on all (see `compare`).

    Raises:
        ExportError: outputs differ by more than the tolerance, or the converter refuses the network; nothing is left behind.
        ValueError: the format's converter is not installed.
    """
    chosen, network = FORMATS[kind], network.eval().cpu().float()
    tolerance = allowed(network, examples[0], tolerance)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        unfinished = Path(folder) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
            chosen.write(network, examples[0], unfinished)
        difference, equal, total = compare(network, unfinished, examples, kind=kind)
        if not difference <= tolerance:
            raise ExportError(f"{path.name}: outputs differ by {difference:.2e} from the network's, allowed are {tolerance:.2e}")
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name):  # what the file refers to first
            os.replace(part, path.with_name(part.name))
    return difference, equal, total


def equal_decisions(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether the largest of the logits [..., C] is the same one; a number, which is a single logit, is the
    same up to `SAME_NUMBER`."""
    if expected.shape[-1] == 1:
        return np.asarray(np.abs(actual - expected)[..., 0] <= SAME_NUMBER)
    return np.asarray(actual.argmax(-1) == expected.argmax(-1))


def _arrays(outputs: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    return [x.numpy() for x in ((outputs,) if isinstance(outputs, Tensor) else outputs)]


def _write_onnx(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
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
    session = open_session(path, threads=torch.get_num_threads())
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
            return _arrays(traced(*inputs.values()))

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
            raise ValueError("litert-torch is not installed: pip install 'paretoformer[litert]'") from error
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

    return FixedSizes(path.name, {name: tuple(detail["shape"].tolist()) for name, detail in details.items()}, execute)


def _write_openvino(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    """The graph at `path`, the weights beside it in a .bin file."""
    openvino = _openvino()
    onnx_path = path.with_suffix(".onnx")
    _write_onnx(network, example, onnx_path)
    openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)
    onnx_path.unlink()


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
    torch.export.save(program, path, extra_files={"inputs.json": json.dumps(list(example))})


def _open_pt2(path: Path) -> Answer:
    network = torch.export.load(path).module()

    def answer(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        try:
            with torch.no_grad():
                return _arrays(network(*inputs.values()))
        except AssertionError as error:  # a guard: of networks with windows, torch.export fixes sizes
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


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _open_onnx),
    "openvino": Format(".xml", _write_openvino, _open_openvino),
    "pt2": Format(".pt2", _write_pt2, _open_pt2),
    "pte": Format(".pte", _write_pte, executorch_file.answers),
    "torchscript": Format(".pt", _write_torchscript, _open_torchscript),
    "tflite": Format(".tflite", _write_tflite, _open_tflite),
}
