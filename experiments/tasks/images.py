"""Fashion-MNIST: small grey pictures of clothes, from a folder of the user's.

Xiao, Rasul and Vollgraf, arXiv:1708.07747; MIT licence, copyright 2017 Zalando SE. The four files are those of the Debian package
`dataset-fashion-mnist` (`apt-get download dataset-fashion-mnist`, then `dpkg-deb -x`); they are not part of this package.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from experiments.tasks.arrays import ArrayClassification, divided
from experiments.tasks.checks import check_at_least
from experiments.tasks.files import read_pinned
from experiments.tasks.splits import checked

LABELS = ("T-shirt or top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


class FashionMnist(ArrayClassification):
    """60,000 images of 28 x 28, of which the fractions of each class become `architecture` and `validation`; the official test
    images are `test`.

    `max_examples` keeps the first of the 60,000; the test images stay all.

    Raises:
        ValueError: a size or fraction out of bounds, a missing file, or one with another checksum.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_examples: int | None = None,
        tokens_per_example: int = 49,
        architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction)
        if max_examples is not None:
            check_at_least(1, max_examples=max_examples)
        x, y, test_x, test_y = (read_idx(Path(path) / name, digest) for name, digest in SHA256.items())
        x, y = x[:max_examples], y[:max_examples]
        splits, digits = divided(x[:, None], [str(label) for label in y], fractions, seed=seed)
        super().__init__(
            "images",
            splits={**splits, "test": (test_x[:, None], test_y)},
            labels=[LABELS[int(digit)] for digit in digits],
            tokens_per_example=tokens_per_example,
            values="grey values from 0 (background) to 255",
            pictures=True,
        )


def read_idx(path: Path, sha256: str) -> np.ndarray:
    """Bytes of any shape from a gzipped file in MNIST's format. Raises ValueError: none, or not the file that it should be."""
    if not path.is_file():
        raise ValueError(f"path: {path} is not a file; the four files are in the Debian package dataset-fashion-mnist")
    try:
        content = gzip.decompress(read_pinned(path, sha256))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"path: {path} is not a gzip file ({error})") from error
    num_dimensions = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">u4", num_dimensions, 4).tolist() if len(content) >= 4 + 4 * num_dimensions else []
    if not shape or len(content) != 4 + 4 * num_dimensions + math.prod(shape):
        raise ValueError(f"path: {path} is not an idx file of bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
