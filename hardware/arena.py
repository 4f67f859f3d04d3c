"""Memory that ONNX Runtime really asks for: what it writes to its log when its arena grows.

An arena of its own that grows by no more than it is asked for, in a process of its own. The first run finds out what lives when,
and gives all back; before the second, ONNX Runtime plans one block for what operators write and asks for it at once, and then for
what operators hold for themselves.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nas.protocols import DeviceError
from nas.types import MIB

GROWS = re.compile(r"Extending BFCArena for Cpu.*\(requested\) num_bytes: (\d+)")
MARK = "-- run --"
SCRIPT = f"""
import sys
import numpy, onnxruntime
onnxruntime.set_default_logger_severity(1)
kind = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
onnxruntime.create_and_register_allocator(kind, onnxruntime.OrtArenaCfg({{"arena_extend_strategy": 1}}))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
options.add_session_config_entry("session.use_env_allocators", "1")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = dict(numpy.load(sys.argv[2]))
run = onnxruntime.RunOptions()
run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
for _ in range(2):
    print("{MARK}", file=sys.stderr, flush=True)
    session.run(None, inputs, run)
"""


def activations_mib(path: Path, inputs: Mapping[str, np.ndarray]) -> float:
    """What a run of a file asks for, in MiB.

    Raises:
        DeviceError: ONNX Runtime refuses the file or the inputs, or says nothing of its arena.
    """
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "inputs.npz"
        np.savez(held, **inputs)  # type: ignore[arg-type]
        words = [sys.executable, "-c", SCRIPT, str(path), str(held)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DeviceError(f"{path}: the memory of this network could not be measured; ONNX Runtime says: {last}")
    *_, second = ([int(size) for size in GROWS.findall(part)] for part in done.stderr.split(f"{MARK}\n"))
    if not second:
        raise DeviceError(f"{path}: ONNX Runtime says nothing of its arena")
    return sum(second) / MIB
