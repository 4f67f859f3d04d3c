"""A device that nobody has at hand: a table of measurements that others took on it. It runs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardware.tables import load_table, origin
from nas.protocols import DeviceError


class RecordedDevice:
    """One table of `hardware.tables`, as a device that predicts and cannot measure.

    Args:
        table: its name.
        data: the folder of the recorded tables; None: the user's cache folder.

    Raises:
        ValueError: what `load_table` refuses.
    """

    def __init__(self, table: str, data: str | None = None) -> None:
        self.table, self.folder = load_table(table, data), data
        self.name = f"recorded {table}"

    @property
    def environment(self) -> Mapping[str, Any]:
        """What was measured, with what, and by whom."""
        t = self.table
        facts = {"device": f"{t.device}, from recorded measurements", "runtime": t.runtime, "precision": t.precision}
        return {**facts, "source": origin(t.source)}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.table.name} {self.table.source.sha256}".encode()).hexdigest()[:12]

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """Raises DeviceError, always."""
        raise DeviceError(f"{self.name}: is a table of measurements of {self.table.device}, nothing can be run on it")
