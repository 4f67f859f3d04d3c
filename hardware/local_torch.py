"""This machine's CPU under torch."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardware.local import OnThisMachine, describe, in_order, refusals
from hardware.operators import Ran
from hardware.visit import wall
from nas.formats import FORMATS, Answer

DELEGATE = "torch"
RUNS = 5
FLOAT16, FLOAT32 = 5, 6  # as TorchScript counts types


class LocalTorch(OnThisMachine):
    """Times torch's own operators, without gradients, in this process."""

    name = "local_torch"
    format = "torchscript"

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on."""
        return describe(
            "torch", torch.__version__, threads=self.threads, precision="fp32",
            matmul_precision=torch.get_float32_matmul_precision(), mkldnn=torch.backends.mkldnn.is_available(),
        )  # fmt: skip

    def run(self, path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit to a TorchScript or .pt2 file: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: there is no such file, or torch refuses the file or the inputs, or runs out of memory.
        """
        with refusals(path, "torch"), torch.inference_mode(), num_threads(self.threads):
            module, names = load(path)
            tensors = [torch.from_numpy(value) for value in in_order(inputs, names)]
            warm_up(module, tensors)
            return self.visit.times(wall(lambda: module(*tensors)))

    def opened(self, path: Path) -> Answer:
        """A file for its answers. Raises DeviceError like `run`."""
        with refusals(path, "torch"):
            return FORMATS["pt2" if path.suffix == FORMATS["pt2"].suffix else self.format].open(path)


def load(path: Path, *, to: str = "cpu") -> tuple[Any, list[str]]:
    """A network from a TorchScript or .pt2 file that `nas.export` wrote, and the names of its inputs in their order.

    Raises:
        ValueError: it is such a file, but says no names.
    """
    extra = {"inputs.json": ""}
    if path.suffix == ".pt2":
        program = torch.export.load(path, extra_files=extra)
        return program.module(), json.loads(extra["inputs.json"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        module = torch.jit.load(path, map_location=to, _extra_files=extra)
    if not extra["inputs.json"]:
        raise ValueError("the file does not name its inputs (inputs.json)")
    if to != "cpu":
        move_constants(module, to)
    return module.eval(), json.loads(extra["inputs.json"])


def warm_up(module: Any, tensors: list[torch.Tensor]) -> None:
    """The two slow runs: TorchScript observes the first, and compiles for the shapes that it saw in the second."""
    for _ in range(2):
        module(*tensors)


def move_constants(module: torch.jit.ScriptModule, to: str) -> None:
    """A trace holds the device on which it makes new tensors as a constant, which `map_location` leaves alone."""
    for graph in graphs(module):
        for node in graph.findAllNodes("prim::Constant"):
            if node.output().type().kind() == "DeviceObjType":
                node.s_("value", to)


def to_half(module: torch.jit.ScriptModule) -> None:
    """To float16: the weights, and what `half` leaves alone, a trace's own constants and the types that it casts to."""
    module.half()
    for graph in graphs(module):
        for node in all_nodes(graph):
            if node.kind() == "prim::Constant" and node.output().type().kind() == "TensorType":
                value = node.output().toIValue()
                if value.dtype == torch.float32:
                    node.t_("value", value.half())
            elif node.schema() != "(no schema)":
                for index, argument in enumerate(torch._C.parse_schema(node.schema()).arguments):
                    if argument.name == "dtype" and node.inputsAt(index).toIValue() == FLOAT32:
                        graph.setInsertPoint(node)
                        node.replaceInput(index, graph.insertConstant(FLOAT16))


def graphs(module: torch.jit.ScriptModule) -> Iterator[Any]:
    """Of all methods of all parts."""
    for part in module.modules():
        compiled: Any = part._c
        for method in compiled._method_names():
            yield compiled._get_method(method).graph


def all_nodes(block: Any) -> Iterator[Any]:
    """Those of inner blocks too; what is inserted meanwhile is left out."""
    for node in list(block.nodes()):
        yield node
        for inner in node.blocks():
            yield from all_nodes(inner)


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Torch has one number of threads for the whole process: set for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def operators(path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """What ran of a TorchScript or .pt2 file, like `hardware.placement.operators`; an operator's time is without that of those
    that it calls.

    Raises:
        DeviceError: like `LocalTorch.run`.
    """
    ran = Ran()
    with refusals(path, "torch"), torch.inference_mode(), num_threads(1):
        module, names = load(path)
        tensors = [torch.from_numpy(value) for value in in_order(inputs, names)]
        warm_up(module, tensors)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(RUNS):
                module(*tensors)
        for event in profile.key_averages():
            if event.key.startswith("aten::"):
                ran.add(event.key.removeprefix("aten::"), DELEGATE, event.self_cpu_time_total, count=event.count)
    return ran.table(runs=RUNS)
