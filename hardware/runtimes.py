"""What runs the files of formats other than ONNX on this machine, and the memory that a file takes there.

Run as a program (`python -m hardware.runtimes FILE …`) it opens a file in a fresh process, answers and prints the memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from hardware.executorch_device import ExecuTorch
from hardware.litert import LiteRt
from hardware.local_torch import LocalTorch
from hardware.openvino_device import OpenVino
from hardware.placement import in_fresh_process, resident_mib
from hardware.qnn import Qnn
from nas import qnn_file
from nas.protocols import Device

RUNTIMES: Mapping[str, Callable[..., Device]] = {
    "openvino": OpenVino, "pt2": LocalTorch, "pte": ExecuTorch, "torchscript": LocalTorch, "tflite": LiteRt,
    **{kind: partial(Qnn, soc=soc) for kind, soc in qnn_file.FORMATS.items()},
}  # fmt: skip
LIBRARIES = {"openvino": "openvino", "pte": "executorch.runtime", "tflite": "ai_edge_litert.interpreter"}


def peak_memory(kind: str, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, float] | None:
    """Of a fresh process that opens the file and answers, in MiB: `network_mib`, what of its peak came with the file, after its
    runtime was loaded; of .pt2 files also what torch loads to read one. None where the system does not say (Linux does)
    or the process ends badly, and of an NPU, whose memory is not the process's."""
    if kind in qnn_file.FORMATS:
        return None
    return in_fresh_process("hardware.runtimes", path, inputs, kind)


def _main(path: str, inputs_path: str, kind: str) -> str:
    inputs = dict(np.load(inputs_path))
    if kind in LIBRARIES:
        importlib.import_module(LIBRARIES[kind])
    before_mib = resident_mib("VmRSS")
    RUNTIMES[kind](warmup_seconds=0.01, visit_seconds=0.01, min_samples=1, max_samples=10).run(Path(path), inputs)
    return json.dumps({"network_mib": round(max(0.0, resident_mib("VmHWM") - before_mib), 2)})


if __name__ == "__main__":
    answer = _main(*sys.argv[1:])
    sys.stdout.write(f"\n{answer}")  # a runtime may have said something before
