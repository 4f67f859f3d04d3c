"""Int8 files from fp32 ones."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import onnx

from hardware.local import own_folder
from nas.finish.precision import quantised


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
            unfinished = path.with_name(path.name + ".part")
            onnx.save(quantised(onnx.load_from_string(content), "dynamic"), unfinished)
            os.replace(unfinished, path)
        return path
