"""From a torch network to an ONNX file, with the proof that both give the same answers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

OPSET = 20  # the first with one Gelu operator, which ONNX Runtime has a kernel for


class ExportError(RuntimeError):
    """The exported file does not do what the network does."""


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
    """Writes `network` with dynamic batch and sequence, and runs the file beside it.

    Args:
        example: inputs by name, [B, T] each; also the first that the file is checked on.
        tolerance: largest absolute difference of the outputs that counts as the same.
        check_on: further inputs, of any batch size and length.

    Raises:
        ExportError: outputs differ by more than the tolerance; the file is not left behind.
    """
    network = network.eval().cpu().float()
    unfinished = path.with_name(path.name + ".part")
    names = list(example)
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    # The TorchScript exporter: its graphs run as fast as the newer one's, and it takes 0.3 s a network where that takes 9 s.
    # Only so can every measured network be exported in the way that ships.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        arguments = tuple(example.values())
        torch.onnx.export(
            network, arguments, str(unfinished), input_names=names, output_names=["logits"], dynamic_axes=axes,
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    difference, equal, total = compare(network, unfinished, [example, *check_on])
    if not difference <= tolerance:
        unfinished.unlink()
        raise ExportError(f"{path.name}: outputs differ by {difference:.2e} from the network's, allowed are {tolerance:.2e}")
    os.replace(unfinished, path)
    return ExportReport(
        path=path.name,
        num_examples=total,
        max_abs_difference=difference,
        equal_decisions=equal / total,
        tolerance=tolerance,
        num_parameters=sum(p.numel() for p in network.parameters()),
        file_bytes=path.stat().st_size,
    )


def compare(network: nn.Module, path: Path, inputs: Sequence[Mapping[str, Tensor]]) -> tuple[float, int, int]:
    """Largest absolute difference between network and file, number of equal decisions, number of examples."""
    session = open_session(path)
    difference, equal, total = 0.0, 0, 0
    for example in inputs:
        with torch.no_grad():
            expected = network(*example.values()).numpy()
        actual = session.run(None, {name: value.numpy() for name, value in example.items()})[0]
        difference = max(difference, float(np.abs(actual - expected).max()))
        equal += int(np.sum(actual.argmax(-1) == expected.argmax(-1)))
        total += len(expected)
    return difference, equal, total


def open_session(path: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with a set number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
