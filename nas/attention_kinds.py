"""Kinds of attention as functions of queries, keys and values.

Shapes: B sequences, T tokens, H heads, K channels of a head, W window, N blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKED = -1e4  # added to a score, it leaves no weight after the softmax in any precision


def padding_bias(attention_mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, T] with 0 for a token and `BLOCKED` for padding."""
    return (1.0 - attention_mask_BT[:, None, None, :].to(dtype)) * BLOCKED


def causal_bias(num_tokens: int, like: Tensor) -> Tensor:
    """[T, T] with 0 where a query may look, at itself and what came before, and `BLOCKED` elsewhere."""
    return like.new_full((num_tokens, num_tokens), BLOCKED).triu(1)


def inside_window(num_tokens: int, window: int, like: Tensor, *, causal: bool = False) -> Tensor:
    """[T, T] with 1 where a window reaches and 0 elsewhere, in the type and on the device of `like`.

    It reaches |i - j| <= window, and 0 <= i - j <= window if it is causal.
    """
    position = torch.arange(num_tokens, device=like.device)
    distance = position[:, None] - position[None, :]
    return ((distance.abs() <= window) & ((distance >= 0) | (not causal))).to(like.dtype)


def blocked_window_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor, window: int, *, causal: bool = False
) -> Tensor:
    """Attention inside a window (see `inside_window`) whose cost is linear in T: a block of W queries sees 3 W keys, or 2 W if it
    is causal; q is scaled. The padding may be [1, 1, 1, T], the same for all.

    Longformer's sliding chunks (arXiv:2004.05150, section 3.1) with blocks of the window's size. Any T, also under tracing.
    """
    B, H, T, K = q_BHTK.shape
    W = window
    tail = (-T) % W
    q_BHNWK = F.pad(q_BHTK, (0, 0, 0, tail)).reshape(B, H, -1, W, K)

    after = 0 if causal else W

    def neighbours(blocks: Tensor, dim: int) -> Tensor:
        parts = [blocks[:, :, :-1], blocks[:, :, 1:]] if causal else [blocks[:, :, :-2], blocks[:, :, 1:-1], blocks[:, :, 2:]]
        return torch.cat(parts, dim=dim)

    def neighbourhood(x_BHTK: Tensor) -> Tensor:
        return neighbours(F.pad(x_BHTK, (0, 0, W, after + tail)).reshape(B, H, -1, W, K), 3)

    key_bias = neighbours(F.pad(padding_B11T, (W, after + tail), value=BLOCKED).reshape(padding_B11T.shape[0], 1, -1, 1, W), 4)
    query = torch.arange(W, device=q_BHTK.device)[:, None]
    key = torch.arange(2 * W + after, device=q_BHTK.device)[None, :] - W
    outside = (query - key > W) | (key > query) if causal else (key - query).abs() > W
    band = outside.to(q_BHTK.dtype) * BLOCKED
    scores = q_BHNWK @ neighbourhood(k_BHTK).transpose(-1, -2) + (key_bias + band)
    out_BHNWK = torch.softmax(scores, dim=-1) @ neighbourhood(v_BHTK)
    return out_BHNWK.reshape(B, H, -1, K)[:, :, :T]


def linear_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor) -> Tensor:
    """Attention with elu(x) + 1 of queries and keys in the place of the softmax (arXiv:2006.16236): linear in T, not causal."""
    kept_B1T1 = (padding_B11T > BLOCKED / 2).to(q_BHTK.dtype).transpose(-1, -2)
    q_BHTK, k_BHTK = F.elu(q_BHTK) + 1.0, (F.elu(k_BHTK) + 1.0) * kept_B1T1
    total_BHK1 = k_BHTK.sum(dim=2, keepdim=True).transpose(-1, -2)
    return (q_BHTK @ (k_BHTK.transpose(-1, -2) @ v_BHTK)) / (q_BHTK @ total_BHK1)
