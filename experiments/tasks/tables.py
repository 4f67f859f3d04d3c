"""Columns of the user's own files: CSV, JSON lines, Parquet and CoNLL, told apart by how a file's name ends."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.tasks.files import read_bytes, read_text

Row = tuple[str, Mapping[str, Any]]
"""Where it is, for an error, and its values by column."""

TAB = "tab"  # as a separator is called that a command line does not take as it is
SEPARATORS = {";": "\"task.separator=';'\"", "\t": f"task.separator={TAB}", "|": "\"task.separator='|'\""}
INSTALL = "pip install 'paretoformer[parquet]'"


def read_columns(path: Path, *, separator: str, columns: Mapping[str, str]) -> list[tuple[str, tuple[Any, ...]]]:
    """Where each row is, and its values in the columns that are asked for, by argument; no value is missing or blank.

    A CSV file (.csv, .tsv, .txt) is UTF-8 with a header row and `separator`, a character or `tab`, between fields; lines without
    anything are skipped, and row numbers count the header as row 1. JSON lines (.jsonl) hold an object a line. A CoNLL file
    (.conll, .iob) holds a word a line and an empty line behind each sentence; its columns are called 1, 2, ... and the last one
    -1 too, and what a row holds is the lists of a sentence.

    Raises:
        ValueError: a separator that is none, no such file or column, a column twice, another encoding or format, a row without
            a value, no row at all, a name that ends otherwise, or pyarrow, which reads Parquet, not installed.
    """
    separator = "\t" if separator == TAB else separator
    if len(separator) != 1 or separator in '"\r\n':
        raise ValueError(f"separator: {separator!r} is not one character that can stand between fields")
    for argument, column in columns.items():
        if first := next((a for a, c in columns.items() if c == column and a != argument), None):
            raise ValueError(f"{argument}: {column!r} is the column of {first} too")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"path: {path} does not end in one of {', '.join(READERS)}")
    rows = []
    for where, values in reader(path, separator, columns):
        for column in columns.values():
            if not (values[column].strip() if isinstance(values[column], str) else is_given(values[column])):
                raise ValueError(f"path: {where} of {path} has nothing in column {column!r}")
        rows.append((where, tuple(values[column] for column in columns.values())))
    if not rows:
        raise ValueError(f"path: {path} has no rows")
    return rows


def is_given(value: Any) -> bool:
    """Whether there is a value at all; an empty list is none."""
    return value is not None and value != []


def check_names(where: str, known: list[str], columns: Mapping[str, str]) -> None:
    """Raises ValueError for a column that is not there, or not once."""
    for argument, column in columns.items():
        if known.count(column) != 1:
            raise ValueError(f"{argument}: {column!r} is not one of the columns {known} of {where}")


def read_csv(path: Path, separator: str, columns: Mapping[str, str]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator, strict=True)
    try:
        rows = [(number, row) for number, row in enumerate(reader, start=1) if row]
    except csv.Error as error:
        raise ValueError(f"path: line {reader.line_num} of {path} is not CSV ({error})") from error
    if not rows:
        raise ValueError(f"path: {path} is empty, it has no header row")
    (_, header), *rows = rows
    check_names(f"{path}{_separated_otherwise(header)}", header, columns)
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(f"path: row {number} of {path} has {len(row)} fields, the header has {len(header)}")
        yield f"row {number}", dict(zip(header, row, strict=True))


def _separated_otherwise(header: Sequence[str]) -> str:
    """What to say if the only column looks like several."""
    found = [word for character, word in SEPARATORS.items() if len(header) == 1 and character in header[0]]
    return f"; if its fields are separated otherwise, add {found[0]}" if found else ""


def read_json_lines(path: Path, _: str, columns: Mapping[str, str]) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"path: line {number} of {path} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"path: line {number} of {path} is not a JSON object")
        check_names(f"line {number} of {path}", list(values), columns)
        yield f"line {number}", values


def read_parquet(path: Path, _: str, columns: Mapping[str, str]) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"path: {path} is Parquet, which pyarrow reads; {INSTALL}") from error
    content = io.BytesIO(read_bytes(path))
    try:
        check_names(str(path), parquet.read_schema(content).names, columns)
        table = parquet.read_table(content, columns=list(columns.values()))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"path: {path} is not a Parquet file ({error})") from error
    yield from ((f"row {number}", values) for number, values in enumerate(table.to_pylist(), start=1))


def read_conll(path: Path, _: str, columns: Mapping[str, str]) -> Iterator[Row]:
    begin = 1
    sentence: list[list[str]] = []
    for number, line in enumerate([*read_text(path).splitlines(), ""], start=1):
        fields = line.split()
        if fields and not line.startswith(("#", "-DOCSTART-")):
            begin = begin if sentence else number
            if len(fields) != len((sentence or [fields])[0]):
                raise ValueError(f"path: line {number} of {path} has {len(fields)} fields, line {begin} has {len(sentence[0])}")
            sentence.append(fields)
        elif sentence and not fields:
            lists = [list(values) for values in zip(*sentence, strict=True)]
            names = [*map(str, range(1, len(lists) + 1)), "-1"]
            check_names(str(path), names, columns)
            yield f"the sentence in line {begin}", dict(zip(names, [*lists, lists[-1]], strict=True))
            sentence = []


READERS: Mapping[str, Callable[[Path, str, Mapping[str, str]], Iterator[Row]]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), read_csv),
    **dict.fromkeys((".jsonl", ".ndjson"), read_json_lines),
    **dict.fromkeys((".parquet", ".pq"), read_parquet),
    **dict.fromkeys((".conll", ".iob"), read_conll),
}
