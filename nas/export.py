"""From a torch network to an ONNX file, or what else a device runs, with the proof that both give the same answers."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from nas.protocols import Device, Family, GenerativeFamily
from nas.types import Workload

OPSET = 20  # the first with one Gelu operator, which ONNX Runtime has a kernel for
SAME_NUMBER = 0.01  # answers that are one standardised number each and this close are the same


class ExportError(RuntimeError):
    """The exported file does not do what the network does."""


@runtime_checkable
class NamesAxes(Protocol):
    """A network that says which axes of its inputs and outputs are dynamic; an output is what is no input."""

    dynamic_axes: Mapping[str, Mapping[int, str]]


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
        tolerance: largest absolute difference of the outputs that counts as the same.
        check_on: further inputs, of any batch size and, if they are sequences, length.

    Raises:
        ExportError: outputs differ by more than the tolerance; the file is not left behind.
    """
    difference, equal, total = _write(FORMATS["onnx"], network, [example, *check_on], path, tolerance)
    return ExportReport(
        path=path.name,
        num_examples=total,
        max_abs_difference=difference,
        equal_decisions=equal / total,
        tolerance=tolerance,
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
    chosen = FORMATS[format_of(device)]
    path = path.with_name(path.name + chosen.suffix)
    _write(chosen, network, [example], path, tolerance)
    return path


def form_of(family: Family, network: nn.Module, workload: Workload) -> tuple[nn.Module, dict[str, Tensor]]:
    """What is exported of a network for a workload, and its inputs by name."""
    if isinstance(family, GenerativeFamily):
        return family.form(network, workload)
    return network, family.example_input(workload)


def format_of(device: Device) -> str:
    """Which kind of file a device runs: its `format`, onnx if it says none."""
    return getattr(device, "format", "onnx")


def compare(network: nn.Module, path: Path, inputs: Sequence[Mapping[str, Tensor]]) -> tuple[float, float, int]:
    """Largest absolute difference between network and ONNX file, number of equal decisions, number of examples; an example with
    many decisions counts by the share of them that is equal."""
    return _compare(network, _open_onnx(path), inputs)


def open_session(path: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with a set number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


Answer = Callable[[Mapping[str, Tensor]], list[np.ndarray]]
"""A file's outputs, the logits first, of inputs by name; of LiteRT the logits alone."""


@dataclass(frozen=True)
class Format:
    """How files of one kind are called, written, and opened for their answers."""

    suffix: str
    write: Callable[[nn.Module, Mapping[str, Tensor], Path], None]
    open: Callable[[Path], Answer]


def _write(
    chosen: Format, network: nn.Module, examples: Sequence[Mapping[str, Tensor]], path: Path, tolerance: float
) -> tuple[float, float, int]:
    """Writes a file, made with the first example and compared on all, where nothing was if it differs."""
    network = network.eval().cpu().float()
    unfinished = path.with_name(path.name + ".part")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        chosen.write(network, examples[0], unfinished)
    difference, equal, total = _compare(network, chosen.open(unfinished), examples)
    if not difference <= tolerance:
        unfinished.unlink()
        raise ExportError(f"{path.name}: outputs differ by {difference:.2e} from the network's, allowed are {tolerance:.2e}")
    os.replace(unfinished, path)
    return difference, equal, total


def _compare(network: nn.Module, answer: Answer, inputs: Sequence[Mapping[str, Tensor]]) -> tuple[float, float, int]:
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


def equal_decisions(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether the largest of the logits [..., C] is the same one; a number, which is a single logit, is the
    same up to `SAME_NUMBER`."""
    if expected.shape[-1] == 1:
        return np.asarray(np.abs(actual - expected)[..., 0] <= SAME_NUMBER)
    return np.asarray(actual.argmax(-1) == expected.argmax(-1))


def _arrays(outputs: Tensor | Sequence[Tensor]) -> list[np.ndarray]:
    return [x.numpy() for x in ((outputs,) if isinstance(outputs, Tensor) else outputs)]


def _write_onnx(network: nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    rows = {name: {0: "batch", 1: "sequence"} if value.ndim == 2 else {0: "batch"} for name, value in example.items()}
    axes: dict[str, Any] = rows | {"logits": {0: "batch"}}
    if isinstance(network, NamesAxes):
        axes = {name: dict(dynamic) for name, dynamic in network.dynamic_axes.items()}
    # The TorchScript exporter: its graphs run as fast as the newer one's, and it takes 0.3 s a network where that takes 9 s.
    # Only so can every measured network be exported in the way that ships.
    torch.onnx.export(
        network, tuple(example.values()), str(path), input_names=list(example), opset_version=OPSET, dynamo=False,
        output_names=[name for name in axes if name not in example], dynamic_axes=axes,
    )  # fmt: skip


def _open_onnx(path: Path) -> Answer:
    session = open_session(path)
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

    interpreter = Interpreter(str(path), num_threads=1)
    runner = interpreter.get_signature_runner()
    types = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}

    def answer(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        return [runner(**{name: value.numpy().astype(types[name]) for name, value in inputs.items()})["logits"]]

    return answer


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _open_onnx),
    "torchscript": Format(".pt", _write_torchscript, _open_torchscript),
    "tflite": Format(".tflite", _write_tflite, _open_tflite),
}
