"""Answers that are known beforehand, or from the time before, as a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nas.protocols import Task


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


def can_remember(task: Task) -> bool:
    """Whether all answers to a task are few enough to be kept; of a language model there are as many as words, for each token."""
    return "num_classes" in task.sizes


class Remembering(nn.Module):
    """A teacher that is asked once for each example; shapes: B examples, T tokens, C classes.

    Args:
        teacher: gives logits [B, C] or [B, T, C], of an example the same whatever it is padded to.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.answers: dict[tuple[bytes, ...], Tensor] = {}

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the teacher gives, at padding zeros."""
        examples = list(zip(*(_examples(x) for x in inputs), strict=True))
        keys = [tuple(x.tobytes() for x in example) for example in examples]
        new = [row for row, key in enumerate(keys) if key not in self.answers]
        if new:
            found = self.teacher(*(x[new] for x in inputs))
            for row, answer in zip(new, found, strict=True):
                tokens = max(len(x) for x in examples[row])
                self.answers[keys[row]] = answer[:tokens].clone() if answer.dim() == 2 else answer
        answers = [self.answers[key] for key in keys]
        if answers[0].dim() == 1:
            return torch.stack(answers)
        answers_BTC = answers[0].new_zeros(len(answers), inputs[0].shape[1], answers[0].shape[1])
        for row_TC, answer in zip(answers_BTC, answers, strict=True):
            row_TC[: len(answer)] = answer
        return answers_BTC


def _examples(x: Tensor) -> list[np.ndarray]:
    """Each of a batch, without the zeros that end a sequence."""
    rows = x.cpu().numpy()
    if x.is_floating_point():
        return list(rows)
    ends = rows.shape[1] - (rows[:, ::-1] != 0).argmax(axis=1)
    return [row[:end] for row, end in zip(rows, ends.tolist(), strict=True)]


def _key(ids: np.ndarray) -> bytes:
    return np.asarray(ids, dtype=np.int64).tobytes()
