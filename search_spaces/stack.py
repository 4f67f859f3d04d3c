"""A stack of transformer layers, as a network and as a supernet under masks.

Shapes: B sequences, T tokens, D width, R shares of tokens. Residual blocks, pre-norm or, as in BERT (arXiv:1810.04805),
post-norm:

    x -> [x + attention(norm(x)); x + feed-forward(norm(x))] * depth -> norm
    x -> norm -> [norm(x + attention(x)); norm(x + feed-forward(x))] * depth

Layers may have the same weights. In a supernet where that is a choice, a layer runs once, over the mixture of the weights that it
may use: a pass over weights for each of them, not one over all tokens.

Before the first layer neighbouring tokens may become one, and after a layer a share of the tokens may go on alone (see
`nas.reduction`). A network gathers these, and its supernet hides the others, from the keys of the layers behind and from the mean
over the tokens, and its windows and blocks are those of what is left. Means stay in the places of their tokens there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.attention import Attention, AttentionMasks, Cache, Layout
from nas.feed_forward import FeedForward, FeedForwardMasks
from nas.layers import Width, mixed, with_precision
from nas.reduction import ALL, hidden, keeps, merged, reduced, spread
from nas.rotary import Rotation
from search_spaces.attention import LayerAttention
from search_spaces.common import TINY, NormPlace, make_norm


@dataclass(frozen=True)
class LayerMasks:
    """One layer of a relaxed stack."""

    attention: AttentionMasks
    ffn: FeedForwardMasks
    precisions: Mapping[str, Tensor] = field(default_factory=dict)  # P(it is in one) of those but fp32, where there is a choice


@dataclass(frozen=True)
class Masks:
    """A relaxed stack: its active channels, and its layers one by one."""

    width: Width
    layers: Sequence[LayerMasks]
    users: Sequence[Tensor] | None = None  # of each layer, P(it uses the weights) of the blocks that it may; None: it has its own
    keep: Tensor | None = None  # [R]: P(so many tokens are kept), of the shares `Keep.fewer`
    pool: Tensor | None = None  # [P]: P(so many neighbours become one), of the stack's sizes


@dataclass(frozen=True)
class Keep:
    """After which layer, counted from 1, a share of the tokens goes on; a network has one share, a supernet all."""

    after: int
    percents: Sequence[int]  # ascending

    @property
    def fewer(self) -> list[int]:
        return [percent for percent in self.percents if percent < ALL]


Relaxed = tuple[Layout, Width, LayerMasks]
"""What `Block.relaxed` takes after the bias."""


class Block(nn.Module):
    """One layer; without attention or without a feed-forward it is the other branch alone."""

    def __init__(
        self,
        width: int,
        attention: Attention | None,
        ffn: FeedForward | None,
        *,
        norm: NormPlace,
        norm_kind: str,
        norm_eps: float,
        precision: str = "",
    ) -> None:
        super().__init__()
        if attention is not None:
            self.attention_norm, self.attention = make_norm(width, norm_kind, norm_eps), attention
        if ffn is not None:
            self.ffn_norm, self.ffn = make_norm(width, norm_kind, norm_eps), ffn
        self.has_attention, self.has_ffn, self.norm = attention is not None, ffn is not None, norm
        with_precision(self, precision)

    def forward(
        self,
        x_BTD: Tensor,
        bias: Tensor,
        relaxed: Relaxed | None = None,
        rotation: Rotation | None = None,
        *,
        scores: bool = False,
    ) -> Tensor:
        """The stream after the layer, or how it scores the tokens."""
        if scores:
            return self.scores(x_BTD, bias, relaxed)
        if relaxed is not None:
            return self.relaxed(x_BTD, bias, *relaxed, rotation)
        if self.has_attention and self.norm == "post":
            x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, bias, rotation))
        elif self.has_attention:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), bias, rotation)
        return self._fed(x_BTD)

    def _fed(self, x_BTD: Tensor) -> Tensor:
        if self.has_ffn and self.norm == "post":
            x_BTD = self.ffn_norm(x_BTD + self.ffn(x_BTD))
        elif self.has_ffn:
            x_BTD = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return x_BTD

    def cached(
        self, x_BTD: Tensor, bias: Tensor | None, past: Cache | None, rotation: Rotation | None
    ) -> tuple[Tensor, Cache | None]:  # fmt: skip
        """The same with `Attention.cached`; without attention there is nothing to keep."""
        present: Cache | None = None
        if self.has_attention:
            mixed_BTD, present = self.attention.cached(self.attention_norm(x_BTD), bias, past, rotation)
            x_BTD = x_BTD + mixed_BTD
        return self._fed(x_BTD), present

    def scores(self, x_BTD: Tensor, bias: Tensor, relaxed: Relaxed | None = None) -> Tensor:
        """`Attention.received` of what the layer attends to, [B, T]."""
        if relaxed is None:
            return self.attention.received(x_BTD if self.norm == "post" else self.attention_norm(x_BTD), bias)
        _, width, masks = relaxed
        read_BTD = x_BTD if self.norm == "post" else self.attention_norm.relaxed(x_BTD, width)
        return self.attention.received(read_BTD, bias, masks.attention)

    def relaxed(
        self, x_BTD: Tensor, bias: Tensor, layout: Layout, width: Width, masks: LayerMasks, rotation: Rotation | None = None
    ) -> Tensor:
        """The block under its masks.

        A post-norm branch that is not there takes its norm with it, so a mixture is one of what comes out of the norm:
        p norm(x + branch) + (1 - p) x, the branch given that it is there.
        """
        attention, ffn, precisions = masks.attention, masks.ffn, masks.precisions
        if self.norm == "post":
            given = attention.given(attention.gate.clamp_min(TINY))
            written = self.attention.relaxed(x_BTD, bias, layout, given, width, precisions, rotation)
            x_BTD = torch.lerp(x_BTD, self.attention_norm.relaxed(width.centre_again(x_BTD + written), width), attention.gate)
            written = self.ffn.relaxed(x_BTD, ffn.given(ffn.gate.clamp_min(TINY)), width, precisions)
            return torch.lerp(x_BTD, self.ffn_norm.relaxed(width.centre_again(x_BTD + written), width), ffn.gate)
        normed = self.attention_norm.relaxed(x_BTD, width)
        x_BTD = x_BTD + self.attention.relaxed(normed, bias, layout, attention, width, precisions, rotation)
        return x_BTD + self.ffn.relaxed(self.ffn_norm.relaxed(x_BTD, width), ffn, width, precisions)


class Stack(nn.Module):
    """Layers and the last norm, or the first one if they are post-norm; at its largest size and called with `masks` it is every
    smaller one.

    Args:
        blocks: weights, by the number of the first layer that uses them; numbers count from 0.
        users: of each layer the blocks that it may use, which is one but in a supernet where layers may share.
        keep: of several shares, the last without masks.
        pool: numbers of neighbours that become one; of several, the first without masks.
    """

    def __init__(
        self, blocks: Mapping[int, Block], users: Sequence[Sequence[int]], width: int, attention: LayerAttention, *, keep: Keep,
        pool: Sequence[int], norm: NormPlace, norm_kind: str, norm_eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleDict({str(number): block for number, block in blocks.items()})
        self.users = [[str(number) for number in numbers] for numbers in users]
        self.norm = make_norm(width, norm_kind, norm_eps)
        self.attention, self.keep, self.pool, self.norm_first = attention, keep, tuple(pool), norm == "post"

    @property
    def layers(self) -> list[Block]:
        """Of a network, one after the other; some may be the same."""
        return [self.blocks[first] for first, *_ in self.users]  # type: ignore[misc]

    def forward(
        self, x_BTD: Tensor, bias: Tensor, masks: Masks | None = None, rotation: Rotation | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The normed stream [B, T, D], and the bias of the tokens that are left: the one that was given if all are.

        Args:
            bias: added to the scores, [B, 1, 1, T] or [B, 1, T, T].
        """
        if masks is not None:
            return self.relaxed(x_BTD, bias, masks, rotation)
        if self.pool[0] > 1:
            x_BTD, bias = merged(x_BTD, bias, self.pool[0])
        x_BTD = self.norm(x_BTD) if self.norm_first else x_BTD
        for number, block in enumerate(self.layers, start=1):
            if number == self.keep.after and self.keep.percents[-1] < ALL:
                scores_BT = block.scores(x_BTD, bias)
                x_BTD, bias = reduced(block(x_BTD, bias, None, rotation), bias, scores_BT, self.keep.percents[-1])
            else:
                x_BTD = block(x_BTD, bias, None, rotation)
        return x_BTD if self.norm_first else self.norm(x_BTD), bias

    def relaxed(
        self, x_BTD: Tensor, bias: Tensor, masks: Masks, rotation: Rotation | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The same under masks."""
        pools: list[tuple[int, float | Tensor]] = [(self.pool[0], 1.0)]
        if masks.pool is not None:
            pools = list(zip(self.pool, masks.pool.unbind(), strict=True))
        layout, width = self.attention.layout(x_BTD.shape[1], bias, pools), masks.width
        means = [spread(x_BTD, bias, size) for size, _ in pools]
        x_BTD = means[0] if len(means) == 1 else torch.stack([p * x for (_, p), x in zip(pools, means, strict=True)]).sum(dim=0)
        x_BTD = width.centre(x_BTD)
        x_BTD = self.norm.relaxed(x_BTD, width) if self.norm_first else x_BTD
        for layer, row in enumerate(masks.layers):
            run, arguments = self._layer(layer, masks), (x_BTD, bias, (layout, width, row), rotation)
            x_BTD = run(*arguments)
            if masks.keep is not None and layer + 1 == self.keep.after:
                keeps_RBT = keeps(bias, run(*arguments, scores=True), self.keep.fewer)
                layout = self.attention.moved(layout, keeps_RBT, masks.keep)
                bias = hidden(bias, keeps_RBT, masks.keep)
        return x_BTD if self.norm_first else self.norm.relaxed(x_BTD, width), bias

    def _layer(self, layer: int, masks: Masks) -> Callable[..., Tensor]:
        """A block, with the mixture of the weights that the layer may use."""
        blocks = [self.blocks[number] for number in self.users[layer]]
        if len(blocks) == 1 or masks.users is None:
            return blocks[0]
        weights = mixed(blocks, masks.users[layer])
        return lambda *arguments, **named: functional_call(blocks[0], weights, arguments, named)
