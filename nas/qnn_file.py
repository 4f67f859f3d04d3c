"""Networks on Qualcomm's NPUs (Hexagon HTP) through ONNX Runtime's plugin `onnxruntime-qnn`, and files compiled for one chip.

The NPU takes networks of one size and computes float in fp16. A compiled file is ONNX whose operators are parts that the NPU runs
(`EPContext`, with their binaries) and what it left to the CPU; which operators it took is written into the file, as nothing else
in it says so. On a machine without Qualcomm's NPU the plugin emulates it: answers and operators are then its own, times are not.
"""

from __future__ import annotations

import functools
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed
from torch import Tensor

from nas.fixed_sizes import FixedSizes

PROVIDER = "QNNExecutionProvider"
# Chips with Qualcomm's own numbers (QnnTypes.h, of which ExecuTorch's qc_schema.py has most) for which networks in float compile.
SOCS = {
    "sm8450": 36, "sm8475": 42, "sm8550": 43, "sm8650": 57, "sm8750": 69, "sm8850": 87, "sc8380xp": 60, "qcs9100": 77,
}  # fmt: skip
AUTO = "auto"  # the chip of this machine
DEFAULT_MODE = "default"
FORMATS = {f"qnn-{soc}": soc for soc in SOCS}  # names of the formats of compiled files, and the chip that each is for
RECORD = "paretoformer.operators"  # in a compiled file's metadata


@functools.cache
def plugin() -> Any:
    """ONNX Runtime's device with the plugin, registered once in a process; the NPU where there is one.

    Raises:
        ValueError: the plugin is not installed.
    """
    try:
        import onnxruntime_qnn
    except ModuleNotFoundError as error:
        raise ValueError("onnxruntime-qnn is not installed: pip install 'paretoformer[qnn]'") from error
    if not _offered():
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    offered = _offered()
    return next((device for device in offered if _is_npu(device)), offered[0])


def _offered() -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def _is_npu(device: Any) -> bool:
    return bool(device.device.type == onnxruntime.OrtHardwareDeviceType.NPU)


def is_emulated() -> bool:
    """Whether this machine's CPU computes what an NPU would: there is none of Qualcomm's. Raises ValueError like `plugin`."""
    device = plugin()
    is_arm = platform.machine().lower() in ("aarch64", "arm64")
    return not (is_arm and (_is_npu(device) or any(Path("/dev").glob("fastrpc-*")) or any(Path("/dev").glob("adsprpc*"))))


def open_session(
    source: Path | bytes, *, soc: str, mode: str = DEFAULT_MODE, threads: int = 1, entries: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """A session of a file or of its bytes, with sizes that are fixed; what the NPU does not take runs on the CPU.

    Args:
        soc: one of `SOCS`, its number as text, or `AUTO`.
        mode: how the NPU is clocked.
        threads: that operators which are left to the CPU may use.
        entries: of the session's configuration.

    Raises what ONNX Runtime raises, and ValueError like `plugin`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as well
    for name, value in {"session.record_ep_graph_assignment_info": "1", **(entries or {})}.items():
        options.add_session_config_entry(name, value)
    chip = {} if soc == AUTO else {"soc_model": str(SOCS.get(soc, soc))}
    clock = {} if mode == DEFAULT_MODE else {"htp_performance_mode": mode}
    options.add_provider_for_devices([plugin()], {"backend_type": "htp", **chip, **clock})
    return onnxruntime.InferenceSession(source if isinstance(source, bytes) else str(source), options)


def with_fixed_sizes(path: Path, sizes: Mapping[str, Sequence[int]]) -> bytes:
    """An ONNX file for inputs of these sizes alone; as it is where its own are fixed.

    Raises:
        ValueError: other names or numbers of axes than the file's, or other sizes than it fixes.
    """
    model = onnx.load(path)
    own = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    if set(own) != set(sizes):
        raise ValueError(f"inputs: {sorted(sizes)} are given, the file takes {sorted(own)}")
    free: dict[str, int] = {}
    for name, axes in own.items():
        known = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]
        if len(known) != len(sizes[name]) or any(isinstance(a, int) and a != b for a, b in zip(known, sizes[name], strict=True)):
            raise ValueError(f"{name}: has the size {tuple(sizes[name])}, the file takes {tuple(known)}")
        free |= {axis: size for axis, size in zip(known, sizes[name], strict=True) if isinstance(axis, str)}
    for axis, size in free.items():
        make_dim_param_fixed(model.graph, axis, size)
    if free:
        fix_output_shapes(model)
    return bytes(model.SerializeToString())


def taken(session: onnxruntime.InferenceSession) -> list[dict[str, Any]]:
    """Who was given which operators when a file was opened: `operator`, `provider` and `count`, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts.update((node.op_type, part.ep_name) for node in part.get_nodes())
    return [{"operator": name, "provider": provider, "count": count} for (name, provider), count in counts.most_common()]


def record_of(path: Path) -> list[dict[str, Any]] | None:
    """What `taken` said when a file was compiled; None of a file that is not compiled."""
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads(properties[RECORD]) if RECORD in properties else None


def compile_file(source: Path, sizes: Mapping[str, Sequence[int]], path: Path, *, soc: str) -> None:
    """Writes an ONNX file compiled for a chip and these sizes, in one file.

    Raises:
        ValueError: the NPU takes nothing of it; and as `plugin` and `with_fixed_sizes`.
    """
    writes = {"ep.context_enable": "1", "ep.context_file_path": str(path), "ep.context_embed_mode": "1"}
    ran = taken(open_session(with_fixed_sizes(source, sizes), soc=soc, entries=writes))
    if not any(one["provider"] == PROVIDER for one in ran):
        raise ValueError(f"the NPU of {soc} takes none of the operators {sorted(one['operator'] for one in ran)}")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {RECORD: json.dumps(ran)})
    onnx.save(model, path)


def answers(path: Path, *, soc: str) -> FixedSizes:
    """A file whose sizes are fixed, for its answers. Raises what ONNX Runtime raises, and ValueError like `plugin`."""
    session = open_session(path, soc=soc)
    ports = session.get_inputs()

    def execute(values: Sequence[Tensor]) -> list[np.ndarray]:
        feed = {port.name: value.numpy() for port, value in zip(ports, values, strict=True)}
        return list(session.run(None, feed))

    types = {port.name: port.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32") for port in ports}
    return FixedSizes(path.name, {port.name: tuple(port.shape) for port in ports}, execute, types)
