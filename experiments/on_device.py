"""What the device that was timed answers: its own file against the torch network, and that file's errors under its own runtime.

An ONNX file that ships is compared and scored by ONNX Runtime on this machine's CPU (see `experiments.contract`). Where that is
not what was timed, the device opens the file that it was timed with, in its own format and precision. A board answers a few
inputs, enough to tell a runtime that is broken there; what runs here answers all of them, and its errors are known, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.finishing import Finisher
from hardware.agent import MAX_NUMBERS
from hardware.local_cpu import LocalCpu
from hardware.placement import CPU
from hardware.remote import Remote
from hardware.surroundings import device_of
from hardware.timing import HasAnswers
from nas.export import equal_decisions, form_of, format_of, largest_difference
from nas.fixed_sizes import FixedSizes
from nas.formats import FORMATS, Answer, ExportError, arrays
from nas.protocols import Device
from nas.space import Architecture

FEW = 16  # examples that a board answers
LEAST_EQUAL = 0.8  # share of a board's decisions in int8 that are those of the same file here: kernels of int8 round otherwise
RUNTIMES = ("onnxruntime-qnn", "onnxruntime", "openvino", "torch", "litert", "executorch")  # as environments call them


@dataclass(frozen=True)
class Opened:
    """A network's file as its device has opened it."""

    device: Device
    path: Path
    answer: Answer
    network: nn.Module
    inputs: Sequence[Mapping[str, Tensor]]
    is_real: bool  # the inputs, so that the file can be scored

    def expected(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        """What torch says."""
        with torch.no_grad():
            return arrays(self.network(*inputs.values()))

    @property
    def is_scored(self) -> bool:
        return self.is_real and not isinstance(self.device, Remote)

    @property
    def in_fp32(self) -> bool:
        return bool(self.device.environment.get("precision", "fp32") == "fp32")


def is_this_cpu(device: Device) -> bool:
    """Whether a device's answers are those of ONNX Runtime's own kernels on this machine's CPU."""
    return isinstance(device, LocalCpu) and device.provider == CPU


def answers_elsewhere(device: Device) -> bool:
    """Whether a device gives answers that are not."""
    return isinstance(device, HasAnswers) and not is_this_cpu(device)


@contextmanager
def opened(finisher: Finisher, arch: Architecture, num_examples: int) -> Iterator[Opened]:
    """The file that a network was timed with, and what it is to answer: real inputs; what it is timed with where it takes no
    whole inputs, or none of all lengths. Raises DeviceError."""
    device, workload = device_of(finisher.device, arch), finisher.workload
    assert isinstance(device, HasAnswers)
    with tempfile.TemporaryDirectory() as folder:
        exported = finisher.times.exported(arch, Path(folder))
        answer, network = device.opened(exported.path), finisher.files.network(arch)
        is_short = isinstance(answer, FixedSizes) and workload.tokens < finisher.task.max_tokens
        if is_real := workload.mode == "encode" and not is_short:
            inputs = finisher.scores.real_inputs(min(FEW, num_examples) if isinstance(device, Remote) else num_examples)
            if isinstance(device, Remote):
                inputs = [{name: value[:FEW] for name, value in inputs[0].items()}]
        else:
            network, _ = form_of(finisher.family, network, workload)
            inputs = [{name: torch.from_numpy(value) for name, value in exported.inputs.items()}]
        yield Opened(device, exported.path, answer, network, inputs, is_real)


def facts_of(file: Opened) -> dict[str, Any]:
    """How a device's answers agree with the torch network's."""
    environment = file.device.environment
    difference, equal = agreement(file.expected, file.answer, file.inputs)
    return {
        "device": file.device.name,
        "format": format_of(file.device),
        "precision": environment.get("precision", "fp32"),
        "runtime": next((f"{name} {environment[name]}" for name in RUNTIMES if name in environment), file.device.name),
        "num_decisions": len(equal),
        "max_abs_difference": difference,
        "equal_decisions": float(equal.mean()),
        "inputs": "test split" if file.is_real else "what it is timed with",
    }


def equal_to_here(file: Opened) -> float | None:
    """The share of a board's decisions in int8 that are those of the same file under ONNX Runtime on this machine's CPU; None of
    any other device or precision, and for numbers, which decide nothing."""
    device = file.device
    if not isinstance(device, Remote) or file.in_fp32:
        return None
    here = FORMATS["onnx"].open(device.deployed(file.path))
    if here(file.inputs[0])[0].shape[-1] == 1:
        return None
    return float(agreement(here, file.answer, file.inputs)[1].mean())


def agreement(expected_of: Answer, answer: Answer, inputs: Sequence[Mapping[str, Tensor]]) -> tuple[float, np.ndarray]:
    """Largest absolute difference of a logit, infinite where one is not finite, and which decisions are equal; of a
    board's answer that is cut off, over what there is. Raises ExportError for logits of another shape."""
    difference, equal = 0.0, []
    for example in inputs:
        whole, actual = rows_of(expected_of(example)[0]), rows_of(answer(example)[0])
        rows = whole[: len(actual)]
        if len(actual) not in (len(whole), MAX_NUMBERS // actual.shape[-1]) or rows.shape != actual.shape:
            raise ExportError(f"answers with logits {list(actual.shape)}, the network with {list(whole.shape)}")
        difference = max(difference, largest_difference(actual, rows))
        equal.append(equal_decisions(actual, rows))
    return difference, np.concatenate(equal)


def rows_of(logits: np.ndarray) -> np.ndarray:
    """[N, C] of logits [..., C]."""
    return logits.reshape(-1, logits.shape[-1])
