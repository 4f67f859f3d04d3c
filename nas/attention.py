"""Self-attention that is ordinary without masks and exact under one-hot masks, as `nas.layers` has it.

Shapes: B sequences, T tokens, D width, H heads, K channels of a head, C = H * K, G heads of keys and values, N kinds,
P patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nas.attention_kinds import (
    BLOCKED,
    AttentionKind,
    attention,
    block_attention,
    blocked_window_attention,
    interleaved,
    linear_attention,
    lowrank_attention,
    pattern,
    strided_attention,
    topk_attention,
)
from nas.layers import Linear, Width
from nas.mixed_attention import mixed_attention
from nas.rotary import Rotation
from nas.rounding import mixed_input, mixed_weight

Backend = Literal["matmul", "fused", "blocks"]
"""How attention is computed, never what: `matmul` writes it out (fastest in bfloat16 on a CPU, and what masks need), `fused`
calls `scaled_dot_product_attention`, `blocks` computes sparse kinds block by block (the form that is exported)."""

Hides = Literal["nothing", "padding", "shares"]
"""What a network's bias says beside what is causal: nothing, which tokens are padding, or for how much each counts."""

Cache = tuple[Tensor, Tensor]
"""Keys and values of earlier tokens, [B, G, past, K] each."""

PATTERNS: Mapping[str, Callable[..., Tensor]] = {
    "window": blocked_window_attention,
    "block": block_attention,
    "strided": strided_attention,
}
"""The forms that see a fixed pattern (see `pattern`), and how they are exported."""
LOOKS_AHEAD = ("linear", "lowrank")  # forms that cannot be causal


@dataclass(frozen=True)
class AttentionMasks:
    """A relaxed layer in a residual branch.

    Where there is a choice of heads of keys and values, what is mixed are weights, as for every size: the rows that make a query
    head's keys and values, before the softmax and not behind it. That is exact where it is decided, and else attention to the
    expected keys and values.
    """

    gate: Tensor  # P(there is one)
    kinds: Tensor  # [kinds, H]: P(there is one, of this kind and with a head h)
    kv: Tensor | None = None  # [H, G]: P(query head h sees head g of the keys and values), where there is a choice

    def given(self, gate: Tensor) -> AttentionMasks:
        """The same, given what has the probability `gate`."""
        return replace(self, gate=self.gate / gate, kinds=self.kinds / gate)


class Layout(NamedTuple):
    """Where the tokens of a relaxed network stand."""

    patterns: Tensor  # [P, T, T], or [P, B, 1, T, T] where sequences differ: of the kinds that have one, in their order
    places: Tensor | None = None  # [B, T, T]: P(the second token stands at the place of the first); None: each at its own


class Attention(nn.Module):
    """Multi-head self-attention with separate projections and a fixed head size, so that fewer heads are a prefix.

    Query head h sees head h mod `kv_heads` of the keys and values (grouped-query attention, arXiv:2305.13245), so that fewer of
    them are a prefix too. `full` attends to everything that the bias lets it see; `window`, `block` and `strided` inside their
    `pattern`; `topk`, `linear` and `lowrank` as their functions say.

    Args:
        kinds: a network has one; a supernet has those that `relaxed` mixes, in the order of `Form`, and acts as the first without
            masks. Of the `PATTERNS` there may be several, with a window each.
        kv_heads: a divisor of `heads`.
        max_tokens: the longest sequence that `lowrank` takes.
        hides: what the bias says, for a file in which the layer is one operator; None: it never is, its keys are read elsewhere
            too.
    """

    def __init__(
        self, width: int, heads: int, *, kv_heads: int, head_size: int, kinds: Sequence[AttentionKind],
        max_tokens: int, backend: Backend, causal: bool = False, hides: Hides | None = "padding",
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.kv_heads, self.shared, self.head_size = heads, kv_heads, heads // kv_heads, head_size
        self.kinds, self.kind = tuple(kinds), kinds[0]
        self.backend, self.causal, self.hides = backend, causal, hides
        self.query = Linear(width, heads * head_size)
        self.key = Linear(width, kv_heads * head_size)
        self.value = Linear(width, kv_heads * head_size)
        self.out = Linear(heads * head_size, width)
        self.windows = {kind.form: kind.window for kind in kinds}  # of forms that there is one of
        if "lowrank" in self.windows:
            self.shorten = nn.Parameter(interleaved(self.windows["lowrank"], max_tokens))

    def _split(self, x_BTC: Tensor) -> Tensor:
        B, T, _ = x_BTC.shape
        return x_BTC.view(B, T, -1, self.head_size).transpose(1, 2)

    def _join(self, x_BHTK: Tensor) -> Tensor:
        B, _, T, _ = x_BHTK.shape
        return x_BHTK.transpose(1, 2).reshape(B, T, self.heads * self.head_size)

    def _projected(self, x_BTD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self._split(project(x_BTD)) for project in (self.query, self.key, self.value))
        return *_turned(rotation, q, k), v

    def forward(self, x_BTD: Tensor, bias: Tensor, rotation: Rotation | None = None) -> Tensor:
        """`bias` is added to the scores: [B, 1, 1, T], or [B, 1, T, T] whose last row is that of the padding. A rotation turns
        queries and keys."""
        mixed_BTD: Tensor = self.out(self._join(self._attend(*self._projected(x_BTD, rotation), bias)))
        return mixed_BTD

    def cached(
        self, x_BTD: Tensor, bias: Tensor | None, past: Cache | None, rotation: Rotation | None
    ) -> tuple[Tensor, Cache]:  # fmt: skip
        """The same, and what later tokens need: the turned keys and the values so far, of a window the last W of them.

        Without a past, `bias` is that of `forward`. With one, x is a single token, which sees of the past and itself what its
        kind sees.
        """
        q, k, v = self._projected(x_BTD, rotation)
        if past is None:
            assert bias is not None
            out_BHTK = self._attend(q, k, v, bias)
        else:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
            out_BHTK = self._attend_last(q, k, v)
        form, W = self.kind
        if form == "window":
            k, v = k[:, :, -W:], v[:, :, -W:]
        mixed_BTD: Tensor = self.out(self._join(out_BHTK))
        return mixed_BTD, (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        form, W = self.kind
        if form == "full" and self.backend != "fused":
            return attention(q, k, v, bias, shared=self.shared)
        k, v = self._repeated(k), self._repeated(v)
        if form == "lowrank":
            return lowrank_attention(q, k, v, bias[:, :, -1:], self.shorten[:, : q.shape[2]])
        if form == "linear":
            return linear_attention(q, k, v, bias[:, :, -1:])
        if form == "topk":
            return topk_attention(q, k, v, bias, W)
        if form != "full" and self.backend == "blocks":
            return PATTERNS[form](q, k, v, bias[:, :, -1:], W, causal=self.causal)
        if form != "full":
            bias = bias + (1.0 - pattern(form, q.shape[2], W, bias, causal=self.causal)) * BLOCKED
        if self.backend == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return attention(q, k, v, bias)

    def _attend_last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of the last token alone."""
        (form, W), last = self.kind, k.shape[2] - 1
        if form == "topk":
            return topk_attention(q, self._repeated(k), self._repeated(v), None, W)
        if form == "block":
            begin = last - last % W  # of its block; before it, the first token
            k, v = (torch.cat([x[:, :, :begin][:, :, :1], x[:, :, begin:]], dim=2) for x in (k, v))
        if form == "strided":
            k, v = (x[:, :, last % W :: W] for x in (k, v))
        return attention(q, k, v, None, shared=self.shared)

    def _repeated(self, x_BGTK: Tensor) -> Tensor:
        return x_BGTK if self.shared == 1 else x_BGTK.repeat(1, self.shared, 1, 1)

    def relaxed(
        self, x_BTD: Tensor, bias: Tensor, layout: Layout, masks: AttentionMasks, width: Width,
        precisions: Mapping[str, Tensor], rotation: Rotation | None = None,
    ) -> Tensor:  # fmt: skip
        """The mixture over kinds of attention, which share q, k and v, over numbers of heads and over precisions, written to a
        stream of some width.

        Args:
            precisions: P(the linear maps are in one) of those but fp32, where there is a choice.
        """
        x_BTD = mixed_input(x_BTD, precisions, width.mask)
        readers = ((self.query, None), (self.key, masks.kv), (self.value, masks.kv))
        q, k, v = (self._split(_linear(x_BTD, *reader, width, precisions)) for reader in readers)
        q, k = _turned(rotation, q, k)
        scored = sum(form not in LOOKS_AHEAD for form, _ in self.kinds)
        weights_NH = masks.kinds[:scored] if "full" in self.windows else F.pad(masks.kinds[:scored], (0, 0, 1, 0))
        out = mixed_attention(q, k, v, bias, weights_NH, layout.patterns, top=self.windows.get("topk", 0))
        if scored < len(self.kinds):
            # computed again in the backward pass: what they make of q and k would double what is kept
            # the matrix is an argument, or it would be the module's own again
            shorten = self._shortened(x_BTD.shape[1], layout) if "lowrank" in self.windows else None
            others = (q, k, v, bias[:, :, -1:], masks.kinds[scored:, :, None, None], shorten)
            out = out + checkpoint(self._ahead, *others, use_reentrant=False, preserve_rng_state=False)
        joined_BTC, weight_DC = self._join(out), self.out.weight
        if precisions:
            heads_C = masks.kinds.sum(dim=0).repeat_interleave(self.head_size)
            joined_BTC, weight_DC = mixed_input(joined_BTC, precisions, heads_C), mixed_weight(weight_DC, precisions, heads_C)
        return width.write(joined_BTC, weight_DC, self.out.bias * masks.gate)

    def _shortened(self, num_tokens: int, layout: Layout) -> Tensor:
        """What makes mixtures of tokens that stand somewhere: [W, T], or [B, 1, W, T]."""
        shorten = self.shorten[:, :num_tokens]
        return shorten if layout.places is None else (shorten @ layout.places)[:, None]

    def _ahead(
        self, q: Tensor, k: Tensor, v: Tensor, padding_B11T: Tensor, weights: Tensor, shorten: Tensor | None
    ) -> Tensor:  # fmt: skip
        """The weighted sum of the kinds in `LOOKS_AHEAD`."""
        total = torch.zeros_like(v)
        for form, weight in zip((form for form, _ in self.kinds if form in LOOKS_AHEAD), weights, strict=True):
            if shorten is not None and form == "lowrank":
                total = total + weight * lowrank_attention(q, k, v, padding_B11T, shorten)
            else:
                total = total + weight * linear_attention(q, k, v, padding_B11T)
        return total

    def received(self, x_BTD: Tensor, bias_B11T: Tensor, masks: AttentionMasks | None = None) -> Tensor:
        """How much attention each token gets from the mean of all, [B, T], summed over the heads; the same for all kinds.

        Args:
            masks: of a relaxed layer in fp32.
        """
        weights_B1T = bias_B11T[:, 0].exp().to(x_BTD.dtype)
        q = self._split(self.query((weights_B1T / weights_B1T.sum(dim=-1, keepdim=True)) @ x_BTD))
        k = self._split(self.key(x_BTD) if masks is None else F.linear(x_BTD, *_weights(self.key, masks.kv)))
        scores = q.unflatten(1, (-1, k.shape[1])) @ k[:, None].transpose(-1, -2)
        probs_BHT = torch.softmax(scores + bias_B11T[:, None], dim=-1).flatten(1, 2)[:, :, 0]
        return probs_BHT.sum(dim=1) if masks is None else masks.kinds.sum(dim=0) @ probs_BHT


def _turned(rotation: Rotation | None, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return (q, k) if rotation is None else (rotation.turn(q), rotation.turn(k))


def _linear(x_BTD: Tensor, project: Linear, kv_HG: Tensor | None, width: Width, precisions: Mapping[str, Tensor]) -> Tensor:
    """Queries, or keys or values of all query heads."""
    weight, bias = _weights(project, kv_HG)
    return F.linear(x_BTD, mixed_weight(weight, precisions, width.mask), bias)


def _weights(project: Linear, kv_HG: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias; mixed rows of those of a projection to heads of keys or values."""
    if kv_HG is None:
        return project.weight, project.bias
    weight, bias = ((kv_HG @ p.view(kv_HG.shape[1], -1)).view(-1, *p.shape[1:]) for p in (project.weight, project.bias))
    return weight, bias
