"""A table of somebody's own measurements, in a CSV file with one row a network.

    table = read_csv_table("mine.csv", features=("depth", "width"), target="latency_ms", unit="ms")

Rows are only ever refused with the file, the row and the value: nothing is skipped, clamped or guessed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hardware.table_checks import contradictions, find_outliers
from nas.tables import NORMALISED, RecordedTable, Source

SHORTEST_MS, LONGEST_MS = 1e-4, 3.6e6  # a tenth of a microsecond (no clock sees less) and an hour
LEAST_MJ, MOST_MJ = 1e-6, 1e9
NAMED_UNITS = {"ns": "ns", "us": "us", "µs": "us", "ms": "ms", "s": "s", "sec": "s", "seconds": "s", "mj": "mj", "j": "j"}


def read_csv_table(
    path: Path | str, *, features: Sequence[str], target: str, unit: str, label: str | None = None, name: str | None = None
) -> RecordedTable:
    """The measurements in a file with a header line, its values normalised to ms or mJ.

    Rows with equal features and contradicting values are kept and flagged as outliers (`table_checks.cautions` names them).

    Args:
        features: columns of numbers that describe a network.
        target: the column of what was measured.
        unit: of that column: s, ms, us, j or mj.
        label: a column with a name for each row.
        name: of the table; by default the file's.

    Raises:
        ValueError: no such file, a missing column, fewer rows than features, a cell that is not a number, a value that is not
            positive and finite, or a unit that the column's name or its values contradict.
    """
    path = Path(path)
    name = name or path.stem
    if unit not in NORMALISED:
        raise ValueError(f"unit: {unit!r} is not one of {tuple(NORMALISED)}")
    if not features or target in features or len(set(features)) < len(features):
        raise ValueError(f"features: {tuple(features)} must be one or more different columns without the target {target!r}")
    data, records = _read(path, [*features, target, *([label] if label else [])])
    said = re.search(r"(?:^|[_\s(\[])([a-zµ]+)[)\]]?$", target.lower())
    if said and NAMED_UNITS.get(said[1], unit) != unit:
        raise ValueError(f"{path}: the column {target!r} says {said[1]}, but the unit given is {unit}")
    columns = [[_number(path, line, record, column) for line, record in records] for column in features]
    rows = np.array(columns, dtype=float).reshape(len(features), -1).T
    normalised, factor = NORMALISED[unit]
    values = np.array([_measured(path, line, record, target, unit) for line, record in records]) * factor
    if len(values) < len(features):
        raise ValueError(
            f"{path}: {len(values)} rows are fewer than the {len(features)} features: no model can be fitted to them"
        )
    labels = tuple(record[label] for _, record in records) if label else ("",) * len(records)
    outliers = find_outliers(rows, values)
    outliers[[row for pair in contradictions(rows, values, labels) for row in pair]] = True
    source = Source("", "", "", "the user's own", str(path), hashlib.sha256(data).hexdigest())
    return RecordedTable(
        name=name, device=name, kind="cpu", runtime="not stated", precision="not stated", unit=normalised,
        features=tuple(features), rows=rows, values=values, labels=labels, parts={}, extra={}, source=source, outliers=outliers,
    )  # fmt: skip


def read_csv_rows(path: Path | str, *, features: Sequence[str]) -> np.ndarray:
    """The features [N, F] of networks that nobody has measured; raises ValueError like `read_csv_table`."""
    _, records = _read(Path(path), features)
    return np.array([[_number(Path(path), line, record, column) for column in features] for line, record in records])


def _read(path: Path, columns: Sequence[str]) -> tuple[bytes, list[tuple[int, Mapping[str, str]]]]:
    """The bytes of a file, and its records with the number of their line. All `columns` are in each."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    data = path.read_bytes()
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        header = reader.fieldnames or ()
        records: list[tuple[int, Mapping[str, str]]] = [(reader.line_num, record) for record in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is not a CSV file in UTF-8: {error}") from error
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path}: has no column {missing[0]!r}; its columns are {tuple(header)}")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: two columns have the same name: {tuple(header)}")
    if not records:
        raise ValueError(f"{path}: has no rows")
    for line, record in records:
        if None in [*record, *record.values()]:  # more cells than the header, or fewer
            raise ValueError(f"{path}, line {line}: has not the {len(header)} cells of the header")
    return data, records


def _number(path: Path, line: int, record: Mapping[str, str], column: str) -> float:
    try:
        value = float(record[column])
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {column} is {record[column]!r}, which is not a number") from error
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}: {column} is {record[column]}, which is not finite")
    return value


def _measured(path: Path, line: int, record: Mapping[str, str], column: str, unit: str) -> float:
    value = _number(path, line, record, column)
    if value <= 0:
        raise ValueError(f"{path}, line {line}: {column} is {record[column]}; a measured value is above 0")
    normalised, factor = NORMALISED[unit]
    low, high = (SHORTEST_MS, LONGEST_MS) if normalised == "ms" else (LEAST_MJ, MOST_MJ)
    if not low <= value * factor <= high:
        raise ValueError(
            f"{path}, line {line}: {column} is {record[column]} {unit}, that is {value * factor:.3g} {normalised}, which no "
            f"network takes; is the column in another unit (one of {tuple(NORMALISED)})?"
        )
    return value
