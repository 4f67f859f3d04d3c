"""Batches: of sequences of token ids of different lengths, and of examples that are all alike.

Shapes: N examples, B examples of a batch, T tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from nas.protocols import IGNORED, Batch

PAD_ID = 0
POOL_BATCHES = 32  # shuffled examples are sorted by length within pools of about so many batches


@dataclass(frozen=True, eq=False)
class Ragged:
    """`ids` are all sequences in one row, `offsets` [N + 1] where each begins and the last ends, `targets` [N] their answers."""

    ids: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int] | np.ndarray], targets: Sequence[int] | np.ndarray) -> Self:
        """`sequences` are N lists of ids, none of them empty; `targets` are classes or, as floats, numbers."""
        lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
        assert np.all(lengths > 0), "an empty sequence has no mean over its tokens"
        ids = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]), np.asarray(targets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sequences(self) -> list[np.ndarray]:
        """The ids of each, N of them."""
        return np.split(self.ids, self.offsets[1:-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sequence, [N]."""
        return np.diff(self.offsets)

    def batches(self, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]:
        """Every example once, with others of about its length, padded to the longest of the batch.

        With a seed, examples and batches are shuffled by it alone; with None they come in ascending order of length. A batch
        holds at most `tokens_per_batch` tokens, padding included.

        Raises:
            ValueError: the longest example is longer than a batch.
        """
        longest = int(self.lengths.max())
        if tokens_per_batch < longest:
            raise ValueError(f"tokens_per_batch: {tokens_per_batch} is less than the {longest} tokens of the longest example")
        if seed is None:
            groups = self._groups(np.arange(len(self)), tokens_per_batch)
        else:
            rng = np.random.default_rng(seed)
            shuffled = rng.permutation(len(self))
            pool = int(POOL_BATCHES * tokens_per_batch / self.lengths.mean())
            sorted_groups = [
                group
                for start in range(0, len(self), pool)
                for group in self._groups(shuffled[start : start + pool], tokens_per_batch)
            ]
            groups = [sorted_groups[i] for i in rng.permutation(len(sorted_groups))]
        return (self._batch(group) for group in groups)

    def _groups(self, indices: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
        """Sorts examples by length and cuts them into batches, each as large as its padded size allows."""
        order = indices[np.argsort(self.lengths[indices], kind="stable")]
        lengths = self.lengths[order]
        groups = []
        start = 0
        while start < len(order):
            candidates = lengths[start : start + tokens_per_batch // lengths[start]]
            padded_tokens = candidates * np.arange(1, len(candidates) + 1)
            end = start + int(np.searchsorted(padded_tokens, tokens_per_batch, side="right"))
            groups.append(order[start:end])
            start = end
        return groups

    def _batch(self, indices: np.ndarray) -> Batch:
        import torch

        lengths_B1 = self.lengths[indices][:, None]
        position_T = np.arange(lengths_B1.max())
        mask_BT = position_T < lengths_B1
        source_BT = self.offsets[indices][:, None] + np.minimum(position_T, lengths_B1 - 1)
        token_ids_BT = np.where(mask_BT, self.ids[source_BT], PAD_ID)
        inputs = (torch.from_numpy(token_ids_BT), torch.from_numpy(mask_BT.astype(np.int64)))
        return Batch(inputs, torch.from_numpy(self._targets(indices, source_BT, mask_BT)))

    def _targets(self, indices: np.ndarray, source_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        targets: np.ndarray = self.targets[indices]
        return targets


class RaggedTags(Ragged):
    """The same with an answer for each token: `targets` are as many as `ids`."""

    def _targets(self, indices: np.ndarray, source_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        return np.where(mask_BT, self.targets[source_BT], IGNORED)


def equal_groups(num_examples: int, *, tokens: int, tokens_per_batch: int, seed: int | None) -> Iterator[np.ndarray]:
    """Indices of examples that all count as so many tokens, batch by batch, each example once.

    With a seed they are shuffled by it alone, with None in order.

    Raises:
        ValueError: an example counts as more tokens than a batch.
    """
    if tokens_per_batch < tokens:
        raise ValueError(f"tokens_per_batch: {tokens_per_batch} is less than the {tokens} tokens of an example")
    order = np.arange(num_examples) if seed is None else np.random.default_rng(seed).permutation(num_examples)
    size = tokens_per_batch // tokens
    return (order[start : start + size] for start in range(0, num_examples, size))
