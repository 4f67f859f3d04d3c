"""Answers that are known beforehand, or from the time before, as a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Remembered(nn.Module):
    """Logits of token sequences, looked up; shapes: N known sequences, B of a batch, T tokens, C classes.

    Args:
        name: of what has answered.
        sequences: token ids of each, without padding; of equal ones the last counts.
        logits: [N, C].
    """

    def __init__(self, name: str, sequences: Sequence[np.ndarray], logits: np.ndarray) -> None:
        super().__init__()
        self.name = name
        self.rows = {_key(ids): row for row, ids in enumerate(sequences)}
        self.register_buffer("logits_NC", torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, token_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """[B, C]. Raises KeyError for a sequence that is not known."""
        kept = zip(token_ids_BT.cpu().numpy(), attention_mask_BT.cpu().numpy() > 0, strict=True)
        logits_NC: Tensor = self.logits_NC  # type: ignore[assignment]
        return logits_NC[[self.rows[_key(ids[mask])] for ids, mask in kept]]


class Remembering(nn.Module):
    """A teacher that is asked once for each example; shapes: B examples, C classes.

    Args:
        teacher: gives logits [B, C], of an example the same whatever it is padded to; answers of tokens are not remembered.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher, self.is_of_tokens = teacher, False
        self.answers: dict[tuple[bytes, ...], Tensor] = {}

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the teacher gives."""
        if self.is_of_tokens:
            return self.teacher(*inputs)  # type: ignore[no-any-return]
        keys = list(zip(*(_bytes_of(x) for x in inputs), strict=True))
        new = [row for row, key in enumerate(keys) if key not in self.answers]
        if new:
            found = self.teacher(*(x[new] for x in inputs))
            self.is_of_tokens = found.dim() != 2
            if self.is_of_tokens:
                return found  # type: ignore[no-any-return]
            self.answers.update((keys[row], answer) for row, answer in zip(new, found, strict=True))
        return torch.stack([self.answers[key] for key in keys])


def _bytes_of(x: Tensor) -> list[bytes]:
    """Of each example, without the zeros that end a sequence."""
    rows = x.cpu().numpy()
    if x.is_floating_point():
        return [row.tobytes() for row in rows]
    ends = rows.shape[1] - (rows[:, ::-1] != 0).argmax(axis=1)
    return [row[:end].tobytes() for row, end in zip(rows, ends.tolist(), strict=True)]


def _key(ids: np.ndarray) -> bytes:
    return np.asarray(ids, dtype=np.int64).tobytes()
