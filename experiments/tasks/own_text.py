"""The user's own texts: with a label, a number, or a tag for each word."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.tasks.splits import checked, stratified
from experiments.tasks.tables import read_columns
from experiments.tasks.tagging import Sentence, TextTagging
from experiments.tasks.text import TextClassification, TextRegression
from experiments.tasks.tokenizing import check_sizes, comparable
from nas.protocols import SPLITS

T = TypeVar("T")


class TextTable(TextClassification):
    """Two columns of a file (see `read_columns`): `text` is what is classified, `label` what it is.

    The fractions are of each class, rounded down but never to nothing; the rest is `train`. Rows with the same text, up to case
    and spaces, are in the same split.

    Raises:
        ValueError: a size or fraction out of bounds, what `read_columns` refuses, a text that is no string, a label that is
            neither that nor an integer, fewer than 2 classes, or a class with fewer than 4 distinct texts.
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
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction, test=test_fraction)
        path = Path(path)
        examples = [
            (as_text(path, where, text, said), as_label(path, where, label, kind))
            for where, (said, kind) in read_columns(path, separator=separator, columns={"text": text, "label": label})
        ]
        keys, labels = [comparable(said) for said, _ in examples], [kind for _, kind in examples]
        try:
            split_of = stratified(keys, labels, fractions, seed=seed, what="texts")
        except ValueError as error:
            if any(not is_number(kind) for kind in labels):
                raise
            raise ValueError(f"{error}; numbers are guessed with task=number_table task.number={label}") from error
        super().__init__(
            path.stem, splits=in_splits(examples, split_of), vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer
        )


class NumberTable(TextRegression):
    """Two columns of a file (see `read_columns`): `text` is what is read, `number` what is guessed from it.

    The fractions are of the distinct texts, rounded down but never to nothing; the rest is `train`. Rows with the same text, up
    to case and spaces, are in the same split.

    Raises:
        ValueError: a size or fraction out of bounds, what `read_columns` refuses, a text that is no string, a number that is none
            or not finite, fewer than 4 distinct texts, or numbers that are all the same.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        text: str,
        number: str,
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
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction, test=test_fraction)
        path = Path(path)
        examples = [
            (as_text(path, where, text, said), as_number(path, where, number, value))
            for where, (said, value) in read_columns(path, separator=separator, columns={"text": text, "number": number})
        ]
        splits = by_key(path, [comparable(said) for said, _ in examples], examples, fractions, seed=seed)
        super().__init__(path.stem, splits=splits, unit=number, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)


class TagTable(TextTagging):
    """Two columns of a file (see `read_columns`): the `words` of a sentence and their `tags`, both lists or separated by spaces.

    The fractions are of the distinct sentences, rounded down but never to nothing; the rest is `train`. Equal sentences, up to
    case, are in the same split.

    Raises:
        ValueError: a size or fraction out of bounds, what `read_columns` refuses, a row with another number of tags than words,
            fewer than 4 distinct sentences, fewer than 2 tags, or a tag that is not in `train`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        words: str,
        tags: str,
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
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction, test=test_fraction)
        path = Path(path)
        sentences: list[Sentence] = []
        for where, values in read_columns(path, separator=separator, columns={"words": words, "tags": tags}):
            said, tagged = (as_words(path, where, name, value) for name, value in zip((words, tags), values, strict=True))
            if len(said) != len(tagged):
                raise ValueError(f"path: {where} of {path} has {len(said)} words and {len(tagged)} tags")
            sentences.append((said, tagged))
        splits = by_key(path, [comparable(" ".join(said)) for said, _ in sentences], sentences, fractions, seed=seed)
        super().__init__(path.stem, splits=splits, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)


def in_splits(examples: Sequence[T], split_of: Sequence[str]) -> dict[str, list[T]]:
    splits: dict[str, list[T]] = {split: [] for split in SPLITS}
    for example, split in zip(examples, split_of, strict=True):
        splits[split].append(example)
    return splits


def by_key(
    path: Path, keys: Sequence[Hashable], examples: Sequence[T], fractions: Mapping[str, float], *, seed: int
) -> dict[str, list[T]]:
    """Splits by distinct key. Raises ValueError for fewer distinct keys than splits."""
    if (distinct := len(set(keys))) < len(SPLITS):
        raise ValueError(f"path: {path} has {distinct} distinct texts, fewer than {len(SPLITS)}, one for each split")
    return in_splits(examples, stratified(keys, ["text"] * len(keys), fractions, seed=seed, what="texts"))


def as_text(path: Path, where: str, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"path: {where} of {path} has {value!r} in column {column!r}, which is not a text")
    return value


def as_label(path: Path, where: str, column: str, value: Any) -> str:
    return as_text(path, where, column, str(value) if isinstance(value, int) else value)


def as_number(path: Path, where: str, column: str, value: Any) -> float:
    if not is_number(value):
        raise ValueError(f"path: {where} of {path} has {value!r} in column {column!r}, which is not a number")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, or text that says one."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def as_words(path: Path, where: str, column: str, value: Any) -> list[str]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"path: {where} of {path} has {value!r} in column {column!r}, which are not words")
    return words
