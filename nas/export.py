"""From a torch network to an ONNX file, or what else a device runs, with the proof that both give the same answers."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.fewer_bits import fewer_bits_of
from nas.formats import FORMATS, OPSET, ExportError, arrays
from nas.protocols import Device, Family, GenerativeFamily
from nas.types import Workload

INTEGER_TOLERANCE = 0.1  # of the largest output, or of 1, with layers in integers: what lies between two may be rounded to either
HALF_TOLERANCE = 0.03  # the same with layers in fp16
SAME_NUMBER = 0.01  # answers that are one standardised number each and this close are the same
NOT_FINITE = "answers with numbers that are not finite (NaN or infinity), or the network does"


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
    check_on: Sequence[Mapping[str, Tensor]] = (), kind: str = "onnxruntime",
) -> ExportReport:  # fmt: skip
    """Writes `network` with dynamic batch, and dynamic sequence where an input is one, and runs the file beside it.

    Args:
        example: inputs by name, sequences [B, T] or whole inputs [B, ...] if the network does not name its axes; also the first
            that the file is checked on.
        tolerance: largest absolute difference of the outputs that counts as the same (see `allowed`).
        check_on: further inputs, of any batch size and, if they are sequences, length.
        kind: onnxruntime, with operators of its own where they are faster, or onnx, for every runtime.

    Raises:
        ExportError: outputs differ by more than the tolerance; the file is not left behind.
    """
    difference, equal, total = write_as(kind, network, [example, *check_on], path, tolerance=tolerance)
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


def allowed(network: nn.Module, example: Mapping[str, Tensor], tolerance: float, *, precision: str = "fp32") -> float:
    """How far the outputs of a network's file may lie from its own: the tolerance; more if linear maps are in fewer bits or the
    file computes in fp16, where a number that is rounded otherwise changes all that follow."""
    used = fewer_bits_of(network) | ({precision} - {"fp32"})
    if not used:
        return tolerance
    with torch.no_grad():
        largest = max(float(np.abs(x).max(initial=1)) for x in arrays(network(*example.values())))
    return max(tolerance, (HALF_TOLERANCE if used == {"fp16"} else INTEGER_TOLERANCE) * largest)


def form_of(family: Family, network: nn.Module, workload: Workload) -> tuple[nn.Module, dict[str, Tensor]]:
    """What is exported of a network for a workload, and its inputs by name."""
    if isinstance(family, GenerativeFamily):
        return family.form(network, workload)
    return network, family.example_input(workload)


def format_of(device: Device) -> str:
    """Which kind of file a device runs: its `format`, onnx if it says none."""
    return getattr(device, "format", "onnx")


def runs_onnx(device: Device) -> bool:
    """Whether the files that a device runs are ONNX files, of either kind."""
    return FORMATS[format_of(device)].suffix == FORMATS["onnx"].suffix


def compare(
    network: nn.Module, path: Path, inputs: Sequence[Mapping[str, Tensor]], *, kind: str = "onnx"
) -> tuple[float, float, int]:
    """Largest absolute difference between network and file (infinite where an output is not finite), number of equal decisions,
    number of examples; an example with many decisions counts by the share of them that is equal."""
    answer = FORMATS[kind].open(path)
    difference, equal, total = 0.0, 0.0, 0
    for example in inputs:
        with torch.no_grad():
            expected = arrays(network(*example.values()))
        actual = answer(example)
        difference = max(difference, *(largest_difference(a, b) for a, b in zip(actual, expected, strict=False)))
        same = equal_decisions(actual[0], expected[0])
        equal += len(same) * float(same.mean())
        total += len(same)
    return difference, equal, total


def write_as(
    kind: str, network: nn.Module, examples: Sequence[Mapping[str, Tensor]], path: Path, *, tolerance: float
) -> tuple[float, float, int]:
    """Writes a file of one of the `FORMATS`, made with the first example and compared on all (see `compare`).

    Raises:
        ExportError: outputs differ by more than the tolerance, or the converter refuses the network; nothing is left behind.
        ValueError: the format's converter is not installed.
        OSError: the system refuses to write the file, which it names.
    """
    chosen, network = FORMATS[kind], network.eval().cpu().float()
    tolerance = allowed(network, examples[0], tolerance, precision=chosen.precision)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        unfinished = Path(folder) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
            try:
                chosen.write(network, examples[0], unfinished)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        difference, equal, total = compare(network, unfinished, examples, kind=kind)
        if difference == math.inf:
            raise ExportError(f"{path.name}: {NOT_FINITE}")
        if not difference <= tolerance:
            raise ExportError(f"{path.name}: outputs differ by {difference:.2e} from the network's, allowed are {tolerance:.2e}")
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name):  # what the file refers to first
            os.replace(part, path.with_name(part.name))
    return difference, equal, total


def largest_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of two outputs, absolute; infinite if a number of either is not finite."""
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return math.inf
    return float(np.abs(actual - expected).max(initial=0))


def equal_decisions(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether the largest of the logits [..., C] is the same one; a number, which is a single logit, is the
    same up to `SAME_NUMBER`. Where a logit is not finite nothing was decided, and nothing is the same."""
    finite = (np.isfinite(actual) & np.isfinite(expected)).all(-1)
    if expected.shape[-1] == 1:
        return np.asarray(finite & (np.abs(actual - expected)[..., 0] <= SAME_NUMBER))
    return np.asarray(finite & (actual.argmax(-1) == expected.argmax(-1)))
