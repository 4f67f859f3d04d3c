"""What an exported file is proven to do: its answers against torch's, its errors, its time and memory, and who runs what.

Limits are checked before the test split is read: what breaks a promise does not ship.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnxruntime

from experiments.checkpoints import checksum
from experiments.finishing import Finisher
from experiments.formatting import format_ms
from experiments.on_device import LEAST_EQUAL, answers_elsewhere, equal_to_here, facts_of, is_this_cpu, opened
from experiments.stepwise import compare_steps
from experiments.tasks.arrays import ArrayClassification
from hardware import executorch_device, litert, local_torch, openvino_device, qnn, runtimes
from hardware.file_memory import ATTENTION, memory_of_file
from hardware.local_cpu import LocalCpu
from hardware.placement import CPU, Placement, Tried, operators, peak_memory, tune
from hardware.surroundings import device_of
from hardware.timing import HasAnswers
from nas import qnn_file
from nas.export import NOT_FINITE, compare, export_onnx, form_of
from nas.fixed_sizes import FixedSizes
from nas.formats import FORMATS
from nas.protocols import DeviceError, GenerativeFamily
from nas.space import Architecture
from nas.types import MODES, Measurement

PARITY_EXAMPLES = 1000
JUDGED_BY = "quiet"  # of `latency_ms`: what budgets and `predict.py --within` are held against
MAX_DROP = 1.0  # points of validation error that a file may lose against the torch network, unless somebody says otherwise
TOLERANCE = 1e-4  # of an output in fp32
RUNTIMES = {  # packages that run the files of other formats than ONNX here, for their answers and scores
    "openvino": "openvino", "pt2": "torch", "pte": "executorch", "tflite": "ai-edge-litert", "torchscript": "torch",
    **dict.fromkeys(qnn_file.FORMATS, "onnxruntime-qnn"),
}  # fmt: skip
DELEGATING: Mapping[str, Any] = {  # what tells who runs which operator of a format; `placed` does so of ONNX
    "openvino": openvino_device, "pt2": local_torch, "pte": executorch_device, "tflite": litert, "torchscript": local_torch,
    **dict.fromkeys(qnn_file.FORMATS, qnn),
}  # fmt: skip
HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class BrokenPromiseError(ValueError):
    """What would be exported does not do what is promised; nothing was written."""


@dataclass(frozen=True)
class Limits:
    """What is promised of an exported file; infinity promises nothing.

    Args:
        tolerance: largest absolute difference of an output from the torch network's, on real inputs.
        max_drop: points of validation error that the file may lose against the torch network.
        budget_ms: latency that must not be exceeded when it is measured.
    """

    tolerance: float = math.inf
    max_drop: float = math.inf
    budget_ms: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"{name}: {value} is not 0 or more")

    def check(self, name: str, **found: float | None) -> None:
        """Raises BrokenPromiseError for the first value that is over its limit, or that is not known where there is one."""
        for limit, value in found.items():
            allowed = getattr(self, limit)
            if value is None and allowed < math.inf:
                raise BrokenPromiseError(f"{limit}: {name} was not measured, {allowed:.4g} is promised; nothing was written")
            if value is not None and not value <= allowed:
                raise BrokenPromiseError(
                    f"{limit}: {name} has {value:.4g}, promised is at most {allowed:.4g}; nothing was written"
                )

    def to_json(self) -> dict[str, float | None]:
        return {name: value if value < math.inf else None for name, value in vars(self).items()}


@dataclass(frozen=True)
class Files:
    """The files of one network in the folder: all by their names, the one that answers for whole inputs, and the one that is
    timed."""

    names: tuple[str, ...]
    whole: Path
    timed: Path


def tolerance_of(path: Path) -> float:
    """How far the outputs of an ONNX file may lie from torch's: as far as an fp32 file's; of another precision there is no limit,
    its error on the validation split counts."""
    graph = onnx.load(path, load_external_data=False).graph
    is_quantised = any(word in node.op_type for node in graph.node for word in ("Quantize", "Integer", "QLinear", "NBits"))
    is_half = any(tensor.data_type in HALF for tensor in graph.initializer)
    return math.inf if is_quantised or is_half else TOLERANCE


def proven(
    finisher: Finisher, arch: Architecture, files: Files, measurement: Measurement | None, *, kind: str, limits: Limits
) -> dict[str, Any]:
    """The facts of an exported network, all but the test split's. Raises BrokenPromiseError."""
    network = finisher.files.network(arch)
    parity = parity_of(finisher, arch, files, kind=kind)
    steps = {f"{arch.id}, token by token,": parity["token_by_token"]} if "token_by_token" in parity else {}
    for name, found in {arch.id: parity, **steps}.items():
        if found["max_abs_difference"] == math.inf:
            raise BrokenPromiseError(f"tolerance: {name} {NOT_FINITE}; nothing was written")
        limits.check(name, tolerance=found["max_abs_difference"])
    answer = FORMATS[kind].open(files.whole)
    error = finisher.scores.of_answers(answer, "validation")["error_percent"]
    torch_error = finisher.scores.of_answers(lambda inputs: [network(*inputs.values()).numpy()], "validation")["error_percent"]
    limits.check(arch.id, max_drop=error - torch_error)
    on_device: dict[str, Any] = {}
    if kind == "onnx" and answers_elsewhere(device_of(finisher.device, arch)):
        on_device = {"on_device": proven_on_device(finisher, arch, limits, torch_error=torch_error)}
    if kind == "onnx" and finisher.also:
        on_device["also"] = proven_also(finisher, arch, limits, torch_error=torch_error)
    latency = latency_of(measurement)
    limits.check(arch.id, budget_ms=latency[JUDGED_BY] if latency else None)
    return {
        "parity": parity,
        "validation_error_percent": error,
        "torch_validation_error_percent": torch_error,
        **on_device,
        "latency_ms": latency,
        "environment": dict(measurement.environment) if measurement else {},
        **(fixed(answer) if isinstance(answer, FixedSizes) else {}),
        **(placed(finisher, arch, files.timed) if kind == "onnx" else {}),
        **(delegated(finisher, arch, files.timed, kind) if kind in DELEGATING else {}),
        "num_parameters": sum(p.numel() for p in network.parameters()),
    }


def parity_of(finisher: Finisher, arch: Architecture, files: Files, *, kind: str) -> dict[str, Any]:
    """How the answers of a network's files agree with its own on real inputs, and which runtime gave them: ONNX Runtime on this
    machine's CPU for all ONNX files, whatever the device is. A decoder's are compared token by token, too."""
    network, inputs = finisher.files.network(arch), finisher.scores.real_inputs(PARITY_EXAMPLES)
    difference, equal, total = compare(network, files.whole, inputs, kind=kind)
    facts = {
        "num_examples": total,
        "max_abs_difference": difference,
        "equal_decisions": equal / total,
        "inputs": "test split",
        "runtime": runtime_of(kind),
        "runtime_is_timed": kind != "onnx" or is_this_cpu(device_of(finisher.device, arch)),
    }
    steps = {mode: files.whole.with_name(n) for mode in MODES for n in files.names if n.endswith(f"{mode}.onnx")}
    if "decode" in steps:
        facts["token_by_token"] = compare_steps(network, steps["prefill"], steps["decode"], inputs[0])
    return facts


def runtime_of(kind: str) -> str:
    """What answers for the files of a format, and where, in words."""
    if kind == "onnx":
        return f"onnxruntime {onnxruntime.__version__} on this machine's CPU"
    runtime = f"{RUNTIMES[kind]} {version(RUNTIMES[kind])}"
    if kind not in qnn_file.FORMATS:
        return f"{runtime} on this machine's CPU"
    chip = f"the NPU of {qnn_file.FORMATS[kind]}"
    return (
        f"{runtime}, Qualcomm's emulation of {chip} on this machine's CPU" if qnn_file.is_emulated() else f"{runtime} on {chip}"
    )


def proven_on_device(finisher: Finisher, arch: Architecture, limits: Limits, *, torch_error: float) -> dict[str, Any]:
    """How the device that was timed answers, and the validation error of its file if that runs here; or why it is `unknown`. In
    another precision than fp32 its outputs may differ: there its error counts, and a board's decisions. Raises
    BrokenPromiseError, and ExportError for logits of another shape."""
    try:
        with opened(finisher, arch, PARITY_EXAMPLES) as file:
            facts, board = facts_of(file), equal_to_here(file)
            error = finisher.scores.of_answers(file.answer, "validation")["error_percent"] if file.is_scored else None
    except DeviceError as lost:
        return {"device": finisher.device.name, "unknown": str(lost)}
    name = f"{arch.id} on the device {facts['device']} ({facts['runtime']})"
    if facts["max_abs_difference"] == math.inf:
        raise BrokenPromiseError(f"tolerance: {name} {NOT_FINITE}; nothing was written")
    if facts["precision"] == "fp32":
        limits.check(name, tolerance=facts["max_abs_difference"])
    if board is not None and board < LEAST_EQUAL:
        raise BrokenPromiseError(
            f"{name}: {100 * board:.0f} % of its decisions are those of the same file on this machine, allowed are "
            f"{100 * LEAST_EQUAL:.0f} %; nothing was written"
        )
    if error is None:
        return facts
    limits.check(name, max_drop=error - torch_error)
    return {**facts, "validation_error_percent": error}


def proven_also(finisher: Finisher, arch: Architecture, limits: Limits, *, torch_error: float) -> dict[str, Any]:
    """The same of further devices by name. They run the network as it was before the first one brought it to its own precision:
    where there is no limit for that one's outputs, there may be one for theirs."""
    if limits.tolerance == math.inf:
        limits = replace(limits, tolerance=tolerance_of(finisher.files.onnx_path(arch)))
    return {
        name: proven_on_device(replace(finisher, device=device), arch, limits, torch_error=torch_error)
        if isinstance(device, HasAnswers)
        else {"device": device.name, "unknown": "it tells times alone"}
        for name, device in finisher.also.items()
    }


def placed(finisher: Finisher, arch: Architecture, path: Path) -> dict[str, Any]:
    """How ONNX Runtime should open the timed file, and what it does with it: on the device if that is this machine's CPU, else as
    the device was told, with operators and memory as they are on this machine's CPU.

    `run` is the fastest way to open it, `measured_with` the one of `latency_ms`, None of a device that is not this machine's CPU
    under ONNX Runtime; `run_ms` and `measured_with_ms` are their times side by side, as in `tried`.
    """
    inputs = finisher.times.inputs(arch)
    device = device_of(finisher.device, arch)
    facts = device.environment
    provider = device.provider if isinstance(device, LocalCpu) else CPU
    own = Placement(provider, int(facts.get("threads", 1)), str(facts.get("graph_optimization", "all")))
    trials: list[Tried] = []
    run, tunes = own, isinstance(device, LocalCpu)
    if tunes:
        with tempfile.TemporaryDirectory() as folder:
            others = written_out(finisher, arch, path, Path(folder))
            run, trials = tune(path, inputs, own, tolerance=TOLERANCE, others=others)
    ran = operators(path, inputs, run)
    planned = memory_of_file(path, inputs)
    times_ms = {trial.placement: trial.latency_ms for trial in trials if not trial.file}
    return {
        "run": asdict(run),
        "run_ms": times_ms.get(run),
        "measured_with": asdict(own) if tunes else None,
        "measured_with_ms": times_ms.get(own),
        "tried": [trial.to_json() for trial in trials],
        "operators": ran,
        "fallbacks": [o for o in ran if o["provider"] != run.provider],
        "memory": {**asdict(planned), "peak": peak_memory(path, inputs, run)},
    }


def written_out(finisher: Finisher, arch: Architecture, path: Path, folder: Path) -> dict[str, Path]:
    """The network of a float32 file with its attention in operators of the standard, if it has others, by what it is called."""
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    if not kinds & set(ATTENTION) or tolerance_of(path) == math.inf:
        return {}
    form, example = form_of(finisher.family, finisher.files.network(arch), finisher.workload)
    export_onnx(form, example, folder / "model.onnx", kind="onnx")
    return {"attention written out": folder / "model.onnx"}


def delegated(finisher: Finisher, arch: Architecture, path: Path, kind: str) -> dict[str, Any]:
    """What the fast part of a runtime runs of a file, what it leaves to others, and the memory, on this machine's CPU."""
    runtime, inputs = DELEGATING[kind], finisher.times.inputs(arch)
    ran = runtime.operators(path, inputs)
    return {
        "delegate": runtime.DELEGATE,
        "operators": ran,
        "fallbacks": [o for o in ran if o["provider"] != runtime.DELEGATE],
        "memory": {"peak": runtimes.peak_memory(kind, path, inputs)},
    }


def latency_of(measurement: Measurement | None) -> dict[str, float] | None:
    """In ms: `quiet`, which the verdict is about, and percentiles of all calls."""
    if measurement is None:
        return None
    percentiles = {f"p{p}": measurement.percentile_ms(p) for p in (50, 90, 99)}
    return {"quiet": measurement.latency_ms, **percentiles, "num_calls": len(measurement.wall_ms)}


def beginning_of(path: Path, num_bytes: int) -> dict[str, Any]:
    """Size and checksum of what a file begins with."""
    with path.open("rb") as file:
        return {"bytes": num_bytes, "sha256": hashlib.sha256(file.read(num_bytes)).hexdigest()}


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of everything in a folder."""
    return {p.name: {"bytes": p.stat().st_size, "sha256": checksum(p)} for p in sorted(folder.iterdir())}


def fixed(answer: FixedSizes) -> dict[str, Any]:
    """Of each input of a file of one size: that size, and its type."""
    return {"sizes": {name: list(size) for name, size in answer.sizes.items()}, "types": dict(answer.types)}


def input_of(finisher: Finisher, folder: Path, network: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What goes into the file of a network with these facts and what its answer is, for `predict.py` and in words."""
    task, names = finisher.task, list(finisher.family.example_input(finisher.workload.encoded))
    sizes = task.sizes
    answer = "tags" if sizes.get("per_token") else "number" if (folder / "target.json").is_file() else "label"
    description = task.interface
    if "sizes" in network:
        takes = " and ".join(f"`{name}`, {network['types'][name]} {size}" for name, size in network["sizes"].items())
        description = f"This file takes {takes}, and nothing of another size. Its network, in the format `onnx`: {description}"
    said = {"answer": answer, "description": description}
    if "token_ids" not in names:
        pictures = isinstance(task, ArrayClassification) and task.pictures
        return {"kind": "values", "name": names[0], "shape": list(sizes["input_shape"]), "pictures": pictures, **said}
    has_tokenizer = (folder / "tokenizer.json").is_file()
    whole = "language model" if isinstance(finisher.family, GenerativeFamily) else "text"
    return {
        "kind": whole if has_tokenizer else "token ids",
        "max_tokens": task.max_tokens,
        "num_ids": sizes["vocab_size"],
        **said,
    }


def promised(limits: Limits) -> str:
    """In words, or that nothing is."""
    words = []
    if limits.tolerance < math.inf:
        words.append(f"outputs differ by at most {limits.tolerance:.0e} from torch's")
    if limits.max_drop < math.inf:
        words.append(f"at most {limits.max_drop:g} points of validation error are lost")
    if limits.budget_ms < math.inf:
        words.append(f"it takes at most {format_ms(limits.budget_ms)} ms")
    return "; ".join(words) or "nothing beyond the figures here"
