"""What a task asks for: a class, a number, or a tag for each word. Loss, error, and the figures beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from experiments.tasks.ragged import Ragged
from nas.protocols import IGNORED, SPLITS, Batch

if TYPE_CHECKING:
    import torch


class Examples(Protocol):
    """One split."""

    def __len__(self) -> int: ...

    def batches(self, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]: ...


class Divided:
    """A task in four splits; a subclass sets the attributes."""

    name: str
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


class Classification(Divided):
    """One of `labels` for each example; targets are classes [B]."""

    error_means = "wrong answers"
    labels: tuple[str, ...]

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
    def sizes(self) -> dict[str, object]:
        return {"vocab_size": self.vocab_size, "num_classes": len(self.labels), "max_tokens": self.max_tokens}

    @property
    def interface(self) -> str:
        return (
            f"{tokens_in_words(self.max_tokens)}; `logits`, float32 [batch, {len(self.labels)}]. `labels.json` names the classes "
            "in the order of the logits."
        )


class Regression(Divided):
    """A number for each example; targets [B] and outputs [B, 1] are standardised with `mean` and `std` of `train`.

    The error of a network that always answers the mean of `train` is about 100 %; of `train` itself it is 100 (1 - R²).
    """

    error_means = "unexplained variance"
    mean: float
    std: float

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean squared difference of standardised numbers."""
        from torch.nn import functional as F

        return F.mse_loss(outputs[:, 0], targets)

    def error(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Sum of the squared differences: in percent of the examples, their mean in percent of the variance of `train`."""
        return float(((outputs[:, 0] - targets).double() ** 2).sum())

    def totals(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        off, asked = (outputs[:, 0] - targets).double(), targets.double()
        sums = {"square": off**2, "absolute": off.abs(), "targets": asked, "targets squared": asked**2}
        return {"examples": len(targets), **{name: float(values.sum()) for name, values in sums.items()}}

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """R² within the split (1 - R² is relative to its own variance), and errors in the number's own unit."""
        n = totals["examples"]
        variance = totals["targets squared"] / n - (totals["targets"] / n) ** 2
        return {
            "R²": 1 - totals["square"] / n / variance,
            "root mean square error": self.std * math.sqrt(totals["square"] / n),
            "mean absolute error": self.std * totals["absolute"] / n,
        }


class Tagging(Divided):
    """One of `labels` for each word; targets [B, T] are classes at the first token of a word and `IGNORED` elsewhere."""

    error_means = "wrong tags"
    labels: tuple[str, ...]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a word, in nats, of logits [B, T, number of classes]."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def error(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Sum over the examples of the share of their words whose largest logit is not at the tag."""
        asked = targets != IGNORED
        wrong = (outputs.argmax(dim=-1) != targets) & asked
        return float((wrong.sum(dim=-1).double() / asked.sum(dim=-1)).sum())

    def totals(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        asked = (targets != IGNORED).cpu().numpy()
        return dict(tag_counts(outputs.argmax(dim=-1).cpu().numpy()[asked], targets.cpu().numpy()[asked], len(self.labels)))

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Accuracy over all words alike, and the mean over the tags that occur of F1 = 2 right / (asked + answered)."""
        right, asked, answered = (
            np.array([totals.get(f"{what} {tag}", 0.0) for tag in range(len(self.labels))]) for what in TAG_COUNTS
        )
        f1 = 2 * right / np.maximum(asked + answered, 1)
        return {"accuracy of a word's tag": float(right.sum() / asked.sum()), "macro F1": float(f1[asked > 0].mean())}


TAG_COUNTS = ("right", "asked", "answered")


def tag_counts(answers: np.ndarray, targets: np.ndarray, num_labels: int) -> Counter[str]:
    """How often each tag was right, asked for and answered; both are classes of N words."""
    counts: Counter[str] = Counter()
    for what, classes in zip(TAG_COUNTS, (targets[answers == targets], targets, answers), strict=True):
        counts.update({f"{what} {tag}": int(n) for tag, n in enumerate(np.bincount(classes, minlength=num_labels))})
    return counts


def tokens_in_words(max_tokens: int) -> str:
    """What goes into a network of token ids."""
    return f"`token_ids` and `attention_mask`, int64 [batch, sequence] with at most {max_tokens} tokens"
