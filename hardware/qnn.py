"""A Qualcomm NPU (Hexagon HTP) under ONNX Runtime's plugin `onnxruntime-qnn`; emulated where this machine has none.

Networks are compiled for the sizes of their inputs and computed in fp16. Emulated times say nothing of an NPU's speed: they are
marked as such, `paretoformer measure` shows them, and a search refuses them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import onnxruntime
from torch import Tensor

from hardware.local import OnThisMachine, check_option, describe, optional, refusals
from hardware.visit import VisitOptions, wall
from nas import qnn_file
from nas.formats import Answer
from nas.protocols import DeviceError
from nas.qnn_file import AUTO, DEFAULT_MODE, PROVIDER, SOCS, open_session, record_of, taken, with_fixed_sizes

DELEGATE = PROVIDER
MODES = (
    DEFAULT_MODE, "burst", "sustained_high_performance", "high_performance", "balanced", "low_balanced", "high_power_saver",
    "power_saver", "low_power_saver", "extreme_power_saver",
)  # fmt: skip
MOST_OPEN = 8  # sizes of inputs whose sessions are kept


class Qnn(OnThisMachine):
    """Times a network in this process.

    Args:
        soc: the chip: one of `SOCS`, Qualcomm's number of another one, or auto, the chip of this machine.
        performance_mode: how the NPU is clocked: default, burst, sustained_high_performance, high_performance, balanced,
            low_balanced, high_power_saver, power_saver, low_power_saver or extreme_power_saver.
        threads: that operators which are left to the CPU may use.
        visit: see `OnThisMachine`.

    Raises:
        ValueError: a value outside its range.
    """

    name = "qnn"

    def __init__(
        self, *, soc: str = "sm8650", performance_mode: str = "default", threads: int = 1, **visit: Unpack[VisitOptions]
    ) -> None:
        super().__init__(threads=threads, **visit)
        self.soc = str(soc)
        if self.soc not in (AUTO, *SOCS) and not self.soc.isdecimal():
            raise ValueError(f"soc: {soc!r} is not one of {(AUTO, *SOCS)}, nor Qualcomm's number of a chip")
        self.performance_mode = check_option("performance_mode", performance_mode, MODES)

    @property
    def is_emulated(self) -> bool:
        """Whether this machine has no such NPU. Raises DeviceError without the plugin."""
        optional("onnxruntime_qnn", extra="qnn")
        return qnn_file.is_emulated()

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without the plugin, or for auto without a chip."""
        emulated = self.is_emulated
        if emulated and self.soc == AUTO:
            raise DeviceError(f"soc: auto needs a Qualcomm NPU, this machine has none; emulated are {', '.join(SOCS)}")
        plugin = {"onnxruntime-qnn": version("onnxruntime-qnn")}
        return plugin | describe(
            "onnxruntime", onnxruntime.__version__, threads=self.threads, precision="fp16", soc=self.soc,
            performance_mode=self.performance_mode, shapes="static", emulated=emulated,
        )  # fmt: skip

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: raw wall times in ms, in the order in which they were taken; see `is_emulated`.

        Raises:
            DeviceError: the plugin is not installed, there is no such file, or ONNX Runtime refuses the file or the inputs.
        """
        assert self.environment, "says what is missing"
        with refusals(onnx_path, "QNN"):
            session, feed = self._session(onnx_path, inputs), dict(inputs)
            return self.visit.times(wall(lambda: session.run(None, feed)))

    def opened(self, path: Path) -> Answer:
        """A file for its answers, compiled anew for inputs of another size. Raises DeviceError like `run`."""
        assert self.environment, "says what is missing"
        sessions: dict[tuple[tuple[int, ...], ...], onnxruntime.InferenceSession] = {}

        def answer(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
            feed = {name: value.numpy() for name, value in inputs.items()}
            key = tuple(value.shape for value in feed.values())
            with refusals(path, "QNN"):
                if key not in sessions:
                    if len(sessions) == MOST_OPEN:
                        del sessions[next(iter(sessions))]
                    sessions[key] = self._session(path, feed)
                return list(sessions[key].run(None, feed))

        if not path.is_file():
            raise DeviceError(f"{path}: there is no such file")
        return answer

    def operators(self, path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Who is given which operators of a file, see `operators`. Raises DeviceError like `run`."""
        assert self.environment, "says what is missing"
        with refusals(path, "QNN"):
            return record_of(path) or taken(self._session(path, inputs))

    def _session(self, path: Path, inputs: Mapping[str, np.ndarray]) -> onnxruntime.InferenceSession:
        model = with_fixed_sizes(path, {name: value.shape for name, value in inputs.items()})
        return open_session(model, soc=self.soc, mode=self.performance_mode, threads=self.threads)


def operators(path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Who is given which operators of a compiled file, as it says itself, or of an ONNX file, like
    `hardware.placement.operators`, but without their time, which the provider does not tell.

    Raises:
        DeviceError: like `Qnn.run`.
    """
    return Qnn().operators(path, inputs)
