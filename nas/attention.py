"""Self-attention that is ordinary without masks and exact under one-hot masks, as `nas.layers` has it.

Shapes: B sequences, T tokens, D width, H heads, K channels of a head, C = H * K.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nas.attention_kinds import BLOCKED, blocked_window_attention, inside_window, linear_attention
from nas.layers import Linear, Width

Backend = Literal["matmul", "fused", "blocks"]
"""How attention is computed, never what: `matmul` writes it out (fastest in bfloat16 on a CPU, and what masks need), `fused`
calls `scaled_dot_product_attention`, `blocks` computes a sliding window block by block (the form that is exported)."""

softmax_backward = torch.ops.aten._softmax_backward_data  # of the gradient, the probabilities, the axis and the type
Cache = tuple[Tensor, Tensor]
"""Keys and values of earlier tokens, [B, H, past, K] each."""

CACHE_BYTES = 1 << 19  # of one buffer: a few of them fit a core's second-level cache


def _blocks(rows: int, row_bytes: int, device: torch.device) -> list[slice]:
    """Slices of the rows, each of about `CACHE_BYTES`; on a GPU, one.

    On a CPU a pass over a buffer that has left the cache costs three times as much, so all is done to a few rows at a time.
    """
    step = max(1, CACHE_BYTES // row_bytes) if device.type == "cpu" else rows
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


class _MixedAttention(torch.autograd.Function):
    """(w_0 full attention + w_1 attention inside a window), for two weights that may be anything, of a scaled q.

    Both kinds are one attention whose probabilities are scaled by w_0 + inside * w_1 / (their sum inside the window). Only the
    probabilities are kept, so the peak memory is that of one plain attention. A query whose whole window is padding gives zero.
    First derivatives only.
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
            ctx.save_for_backward(q, k, v, weights_2, inside_TT, probs, totals)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights_2, inside_TT, all_probs, totals = ctx.saved_tensors
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
