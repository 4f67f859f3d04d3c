"""The mixture of all kinds of attention that have scores, for what one of them costs in memory, and little more in time.

Shapes: B sequences, T tokens, H heads, K channels of a head, N kinds, P patterns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nas.attention_kinds import BLOCKED
from nas.twice import again

CACHE_BYTES = 1 << 19  # of one buffer: a few of them fit a core's second-level cache


def mixed_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, bias: Tensor, weights_NH: Tensor, patterns: Tensor, *, top: int
) -> Tensor:  # fmt: skip
    """A weighted sum, for weights that may be anything, of full attention, of attention inside each of some patterns and, unless
    `top` is 0, of attention to the `top` largest scores; of a scaled q.

    Args:
        bias: added to the scores, [B, 1, 1 or T, T].
        weights_NH: of these kinds, in this order, for each head.
        patterns: 1 where a query (the rows) looks at a key, 0 elsewhere, and between them how likely it does: [P, T, T], or
            [P, B, 1, T, T] where sequences differ.

    A query that sees nothing but padding gives zero. (A network's gives the mean of padding: no answer reads it, but it may widen
    the range that integers are rounded to.)
    """
    mixed: Tensor = _MixedAttention.apply(q_BHTK, k_BHTK, v_BHTK, bias, weights_NH, patterns, top)  # type: ignore[no-untyped-call]
    return mixed


def _parts(head_bytes: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few heads of each tensor [B, H, ...] at a time, or a few sequences of one head, whose scores are `CACHE_BYTES` or less,
    where those of a head of a sequence are `head_bytes`; on a GPU, all.

    On a CPU a pass over a buffer that has left the cache costs three times as much. And a head alone is multiplied where it lies,
    while several are copied first.
    """
    (B, H), fit = tensors[0].shape[:2], CACHE_BYTES // head_bytes
    if fit >= B * H or tensors[0].device.type != "cpu":
        yield tensors
        return
    heads, rows = max(1, fit // B), max(1, fit)
    for parts in zip(*(tensor.split(heads, dim=1) for tensor in tensors), strict=True):
        yield from zip(*(part.split(rows) for part in parts), strict=True)


class _MixedAttention(torch.autograd.Function):
    """All kinds are one attention P whose probabilities are scaled: kind k has P M_k / s_k, where M_k is 1 for what it sees and
    s_k the sum of P M_k. So the probabilities of the sum are P C, C = sum_k w_k M_k / s_k, and with G the gradient of the loss by
    them, d_k = sum(G P M_k) / s_k is the one by a weight (of a query) and P (G C - sum_k d_k w_k M_k / s_k) the one by a score,
    which is P C (G - d_n) - P sum_k (d_k - d_n) w_k M_k / s_k with d_n that of the last kind, whose term vanishes. Only P is
    kept, so the peak memory is that of one plain attention.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights_NH: Tensor, patterns: Tensor, top: int
    ) -> Tensor:
        (B, H, T, _), (N, _) = q.shape, weights_NH.shape
        with torch.autocast(q.device.type, enabled=False):
            out, bias_BHTT, weights = torch.empty_like(v), bias.expand(-1, H, -1, -1), _by_head(weights_NH, B)
            totals, least = bias.new_empty(B, H, N - 1, T, 1), bias.new_empty(B, H, T, int(top > 0))
            seen_BHPTT = _by_sequence(patterns, B, H)
            parts = _parts(T * T * bias.element_size(), q, k, v, bias_BHTT, weights, seen_BHPTT, out, totals, least)
            kept: list[Tensor] = []
            for q_, k_, v_, bias_, weights_, seen_, out_, totals_, least_ in parts:
                scores = (q_ @ k_.transpose(-1, -2)).to(totals.dtype).add_(bias_)
                kept.append(probs := torch.softmax(scores, dim=-1))
                if top:
                    torch.amin(probs.topk(min(top, T), dim=-1, sorted=False)[0], dim=-1, keepdim=True, out=least_)
                of_full, *of_others = weights_.unbind(2)
                mixed, part = torch.mul(probs, of_full, out=scores), torch.empty_like(scores)
                for seen, weight, total in zip(_seen(probs, least_, seen_), of_others, totals_.unbind(2), strict=True):
                    torch.mul(probs, seen, out=part)
                    torch.sum(part, dim=-1, keepdim=True, out=total).clamp_min_(1e-30)
                    mixed.addcmul_(part, weight / total)
                out_.copy_(mixed.to(v.dtype) @ v_)
            ctx.save_for_backward(q, k, v, bias, weights_NH, patterns, totals, least, *kept)
            ctx.top = top
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, weights_NH, patterns, totals, least, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_mixed_plainly, (q, k, v, bias, weights_NH, patterns, ctx.top), ctx.needs_input_grad, grad)
        (B, H, T, _), (N, _) = q.shape, weights_NH.shape
        with torch.autocast(grad.device.type, enabled=False):
            grads = [torch.empty_like(x) for x in (q, k, v)]
            weights, by_weights = _by_head(weights_NH, B), totals.new_empty(B, H, N, T, 1)
            by_bias = torch.zeros_like(bias[..., : T * ctx.needs_input_grad[3]])  # none where it is not asked for
            read = (q, k, v, weights, _by_sequence(patterns, B, H), totals, least, grad)
            parts = _parts(T * T * totals.element_size(), *read, *grads, by_weights, by_bias.expand(-1, H, -1, -1))
            for probs, part_of_each in zip(kept, parts, strict=True):
                q_, k_, v_, weights_, seen_, totals_, least_, grad_, grad_q, grad_k, grad_v, by_weights_, by_bias_ = part_of_each
                by_probs = (grad_ @ v_.transpose(-1, -2)).to(probs.dtype)
                (of_full, *of_others), (by_full, *by_others) = weights_.unbind(2), by_weights_.unbind(2)
                part, mixed = torch.mul(by_probs, probs), torch.mul(probs, of_full)
                shares: list[Tensor] = []
                torch.sum(part, dim=-1, keepdim=True, out=by_full)
                others = zip(_seen(probs, least_, seen_), of_others, totals_.unbind(2), by_others, strict=True)
                for seen, weight, total, by_weight in others:
                    shares.append(weight / total)
                    mixed.addcmul_(torch.mul(probs, seen, out=part), shares[-1])
                    torch.sum(part.mul_(by_probs), dim=-1, keepdim=True, out=by_weight).div_(total)
                grad_v.copy_(mixed.to(grad.dtype).transpose(-1, -2) @ grad_)
                last = by_weights_[:, :, -1]
                by_scores = by_probs.sub_(last).mul_(mixed).addcmul_(probs, (by_full - last) * of_full, value=-1)
                for seen, share, by_weight in zip(seen_.unbind(2), shares[:-1], by_others, strict=False):
                    by_scores.addcmul_(torch.mul(probs, seen, out=part), (by_weight - last) * share, value=-1)
                if by_bias_.shape[-1]:
                    by_bias_[:, :1].add_(by_scores.sum_to_size(by_bias_[:, :1].shape))
                by_scores = by_scores.to(q.dtype)
                grad_q.copy_(by_scores @ k_)
                grad_k.copy_(by_scores.transpose(-1, -2) @ q_)
        return *grads, by_bias if by_bias.shape[-1] else None, by_weights.sum(dim=(0, 3, 4)).T, None, None


def _by_head(weights_NH: Tensor, num_sequences: int) -> Tensor:
    """[B, H, N, 1, 1]."""
    return weights_NH.T[None, :, :, None, None].expand(num_sequences, -1, -1, -1, -1)


def _by_sequence(patterns: Tensor, num_sequences: int, num_heads: int) -> Tensor:
    """[B, H, P, T, T], not copied."""
    patterns = patterns if patterns.ndim == 5 else patterns[:, None, None]
    return patterns.expand(-1, num_sequences, num_heads, -1, -1).movedim(0, 2)


def _seen(probs: Tensor, least: Tensor, seen_BHPTT: Tensor) -> Iterator[Tensor]:
    """M of each kind but full attention; the largest scores are those of the largest probabilities, if `least` says of what."""
    yield from seen_BHPTT.unbind(2)
    if least.shape[-1]:
        yield (probs >= least).to(probs.dtype)


def _mixed_plainly(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weights_NH: Tensor, patterns: Tensor, top: int
) -> Tensor:  # fmt: skip
    """What `_MixedAttention` computes, in operations that have all derivatives."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q @ k.transpose(-1, -2)).to(patterns.dtype) + bias
        probs = torch.softmax(scores, dim=-1)
        known = probs.detach()
        least = known.topk(min(top, probs.shape[-1]), dim=-1)[0].amin(dim=-1, keepdim=True) if top else known[..., :0]
        of_full, *of_others = weights_NH[..., None, None].unbind()
        mixed = of_full * probs
        for weight, seen in zip(of_others, _seen(known, least, _by_sequence(patterns, *q.shape[:2])), strict=True):
            reached = (known * seen).sum(dim=-1, keepdim=True) > 0
            mixed = mixed + weight * reached * torch.softmax(scores + seen.log().clamp_min(BLOCKED), dim=-1)
        return mixed.to(v.dtype) @ v
