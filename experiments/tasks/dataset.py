"""Classification of token ids from the user's own datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from experiments.tasks.answers import TokenClassification
from experiments.tasks.baselines import linear_error, majority_error
from experiments.tasks.checks import check_at_least, check_splits
from experiments.tasks.files import save_labels
from experiments.tasks.ragged import Ragged
from nas.protocols import SPLITS

if TYPE_CHECKING:
    import torch

    TokenIds = Sequence[int] | np.ndarray | torch.Tensor

TENTHS_OF_TRAIN = ("train",) * 8 + ("architecture", "validation")


class Dataset(Protocol):
    """A map-style dataset, as `torch.utils.data.Dataset` with a length: an item is token ids [T] and a class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[TokenIds, int]: ...


class DatasetTask(TokenClassification):
    """Two datasets of token ids and classes, as a task.

    `labels` names the classes 0, 1, ... . About 80 % of `train` remain `train`, 10 % each become `architecture` and `validation`;
    a hash of the token ids decides, so that equal examples are in the same split.

    Raises:
        ValueError: token ids that are not one row of 1 to `max_tokens` integers under `vocab_size`, a class that `labels` lacks,
            fewer than 2 classes, an empty split, or a class without examples in `train`.
    """

    def __init__(
        self, name: str, *, train: Dataset, test: Dataset, labels: Sequence[str], vocab_size: int, max_tokens: int
    ) -> None:
        check_at_least(2, vocab_size=vocab_size)
        check_at_least(1, max_tokens=max_tokens)
        self.name = name
        self.labels = tuple(labels)
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        examples: dict[str, list[tuple[np.ndarray, int]]] = {split: [] for split in SPLITS}
        for ids, target in self._read("train", train):
            tenth = int(hashlib.sha256(ids.tobytes()).hexdigest(), 16) % 10
            examples[TENTHS_OF_TRAIN[tenth]].append((ids, target))
        examples["test"] += self._read("test", test)
        check_splits({split: [target for _, target in pairs] for split, pairs in examples.items()}, self.labels)
        self._splits = {
            split: Ragged.of([ids for ids, _ in pairs], [target for _, target in pairs]) for split, pairs in examples.items()
        }
        identity = hashlib.sha256(json.dumps([self.labels, vocab_size, max_tokens]).encode())
        for ragged in self._splits.values():
            for array in (ragged.offsets, ragged.ids, ragged.targets):
                identity.update(array.tobytes())
        self.fingerprint = identity.hexdigest()[:16]

    def _read(self, name: str, dataset: Dataset) -> Iterator[tuple[np.ndarray, int]]:
        """Every item, checked: ids as int64 [T], and the class."""
        for index in range(len(dataset)):
            item, target = dataset[index]
            ids: np.ndarray[Any, Any] = np.asarray(item)
            if ids.ndim != 1 or not 1 <= len(ids) <= self.max_tokens:
                raise ValueError(f"{name}[{index}]: token ids of shape {ids.shape} are not a row of 1 to {self.max_tokens}")
            if not np.issubdtype(ids.dtype, np.integer):
                raise ValueError(f"{name}[{index}]: token ids of type {ids.dtype} are not integers")
            outside = ids[(ids < 0) | (ids >= self.vocab_size)]
            if len(outside):
                raise ValueError(f"{name}[{index}]: token id {outside[0]} is not in 0 to {self.vocab_size - 1}")
            if int(target) != target or not 0 <= target < len(self.labels):
                raise ValueError(f"{name}[{index}]: class {target} is not in 0 to {len(self.labels) - 1}")
            yield ids.astype(np.int64), int(target)

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent."""
        train, validation = (self._bag_of_tokens(self._splits[split]) for split in ("train", "validation"))
        return {
            "majority class": majority_error(train[1], validation[1]),
            "bag of tokens, logistic regression": linear_error(train, validation),
        }

    def _bag_of_tokens(self, ragged: Ragged) -> tuple[Any, np.ndarray]:
        """How often each token occurs, sparse [N, vocab_size], as rows of norm 1; and the classes, [N]."""
        from scipy.sparse import csr_matrix
        from sklearn.preprocessing import normalize

        ones = np.ones(len(ragged.ids))
        counts = csr_matrix((ones, ragged.ids, ragged.offsets), shape=(len(ragged), self.vocab_size))
        counts.sum_duplicates()
        return normalize(counts), ragged.targets

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `labels.json`; the token ids are the user's."""
        save_labels(self.labels, folder)
