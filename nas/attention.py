"""Self-attention that is ordinary without masks and exact under one-hot masks, as `nas.layers` has it.

Shapes: B sequences, T tokens, D width, H heads, K channels of a head, C = H * K, G heads of keys and values, P patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nas.attention_kinds import (
    BLOCKED,
    attention,
    block_attention,
    blocked_window_attention,
    linear_attention,
    lowrank_attention,
    pattern,
    strided_attention,
    topk_attention,
)
from nas.layers import Linear, Width
from nas.rotary import Rotation
from nas.twice import again

Backend = Literal["matmul", "fused", "blocks"]
"""How attention is computed, never what: `matmul` writes it out (fastest in bfloat16 on a CPU, and what masks need), `fused`
calls `scaled_dot_product_attention`, `blocks` computes sparse kinds block by block (the form that is exported)."""

Cache = tuple[Tensor, Tensor]
"""Keys and values of earlier tokens, [B, G, past, K] each."""

CACHE_BYTES = 1 << 19  # of one buffer: a few of them fit a core's second-level cache


def _blocks(rows: int, row_bytes: int, device: torch.device) -> list[slice]:
    """Slices of the rows, each of about `CACHE_BYTES`; on a GPU, one.

    On a CPU a pass over a buffer that has left the cache costs three times as much, so all is done to a few rows at a time.
    """
    step = max(1, CACHE_BYTES // row_bytes) if device.type == "cpu" else rows
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


class _MixedAttention(torch.autograd.Function):
    """A weighted sum, for weights that may be anything, of full attention, of attention inside each of some patterns and, unless
    `top` is 0, of attention to the `top` largest scores; of a scaled q.

    All kinds are one attention P whose probabilities are scaled: kind k has P M_k / s_k, where M_k is 1 for what it sees and s_k
    the sum of P M_k. So the probabilities of the sum are P C, C = sum_k w_k M_k / s_k, and with G the gradient of the loss by
    them, d_k = sum(G P M_k) / s_k is the one by a weight (of a query) and P (G C - sum_k d_k w_k M_k / s_k) the one by a score.
    Only P is kept, so the peak memory is that of one plain attention. A query that sees nothing but padding gives zero.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights: Tensor, patterns_PTT: Tensor, top: int
    ) -> Tensor:
        of_full, *of_others = weights.tolist()  # plain numbers take the vectorised path
        B, H, T, _ = q.shape
        with torch.autocast(q.device.type, enabled=False):
            probs, out = patterns_PTT.new_empty(B, H, T, T), torch.empty_like(v)
            totals = patterns_PTT.new_empty(len(of_others), B, H, T, 1)
            least = patterns_PTT.new_empty(B, H, T, 1) if top else None
            for rows in _blocks(B, H * T * T * probs.element_size(), q.device):
                scores = (q[rows] @ k[rows].transpose(-1, -2)).to(probs.dtype).add_(bias[rows])
                torch.softmax(scores, dim=-1, out=probs[rows])
                if least is not None:
                    least[rows] = probs[rows].topk(min(top, T), dim=-1, sorted=False)[0].amin(dim=-1, keepdim=True)
                mixed, part = torch.mul(probs[rows], of_full, out=scores), torch.empty_like(scores)
                for seen, weight, total in zip(_seen(probs, least, patterns_PTT, rows), of_others, totals[:, rows], strict=True):
                    torch.mul(probs[rows], seen, out=part)
                    torch.sum(part, dim=-1, keepdim=True, out=total).clamp_min_(1e-30)
                    mixed.addcmul_(part, weight / total)
                out[rows] = mixed.to(v.dtype) @ v[rows]
            ctx.save_for_backward(q, k, v, bias, weights, patterns_PTT, probs, totals, least)
            ctx.top = top
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, weights, patterns_PTT, all_probs, totals, least = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_mixed_plainly, (q, k, v, bias, weights, patterns_PTT, ctx.top), ctx.needs_input_grad, grad)
        of_full, *of_others = weights.tolist()
        B, H, T, _ = q.shape
        with torch.autocast(grad.device.type, enabled=False):
            grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
            grad_weights = torch.zeros_like(weights)
            grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
            for rows in _blocks(B, H * T * T * all_probs.element_size(), q.device):
                probs, above = all_probs[rows], grad[rows]
                by_probs = (above @ v[rows].transpose(-1, -2)).to(probs.dtype).mul_(probs)
                by_weight = by_probs.sum(dim=-1, keepdim=True)
                grad_weights[0] += by_weight.sum()
                scale, mean, part = probs.new_tensor(of_full), by_weight * of_full, torch.empty_like(probs)
                others = zip(_seen(all_probs, least, patterns_PTT, rows), of_others, totals[:, rows], strict=True)
                for kind, (seen, weight, total) in enumerate(others, start=1):
                    by_weight = torch.mul(by_probs, seen, out=part).sum(dim=-1, keepdim=True).div_(total)
                    grad_weights[kind] += by_weight.sum()
                    scale = torch.addcmul(scale, seen, weight / total)
                    mean = torch.addcmul(mean, seen, by_weight * weight / total)
                grad_scores = by_probs.mul_(scale).sub_(torch.mul(probs, mean, out=part))
                if grad_bias is not None:
                    grad_bias[rows] = grad_scores.sum_to_size(grad_bias[rows].shape)
                grad_scores = grad_scores.to(q.dtype)
                grad_v[rows] = (scale * probs).to(above.dtype).transpose(-1, -2) @ above
                grad_q[rows] = grad_scores @ k[rows]
                grad_k[rows] = grad_scores.transpose(-1, -2) @ q[rows]
        return grad_q, grad_k, grad_v, grad_bias, grad_weights, None, None


def _seen(probs: Tensor, least: Tensor | None, patterns_PTT: Tensor, rows: slice) -> Iterator[Tensor]:
    """M of each kind but full attention, for some rows; the largest scores are those of the largest probabilities."""
    yield from (pattern if pattern.ndim == 2 else pattern[rows] for pattern in patterns_PTT)
    if least is not None:
        yield (probs[rows] >= least[rows]).to(probs.dtype)


def _mixed_plainly(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights: Tensor, patterns_PTT: Tensor, top: int
) -> Tensor:  # fmt: skip
    """What `_MixedAttention` computes, in operations that have all derivatives."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q @ k.transpose(-1, -2)).to(patterns_PTT.dtype) + bias
        probs = torch.softmax(scores, dim=-1)
        known = probs.detach()
        least = known.topk(min(top, probs.shape[-1]), dim=-1)[0].amin(dim=-1, keepdim=True) if top else None
        mixed = weights[0] * probs
        for weight, seen in zip(weights[1:], _seen(known, least, patterns_PTT, slice(None)), strict=True):
            reached = (known * seen).sum(dim=-1, keepdim=True) > 0
            mixed = mixed + weight * reached * torch.softmax(scores + seen.log().clamp_min(BLOCKED), dim=-1)
        return mixed.to(v.dtype) @ v


AttentionKind = Literal["full", "window", "block", "strided", "topk", "linear", "lowrank"]
PATTERNS: Mapping[str, Callable[..., Tensor]] = {
    "window": blocked_window_attention,
    "block": block_attention,
    "strided": strided_attention,
}
"""The kinds that see a fixed pattern (see `pattern`), and how they are exported."""
LOOKS_AHEAD = ("linear", "lowrank")  # kinds that cannot be causal


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
        kinds: a network has one; a supernet has those that `relaxed` mixes, and acts as the first without masks.
        kv_heads: a divisor of `heads`.
        max_tokens: the longest sequence that `lowrank` takes.
    """

    def __init__(
        self, width: int, heads: int, *, kv_heads: int, head_size: int, kinds: Sequence[AttentionKind], window: int,
        max_tokens: int, backend: Backend, causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.kv_heads, self.shared, self.head_size = heads, kv_heads, heads // kv_heads, head_size
        self.kinds, self.kind, self.window = tuple(kinds), kinds[0], window
        self.backend, self.causal = backend, causal
        self.query = Linear(width, heads * head_size)
        self.key = Linear(width, kv_heads * head_size)
        self.value = Linear(width, kv_heads * head_size)
        self.out = Linear(heads * head_size, width)
        if "lowrank" in kinds:
            self.shorten = nn.Parameter(torch.empty(window, max_tokens))
            nn.init.normal_(self.shorten, std=max_tokens**-0.5)  # as long as one token's are the mixtures

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
        if self.kind == "window":
            k, v = k[:, :, -self.window :], v[:, :, -self.window :]
        mixed_BTD: Tensor = self.out(self._join(out_BHTK))
        return mixed_BTD, (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if self.kind == "full" and self.backend != "fused":
            return attention(q, k, v, bias, shared=self.shared)
        k, v = self._repeated(k), self._repeated(v)
        if self.kind == "lowrank":
            return lowrank_attention(q, k, v, bias[:, :, -1:], self.shorten[:, : q.shape[2]])
        if self.kind == "linear":
            return linear_attention(q, k, v, bias[:, :, -1:])
        if self.kind == "topk":
            return topk_attention(q, k, v, bias, self.window)
        if self.kind != "full" and self.backend == "blocks":
            return PATTERNS[self.kind](q, k, v, bias[:, :, -1:], self.window, causal=self.causal)
        if self.kind != "full":
            bias = bias + (1.0 - pattern(self.kind, q.shape[2], self.window, bias, causal=self.causal)) * BLOCKED
        if self.backend == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return attention(q, k, v, bias)

    def _attend_last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of the last token alone."""
        W, last = self.window, k.shape[2] - 1
        if self.kind == "topk":
            return topk_attention(q, self._repeated(k), self._repeated(v), None, W)
        if self.kind == "block":
            begin = last - last % W  # of its block; before it, the first token
            k, v = (torch.cat([x[:, :, :begin][:, :, :1], x[:, :, begin:]], dim=2) for x in (k, v))
        if self.kind == "strided":
            k, v = (x[:, :, last % W :: W] for x in (k, v))
        return attention(q, k, v, None, shared=self.shared)

    def _repeated(self, x_BGTK: Tensor) -> Tensor:
        return x_BGTK if self.shared == 1 else x_BGTK.repeat(1, self.shared, 1, 1)

    def relaxed(
        self,
        x_BTD: Tensor,
        bias: Tensor,
        layout: Layout,
        kinds: Tensor,
        heads_C: Tensor,
        kv_HG: Tensor | None,
        width: Width,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """The mixture over kinds of attention, which share q, k and v, and over numbers of heads.

        Args:
            kinds: weights of `self.kinds`; what is missing to one is "no attention" (and the layer's gate).
            heads_C: mask of the heads' output channels.
            kv_HG: P(query head h sees head g of the keys and values), where there is a choice. As for every size, what is mixed
                are weights: the rows that make a query head's keys and values, before the softmax and not behind it. That is
                exact where it is decided, and else attention to the expected keys and values.
            width: of the stream that the result is added to.
        """
        k, v = (self._split(_linear(x_BTD, project, kv_HG)) for project in (self.key, self.value))
        q, k = _turned(rotation, self._split(self.query(x_BTD)), k)
        scored = sum(kind not in LOOKS_AHEAD for kind in self.kinds)
        weights = kinds[:scored] if self.kinds[0] == "full" else F.pad(kinds[:scored], (1, 0))
        top = self.window if "topk" in self.kinds else 0
        out: Tensor = _MixedAttention.apply(q, k, v, bias, weights, layout.patterns, top)  # type: ignore[no-untyped-call]
        if scored < len(self.kinds):
            # computed again in the backward pass: what they make of q and k would double what is kept
            others = (q, k, v, bias[:, :, -1:], kinds[scored:], layout.places)
            out = out + checkpoint(self._ahead, *others, use_reentrant=False, preserve_rng_state=False)
        return width.write(self._join(out), self.out.weight * heads_C, self.out.bias * kinds.sum())

    def _ahead(self, q: Tensor, k: Tensor, v: Tensor, padding_B11T: Tensor, weights: Tensor, places_BTT: Tensor | None) -> Tensor:
        """The weighted sum of the kinds in `LOOKS_AHEAD`."""
        total = torch.zeros_like(v)
        for kind, weight in zip((kind for kind in self.kinds if kind in LOOKS_AHEAD), weights, strict=True):
            if kind == "linear":
                total = total + weight * linear_attention(q, k, v, padding_B11T)
            else:
                shorten = self.shorten[:, : q.shape[2]]
                shorten = shorten if places_BTT is None else (shorten @ places_BTT)[:, None]
                total = total + weight * lowrank_attention(q, k, v, padding_B11T, shorten)
        return total

    def received(self, x_BTD: Tensor, bias_B11T: Tensor, heads_C: Tensor | None = None, kv_HG: Tensor | None = None) -> Tensor:
        """How much attention each token gets from the mean of all, [B, T], summed over the heads; the same for all kinds.

        Args:
            heads_C, kv_HG: of a relaxed layer, as in `relaxed`.
        """
        weights_B1T = bias_B11T[:, 0].exp().to(x_BTD.dtype)
        q = self._split(self.query((weights_B1T / weights_B1T.sum(dim=-1, keepdim=True)) @ x_BTD))
        k = self._split(_linear(x_BTD, self.key, kv_HG))
        scores = q.unflatten(1, (-1, k.shape[1])) @ k[:, None].transpose(-1, -2)
        probs_BHT = torch.softmax(scores + bias_B11T[:, None], dim=-1).flatten(1, 2)[:, :, 0]
        return probs_BHT.sum(dim=1) if heads_C is None else heads_C[:: self.head_size] @ probs_BHT


def _turned(rotation: Rotation | None, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return (q, k) if rotation is None else (rotation.turn(q), rotation.turn(k))


def _linear(x_BTD: Tensor, project: Linear, kv_HG: Tensor | None) -> Tensor:
    """Keys or values of all query heads, from mixed rows of a projection to heads of keys or values."""
    if kv_HG is None:
        result: Tensor = project(x_BTD)
        return result
    weight, bias = ((kv_HG @ p.view(kv_HG.shape[1], -1)).view(-1, *p.shape[1:]) for p in (project.weight, project.bias))
    return F.linear(x_BTD, weight, bias)
