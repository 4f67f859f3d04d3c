"""This machine's CPU under ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hardware import environment
from hardware.int8 import Int8Files
from hardware.local import check_option, check_threads, describe, refusals
from hardware.placement import CPU, LEVELS, Placement
from hardware.visit import Visit, wall

PRECISIONS = ("fp32", "int8")


class LocalCpu:
    """Times a network in this process. Every visit opens the file anew, so that no two sessions are ever open together.

    Args:
        threads: that one run may use.
        precision: fp32, the file as it is; int8, its dynamic quantisation, which may be slower as well as faster.
        graph_optimization: of ONNX Runtime when it loads the file: all, extended, basic or none.
        warmup_seconds, visit_seconds, min_samples, max_samples: see `Visit`.

    Raises:
        ValueError: a value outside its range.
    """

    name = "local_cpu"

    def __init__(
        self,
        *,
        threads: int = 1,
        precision: str = "fp32",
        warmup_seconds: float = 0.1,
        visit_seconds: float = 0.02,
        min_samples: int = 10,
        max_samples: int = 200,
        graph_optimization: str = "all",
    ) -> None:
        self.threads = check_threads(threads)
        self.precision = check_option("precision", precision, PRECISIONS)
        self.visit = Visit(warmup_seconds, visit_seconds, min_samples, max_samples)
        self.graph_optimization = check_option("graph_optimization", graph_optimization, tuple(LEVELS))
        self._int8 = Int8Files()

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on."""
        return describe(
            "onnxruntime", onnxruntime.__version__, threads=self.threads, precision=self.precision,
            provider=CPU, graph_optimization=self.graph_optimization,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def conditions(self) -> dict[str, Any]:
        """The state of the machine right now: governor, frequency and load."""
        return environment.conditions()

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: there is no such file, or ONNX Runtime refuses the file or the inputs, or runs out of memory.
        """
        with refusals(onnx_path, "ONNX Runtime"):
            placement = Placement(CPU, self.threads, self.graph_optimization)
            session, feed = placement.open(self.deployed(onnx_path)), dict(inputs)
            return self.visit.times(wall(lambda: session.run(None, feed)))

    def deployed(self, onnx_path: Path) -> Path:
        """The file that really runs: the given one, or its quantisation."""
        return onnx_path if self.precision == "fp32" else self._int8.of(onnx_path)
