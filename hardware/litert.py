"""This machine's CPU under LiteRT (formerly TensorFlow Lite) with XNNPACK's kernels: what Android and many boards run."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hardware.local import OnThisMachine, describe, in_order, optional, refusals
from hardware.visit import wall
from nas.formats import FORMATS, Answer

DELEGATE = "XNNPACK"
BUILTIN = "LiteRT's own kernels"  # which run what the delegate does not take


class LiteRt(OnThisMachine):
    """Times a network in this process."""

    name = "litert"
    format = "tflite"

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without LiteRT."""
        optional("ai_edge_litert.interpreter", extra="litert")
        return describe("litert", version("ai-edge-litert"), threads=self.threads, precision="fp32", delegate="xnnpack")

    def run(self, path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit to a .tflite file: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: LiteRT is not installed, there is no such file, or LiteRT refuses the file or the inputs.
        """
        litert = optional("ai_edge_litert.interpreter", extra="litert")
        with refusals(path, "LiteRT"):
            interpreter = litert.Interpreter(str(path), num_threads=self.threads)
            interpreter.allocate_tensors()
            set_inputs(interpreter, inputs)
            return self.visit.times(wall(interpreter.invoke))

    def opened(self, path: Path) -> Answer:
        """A file for its answers. Raises DeviceError like `run`."""
        optional("ai_edge_litert.interpreter", extra="litert")
        with refusals(path, "LiteRT"):
            return FORMATS[self.format].open(path)


def set_inputs(interpreter: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Puts the inputs of the only signature, by name; whole numbers become the file's 32-bit ones.

    Raises:
        ValueError: other names or shapes than the file's.
    """
    details = interpreter.get_signature_runner().get_input_details()
    for value, detail in zip(in_order(inputs, list(details)), details.values(), strict=True):
        interpreter.set_tensor(detail["index"], value.astype(detail["dtype"], casting="same_kind"))


def operators(path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Who runs which operators of a .tflite file, like `hardware.placement.operators`, but without their time, which LiteRT does
    not tell. Each of the delegate's nodes takes what leads from what it reads to what it writes.

    Raises:
        DeviceError: like `LiteRt.run`.
    """
    litert = optional("ai_edge_litert.interpreter", extra="litert")
    with refusals(path, "LiteRT"):
        interpreter = litert.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        set_inputs(interpreter, inputs)
        interpreter.invoke()
        nodes = interpreter._get_ops_details()
    own = [node for node in nodes if node["op_name"] != "DELEGATE"]
    written_by = {int(tensor): node for node in own for tensor in node["outputs"]}
    taken: set[int] = set()
    for delegate in (node for node in nodes if node["op_name"] == "DELEGATE"):
        read, wanted = {int(tensor) for tensor in delegate["inputs"]}, [int(tensor) for tensor in delegate["outputs"]]
        while wanted:
            tensor = wanted.pop()
            if tensor not in read and tensor in written_by and written_by[tensor]["index"] not in taken:
                taken.add(written_by[tensor]["index"])
                wanted += [int(other) for other in written_by[tensor]["inputs"]]
    counts = Counter((node["op_name"], DELEGATE if node["index"] in taken else BUILTIN) for node in own)
    return [{"operator": name, "provider": provider, "count": count} for (name, provider), count in counts.most_common()]
