"""What tasks with one class an example share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from experiments.tasks.ragged import Ragged
from nas.protocols import SPLITS, Batch

if TYPE_CHECKING:
    import torch


class Examples(Protocol):
    """One split."""

    def __len__(self) -> int: ...

    def batches(self, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]: ...


class Classification:
    """Loss, error and batches; a subclass says what the examples are.

    It sets `name`, `labels`, `max_tokens`, `fingerprint` and `_splits`, and defines `sizes`, `interface`, `trivial_baselines` and
    `save_preprocessing` (see `nas.protocols.Task`).
    """

    name: str
    labels: tuple[str, ...]
    max_tokens: int
    fingerprint: str
    _splits: Mapping[str, Examples]

    def split(self, split: str) -> Examples:
        """Raises ValueError for a split that does not exist."""
        if split not in self._splits:
            raise ValueError(f"split: {split!r} is not one of {SPLITS}")
        return self._splits[split]

    def num_examples(self, split: str) -> int:
        return len(self.split(split))

    def batches(self, split: str, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]:
        return self.split(split).batches(tokens_per_batch=tokens_per_batch, seed=seed)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the batch, in nats, of logits [B, number of classes] and classes [B]."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets)

    def error(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """How many of the largest logits, [B, number of classes], are not at the class, [B]."""
        return float((outputs.argmax(dim=-1) != targets).sum())


class TokenClassification(Classification):
    """Examples that are token ids."""

    vocab_size: int
    _splits: Mapping[str, Ragged]

    @property
    def sizes(self) -> dict[str, int]:
        return {"vocab_size": self.vocab_size, "num_classes": len(self.labels), "max_tokens": self.max_tokens}

    @property
    def interface(self) -> str:
        return (
            f"`token_ids` and `attention_mask`, int64 [batch, sequence] with at most {self.max_tokens} tokens; `logits`, float32 "
            f"[batch, {len(self.labels)}]. `labels.json` names the classes in the order of the logits."
        )
