"""What matters first: a smaller network is a prefix of the largest one, so heads, neurons and channels of trained weights are
sorted by importance. The largest network computes the same in any order. Layers stay in theirs.

Importance is the magnitude of weights, as Once-for-all sorts channels before it shrinks them (arXiv:1908.09791, section 3; there
by the L1 norm of one matrix). Heads and neurons are sorted by the norm of the weights that write them times that of those that
read them. A channel of a post-norm stream is what norms wrote, w times something of variance 1, plus b: channels are sorted by
the sum of w^2 + b^2. (Of MiniLM without training, the first 288 of 384 channels keep the similarities of 16 sentences with a
correlation of 0.57 so, 0.47 in the checkpoint's order, and 0.2 by the norms of the matrices that write and read them.)

Channels of a pre-norm stream stay in their order. Of byte-level decoders with 4 layers of width 128, trained for 600 steps and
then cut, in bits per byte:

| decoder | whole | 112 channels as trained | sorted as neurons | 3 of 4 heads as trained | sorted | 192 of 384 neurons | sorted |
|---|---|---|---|---|---|---|---|
| like GPT-2 | 2.50 | 2.93 | 3.40 | 2.79 | 2.63 | 2.98 | 2.76 |
| like Llama | 2.04 | 2.54 | 2.70 | 2.62 | 2.31 | 2.60 | 2.19 |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

STREAM_COLUMNS = re.compile(r"((^|\.)(embedding|positions|query|key|value|up|gate|classifier))\.weight$")
STREAM_ROWS = re.compile(r"(norm|attention\.out|ffn\.down)\.(weight|bias)$")


def blocks(names: Mapping[str, Any]) -> list[str]:
    """stack.blocks.0, stack.blocks.1, …"""
    found = {match[0] for name in names if (match := re.match(r"stack\.blocks\.\d+", name))}
    return sorted(found, key=lambda name: int(name.rpartition(".")[2]))


def sort_by_importance(weights: Mapping[str, Tensor], *, head_size: int, pre_norm: bool) -> dict[str, Tensor]:
    """The same network with its heads, its neurons and, in a post-norm stream, its channels in descending order of importance."""
    result = dict(weights)
    for block in blocks(result):
        written, read = result[f"{block}.ffn.up.weight"].norm(dim=1), result[f"{block}.ffn.down.weight"].norm(dim=0)
        rows = (f"{block}.ffn.{part}.{kind}" for part in ("up", "gate") for kind in ("weight", "bias"))
        reorder(result, _descending(written * read), {**dict.fromkeys(rows, 0), f"{block}.ffn.down.weight": 1})
        sort_heads(result, block, head_size)
    if not pre_norm:
        second_moment = torch.stack([tensor.square() for name, tensor in result.items() if "norm." in name]).sum(dim=0)
        reorder(result, _descending(second_moment), {n: axis for n in result if (axis := _stream_axis(n)) is not None})
    return result


def sort_heads(weights: dict[str, Tensor], block: str, head_size: int) -> None:
    """Heads of keys and values with their queries, and among those that share them each query.

    Query head h sees head h mod G of the keys and values, so query heads form a matrix [shared, G].
    """
    value, out = weights[f"{block}.attention.value.weight"], weights[f"{block}.attention.out.weight"]
    written_G = value.unflatten(0, (-1, head_size)).norm(dim=(1, 2))
    read_H = out.unflatten(1, (-1, head_size)).norm(dim=(0, 2))
    importance = written_G * read_H.view(-1, len(written_G))
    others = _descending(importance.sum(dim=0))
    queries = (_descending(importance) * len(written_G) + torch.arange(len(written_G)))[:, others]
    reorder_heads(weights, block, queries.flatten(), others, head_size)


def reorder_heads(weights: dict[str, Tensor], block: str, queries: Tensor, others: Tensor, head_size: int) -> None:
    """Puts heads of queries, and others of keys and values, into the given orders."""

    def channels(heads: Tensor) -> Tensor:
        return (heads[:, None] * head_size + torch.arange(head_size)).flatten()

    def rows(*parts: str) -> dict[str, int]:
        return {f"{block}.attention.{part}.{kind}": 0 for part in parts for kind in ("weight", "bias")}

    reorder(weights, channels(queries), {**rows("query"), f"{block}.attention.out.weight": 1})
    reorder(weights, channels(others), rows("key", "value"))


def reorder(weights: dict[str, Tensor], order: Tensor, axes: Mapping[str, int]) -> None:
    """Along an axis of each of these weights, where they exist."""
    for name, axis in axes.items():
        if name in weights:
            weights[name] = weights[name].index_select(axis, order)


def _descending(importance: Tensor) -> Tensor:
    return importance.argsort(dim=0, descending=True, stable=True)


def _stream_axis(name: str) -> int | None:
    """Which axis of a parameter is the residual stream."""
    if STREAM_ROWS.search(name):
        return 0
    return 1 if STREAM_COLUMNS.search(name) else None
