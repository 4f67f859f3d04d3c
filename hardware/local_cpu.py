"""This machine's CPU under ONNX Runtime."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hardware import environment
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
        warmup_seconds: runs before the first that is timed; at least one run.
        visit_seconds: how long runs are timed, unless `min_samples` takes longer or `max_samples` is reached before.
        graph_optimization: of ONNX Runtime when it loads the file: all, extended, basic or none.

    Raises:
        ValueError: a value outside its range.
    """

    name = "local_cpu"

    def __init__(
        self,
        *,
        threads: int = 1,
        warmup_seconds: float = 0.01,
        visit_seconds: float = 0.02,
        min_samples: int = 10,
        max_samples: int = 200,
        graph_optimization: str = "all",
    ) -> None:
        if not 1 <= threads <= environment.num_cores():
            raise ValueError(f"threads: {threads} is not between 1 and {environment.num_cores()}")
        if not 0 <= warmup_seconds <= 60:
            raise ValueError(f"warmup_seconds: {warmup_seconds} is not between 0 and 60")
        if not 0 < visit_seconds <= 60:
            raise ValueError(f"visit_seconds: {visit_seconds} is not above 0 and at most 60")
        if not 1 <= min_samples <= max_samples:
            raise ValueError(f"min_samples: {min_samples} is not between 1 and max_samples, {max_samples}")
        if graph_optimization not in LEVELS:
            raise ValueError(f"graph_optimization: {graph_optimization!r} is not one of {tuple(LEVELS)}")
        self.threads = threads
        self.warmup_seconds, self.visit_seconds = warmup_seconds, visit_seconds
        self.min_samples, self.max_samples = min_samples, max_samples
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
            return self._visit(session, dict(inputs))
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

    def _visit(self, session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> tuple[float, ...]:
        warm = time.perf_counter() + self.warmup_seconds
        session.run(None, inputs)
        while time.perf_counter() < warm:
            session.run(None, inputs)
        samples: list[int] = []
        collects = gc.isenabled()
        gc.disable()
        try:
            end = time.perf_counter_ns() + round(1e9 * self.visit_seconds)
            now = 0
            while len(samples) < self.max_samples and (now < end or len(samples) < self.min_samples):
                start = time.perf_counter_ns()
                session.run(None, inputs)
                now = time.perf_counter_ns()
                samples.append(now - start)
        finally:
            if collects:
                gc.enable()
        return tuple(sample / 1e6 for sample in samples)
