"""Answers that are known beforehand, as a teacher."""

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


def _key(ids: np.ndarray) -> bytes:
    return np.asarray(ids, dtype=np.int64).tobytes()
