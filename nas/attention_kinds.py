"""Kinds of attention as functions of queries, keys and values.

Shapes: B sequences, T tokens, H heads, K channels of a head, W window, N blocks or tokens of a class, S keys, G heads of keys.

Each sparse kind has a number, the window W: how far a query sees, or how many. They take any T, also under tracing, and what
they compute is what is exported: blocks and gathered rows, never a mask over full attention.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKED = -1e4  # added to a score, it leaves no weight after the softmax in any precision

Form = Literal["full", "window", "block", "strided", "topk", "linear", "lowrank"]


class AttentionKind(NamedTuple):
    """What a layer's queries see."""

    form: Form
    window: int  # W; full and linear attention do not look at it


def padding_bias(attention_mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, T] with 0 for a token and `BLOCKED` for padding."""
    return (1.0 - attention_mask_BT[:, None, None, :].to(dtype)) * BLOCKED


def causal_bias(num_tokens: int, like: Tensor) -> Tensor:
    """[T, T] with 0 where a query may look, at itself and what came before, and `BLOCKED` elsewhere."""
    return like.new_full((num_tokens, num_tokens), BLOCKED).triu(1)


def pattern(kind: str, num_tokens: int, window: int, like: Tensor, *, causal: bool) -> Tensor:
    """What a kind of attention sees by its definition: [T, T] with 1 where query i looks at key j and 0 elsewhere, in the type
    and on the device of `like`; if it is causal only where j <= i.

    `window`: |i - j| <= W. `block`: both in one block of W tokens, or one of them is the first token (Longformer's global token,
    arXiv:2004.05150, beside BigBird's blocks, arXiv:2007.14062). `strided`: i - j is a multiple of W (Sparse Transformer,
    arXiv:1904.10509, section 4.2).
    """
    return pattern_at(kind, torch.arange(num_tokens, device=like.device), window, like, causal=causal)


def pattern_at(kind: str, places: Tensor, window: int, like: Tensor, *, causal: bool) -> Tensor:
    """The same of tokens that stand at other places than their own, [..., T]: [..., T, T]."""
    query, key = places[..., :, None], places[..., None, :]
    if kind == "window":
        seen = (query - key).abs() <= window
    elif kind == "block":
        seen = (query // window == key // window) | (query == 0) | (key == 0)
    else:
        seen = (query - key) % window == 0
    return (seen & ((key <= query) | (not causal))).to(like.dtype)


def attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, bias: Tensor | None, *, shared: int = 1) -> Tensor:
    """Of T queries to S keys, written out; query head h sees head h mod G of the keys, which `shared` = H / G heads share.

    The bias is [B, 1, 1 or T, S]; q is scaled, here and in the kinds below.
    """
    if shared > 1:  # one more axis, over which keys and values are broadcast: nothing is copied
        q_BHTK, k_BGSK, v_BGSK = q_BHTK.unflatten(1, (shared, -1)), k_BGSK[:, None], v_BGSK[:, None]
        bias = None if bias is None else bias[:, None]
    scores = q_BHTK @ k_BGSK.transpose(-1, -2)
    out_BHTK = torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v_BGSK
    return out_BHTK.flatten(1, 2) if shared > 1 else out_BHTK


def blocked_window_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor, window: int, *, causal: bool = False
) -> Tensor:
    """Attention inside a window (see `pattern`) whose cost is linear in T: a block of W queries sees 3 W keys, or 2 W if it
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


def block_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor, window: int, *, causal: bool = False
) -> Tensor:
    """Attention inside blocks of W tokens and with the first token (see `pattern`): a block sees its W keys and one more."""
    (B, H, T, K), W = q_BHTK.shape, window
    tail = (-T) % W

    def blocks(x_BHTK: Tensor) -> Tensor:
        return F.pad(x_BHTK, (0, 0, 0, tail)).reshape(B, H, -1, W, K)

    q_BHNWK = blocks(q_BHTK)
    N = q_BHNWK.shape[2]

    def with_first(x_BHTK: Tensor) -> Tensor:
        return torch.cat([x_BHTK[:, :, :1, None].expand(-1, -1, N, -1, -1), blocks(x_BHTK)], dim=3)

    own = F.pad(padding_B11T, (0, tail), value=BLOCKED).reshape(padding_B11T.shape[0], 1, -1, 1, W)
    twice = (torch.arange(N, device=own.device) == 0).to(own.dtype)[:, None, None] * BLOCKED  # the first block holds it itself
    bias = torch.cat([padding_B11T[:, :, :, :1, None] + twice, own], dim=-1)
    if causal:
        bias = bias + F.pad(causal_bias(W, own), (1, 0))
    scores = q_BHNWK @ with_first(k_BHTK).transpose(-1, -2) + bias
    out_BHTK = (torch.softmax(scores, dim=-1) @ with_first(v_BHTK)).reshape(B, H, -1, K)[:, :, :T]
    if causal:
        return out_BHTK
    return torch.cat([attention(q_BHTK[:, :, :1], k_BHTK, v_BHTK, padding_B11T), out_BHTK[:, :, 1:]], dim=2)


def strided_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor, window: int, *, causal: bool = False
) -> Tensor:
    """Attention among every W-th token (see `pattern`): full attention of W sequences of T / W tokens."""
    (B, H, T, K), W = q_BHTK.shape, window
    tail = (-T) % W

    def classes(x_BHTK: Tensor) -> Tensor:
        return F.pad(x_BHTK, (0, 0, 0, tail)).reshape(B, H, -1, W, K).transpose(2, 3)

    q_BHWNK, k_BHWNK, v_BHWNK = map(classes, (q_BHTK, k_BHTK, v_BHTK))
    padding = F.pad(padding_B11T, (0, tail), value=BLOCKED).reshape(padding_B11T.shape[0], 1, -1, W)
    bias = padding.transpose(2, 3)[:, :, :, None]
    if causal:
        bias = bias + causal_bias(q_BHWNK.shape[3], bias)
    out_BHWNK = torch.softmax(q_BHWNK @ k_BHWNK.transpose(-1, -2) + bias, dim=-1) @ v_BHWNK
    return out_BHWNK.transpose(2, 3).reshape(B, H, -1, K)[:, :, :T]


def topk_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None, window: int) -> Tensor:
    """Attention to the W keys with the largest scores (Explicit Sparse Transformer, arXiv:1912.11637).

    All scores are computed, and finding the largest costs more than the product with all the values that it saves: on a CPU it is
    slower than full attention at any length.
    """
    (B, H, _, K), S = q_BHTK.shape, k_BHSK.shape[2]
    scores = q_BHTK @ k_BHSK.transpose(-1, -2)
    kept = min(window, S) if isinstance(S, int) else S.clamp(max=window)  # a traced size is a tensor
    largest_BHTW, key_BHTW = (scores if bias is None else scores + bias).topk(kept, dim=-1, sorted=False)
    row = torch.arange(B * H, device=key_BHTW.device).reshape(B, H, 1, 1) * S + key_BHTW
    values_BHTWK = v_BHSK.reshape(-1, K).index_select(0, row.flatten()).reshape(*row.shape, K)
    return (torch.softmax(largest_BHTW, dim=-1)[..., None, :] @ values_BHTWK).squeeze(-2)


def lowrank_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor, shorten_RT: Tensor) -> Tensor:
    """Attention to R mixtures of all the tokens' keys and values (Linformer, arXiv:2006.04768, with one matrix for the heads,
    keys and values of a layer): linear in T, not causal. The matrix is [R, T], or [B, 1, R, T]."""
    kept_B1T1 = padding_B11T.exp().to(q_BHTK.dtype).transpose(-1, -2)
    return attention(q_BHTK, shorten_RT @ (k_BHTK * kept_B1T1), shorten_RT @ (v_BHTK * kept_B1T1), None)


def interleaved(num_mixtures: int, num_tokens: int) -> Tensor:
    """What `lowrank_attention` begins with: in each mixture every R-th token, [R, T], so that a short sequence is in all of them,
    and with weights that make a mixture of the longest about as long as one token's keys and values. (Random weights, as in the
    paper, are noise that a short training does not get rid of: 35.9 % error instead of 31.1 with one layer, 42.4 instead of 34.4
    with two, after 250 steps on `languages`.)"""
    own_RT = torch.arange(num_tokens) % num_mixtures == torch.arange(num_mixtures)[:, None]
    longest = max(1.0, num_tokens / num_mixtures)  # tokens of a mixture
    return own_RT.to(torch.get_default_dtype()) / math.sqrt(longest)


def linear_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, padding_B11T: Tensor) -> Tensor:
    """Attention with elu(x) + 1 of queries and keys in the place of the softmax (arXiv:2006.16236): linear in T, not causal."""
    kept_B1T1 = padding_B11T.exp().to(q_BHTK.dtype).transpose(-1, -2)
    q_BHTK, k_BHTK = F.elu(q_BHTK) + 1.0, (F.elu(k_BHTK) + 1.0) * kept_B1T1
    total_BHK1 = k_BHTK.sum(dim=2, keepdim=True).transpose(-1, -2)
    return (q_BHTK @ (k_BHTK.transpose(-1, -2) @ v_BHTK)) / (q_BHTK @ total_BHK1)
