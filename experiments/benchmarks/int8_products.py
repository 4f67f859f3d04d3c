"""How many times as fast the products of a network are in int8 on this machine's CPU, by themselves.

Products with constant weights are all that int8 is about: a network is not faster by more, whatever its file looks like; and
where they are slower, it is best left in float.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from hardware.local_cpu import LocalCpu
from hardware.timing import Exported, measure
from nas.finish.precision import quantised
from nas.formats import open_session
from nas.types import Workload

PRODUCTS = ("MatMul", "Attention")  # which begins with one
SESSIONS, ROUNDS = 5, 8  # these files take 10 us: a session that was disturbed shall not count


def int8_of_products(network: Exported, workload: Workload, folder: Path) -> float:
    """Of an ONNX file in float32, with the inputs that its products have in it: the median of a few sessions."""
    products = products_of(network, folder / "products.onnx")
    int8 = dataclasses.replace(products, path=folder / "products.int8.onnx")
    onnx.save(quantised(onnx.load(products.path), "dynamic"), int8.path)
    both, device = [products, int8], LocalCpu()
    sessions = [measure(device, both, sentinel=products, workload=workload, rounds=ROUNDS) for _ in range(SESSIONS)]
    return float(np.median([before.latency_ms / after.latency_ms for before, after in sessions]))


def products_of(network: Exported, path: Path) -> Exported:
    """A file of nothing but a file's products of matrices with constant weights, side by side."""
    model = onnx.load(network.path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    found = [node for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in weights]
    inputs = _values(model, dict.fromkeys(node.input[0] for node in found), network)
    nodes = [helper.make_node("MatMul", node.input[:2], [f"product{i}"], name=f"product{i}") for i, node in enumerate(found)]
    shown = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape) for name, value in inputs.items()]
    answers = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None) for node in nodes]
    graph = helper.make_graph(nodes, "products", shown, answers, [weights[node.input[1]] for node in nodes])
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), path)
    return Exported(network.arch, path, inputs)


def _values(model: onnx.ModelProto, names: dict[str, None], network: Exported) -> dict[str, np.ndarray]:
    """What the graph passes on under some names."""
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(model.SerializeToString(), threads=1)
    return dict(zip(names, session.run(None, dict(network.inputs)), strict=True))
