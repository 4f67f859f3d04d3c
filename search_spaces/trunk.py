"""What all families are made of: a stack of transformer layers, each with choices of its own.

Shapes: B sequences, T tokens, D width, H heads, C channels of all heads, F feed-forward size. Pre-norm residual blocks:

    x -> [x + attention(norm(x)); x + feed-forward(norm(x))] * depth -> norm

A family puts something before a `Stack` (an embedding of tokens or of patches) and something behind it (a head); a `Trunk` knows
its choices, its masks and its costs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nas.encoding import Array, Encoding, prefix_membership
from nas.layers import Attention, Backend, FeedForward, Norm, Width, inside_window
from nas.protocols import Operator
from nas.space import Architecture, Choice, Condition, SearchSpace

ATTENTION_KINDS = ("full", "window", "none")


def trunk_choices(
    *, width: Sequence[int], depth: Sequence[int], heads: Sequence[int], ffn: Sequence[int], attention: Sequence[str]
) -> list[Choice]:
    """Width, depth, and for each layer heads, feed-forward size and kind of attention.

    Raises:
        ValueError: an unknown kind of attention, or options that a `Choice` refuses.
    """
    unknown = [kind for kind in attention if kind not in ATTENTION_KINDS]
    if unknown:
        raise ValueError(f"attention: {unknown[0]!r} is not one of {ATTENTION_KINDS}")
    attending = tuple(kind for kind in attention if kind != "none")
    if not attending:
        raise ValueError(f"attention: {tuple(attention)} needs at least one of {ATTENTION_KINDS[:2]}")
    ordered = tuple(kind for kind in ATTENTION_KINDS if kind in attention)
    choices = [Choice("width", tuple(width)), Choice("depth", tuple(depth))]
    for layer in range(1, choices[1].largest + 1):
        deep_enough = Condition("depth", tuple(d for d in choices[1].sizes if d >= layer))
        requires = () if deep_enough.options == choices[1].options else (deep_enough,)
        choices += [
            Choice(f"layer{layer}.attention", ordered, requires),
            Choice(f"layer{layer}.heads", tuple(heads), (Condition(f"layer{layer}.attention", attending),)),
            Choice(f"layer{layer}.ffn", tuple(ffn), requires),
        ]
    return choices


@dataclass(frozen=True)
class Masks:
    """A relaxed stack: its active channels, and row by row its layers. A gate is P(depth >= layer)."""

    width: Tensor  # [D]
    gates: Tensor  # [layers]
    kinds: Tensor  # [layers, 2]: full and window attention, times the gate
    heads: Tensor  # [layers, C]
    ffn: Tensor  # [layers, F], times the gate


class Block(nn.Module):
    """One layer; without attention it is its feed-forward branch alone."""

    def __init__(
        self, width: int, *, heads: int, ffn: int, attention: str, head_size: int, window: int, causal: bool,
        backend: Backend,
    ) -> None:  # fmt: skip
        super().__init__()
        if attention != "none":
            reach = window if attention == "window" else None
            self.attention_norm = Norm(width)
            self.attention = Attention(width, heads, head_size=head_size, window=reach, causal=causal, backend=backend)
        self.has_attention = attention != "none"
        self.ffn_norm = Norm(width)
        self.ffn = FeedForward(width, ffn)

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        if self.has_attention:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), bias)
        result: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return result

    def relaxed(
        self, x_BTD: Tensor, bias: Tensor, inside_TT: Tensor, width: Width, kinds_2: Tensor, heads_C: Tensor,
        ffn_F: Tensor, gate: Tensor,
    ) -> Tensor:  # fmt: skip
        """The block under its row of `Masks`."""
        normed = self.attention_norm.relaxed(x_BTD, width)
        x_BTD = x_BTD + self.attention.relaxed(normed, bias, inside_TT, kinds_2, heads_C, width)
        return x_BTD + self.ffn.relaxed(self.ffn_norm.relaxed(x_BTD, width), ffn_F, gate, width)


class Stack(nn.Module):
    """Layers and the last norm; at its largest size and called with `masks` it is every smaller one."""

    def __init__(self, blocks: Sequence[Block], width: int, *, window: int, causal: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(width)
        self.window, self.causal = window, causal

    def forward(self, x_BTD: Tensor, bias: Tensor, masks: Masks | None = None) -> Tensor:
        """The normed stream [B, T, D]; `bias` is added to the scores, [B, 1, 1, T] or [B, 1, T, T]."""
        if masks is None:
            for block in self.blocks:
                x_BTD = block(x_BTD, bias)
            result: Tensor = self.norm(x_BTD)
            return result
        inside_TT = inside_window(x_BTD.shape[1], self.window, bias, causal=self.causal)
        rows = zip(masks.kinds.unbind(), masks.heads.unbind(), masks.ffn.unbind(), masks.gates.unbind(), strict=True)
        width = Width.of(masks.width)
        x_BTD = width.centre(x_BTD)
        for block, row in zip(self.blocks, rows, strict=True):
            x_BTD = block.relaxed(x_BTD, bias, inside_TT, width, *row)  # type: ignore[operator]
        return self.norm.relaxed(x_BTD, width)


@dataclass(frozen=True)
class Trunk:
    """The stacks of a space whose choices are those of `trunk_choices` (and others, which it does not look at).

    Raises:
        ValueError: a size under 1.
    """

    space: SearchSpace
    head_size: int
    window: int
    causal: bool = False

    def __post_init__(self) -> None:
        for name in ("head_size", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

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
        """With a full-attention layer everywhere, so that it holds every shared weight."""
        sizes = {name: self.space.by_name[name].largest for name in ("width", "layer1.heads", "layer1.ffn")}
        layers = [("full", sizes["layer1.heads"], sizes["layer1.ffn"])] * self.num_layers
        return self._build(sizes["width"], layers, "matmul")

    def stack(self, arch: Architecture, backend: Backend) -> Stack:
        """The stand-alone stack of an architecture."""
        layers = []
        for layer in range(1, arch.size("depth") + 1):
            attention = str(arch[f"layer{layer}.attention"])
            heads = arch.size(f"layer{layer}.heads") if attention != "none" else 0
            layers.append((attention, heads, arch.size(f"layer{layer}.ffn")))
        return self._build(arch.size("width"), layers, backend)

    def _build(self, width: int, layers: Sequence[tuple[str, int, int]], backend: Backend) -> Stack:
        shared = {"head_size": self.head_size, "window": self.window, "causal": self.causal}
        blocks = [
            Block(width, heads=heads, ffn=ffn, attention=kind, backend=backend, **shared)  # type: ignore[arg-type]
            for kind, heads, ffn in layers
        ]
        return Stack(blocks, width, window=self.window, causal=self.causal)

    def masks(self, encoding: Encoding) -> Masks:
        """Masks of one relaxed architecture: `encoding.values` is a tensor [E]. Every mask is linear in the probabilities, so all
        of them are one product with a constant matrix."""
        with torch.autocast(encoding.values.device.type, enabled=False):
            parts = (encoding.values @ torch.as_tensor(self._mask_matrix).to(encoding.values)).split(self._mask_sizes)
        width_D, gates_L, kinds, heads, ffn = parts
        per_layer = (self.num_layers, -1)
        return Masks(
            width=width_D,
            gates=gates_L,
            kinds=kinds.view(per_layer) * gates_L[:, None],
            heads=heads.view(per_layer),
            ffn=ffn.view(per_layer) * gates_L[:, None],
        )

    @functools.cached_property
    def _mask_sizes(self) -> list[int]:
        channels = self.space.by_name["layer1.heads"].largest * self.head_size
        layers = self.num_layers
        widths = [self.space.by_name["width"].largest, layers, 2 * layers, channels * layers]
        return [*widths, self.space.by_name["layer1.ffn"].largest * layers]

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

        def kinds(choice: str) -> np.ndarray:
            options = self.space.by_name[choice].options
            return rows(choice, np.array([[option == kind for kind in ATTENTION_KINDS[:2]] for option in options], dtype=float))

        return np.concatenate(
            [
                prefix("width"),
                prefix("depth"),
                *(kinds(f"layer{layer}.attention") for layer in layers),
                *(prefix(f"layer{layer}.heads", self.head_size) for layer in layers),
                *(prefix(f"layer{layer}.ffn") for layer in layers),
            ],
            axis=1,
        )

    def operators(self, encoding: Encoding, *, batch: int, tokens: Array, pairs: Mapping[str, Array]) -> list[Operator]:
        """Per layer and kind of operator: count, FLOPs, bytes in fp32 and parameters, as expectations over the encoding; and what
        lives in the exported graph, where the stream, a branch's input and its intermediate results are side by side.

        Args:
            tokens: of one sequence.
            pairs: what `pairs_of` gives; expectations over the encoding if the number of tokens is itself a choice.
        """
        width, all_tokens = encoding.expected("width"), batch * tokens
        operators = []
        for layer in range(1, self.num_layers + 1):
            gate = encoding.at_least("depth", layer)
            operators += self._attention_operators(encoding, f"layer{layer}", gate, width, batch, tokens, pairs)
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
        return operators

    def pairs_of(self, tokens: int) -> dict[str, float]:
        """By kind of attention the pairs of a query and a key that are computed, and what is alive of a head (live), of so many
        tokens."""
        T, W, K = tokens, self.window, self.head_size
        blocks = -(-T // W)
        return {
            "full": T * T,
            "window": blocks * W * (2 if self.causal else 3) * W,
            "full live": T * (T + max(T, 2 * K)),  # of a head: scores, and scores again or the values twice
            "window live": 10.0 * blocks * W * K,  # query; keys and values, three times; slices of keys
        }

    def _attention_operators(
        self, encoding: Encoding, layer: str, gate: Array, width: Array, batch: int, tokens: Array, pairs: Mapping[str, Array]
    ) -> list[Operator]:
        all_tokens = batch * tokens
        heads = encoding.expected(f"{layer}.heads")
        channels = heads * float(self.head_size)
        operators = []
        for kind in encoding.space.by_name[f"{layer}.attention"].options:
            if kind == "none":
                continue
            p = gate * encoding.probability(f"{layer}.attention", kind)
            seen, live = batch * pairs[str(kind)], 4.0 * batch * pairs[f"{kind} live"]
            operators += [
                norm_operator("attention", p, all_tokens, width),
                Operator(
                    "projections",
                    p,
                    p * 8.0 * all_tokens * width * channels,
                    p * (16.0 * width * channels + 16.0 * all_tokens * (width + channels)),
                    p * (4.0 * width * channels + 3.0 * channels + width),
                ),
                Operator(
                    f"attention.{kind}",
                    p,
                    p * 4.0 * seen * channels,
                    p * heads * 8.0 * seen,
                    0.0 * p,
                    p * (heads * live + (8.0 if kind == "full" else 4.0) * all_tokens * width),
                ),
            ]
        return operators


def norm_operator(branch: str, p: Array, tokens: Array, width: Array) -> Operator:
    streams = p * 4.0 * tokens * width
    return Operator(f"{branch}.norm", p, 2.0 * streams, 2.0 * streams, p * 2.0 * width, 3.0 * streams)
