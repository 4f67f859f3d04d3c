"""OpenVINO: Intel's CPUs, GPUs and NPUs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from hardware.local import OnThisMachine, check_option, describe, in_order, optional, refusals
from hardware.operators import Ran
from hardware.visit import VisitOptions, wall
from nas.formats import Answer
from nas.protocols import DeviceError

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
PLUGINS = ("CPU", "GPU", "NPU")
DELEGATE = "OpenVINO's CPU plugin"
REFERENCE = "reference kernels of OpenVINO's CPU plugin"  # that it has for what it has no fast ones for
RUNS = 5


class OpenVino(OnThisMachine):
    """Times a network in this process, compiled for the shapes of its inputs.

    Args:
        plugin: CPU, GPU or NPU; a machine with several GPUs has GPU.0, GPU.1, ...
        threads: that one run may use on the CPU.
        precision: fp32, bf16 or fp16, where the plugin has it. Left to itself OpenVINO takes the lowest that the chip has.
        visit: see `OnThisMachine`.

    Raises:
        ValueError: a value outside its range.
    """

    name = "openvino"

    def __init__(self, *, plugin: str = "CPU", precision: str = "fp32", threads: int = 1, **visit: Unpack[VisitOptions]) -> None:
        super().__init__(threads=threads, **visit)
        check_option("plugin", plugin.partition(".")[0], PLUGINS)
        self.plugin = plugin
        self.precision = check_option("precision", precision, tuple(PRECISIONS))

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without OpenVINO or the plugin."""
        return describe(
            "openvino", optional("openvino", extra="openvino").__version__, threads=self.threads, precision=self.precision,
            plugin=self.plugin, chip=self._core.get_property(self.plugin, "FULL_DEVICE_NAME"), shapes="static",
        )  # fmt: skip

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: OpenVINO or the plugin is not here, there is no such file, or OpenVINO refuses the file or the inputs.
        """
        core = self._core
        with refusals(onnx_path, "OpenVINO"):
            model = core.read_model(onnx_path)
            values = in_order(inputs, [port.any_name for port in model.inputs])
            for port, value in zip(model.inputs, values, strict=True):  # it would convert them, and take none for zeros
                if value.dtype != port.element_type.to_dtype():
                    raise ValueError(f"inputs: {port.any_name} is {value.dtype}, the file takes {port.element_type.to_dtype()}")
            model.reshape({name: list(value.shape) for name, value in inputs.items()})
            request = core.compile_model(model, self.plugin, self._config()).create_infer_request()
            request.infer(dict(inputs))  # the inputs stay set
            return self.visit.times(wall(request.infer))

    def opened(self, path: Path) -> Answer:
        """A file for its answers, compiled for inputs of any size. Raises DeviceError like `run`."""
        core = self._core
        with refusals(path, "OpenVINO"):
            model = core.compile_model(path, self.plugin, self._config())
        return lambda inputs: list(model({name: value.numpy() for name, value in inputs.items()}).to_tuple())

    def _config(self) -> dict[str, Any]:
        config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision]}
        if self.plugin == "CPU":
            config |= {"INFERENCE_NUM_THREADS": str(self.threads), "ENABLE_CPU_PINNING": "NO"}
        return config

    @functools.cached_property
    def _core(self) -> Any:
        core = optional("openvino", extra="openvino").Core()
        present = core.available_devices
        if self.plugin not in present and f"{self.plugin}.0" not in present:
            raise DeviceError(f"plugin: {self.plugin} is not on this machine; OpenVINO finds {', '.join(present)}")
        return core


def operators(path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """What ran of a file on the CPU in float32, like `hardware.placement.operators`; what was fused into another one did not.

    Raises:
        DeviceError: like `OpenVino.run`.
    """
    core = optional("openvino", extra="openvino").Core()
    ran = Ran()
    with refusals(path, "OpenVINO"):
        model = core.read_model(path)
        model.reshape({name: list(value.shape) for name, value in inputs.items()})
        config = {"INFERENCE_PRECISION_HINT": PRECISIONS["fp32"], "INFERENCE_NUM_THREADS": "1", "PERF_COUNT": "YES"}
        request = core.compile_model(model, "CPU", config).create_infer_request()
        for _ in range(RUNS):
            request.infer(dict(inputs))
            for node in request.profiling_info:
                if node.status.name == "EXECUTED":
                    provider = REFERENCE if node.exec_type.startswith("ref") else DELEGATE
                    ran.add(node.node_type, provider, node.real_time.total_seconds())
    return ran.table(runs=RUNS)
