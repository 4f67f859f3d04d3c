"""Layers that are ordinary without masks and exact under one-hot masks.

Shapes: B sequences, T tokens, D width, H heads, K channels of a head, C = H * K, F feed-forward size, W window, N blocks.

Weight entanglement (TangleNAS, arXiv:2312.10440): a mixture of zero-padded prefixes of a weight is one mask,

    sum_k p_k pad(W[:s_k]) x = m * (W x),   m_i = P(size > i).

A mask is folded into a weight that touches the masked dimension: a matrix of weights instead of a matrix of activations. The
width of the residual stream is masked where the stream is written, and what is written is centred over the active channels, in
the weights too (as in SliceGPT, arXiv:2401.15024, section 3.2). Then the mean over all channels is that over the active ones,
zero, and the variances differ by a known factor: the ordinary layer norm reads the masked stream exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Backend = Literal["matmul", "fused", "blocks"]
"""How attention is computed, never what: `matmul` writes it out (fastest in bfloat16 on a CPU, and what masks need), `fused`
calls `scaled_dot_product_attention`, `blocks` computes a sliding window block by block (the form that is exported)."""

softmax_backward = torch.ops.aten._softmax_backward_data  # of the gradient, the probabilities, the axis and the type
Cache = tuple[Tensor, Tensor]
"""Keys and values of earlier tokens, [B, H, past, K] each."""

BLOCKED = -1e4  # added to a score, it leaves no weight after the softmax in any precision


CACHE_BYTES = 1 << 19  # of one buffer: a few of them fit a core's second-level cache


def _blocks(rows: int, row_bytes: int, device: torch.device) -> list[slice]:
    """Slices of the rows, each of about `CACHE_BYTES`; on a GPU, one.

    On a CPU a pass over a buffer that has left the cache costs three times as much, so all is done to a few rows at a time.
    """
    step = max(1, CACHE_BYTES // row_bytes) if device.type == "cpu" else rows
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def _mixed_plainly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights_2: Tensor, inside_TT: Tensor) -> Tensor:
    """What `_MixedAttention` computes, in operations that have all derivatives."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q @ k.transpose(-1, -2)).to(inside_TT.dtype) + bias
        probs = torch.softmax(scores, dim=-1)
        reached = (probs.detach() * inside_TT).sum(dim=-1, keepdim=True) > 0
        windowed = torch.softmax(scores + (1.0 - inside_TT) * BLOCKED, dim=-1) * reached
        return (weights_2[0] * probs + weights_2[1] * windowed).to(v.dtype) @ v


class _MixedAttention(torch.autograd.Function):
    """(w_0 full attention + w_1 attention inside a window), for two weights that may be anything, of a scaled q.

    Both kinds are one attention whose probabilities are scaled by w_0 + inside * w_1 / (their sum inside the window). Only the
    probabilities are kept, so the peak memory is that of one plain attention. A query whose whole window is padding gives zero.
    Where the backward pass itself is to be differentiated, the attention is written out plainly and computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights_2: Tensor, inside_TT: Tensor) -> Tensor:
        of_full, of_window = weights_2.tolist()  # plain numbers take the vectorised path
        B, H, T, _ = q.shape
        with torch.autocast(q.device.type, enabled=False):
            probs, out = inside_TT.new_empty(B, H, T, T), torch.empty_like(v)
            totals = inside_TT.new_empty(B, H, T, 1)
            for rows in _blocks(B, H * T * T * probs.element_size(), q.device):
                scores = (q[rows] @ k[rows].transpose(-1, -2)).to(probs.dtype).add_(bias[rows])
                torch.softmax(scores, dim=-1, out=probs[rows])
                mixed = torch.mul(probs[rows], inside_TT, out=scores)
                total = torch.sum(mixed, dim=-1, keepdim=True, out=totals[rows]).clamp_min_(1e-30)
                mixed.mul_(of_window / total).add_(probs[rows], alpha=of_full)
                out[rows] = mixed.to(v.dtype) @ v[rows]
            ctx.save_for_backward(q, k, v, bias, weights_2, inside_TT, probs, totals)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, weights_2, inside_TT, all_probs, totals = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (q, k, v, bias, weights_2, inside_TT)
            wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
            found = iter(torch.autograd.grad(_mixed_plainly(*inputs), wanted, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        of_full, of_window = weights_2.tolist()
        B, H, T, _ = q.shape
        with torch.autocast(grad.device.type, enabled=False):
            grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
            grad_weights = torch.zeros_like(weights_2) if ctx.needs_input_grad[4] else None
            for rows in _blocks(B, H * T * T * all_probs.element_size(), q.device):
                probs, above = all_probs[rows], grad[rows]
                windowed = torch.mul(probs, inside_TT).div_(totals[rows])
                grad_probs = (above @ v[rows].transpose(-1, -2)).to(probs.dtype)
                if grad_weights is not None:
                    grad_weights[0] += torch.dot(grad_probs.flatten(), probs.flatten())
                    grad_weights[1] += torch.dot(grad_probs.flatten(), windowed.flatten())
                grad_scores = softmax_backward(grad_probs, probs, -1, probs.dtype).mul_(of_full)
                grad_scores.add_(softmax_backward(grad_probs, windowed, -1, probs.dtype), alpha=of_window)
                mixed = windowed.mul_(of_window).add_(probs, alpha=of_full)
                grad_v[rows] = mixed.to(above.dtype).transpose(-1, -2) @ above
                grad_scores = grad_scores.to(q.dtype)
                grad_q[rows] = grad_scores @ k[rows]
                grad_k[rows] = grad_scores.transpose(-1, -2) @ q[rows]
        return grad_q, grad_k, grad_v, None, grad_weights, None


@dataclass(frozen=True)
class Width:
    """Which channels of the residual stream are active, and what follows from it for who writes and reads it."""

    mask: Tensor  # [D]
    share: Tensor  # [D], of each channel in the mean
    gain: Tensor  # scalar: the standard deviation over all channels to that over the active ones
    active: float  # expected share of active channels

    @classmethod
    def of(cls, mask: Tensor) -> Width:
        total = mask.sum()
        active = total / len(mask)
        return cls(mask, mask / total, active.sqrt(), float(active.detach()))

    def centre(self, x_BTD: Tensor) -> Tensor:
        """The masked stream to begin with."""
        return (x_BTD - (x_BTD @ self.share)[..., None]) * self.mask

    def centre_again(self, x_BTD: Tensor) -> Tensor:
        """A masked stream whose mean is not zero, as after a norm; the mask is not applied a second time."""
        return x_BTD - x_BTD.sum(dim=-1, keepdim=True) * self.share

    def write(self, x_BTC: Tensor, weight_DC: Tensor, bias_D: Tensor) -> Tensor:
        """A linear map into the masked stream."""
        weight_DC = (weight_DC - self.share @ weight_DC) * self.mask[:, None]
        return F.linear(x_BTC, weight_DC, (bias_D - self.share @ bias_D) * self.mask)


class Linear(nn.Linear):
    """A linear map; on the meta device, where there is nothing to initialise, quick to make."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Norm(nn.LayerNorm):
    """Layer norm."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def relaxed(self, x_BTD: Tensor, width: Width) -> Tensor:
        """Of the active channels of a masked stream; zero elsewhere."""
        eps = self.eps * width.active
        return F.layer_norm(x_BTD, self.normalized_shape, self.weight * width.gain, self.bias * width.mask, eps)


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


AttentionKind = Literal["full", "window", "linear"]


class Attention(nn.Module):
    """Multi-head self-attention with separate projections and a fixed head size, so that fewer heads are a prefix.

    `full` attends to everything that the bias lets it see; `window` to the tokens at most `window` away, and if `causal` not to
    later ones; `linear` is `linear_attention`.
    """

    def __init__(
        self, width: int, heads: int, *, head_size: int, kind: AttentionKind, window: int, backend: Backend, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.kind, self.window = heads, head_size, kind, window
        self.backend, self.causal = backend, causal
        self.query = Linear(width, heads * head_size)
        self.key = Linear(width, heads * head_size)
        self.value = Linear(width, heads * head_size)
        self.out = Linear(heads * head_size, width)

    def _split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x_BTD.shape
        q, k, v = (
            project(x_BTD).view(B, T, self.heads, self.head_size).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        return q, k, v

    def _join(self, x_BHTK: Tensor) -> Tensor:
        B, _, T, _ = x_BHTK.shape
        return x_BHTK.transpose(1, 2).reshape(B, T, self.heads * self.head_size)

    def _mix(self, x_BHTK: Tensor) -> Tensor:
        mixed_BTD: Tensor = self.out(self._join(x_BHTK))
        return mixed_BTD

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        """`bias` is added to the scores: [B, 1, 1, T], or [B, 1, T, T] whose last row is that of the padding."""
        return self._attend(*self._split(x_BTD), bias)

    def cached(self, x_BTD: Tensor, bias: Tensor | None, past: Cache | None) -> tuple[Tensor, Cache]:
        """The same, and what later tokens need: the keys and values so far, of a window the last W of them.

        Without a past, `bias` is that of `forward`. With one, x is a single token, which sees all of the past and itself.
        """
        q, k, v = self._split(x_BTD)
        if past is None:
            assert bias is not None
            mixed_BTD = self._attend(q, k, v, bias)
        else:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
            mixed_BTD = self._mix(torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v)
        if self.kind == "window":
            k, v = k[:, :, -self.window :], v[:, :, -self.window :]
        return mixed_BTD, (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if self.kind == "linear":
            return self._mix(linear_attention(q, k, v, bias[:, :, -1:]))
        if self.backend == "blocks" and self.kind == "window":
            return self._mix(blocked_window_attention(q, k, v, bias[:, :, -1:], self.window, causal=self.causal))
        if self.kind == "window":
            bias = bias + (1.0 - inside_window(q.shape[2], self.window, bias, causal=self.causal)) * BLOCKED
        if self.backend == "fused":
            return self._mix(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0))
        return self._mix(torch.softmax(q @ k.transpose(-1, -2) + bias, dim=-1) @ v)

    def relaxed(self, x_BTD: Tensor, bias: Tensor, inside_TT: Tensor, kinds: Tensor, heads_C: Tensor, width: Width) -> Tensor:
        """The mixture over kinds of attention, which share q, k and v, and over numbers of heads.

        Args:
            inside_TT: 1 where the window reaches.
            kinds: weights of full, window and perhaps linear attention; what is missing to one is "no attention" (and the
                layer's gate).
            heads_C: mask of the heads' output channels.
            width: of the stream that the result is added to.
        """
        q, k, v = self._split(x_BTD)
        out: Tensor = _MixedAttention.apply(q, k, v, bias, kinds[:2], inside_TT)  # type: ignore[no-untyped-call]
        if len(kinds) > 2:
            # computed again in the backward pass: its features of q and k would double what is kept
            linear: Tensor = checkpoint(linear_attention, q, k, v, bias[:, :, -1:], use_reentrant=False, preserve_rng_state=False)
            out = out + kinds[2] * linear
        return width.write(self._join(out), self.out.weight * heads_C, self.out.bias * kinds.sum())


class Table(nn.Embedding):
    """An embedding with small weights, as transformers begin with (standard deviation 0.02)."""

    std = 0.02

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=self.std)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between; gated, the GELU is multiplied with a third map (GEGLU, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, *, gated: bool = False) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.gate = Linear(width, hidden) if gated else None
        self.down = Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTF = F.gelu(self.up(x_BTD))
        if self.gate is not None:
            hidden_BTF = hidden_BTF * self.gate(x_BTD)
        result: Tensor = self.down(hidden_BTF)
        return result

    def relaxed(self, x_BTD: Tensor, hidden_F: Tensor, gate: Tensor, width: Width, gated: Tensor | None) -> Tensor:
        """The mixture over hidden sizes, in a residual branch with a gate that `hidden_F` already holds.

        `gated` is the probability of the gated kind, where there is a choice.
        """
        hidden_BTF = F.gelu(self.up(x_BTD))
        if self.gate is not None and gated is not None:
            hidden_BTF = hidden_BTF * torch.lerp(torch.ones_like(gated), self.gate(x_BTD), gated)
        return width.write(hidden_BTF, self.down.weight * hidden_F, self.down.bias * gate)
