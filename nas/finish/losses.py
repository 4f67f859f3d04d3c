"""What a student can learn from a teacher: its answers, its last hidden states, the relations between its tokens.

Where more neighbours become one token in the student than in the teacher (see `nas.reduction`), the means of the teacher's states
over the same neighbours are what it learns.

Shapes: B sequences, T tokens, N means of neighbours, D width, C channels of all heads, A relation heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.attention import Attention
from nas.attention_kinds import BLOCKED
from nas.layers import Norm, RMSNorm
from nas.protocols import IGNORED
from nas.reduction import merged

MATCHES = ("answers", "hidden", "relations")


def soft_labels(logits: Tensor, teachers: Sequence[Tensor], targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened answers, [..., classes] each, where targets ask for one; several teachers answer
    with their mean probability (Hinton et al., arXiv:1503.02531). Of numbers, single logits, the mean squared difference."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.float(), torch.stack([t.float() for t in teachers]).mean(dim=0))
    probabilities = torch.stack([F.softmax(t.float() / temperature, dim=-1) for t in teachers]).mean(dim=0)
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    each = F.kl_div(student, probabilities, reduction="none").sum(dim=-1)
    asked = (targets != IGNORED).to(each.dtype)
    return temperature**2 * (each * asked).sum() / asked.sum()


def hidden_states(student_BTD: Tensor, teacher_BTE: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean squared difference over the tokens that are no padding, of states that were brought to one width and are normed, so
    that it counts alike for every width (TinyBERT, arXiv:1909.10351, with the norm of each state taken out)."""
    student_BTD, teacher_BTE = (F.layer_norm(x.float(), x.shape[-1:]) for x in (student_BTD, teacher_BTE))
    squared_BT = (student_BTD - teacher_BTE).square().mean(dim=-1)
    return (squared_BT * mask_BT).sum() / mask_BT.sum()


def relations(student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BT: Tensor, *, heads: int) -> Tensor:
    """KL(teacher || student) of how tokens relate, queries to keys and values to values (MiniLM, arXiv:2002.10957).

    `student` and `teacher` are q, k and v, [B, T, C] each, of any C; they are split anew into as many relation heads for both, as
    in MiniLMv2 (arXiv:2012.15828), so that the numbers of heads may differ.
    """
    total = mask_BT.new_zeros(())
    for first, second in ((0, 1), (2, 2)):
        ours, theirs = (_relation(x[first], x[second], mask_BT, heads) for x in (student, teacher))
        divergence_BAT = (theirs.exp() * (theirs - ours)).sum(dim=-1)
        total = total + (divergence_BAT * mask_BT[:, None]).sum() / (mask_BT.sum() * heads)
    return total / 2


def _relation(a_BTC: Tensor, b_BTC: Tensor, mask_BT: Tensor, heads: int) -> Tensor:
    """Log-probabilities [B, A, T, T]."""
    a, b = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a_BTC, b_BTC))
    scores = a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])
    return F.log_softmax(scores.masked_fill(mask_BT[:, None, None] == 0, -1e4), dim=-1)


@runtime_checkable
class Pools(Protocol):
    """Layers that see the means of so many neighbours, the first of these numbers."""

    pool: Sequence[int]


@dataclass
class Seen:
    """Of the last call: the last normed stream [B, T, D], and q, k and v [B, T, C] of the last attention, which is empty if there
    is none. Of all: how many neighbours are one token."""

    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    qkv: dict[str, Tensor] = field(default_factory=dict)
    heads: int = 0
    pool: int = 1


@contextmanager
def recorded(network: nn.Module) -> Iterator[Seen]:
    """What the network's layers gave, after each call inside the block."""
    seen, hooks = Seen(pool=max((m.pool[0] for m in network.modules() if isinstance(m, Pools)), default=1)), []

    def keep_hidden(_: nn.Module, __: object, output: Tensor) -> None:
        seen.hidden = output

    def keep_part(name: str, times: int, _: nn.Module, __: object, output: Tensor) -> None:
        seen.qkv[name] = output.repeat(1, 1, times)  # heads that share keys and values see the same ones

    for module in network.modules():
        if isinstance(module, Norm | RMSNorm):
            hooks.append(module.register_forward_hook(keep_hidden))
        if isinstance(module, Attention):
            seen.heads = module.heads
            for name, times in (("query", 1), ("key", module.shared), ("value", module.shared)):
                hooks.append(getattr(module, name).register_forward_hook(functools.partial(keep_part, name, times)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def padding_mask(inputs: Sequence[Tensor], seen: Seen) -> Tensor:
    """[B, N] with 1 for what is no padding alone: by the network's second input where that is such a mask, else ones."""
    if len(inputs) > 1 and inputs[1].shape == inputs[0].shape[:2]:
        mask_BN = F.max_pool1d(F.pad(inputs[1].float(), (0, seen.pool - 1)), seen.pool)
        if mask_BN.shape == seen.hidden.shape[:2]:
            return mask_BN
    return seen.hidden.new_ones(seen.hidden.shape[:2], dtype=torch.float32)


def neighbours(seen: Seen, mask_BT: Tensor, size: int) -> Seen:
    """Means of each `size` tokens without padding."""
    bias_B11T = (1.0 - mask_BT)[:, None, None] * BLOCKED
    means = {name: merged(part.float(), bias_B11T, size)[0] for name, part in {**seen.qkv, "hidden": seen.hidden}.items()}
    return Seen(means.pop("hidden"), means, seen.heads, seen.pool * size)


def matched(
    names: Sequence[str], student: Seen, teacher: Seen, projection: nn.Module, inputs: Sequence[Tensor]
) -> Tensor:  # fmt: skip
    """The sum of the named losses inside the network. A network without attention has no relations, and learns the rest.

    Raises:
        ValueError: student and teacher see different tokens, of which none are means of others.
    """
    size, rest = divmod(student.pool, teacher.pool)
    if size > 1 and not rest:
        teacher = neighbours(teacher, padding_mask(inputs, teacher), size)
    if student.hidden.shape[:2] != teacher.hidden.shape[:2]:
        seen = [x.hidden.shape[1] for x in (student, teacher)]
        raise ValueError(f"match: the student sees {seen[0]} tokens and the teacher {seen[1]}; allowed is ['answers']")
    mask_BN = padding_mask(inputs, student)
    total = mask_BN.new_zeros(())
    if "hidden" in names:
        total = total + hidden_states(projection(student.hidden), teacher.hidden, mask_BN)
    if "relations" in names and student.qkv and teacher.qkv:
        heads = math.gcd(student.heads, teacher.heads)
        total = total + relations(list(student.qkv.values()), list(teacher.qkv.values()), mask_BN, heads=heads)
    return total
