"""What is each word of Python source: a keyword, a name, a part of a string? Tags for a highlighter, made by Python's tokenizer.

The source is that of the pinned package Django (BSD licence). Nobody wrote these tags by hand: they measure whether a small
network can read a few lines without their context as the tokenizer reads the whole file.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator

from experiments.tasks.checks import check_at_least
from experiments.tasks.django_source import python_files
from experiments.tasks.own_text import in_splits
from experiments.tasks.splits import SPLIT_OF_TENTH
from experiments.tasks.tagging import Sentence, TextTagging
from experiments.tasks.tokenizing import check_sizes

PIECE = re.compile(r"\w+|[^\w\s]")
KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.COMMENT: "comment", tokenize.OP: "operator"}
Place = tuple[int, int]


class PythonWords(TextTagging):
    """Pieces of so many lines, words and signs with one of 8 tags each; no file is in two splits, and no piece occurs twice.

    Args:
        max_examples: so many pieces, of the files with the smallest hashes of their paths.

    Raises:
        ValueError: a size out of bounds, django not installed or in another version, or too few examples for four splits.
    """

    def __init__(self, *, vocab_size: int = 4000, max_tokens: int = 64, lines: int = 4, max_examples: int = 12000) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        check_at_least(1, lines=lines, max_examples=max_examples)
        first: dict[tuple[str, ...], tuple[Sentence, str]] = {}
        for number, source in enumerate(python_files("python_words")):
            if len(first) >= max_examples:
                break
            for words, tags in pieces(source, lines):
                first.setdefault(tuple(words), ((words, tags), SPLIT_OF_TENTH[number % 10]))
        found = list(first.values())[:max_examples]
        splits = in_splits([sentence for sentence, _ in found], [split for _, split in found])
        super().__init__("python_words", splits=splits, vocab_size=vocab_size, max_tokens=max_tokens)


def pieces(source: str, lines: int) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tags of so many lines at a time, lines without anything left out."""
    tagged = [line for line in tagged_lines(source) if line]
    for start in range(0, len(tagged), lines):
        together = [pair for line in tagged[start : start + lines] for pair in line]
        yield [word for word, _ in together], [tag for _, tag in together]


def tagged_lines(source: str) -> list[list[tuple[str, str]]]:
    """Words and signs of each line, with the kind of the token that they begin in; a backslash at an end is an operator."""
    text = source.split("\n")
    kinds = [["operator"] * len(line) for line in text]
    for (first_row, first), (last_row, last), kind in spans(source):
        for row in range(first_row, last_row + 1):
            begin = first if row == first_row else 0
            end = last if row == last_row else len(text[row - 1])
            kinds[row - 1][begin:end] = [kind] * (end - begin)
    return [[(piece[0], kind[piece.start()]) for piece in PIECE.finditer(line)] for line, kind in zip(text, kinds, strict=True)]


def spans(source: str) -> Iterator[tuple[Place, Place, str]]:
    """Where each token begins and ends, (row from 1, column), and its kind.

    An f-string is a string as a whole, as it is one token before Python 3.12.
    """
    before, open_strings = "", []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_START":
            open_strings.append(token.start)
        elif name == "FSTRING_END":
            start = open_strings.pop()
            if not open_strings:
                yield start, token.end, "string"
        elif open_strings:
            continue
        elif token.type == tokenize.NAME:
            yield token.start, token.end, kind_of_name(token.string, before)
        elif token.type in KINDS:
            yield token.start, token.end, KINDS[token.type]
        before = token.string


def kind_of_name(name: str, before: str) -> str:
    if keyword.iskeyword(name):
        return "keyword"
    return {"def": "definition", "class": "definition", ".": "attribute"}.get(before, "name")
