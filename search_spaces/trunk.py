"""What all families are made of: a stack of transformer layers, each with choices of its own.

Shapes: B sequences, T tokens, D width, H heads, C channels of all heads, F feed-forward size. Residual blocks, pre-norm or, as in
BERT (arXiv:1810.04805), post-norm:

    x -> [x + attention(norm(x)); x + feed-forward(norm(x))] * depth -> norm
    x -> norm -> [norm(x + attention(x)); norm(x + feed-forward(x))] * depth

A family puts something before a `Stack` (an embedding of tokens or of patches) and something behind it (a head); a `Trunk` knows
its choices, its masks and its costs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nas.attention import Attention, Backend, Cache
from nas.encoding import Array, Encoding, prefix_membership
from nas.layers import FeedForward, Norm, Width
from nas.protocols import Operator
from nas.space import Architecture, Choice, Condition, SearchSpace
from search_spaces.attention import TINY, LayerAttention, attention_choices, norm_operator

FFN_KINDS = ("glu", "mlp")
NormPlace = Literal["pre", "post"]
NORM_PLACES: tuple[NormPlace, ...] = ("pre", "post")
NORM_EPS = {"pre": 1e-5, "post": 1e-12}  # of torch, of BERT


def trunk_choices(
    *, width: Sequence[int], depth: Sequence[int], heads: Sequence[int], ffn: Sequence[int], attention: Sequence[str],
    ffn_kind: Sequence[str] = FFN_KINDS[1:], kv_heads: Sequence[int] = (),
) -> list[Choice]:  # fmt: skip
    """Width, depth, and for each layer those of `attention_choices`, feed-forward size and, if there are two, kind of
    feed-forward.

    Raises:
        ValueError: an unknown kind, options that a `Choice` refuses, or like `attention_choices`.
    """
    if set(ffn_kind) not in ({"mlp"}, set(FFN_KINDS)):
        raise ValueError(f"ffn_kind: {tuple(ffn_kind)} is not ('mlp',) or {FFN_KINDS}")
    choices = [Choice("width", tuple(width)), Choice("depth", tuple(depth))]
    for layer in range(1, choices[1].largest + 1):
        deep_enough = Condition("depth", tuple(d for d in choices[1].sizes if d >= layer))
        requires = () if deep_enough.options == choices[1].options else (deep_enough,)
        choices += [
            *attention_choices(layer, requires, attention=attention, heads=heads, kv_heads=kv_heads),
            Choice(f"layer{layer}.ffn", tuple(ffn), requires),
        ]
        if len(ffn_kind) > 1:
            choices.append(Choice(f"layer{layer}.ffn_kind", FFN_KINDS, requires))
    return choices


@dataclass(frozen=True)
class Masks:
    """A relaxed stack: its active channels, and row by row its layers. A gate is P(depth >= layer)."""

    width: Tensor  # [D]
    gates: Tensor  # [layers]
    kinds: Tensor  # [layers, kinds of attention but none], times the gate
    heads: Tensor  # [layers, C]
    ffn: Tensor  # [layers, F], times the gate
    gated: Tensor | None = None  # [layers]: P(the feed-forward is a GLU), where the space has a choice
    kv: Tensor | None = None  # [layers, H, G]: P(query head h sees head g of the keys and values), where there is a choice


class Block(nn.Module):
    """One layer; without attention it is its feed-forward branch alone."""

    def __init__(
        self, width: int, attention: Attention | None, *, ffn: int, norm: NormPlace = "pre", gated: bool = False
    ) -> None:
        super().__init__()
        if attention is not None:
            self.attention_norm = Norm(width, eps=NORM_EPS[norm])
            self.attention = attention
        self.has_attention, self.norm = attention is not None, norm
        self.ffn_norm = Norm(width, eps=NORM_EPS[norm])
        self.ffn = FeedForward(width, ffn, gated=gated)

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        if self.norm == "post":
            if self.has_attention:
                x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, bias))
            normed: Tensor = self.ffn_norm(x_BTD + self.ffn(x_BTD))
            return normed
        if self.has_attention:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), bias)
        result: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return result

    def cached(self, x_BTD: Tensor, bias: Tensor | None, past: Cache | None) -> tuple[Tensor, Cache | None]:
        """The same with `Attention.cached`; without attention there is nothing to keep."""
        present: Cache | None = None
        if self.has_attention:
            mixed_BTD, present = self.attention.cached(self.attention_norm(x_BTD), bias, past)
            x_BTD = x_BTD + mixed_BTD
        result: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return result, present

    def relaxed(
        self, x_BTD: Tensor, bias: Tensor, patterns_PTT: Tensor, width: Width, kinds: Tensor, heads_C: Tensor,
        kv_HG: Tensor | None, ffn_F: Tensor, gate: Tensor, gated: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The block under its row of `Masks`.

        A post-norm branch that is not there takes its norm with it, so a mixture is one of what comes out of the norm:
        p norm(x + branch) + (1 - p) x, the branch given that it is there.
        """
        if self.norm == "post":
            attends = kinds.sum()
            given = kinds / attends.clamp_min(TINY)
            written = self.attention.relaxed(x_BTD, bias, patterns_PTT, given, heads_C, kv_HG, width)
            x_BTD = torch.lerp(x_BTD, self.attention_norm.relaxed(width.centre_again(x_BTD + written), width), attends)
            present = gate.clamp_min(TINY)
            written = self.ffn.relaxed(x_BTD, ffn_F / present, gate / present, width, gated)
            return torch.lerp(x_BTD, self.ffn_norm.relaxed(width.centre_again(x_BTD + written), width), gate)
        normed = self.attention_norm.relaxed(x_BTD, width)
        x_BTD = x_BTD + self.attention.relaxed(normed, bias, patterns_PTT, kinds, heads_C, kv_HG, width)
        return x_BTD + self.ffn.relaxed(self.ffn_norm.relaxed(x_BTD, width), ffn_F, gate, width, gated)


class Stack(nn.Module):
    """Layers and the last norm, or the first one if they are post-norm; at its largest size and called with `masks` it is every
    smaller one."""

    def __init__(self, blocks: Sequence[Block], width: int, attention: LayerAttention, *, norm: NormPlace = "pre") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(width, eps=NORM_EPS[norm])
        self.attention, self.norm_first = attention, norm == "post"

    def forward(self, x_BTD: Tensor, bias: Tensor, masks: Masks | None = None) -> Tensor:
        """The normed stream [B, T, D]; `bias` is added to the scores, [B, 1, 1, T] or [B, 1, T, T]."""
        if masks is None:
            x_BTD = self.norm(x_BTD) if self.norm_first else x_BTD
            for block in self.blocks:
                x_BTD = block(x_BTD, bias)
            result: Tensor = x_BTD if self.norm_first else self.norm(x_BTD)
            return result
        patterns_PTT = self.attention.patterns(x_BTD.shape[1], bias)
        kv, gated = (m.unbind() if m is not None else [None] * len(self.blocks) for m in (masks.kv, masks.gated))
        rows = zip(masks.kinds.unbind(), masks.heads.unbind(), kv, masks.ffn.unbind(), masks.gates.unbind(), gated, strict=True)
        width = Width.of(masks.width)
        x_BTD = width.centre(x_BTD)
        x_BTD = self.norm.relaxed(x_BTD, width) if self.norm_first else x_BTD
        for block, row in zip(self.blocks, rows, strict=True):
            x_BTD = block.relaxed(x_BTD, bias, patterns_PTT, width, *row)  # type: ignore[operator]
        return x_BTD if self.norm_first else self.norm.relaxed(x_BTD, width)


@dataclass(frozen=True)
class Trunk:
    """The stacks of a space whose choices are those of `trunk_choices` (and others, which it does not look at).

    Raises:
        ValueError: an unknown place of the norm.
    """

    attention: LayerAttention
    norm: NormPlace = "pre"

    def __post_init__(self) -> None:
        if self.norm not in NORM_PLACES:
            raise ValueError(f"norm: {self.norm!r} is not one of {NORM_PLACES}")

    @property
    def space(self) -> SearchSpace:
        return self.attention.space

    @property
    def num_layers(self) -> int:
        return self.space.by_name["depth"].largest

    def shallow(self) -> dict[str, Architecture]:
        """What one would build without a search: the largest network, and it with 2 layers and with 1 if the space has them."""
        largest = self.space.largest()
        depths = [d for d in (2, 1) if d in self.space.by_name["depth"].options and d < self.num_layers]
        shallow = {f"{d} layer{'s' * (d > 1)}": self.space.canonical({**largest.as_dict, "depth": d}) for d in depths}
        return {"largest": largest, **shallow}

    def largest_stack(self) -> Stack:
        """The one that holds every shared weight."""
        width, ffn = (self.space.by_name[name].largest for name in ("width", "layer1.ffn"))
        blocks = [
            Block(width, self.attention.largest(width), ffn=ffn, norm=self.norm, gated=self._has_glu)
            for _ in range(self.num_layers)
        ]
        return Stack(blocks, width, self.attention, norm=self.norm)

    def stack(self, arch: Architecture, backend: Backend) -> Stack:
        """The stand-alone stack of an architecture."""
        width, blocks = arch.size("width"), []
        for layer in range(1, arch.size("depth") + 1):
            attention = self.attention.module(arch, layer, width, backend)
            gated = self._has_glu and arch[f"layer{layer}.ffn_kind"] == "glu"
            blocks.append(Block(width, attention, ffn=arch.size(f"layer{layer}.ffn"), norm=self.norm, gated=gated))
        return Stack(blocks, width, self.attention, norm=self.norm)

    def masks(self, encoding: Encoding) -> Masks:
        """Masks of one relaxed architecture: `encoding.values` is a tensor [E]. Every mask but that of keys and values is linear
        in the probabilities, so all of them are one product with a constant matrix."""
        with torch.autocast(encoding.values.device.type, enabled=False):
            parts = (encoding.values @ torch.as_tensor(self._mask_matrix).to(encoding.values)).split(self._mask_sizes)
            width_D, gates_L, kinds, heads, ffn, gated_L = parts
            per_layer = (self.num_layers, -1)
            kv_LHG = self.attention.kv_masks(encoding, heads.view(per_layer))
        return Masks(
            width=width_D,
            gates=gates_L,
            kinds=kinds.view(per_layer) * gates_L[:, None],
            heads=heads.view(per_layer),
            ffn=ffn.view(per_layer) * gates_L[:, None],
            gated=gated_L if self._has_glu else None,
            kv=kv_LHG,
        )

    @property
    def _has_glu(self) -> bool:
        return "layer1.ffn_kind" in self.space.by_name

    @functools.cached_property
    def _mask_sizes(self) -> list[int]:
        channels = self.attention.heads[-1] * self.attention.head_size
        layers = self.num_layers
        widths = [self.space.by_name["width"].largest, layers, len(self.attention.kinds) * layers, channels * layers]
        return [*widths, self.space.by_name["layer1.ffn"].largest * layers, self._has_glu * layers]

    @functools.cached_property
    def _mask_matrix(self) -> np.ndarray:
        """[E, sum of mask sizes]: column by column width, gates, kinds of attention, heads and feed-forward channels."""
        layers = range(1, self.num_layers + 1)

        def rows(choice: str, columns: np.ndarray) -> np.ndarray:
            block = np.zeros((self.space.encoding_size, columns.shape[1]))
            block[self.space.offsets[choice]] = columns
            return block

        def prefix(choice: str, unit: int = 1) -> np.ndarray:
            return rows(choice, prefix_membership(self.space.by_name[choice], unit=unit))

        def kinds(choice: str, wanted: Sequence[str]) -> np.ndarray:
            options = self.space.by_name[choice].options
            return rows(choice, np.array([[option == kind for kind in wanted] for option in options], dtype=float))

        return np.concatenate(
            [
                prefix("width"),
                prefix("depth"),
                *(kinds(f"layer{layer}.attention", self.attention.kinds) for layer in layers),
                *(prefix(f"layer{layer}.heads", self.attention.head_size) for layer in layers),
                *(prefix(f"layer{layer}.ffn") for layer in layers),
                *(kinds(f"layer{layer}.ffn_kind", ("glu",)) for layer in layers if self._has_glu),
            ],
            axis=1,
        )

    def operators(self, encoding: Encoding, *, batch: int, tokens: Array, pairs: Mapping[str, Array]) -> list[Operator]:
        """Per layer and kind of operator: count, FLOPs, bytes in fp32 and parameters, as expectations over the encoding; and what
        lives in the exported graph, where the stream, a branch's input and its intermediate results are side by side.

        Args:
            tokens: of one sequence.
            pairs: what `LayerAttention.pairs_of` gives; expectations of it if the number of tokens is itself a choice.
        """
        width, all_tokens = encoding.expected("width"), batch * tokens
        operators = []
        for layer in range(1, self.num_layers + 1):
            gate = encoding.at_least("depth", layer)
            operators += self.attention.operators(encoding, f"layer{layer}", gate, width, batch=batch, tokens=tokens, pairs=pairs)
            hidden = encoding.expected(f"layer{layer}.ffn")
            operators += [
                norm_operator("ffn", gate, all_tokens, width),
                Operator(
                    "ffn",
                    gate,
                    gate * 4.0 * all_tokens * width * hidden,
                    gate * (8.0 * width * hidden + 8.0 * all_tokens * (width + hidden)),
                    gate * (2.0 * width * hidden + width + hidden),
                    gate * 4.0 * all_tokens * (width + 2.0 * hidden),
                ),
            ]
            if self._has_glu:
                p = gate * encoding.probability(f"layer{layer}.ffn_kind", "glu")
                operators.append(
                    Operator(
                        "ffn.gate",
                        p,
                        p * 2.0 * all_tokens * width * hidden,
                        p * (4.0 * width * hidden + 4.0 * all_tokens * (width + 3.0 * hidden)),
                        p * (width * hidden + hidden),
                        p * 4.0 * all_tokens * (width + 3.0 * hidden),
                    )
                )
        return operators
