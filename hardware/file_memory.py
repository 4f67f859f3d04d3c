"""Memory that an ONNX file needs under ONNX Runtime on the CPU, from its graph.

A tensor is alive from the operator that writes it to the last one that reads it, and a reshape shares its input's memory; where
sizes are free, ONNX Runtime writes no result over an operand. ONNX Runtime places by best fit, which leaves gaps, and beside that
what attention holds for itself (`planned`): up to twice what is alive together at the worst moment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from nas.finish.exits import going_on
from nas.types import MIB, Memory

PROVIDERS = ["CPUExecutionProvider"]
ALIGNMENT = 64  # bytes
ATTENTION = ("Attention", "QAttention", "MultiHeadAttention")
ALIASES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def memory_of_file(path: Path, inputs: Mapping[str, np.ndarray]) -> Memory:
    """The memory of an ONNX file under ONNX Runtime on the CPU: its weights, and the activations where ONNX Runtime plans them.

    The file is run once for the shapes of its tensors. Inputs and outputs, which are the caller's, do not count.

    Raises:
        ValueError: there is no such file, or ONNX Runtime refuses it or the inputs.
    """
    try:
        graph = optimized(path)
        bytes_of = sizes(graph, inputs)
    except Exception as error:  # its own have no base class of their own
        raise ValueError(f"{path}: ONNX Runtime refuses the file or the inputs: {error}") from error
    weights = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.graph.initializer)
    largest = max((size for *_, size in workspaces(graph.graph, bytes_of)), default=0)
    return Memory(weights / MIB, (planned(buffers(graph.graph, bytes_of)) + largest) / MIB)


def optimized(path: Path) -> onnx.ModelProto:
    """The network as ONNX Runtime runs it, one that may stop early to its end."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        whole = going_on(onnx.load(path)).SerializeToString()  # with weights that lie in another file
        onnxruntime.InferenceSession(whole, options, providers=PROVIDERS)
        return onnx.load(options.optimized_model_filepath)


def sizes(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of everything that the network's operators write, its outputs excepted."""
    given = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in given]
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(seen.SerializeToString(), options, providers=PROVIDERS)
    values = dict(zip(names, session.run(names, dict(inputs)), strict=True))
    held = {inside(node): workspace(node, values[node.output[0]].shape) for node in model.graph.node if node.op_type in ATTENTION}
    return {name: value.nbytes for name, value in values.items()} | held


def inside(node: onnx.NodeProto) -> str:
    """How what an operator holds for itself is called."""
    return f"{node.output[0]} inside"


def workspace(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    """Bytes that attention with an output [B, T, C] holds while it runs: queries, keys, values, scores and mixtures."""
    B, T, C = shape
    heads = next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")
    return int(4 * B * T * (4 * C + heads * T))


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def buffers(graph: onnx.GraphProto, bytes_of: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """First operator, last operator and bytes of each buffer that the operators write to, in the order of the first."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    buffer: dict[str, str] = {}  # of each tensor, called by the first one in it
    first: dict[str, int] = {}
    until: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        inputs = [name for name in node.input if name in buffer]
        for name in node.output:
            if name not in bytes_of:
                continue
            shared = [buffer[i] for i in inputs if node.op_type in ALIASES]
            held = buffer[name] = shared[0] if shared else name
            first.setdefault(held, index)
            until[held] = max(until.get(held, index), last.get(name, index))
    return [(start, until[name], bytes_of[name]) for name, start in first.items()]


def workspaces(graph: onnx.GraphProto, bytes_of: Mapping[str, int]) -> list[tuple[int, int, int]]:
    """The same of what operators hold for themselves while they run."""
    return [(n, n, bytes_of[inside(node)]) for n, node in enumerate(graph.node) if node.op_type in ATTENTION]


def planned(spans: Sequence[tuple[int, int, int]]) -> int:
    """Bytes that best fit needs, ONNX Runtime's `MemPatternPlanner`: the smallest gap below the end, or the end."""
    total = 0
    placed: list[tuple[int, int, int]] = []  # offset, bytes, last operator
    for start, end, size in spans:
        size = -(-size // ALIGNMENT) * ALIGNMENT
        placed = sorted(block for block in placed if block[2] >= start)
        edges = [0, *(offset + length for offset, length, _ in placed)]
        gaps = [(offset - edge, edge) for edge, (offset, _, _) in zip(edges, placed, strict=False)] + [
            (total - edges[-1], edges[-1])
        ]
        _, place = min(((gap, edge) for gap, edge in gaps if gap >= size), default=(0, edges[-1]))
        placed.append((place, size, end))
        total = max(total, place + size)
    return total
