"""Int8 files from fp32 ones."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from pathlib import Path

import onnx

from hardware.local import own_folder


class Int8Files:
    """Dynamic int8 quantisations, made once for each content, in a folder that goes with this object."""

    @functools.cached_property
    def folder(self) -> Path:
        return own_folder(self)

    def of(self, onnx_path: Path) -> Path:
        """The quantisation of a file; the same bytes whenever it is made."""
        content = onnx_path.read_bytes()
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.onnx"
        if not path.is_file():
            write_int8(onnx.load_from_string(content), path)
        return path


def write_int8(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model with int8 weights and activations that are quantised as they come (ONNX Runtime's `quantize_dynamic`)."""
    from onnxruntime.quantization import quantize_dynamic  # slow to import, and only int8 needs it

    del model.graph.value_info[:]  # shapes that an exporter wrote down contradict those of the quantised operators
    unfinished = path.with_name(path.name + ".part")
    logging.disable(logging.WARNING)  # it advises a pre-processing that changes nothing here
    try:
        quantize_dynamic(model, unfinished)
    finally:
        logging.disable(logging.NOTSET)
    os.replace(unfinished, path)
