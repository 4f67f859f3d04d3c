"""Does a sentence praise a film, and how much? Snippets of reviews with the mean of 20 people's ratings from -4 to 4.

Hutto and Gilbert, ICWSM 2014: the sentences of Pang and Lee's film reviews (2005), rated anew. Read from the source distribution
of `vaderSentiment` 0.5 (MIT licence, copyright 2014 C.J. Hutto), which is not part of this package:
`pip download --no-deps --no-binary :all: vaderSentiment==0.5`.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from experiments.tasks.files import read_pinned
from experiments.tasks.own_text import in_splits
from experiments.tasks.splits import stratified
from experiments.tasks.text import TextClassification, TextRegression
from experiments.tasks.tokenizing import check_sizes, comparable

SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
FRACTIONS = {"architecture": 0.1, "validation": 0.1, "test": 0.1}


class MovieSnippets(TextClassification):
    """Is the mean rating above or below 0? 10,568 sentences; those with a mean of exactly 0 are left out.

    70 % of each class are `train`; equal texts, up to case and spaces, are in one split.

    Raises:
        ValueError: a size out of bounds, no such file, or one with another checksum.
    """

    def __init__(
        self, path: str | Path, *, vocab_size: int = 8000, max_tokens: int = 64, tokenizer: str | Path | None = None
    ) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        pairs = [(text, "positive" if rating > 0 else "negative") for text, rating in read_ratings(Path(path)) if rating]
        splits = in_splits(pairs, stratified(*keys_and_labels(pairs), FRACTIONS, seed=0, what="texts"))
        super().__init__("movie_snippets", splits=splits, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer)


class MovieRatings(TextRegression):
    """The mean rating itself, of all 10,605 sentences; 70 % are `train`.

    Raises:
        ValueError: a size out of bounds, no such file, or one with another checksum.
    """

    def __init__(
        self, path: str | Path, *, vocab_size: int = 8000, max_tokens: int = 64, tokenizer: str | Path | None = None
    ) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        pairs = read_ratings(Path(path))
        signs = [(text, "above" if rating > 0 else "below") for text, rating in pairs]
        super().__init__(
            "movie_ratings", splits=in_splits(pairs, stratified(*keys_and_labels(signs), FRACTIONS, seed=0, what="texts")),
            unit="mean rating from -4 (worst) to 4 (best)", vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer,
        )  # fmt: skip


def keys_and_labels(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [comparable(text) for text, _ in pairs], [label for _, label in pairs]


def read_ratings(path: Path) -> list[tuple[str, float]]:
    """Sentences and their mean ratings."""
    with zipfile.ZipFile(io.BytesIO(read_pinned(path, SHA256))) as outer, tarfile.open(fileobj=outer.open(ARCHIVE)) as inner:
        member = inner.extractfile(MEMBER)
        assert member is not None
        lines = member.read().decode("latin-1").splitlines()
    return [(text, float(rating)) for _, rating, text in (line.split("\t", 2) for line in lines)]
