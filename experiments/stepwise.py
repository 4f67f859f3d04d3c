"""Whether a decoder's files say token by token what its network says of whole texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from nas.export import equal_decisions, largest_difference
from nas.formats import open_session

SEQUENCES = 16


def compare_steps(network: nn.Module, prefill: Path, decode: Path, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Largest absolute difference of a logit and share of equal decisions, over all tokens that the files answer.

    They read the first texts of a batch, each token of the text whatever was answered before it: once all of it by `decode`, as
    `predict.py` does, and once the first half by `prefill` and the rest by `decode`.

    Args:
        inputs: `token_ids` and `attention_mask` [B, T]; texts that are padded are left out.
    """
    full = inputs["attention_mask"].bool().all(dim=1)
    ids = inputs["token_ids"][full][:SEQUENCES]
    with torch.no_grad():
        expected_BTV = network(ids, torch.ones_like(ids)).numpy()
    tokens, half = ids.numpy(), ids.shape[1] // 2
    difference, equal = 0.0, []
    for position, logits_BV in _answers(open_session(prefill), open_session(decode), tokens, half):
        expected_BV = expected_BTV[:, position]
        difference = max(difference, largest_difference(logits_BV, expected_BV))
        equal.append(equal_decisions(logits_BV, expected_BV))
    decisions = np.concatenate(equal)
    return {
        "num_sequences": len(tokens),
        "num_tokens": len(decisions),
        "max_abs_difference": difference,
        "equal_decisions": float(decisions.mean()),
    }


def _answers(
    prefill: onnxruntime.InferenceSession, decode: onnxruntime.InferenceSession, ids_BT: np.ndarray, half: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Positions, and the logits [B, V] of the token after each."""
    caches = [node for node in decode.get_inputs() if node.name.startswith("past_key_values.")]
    empty = [np.zeros((len(ids_BT), node.shape[1], 0, node.shape[3]), np.float32) for node in caches]
    yield from _decoded(decode, [node.name for node in caches], ids_BT, 0, empty)
    if half:
        logits_B1V, *past = prefill.run(None, {"token_ids": ids_BT[:, :half]})
        yield half - 1, logits_B1V[:, 0]
        yield from _decoded(decode, [node.name for node in caches], ids_BT, half, past)


def _decoded(
    decode: onnxruntime.InferenceSession, caches: Sequence[str], ids_BT: np.ndarray, begin: int, past: Sequence[np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    for position in range(begin, ids_BT.shape[1]):
        feed = {"token_ids": ids_BT[:, position : position + 1], "position_ids": np.full((len(ids_BT), 1), position)}
        logits_B1V, *past = decode.run(None, {**feed, **dict(zip(caches, past, strict=True))})
        yield position, logits_B1V[:, 0]
