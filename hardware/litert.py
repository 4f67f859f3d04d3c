"""This machine's CPU under LiteRT (formerly TensorFlow Lite) with XNNPACK's kernels: what Android and many boards run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hardware import environment
from hardware.local import check_threads, describe, in_order, optional, refusals
from hardware.visit import Visit, wall


class LiteRt:
    """Times a network in this process. Every visit opens the file anew.

    Args:
        threads: that one run may use.
        warmup_seconds, visit_seconds, min_samples, max_samples: see `Visit`.

    Raises:
        ValueError: a value outside its range.
    """

    name = "litert"
    format = "tflite"

    def __init__(
        self,
        *,
        threads: int = 1,
        warmup_seconds: float = 0.1,
        visit_seconds: float = 0.02,
        min_samples: int = 10,
        max_samples: int = 200,
    ) -> None:
        self.threads = check_threads(threads)
        self.visit = Visit(warmup_seconds, visit_seconds, min_samples, max_samples)

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without LiteRT."""
        optional("ai_edge_litert.interpreter", extra="litert")
        return describe("litert", version("ai-edge-litert"), threads=self.threads, precision="fp32", delegate="xnnpack")

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def conditions(self) -> dict[str, Any]:
        """The state of the machine right now: governor, frequency and load."""
        return environment.conditions()

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
