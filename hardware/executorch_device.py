"""This machine's CPU under ExecuTorch with XNNPACK's kernels: what PyTorch runs on phones and boards."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardware.local import OnThisMachine, describe, in_order, optional, refusals
from hardware.operators import Ran
from hardware.visit import wall
from nas.executorch_file import opened, quietly
from nas.formats import FORMATS, Answer

DELEGATE = "XnnpackBackend"
KERNEL = "native_call_"  # before an operator's name in ExecuTorch's record
PORTABLE = "portable kernels"  # ExecuTorch's own, which run what the delegate does not take


class ExecuTorch(OnThisMachine):
    """Times a network in this process."""

    name = "executorch"
    format = "pte"

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without ExecuTorch."""
        optional("executorch", extra="executorch")
        return describe("executorch", version("executorch"), threads=self.threads, precision="fp32", delegate="xnnpack")

    def run(self, path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit to a .pte file: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: ExecuTorch is not installed, there is no such file, or ExecuTorch refuses the file or the inputs.
        """
        optional("executorch", extra="executorch")
        with refusals(path, "ExecuTorch"):
            set_threads(self.threads)
            program, names = opened(path)
            tensors = [torch.from_numpy(value) for value in in_order(inputs, names)]
            method = program.load_method("forward")
            return self.visit.times(wall(lambda: method.execute(tensors)))

    def opened(self, path: Path) -> Answer:
        """A file for its answers. Raises DeviceError like `run`."""
        optional("executorch", extra="executorch")
        with refusals(path, "ExecuTorch"):
            return FORMATS[self.format].open(path)


def set_threads(threads: int) -> None:
    """ExecuTorch has one pool of threads for the whole process."""
    with quietly():
        from executorch.extension.pybindings import portable_lib
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)


def operators(path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """What ran of a .pte file, like `hardware.placement.operators`; XNNPACK counts its time in whole microseconds.

    Raises:
        DeviceError: like `ExecuTorch.run`.
    """
    optional("executorch", extra="executorch")
    ran = Ran()
    with refusals(path, "ExecuTorch"):
        for event in record(path, inputs):
            if event.is_delegated_op or event.name.startswith(KERNEL):
                name = re.sub(r" #\d+$", "", event.name.removeprefix(KERNEL))
                ran.add(name, DELEGATE if event.is_delegated_op else PORTABLE, sum(event.perf_data.raw))
    return ran.table()


def record(path: Path, inputs: Mapping[str, np.ndarray]) -> list[Any]:
    """ExecuTorch's events of five runs, the same operator's as one."""
    with quietly(), tempfile.TemporaryDirectory() as folder:
        from executorch.devtools import Inspector

        program, names = opened(path, profiled=True)
        tensors = [torch.from_numpy(value) for value in in_order(inputs, names)]
        method = program.load_method("forward")
        for _ in range(5):
            method.execute(tensors)
        dump = Path(folder) / "record.etdp"
        program.write_etdump_result_to_file(str(dump), str(dump.with_suffix(".bin")))
        return [event for block in Inspector(etdump_path=str(dump)).event_blocks for event in block.events]
