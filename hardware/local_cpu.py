"""This machine's CPU under ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hardware import environment
from hardware.visit import VisitRule
from nas.protocols import DeviceError

PROVIDER = "CPUExecutionProvider"
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class LocalCpu:
    """Times a network in this process. Every visit opens the file anew, so that no two sessions are ever open together.

    Short visits are the best buy on a shared machine: more rounds of them find more quiet moments (see `hardware.timing`).

    Args:
        threads: that one run may use.
        warmup_seconds, stable_within, visit_seconds, min_samples, max_samples: of a visit, see `VisitRule`.
        graph_optimization: of ONNX Runtime when it loads the file: all, extended, basic or none.

    Raises:
        ValueError: a value outside its range.
    """

    name = "local_cpu"

    def __init__(
        self,
        *,
        threads: int = 1,
        warmup_seconds: float = 0.1,
        stable_within: float = 0.05,
        visit_seconds: float = 0.02,
        min_samples: int = 10,
        max_samples: int = 200,
        graph_optimization: str = "all",
    ) -> None:
        if not 1 <= threads <= environment.num_cores():
            raise ValueError(f"threads: {threads} is not between 1 and {environment.num_cores()}")
        if graph_optimization not in LEVELS:
            raise ValueError(f"graph_optimization: {graph_optimization!r} is not one of {tuple(LEVELS)}")
        self.threads = threads
        self.rule = VisitRule(
            warmup_seconds=warmup_seconds, stable_within=stable_within, visit_seconds=visit_seconds, min_samples=min_samples,
            max_samples=max_samples,
        )  # fmt: skip
        self.graph_optimization = graph_optimization

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on."""
        return {
            "cpu": environment.cpu_model(),
            "cores": environment.num_cores(),
            "os": environment.system(),
            "onnxruntime": onnxruntime.__version__,
            "provider": PROVIDER,
            "threads": self.threads,
            "precision": "fp32",
            "graph_optimization": self.graph_optimization,
        }

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
        if not onnx_path.is_file():
            raise DeviceError(f"{onnx_path}: there is no such file")
        try:
            session = onnxruntime.InferenceSession(onnx_path, self._options(), providers=[PROVIDER])
            feed = dict(inputs)
            return self.rule.visit(lambda: session.run(None, feed))
        except Exception as error:  # ONNX Runtime's own have no base class of their own
            raise DeviceError(f"{onnx_path}: ONNX Runtime failed: {error}") from error

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = LEVELS[self.graph_optimization]
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options
