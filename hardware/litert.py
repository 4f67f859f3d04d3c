"""This machine's CPU under LiteRT (formerly TensorFlow Lite) with XNNPACK's kernels: what Android and many boards run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hardware.local import OnThisMachine, describe, in_order, optional, refusals
from hardware.visit import wall


class LiteRt(OnThisMachine):
    """Times a network in this process."""

    name = "litert"
    format = "tflite"

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without LiteRT."""
        optional("ai_edge_litert.interpreter", extra="litert")
        return describe("litert", version("ai-edge-litert"), threads=self.threads, precision="fp32", delegate="xnnpack")

    def run(self, path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit to a .tflite file: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: LiteRT is not installed, there is no such file, or LiteRT refuses the file or the inputs.
        """
        litert = optional("ai_edge_litert.interpreter", extra="litert")
        with refusals(path, "LiteRT"):
            interpreter = litert.Interpreter(str(path), num_threads=self.threads)
            interpreter.allocate_tensors()
            set_inputs(interpreter, inputs)
            return self.visit.times(wall(interpreter.invoke))


def set_inputs(interpreter: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Puts the inputs of the only signature, by name; whole numbers become the file's 32-bit ones.

    Raises:
        ValueError: other names or shapes than the file's.
    """
    details = interpreter.get_signature_runner().get_input_details()
    for value, detail in zip(in_order(inputs, list(details)), details.values(), strict=True):
        interpreter.set_tensor(detail["index"], value.astype(detail["dtype"], casting="same_kind"))
