"""Texts and labels from a CSV file of the user."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from experiments.tasks.splits import check_fractions, stratified
from experiments.tasks.text import TextClassification, check_sizes, comparable
from nas.protocols import SPLITS


class CsvFile(TextClassification):
    """Two columns of a CSV file (UTF-8, with a header row): `text` is what is classified, `label` what it is.

    The fractions are of each class, rounded down but never to nothing; the rest is `train`. Rows with the same text, up to case
    and spaces, are in the same split. Row numbers in errors count the header as row 1.

    Raises:
        ValueError: a size or fraction out of bounds, no such file or column, a file that is not UTF-8 or not CSV, a row with
            another number of fields than the header, an empty text or label, fewer than 2 classes, or a class with fewer than 4
            distinct texts.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        text: str,
        label: str,
        vocab_size: int = 8000,
        max_tokens: int = 64,
        tokenizer: str | Path | None = None,
        separator: str = ",",
        architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        fractions = {"architecture": architecture_fraction, "validation": validation_fraction, "test": test_fraction}
        check_fractions(fractions)
        if len(separator) != 1 or separator in '"\r\n':
            raise ValueError(f"separator: {separator!r} is not one character that can stand between fields")
        path = Path(path)
        examples = read_columns(path, text=text, label=label, separator=separator)
        keys, labels = [comparable(t) for t, _ in examples], [kind for _, kind in examples]
        splits: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        for example, split in zip(examples, stratified(keys, labels, fractions, seed=seed, what="texts"), strict=True):
            splits[split].append(example)
        super().__init__(path.stem, splits=splits, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)


def read_columns(path: Path, *, text: str, label: str, separator: str) -> list[tuple[str, str]]:
    """The two columns as (text, label) pairs; lines without anything are skipped."""
    (_, columns), *rows = read_rows(path, separator)
    for argument, column in (("text", text), ("label", label)):
        if columns.count(column) != 1:
            raise ValueError(f"{argument}: {column!r} is not one of the columns {columns} of {path}")
    if text == label:
        raise ValueError(f"label: {label!r} is the column of the texts too")
    examples = []
    for number, row in rows:
        if len(row) != len(columns):
            raise ValueError(f"path: row {number} of {path} has {len(row)} fields, the header has {len(columns)}")
        example = row[columns.index(text)], row[columns.index(label)]
        for argument, field in zip((text, label), example, strict=True):
            if not field.strip():
                raise ValueError(f"path: row {number} of {path} has nothing in column {argument!r}")
        examples.append(example)
    return examples


def read_rows(path: Path, separator: str) -> list[tuple[int, list[str]]]:
    """All rows with their numbers, the header first."""
    if not path.is_file():
        raise ValueError(f"path: {str(path)!r} is not a file")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {path} is not UTF-8 text (byte {error.start})") from error
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(number, row) for number, row in enumerate(reader, start=1) if row]
    except csv.Error as error:
        raise ValueError(f"path: line {reader.line_num} of {path} is not CSV ({error})") from error
    if not rows:
        raise ValueError(f"path: {path} is empty, it has no header row")
    return rows
