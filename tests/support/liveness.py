"""What of an ONNX file is alive together: an oracle for the closed formulas of families."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hardware.file_memory import buffers, optimized, sizes, workspaces


def alive(path: Path, inputs: Mapping[str, np.ndarray]) -> int:
    """The most bytes of activations of an ONNX file that are alive together."""
    graph = optimized(path)
    bytes_of = sizes(graph, inputs)
    return living([*buffers(graph.graph, bytes_of), *workspaces(graph.graph, bytes_of)])


def living(spans: Sequence[tuple[int, int, int]]) -> int:
    """The most bytes that are alive together: what an allocator without gaps needs."""
    return max((sum(size for start, end, size in spans if start <= index <= end) for index, _, _ in spans), default=0)
