"""What was measured by somebody else, as data: a table of networks or blocks with their times (or energy) on one device.

Nothing in a table is dropped or repaired: values are normalised to one unit, rows keep the order of the file, which is often the
order of measuring, and what looks disturbed is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

UNITS = ("ms", "mj")
NORMALISED = {"s": ("ms", 1e3), "ms": ("ms", 1.0), "us": ("ms", 1e-3), "j": ("mj", 1e3), "mj": ("mj", 1.0)}
"""By the unit that a column is written in: the unit that it becomes, and the factor."""
KINDS = ("cpu", "gpu", "npu")


@dataclass(frozen=True)
class Source:
    """Where a table comes from: a file of a public repository at one commit.

    `file` is where it lies in the folder of recorded tables, and `sha256` its checksum there. `path` is the file or folder in the
    repository that it was taken from; `is_copy` says whether it is that file as it stands (else it was collected from several).
    """

    repository: str
    commit: str
    path: str
    licence: str
    file: str
    sha256: str
    is_copy: bool = True


@dataclass(frozen=True, eq=False)
class RecordedTable:
    """Measured times (or energy) of one device, row by row in the order of the file.

    Args:
        name: of the table, as a user writes it (`hat_raspberrypi4`).
        device: in words (`Raspberry Pi 4 (ARM Cortex-A72)`).
        kind: `cpu`, `gpu` or `npu`.
        runtime: what is known of the software that ran it.
        precision: `fp32`, `float`, `w8a8`, ...
        unit: of `values` and `parts`: `ms` or `mj`.
        features: names of the columns of `rows`.
        rows: [N, F] float64.
        values: [N] float64, positive.
        labels: what each row is (a model's name, or "").
        parts: further measured columns in the same unit, each [N]; NaN where a row has none.
        extra: further columns that are neither features nor times, each of length N (memory in MiB, layers on each unit, ...).
        source: the file.
        outliers: [N] bool, rows that look disturbed; flagged, never dropped.

    Raises:
        ValueError: columns of different lengths, no rows, a feature that is not finite, or a value that is not positive and
            finite (names the row).
    """

    name: str
    device: str
    kind: str
    runtime: str
    precision: str
    unit: str
    features: tuple[str, ...]
    rows: np.ndarray
    values: np.ndarray
    labels: tuple[str, ...]
    parts: Mapping[str, np.ndarray]
    extra: Mapping[str, np.ndarray | tuple[str, ...]]
    source: Source
    outliers: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind {self.kind!r} is not one of {KINDS}")
        if self.unit not in UNITS:
            raise ValueError(f"{self.name}: unit {self.unit!r} is not one of {UNITS}")
        length = len(self.values)
        if length == 0:
            raise ValueError(f"{self.name}: has no rows")
        columns = {"labels": self.labels, "outliers": self.outliers, **self.parts, **self.extra}
        if wrong := {name: len(column) for name, column in columns.items() if len(column) != length}:
            raise ValueError(f"{self.name}: columns of other lengths than the {length} values: {wrong}")
        if self.rows.shape != (length, len(self.features)):
            raise ValueError(f"{self.name}: rows {self.rows.shape} are not ({length} values, {len(self.features)} features)")
        if holes := np.argwhere(~np.isfinite(self.rows)).tolist():
            row, column = holes[0]
            raise ValueError(f"{self.name}, row {row}: {self.features[column]} is {self.rows[row, column]}, which is not finite")
        if bad := np.flatnonzero(~(np.isfinite(self.values) & (self.values > 0))).tolist():
            value = self.values[bad[0]]
            raise ValueError(f"{self.name}, row {bad[0]}: {value} {self.unit} is not positive and finite ({len(bad)} such rows)")

    def __len__(self) -> int:
        return len(self.values)
