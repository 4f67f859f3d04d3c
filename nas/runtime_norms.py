"""Sums before layer norms that ONNX Runtime leaves apart.

Behind products in int8 it knows their shapes, and makes `SkipLayerNormalization` of an addition that only a layer norm reads. On
CPUs that takes about five times as long as the two operators that it replaces (0.04 ms for 64 tokens of width 128): without it an
encoder of one layer and that width is 1.3 times as fast, and one of four layers whose norms come after their branches, as BERT's,
1.7 times. It looks for `Add`, and `Sum` says the same.
"""

from __future__ import annotations

from collections import Counter

import onnx

from nas.runtime_attention import graphs


def with_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place."""
    for graph in graphs(model.graph):
        readers = Counter(name for node in graph.node for name in node.input)
        normed = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
        for node in graph.node:
            if node.op_type == "Add" and node.output[0] in normed and readers[node.output[0]] == 1:
                node.op_type = "Sum"
    return model
