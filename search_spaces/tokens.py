"""What families over token ids share: their inputs, and the cost of looking them up."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.encoding import Array
from nas.protocols import Operator
from nas.types import Workload


def example_tokens(workload: Workload, *, vocab_size: int, max_tokens: int) -> dict[str, Tensor]:
    """Random tokens without padding, by input name; the same for the same workload.

    Raises:
        ValueError: more tokens than positions.
    """
    if workload.tokens > max_tokens:
        raise ValueError(f"tokens: {workload.tokens} of the workload are more than max_tokens {max_tokens}")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (workload.batch, workload.tokens), generator=generator)
    return {"token_ids": ids, "attention_mask": torch.ones_like(ids)}


def embedding_operator(rows: int, tokens: int, width: Array) -> Operator:
    """Of so many rows of all tables together."""
    return Operator("embedding", 1.0, 0.0 * width, 8.0 * tokens * width, rows * width, 12.0 * tokens * width)
