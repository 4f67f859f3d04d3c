"""This machine's CPU under ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import onnxruntime

from hardware.int8 import Int8Files
from hardware.local import OnThisMachine, check_option, describe, refusals
from hardware.placement import LEVELS, Placement, offered
from hardware.visit import VisitOptions, wall
from nas.formats import Answer

PRECISIONS = ("fp32", "int8")


class LocalCpu(OnThisMachine):
    """Times a network in this process.

    Args:
        precision: fp32, the file as it is; int8, its dynamic quantisation, which may be slower as well as faster.
        provider: the execution provider of ONNX Runtime that takes what it can of a network; the CPU's own runs the rest.
        graph_optimization: of ONNX Runtime when it loads the file: all, extended, basic or none.
        fused_attention: files with ONNX Runtime's own operator for full attention; without it, files for every runtime.
        threads, visit: see `OnThisMachine`.

    Raises:
        ValueError: a value outside its range.
    """

    name = "local_cpu"

    def __init__(
        self, *, precision: str = "fp32", provider: str = "CPUExecutionProvider", graph_optimization: str = "all",
        fused_attention: bool = True, threads: int = 1, **visit: Unpack[VisitOptions],
    ) -> None:  # fmt: skip
        super().__init__(threads=threads, **visit)
        self.precision = check_option("precision", precision, PRECISIONS)
        self.provider = check_option("provider", provider, offered())
        self.graph_optimization = check_option("graph_optimization", graph_optimization, tuple(LEVELS))
        self.format = "onnxruntime" if fused_attention else "onnx"
        self._int8 = Int8Files()

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on."""
        return describe(
            "onnxruntime", onnxruntime.__version__, threads=self.threads, precision=self.precision,
            provider=self.provider, graph_optimization=self.graph_optimization, format=self.format,
        )  # fmt: skip

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: there is no such file, or ONNX Runtime refuses the file or the inputs, or runs out of memory.
        """
        with refusals(onnx_path, "ONNX Runtime"):
            placement = Placement(self.provider, self.threads, self.graph_optimization)
            session, feed = placement.open(self.deployed(onnx_path)), dict(inputs)
            return self.visit.times(wall(lambda: session.run(None, feed)))

    def opened(self, path: Path) -> Answer:
        """A file for its answers. Raises DeviceError like `run`."""
        with refusals(path, "ONNX Runtime"):
            session = Placement(self.provider, self.threads, self.graph_optimization).open(self.deployed(path))
        return lambda inputs: list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))

    def deployed(self, onnx_path: Path) -> Path:
        """The file that really runs: the given one, or its quantisation."""
        return onnx_path if self.precision == "fp32" else self._int8.of(onnx_path)
