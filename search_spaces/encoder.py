"""Text encoders for classification: width, depth, and for each layer heads, feed-forward size and kind of attention.

Shapes: B sequences, T tokens, D width, C channels of all heads, F feed-forward size. Pre-norm residual blocks, learned positions,
mean over the tokens, linear classifier.

    tokens -> embedding + position -> [x + attention(norm(x)); x + feed-forward(norm(x))] * depth -> norm -> mean -> logits
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nas.encoding import Array, Encoding, prefix_membership
from nas.layers import Attention, Backend, FeedForward, Linear, Norm, Table, Width, inside_window, padding_bias
from nas.protocols import Operator
from nas.space import Architecture, Choice, Condition, SearchSpace
from nas.types import Workload

ATTENTION_KINDS = ("full", "window", "none")


def encoder_space(
    *,
    width: Sequence[int] = (32, 48, 64, 96, 128),
    depth: Sequence[int] = (1, 2, 3, 4, 5, 6),
    heads: Sequence[int] = (1, 2, 4),
    ffn: Sequence[int] = (64, 128, 192, 256),
    attention: Sequence[str] = ATTENTION_KINDS,
    name: str = "encoder",
) -> SearchSpace:
    """The choices of an encoder; the default holds about 10^9.4 architectures.

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
    return SearchSpace(name, tuple(choices))


@dataclass(frozen=True)
class Masks:
    """A relaxed encoder: its active channels, and row by row its layers. A gate is P(depth >= layer)."""

    width: Tensor  # [D]
    gates: Tensor  # [layers]
    kinds: Tensor  # [layers, 2]: full and window attention, times the gate
    heads: Tensor  # [layers, C]
    ffn: Tensor  # [layers, F], times the gate


class Block(nn.Module):
    """One layer; without attention it is its feed-forward branch alone."""

    def __init__(
        self, width: int, *, heads: int, ffn: int, attention: str, head_size: int, window: int, backend: Backend
    ) -> None:
        super().__init__()
        if attention != "none":
            reach = window if attention == "window" else None
            self.attention_norm = Norm(width)
            self.attention = Attention(width, heads, head_size=head_size, window=reach, backend=backend)
        self.has_attention = attention != "none"
        self.ffn_norm = Norm(width)
        self.ffn = FeedForward(width, ffn)

    def forward(self, x_BTD: Tensor, padding_B11T: Tensor) -> Tensor:
        if self.has_attention:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), padding_B11T)
        result: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return result

    def relaxed(
        self, x_BTD: Tensor, padding_B11T: Tensor, inside_TT: Tensor, width: Width, kinds_2: Tensor, heads_C: Tensor,
        ffn_F: Tensor, gate: Tensor,
    ) -> Tensor:  # fmt: skip
        """The block under its row of `Masks`."""
        normed = self.attention_norm.relaxed(x_BTD, width)
        x_BTD = x_BTD + self.attention.relaxed(normed, padding_B11T, inside_TT, kinds_2, heads_C, width)
        return x_BTD + self.ffn.relaxed(self.ffn_norm.relaxed(x_BTD, width), ffn_F, gate, width)


class Encoder(nn.Module):
    """An encoder; at its largest size and called with `masks` it is the supernet."""

    def __init__(self, embedding: Table, positions: Table, blocks: Sequence[Block], num_classes: int, window: int):
        super().__init__()
        self.embedding, self.positions, self.window = embedding, positions, window
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(embedding.embedding_dim)
        self.classifier = Linear(embedding.embedding_dim, num_classes)

    def forward(self, token_ids_BT: Tensor, attention_mask_BT: Tensor, masks: Masks | None = None) -> Tensor:
        """Logits [B, num_classes] of token ids and a mask that is 1 for tokens and 0 for padding, both int64 [B, T]."""
        T = token_ids_BT.shape[1]
        x_BTD = self.embedding(token_ids_BT) + self.positions.weight[:T]
        padding_B11T = padding_bias(attention_mask_BT, x_BTD.dtype)
        if masks is None:
            for block in self.blocks:
                x_BTD = block(x_BTD, padding_B11T)
            x_BTD = self.norm(x_BTD)
        else:
            inside_TT = inside_window(T, self.window, padding_B11T)
            rows = zip(masks.kinds.unbind(), masks.heads.unbind(), masks.ffn.unbind(), masks.gates.unbind(), strict=True)
            width = Width.of(masks.width)
            x_BTD = width.centre(x_BTD)
            for block, row in zip(self.blocks, rows, strict=True):
                x_BTD = block.relaxed(x_BTD, padding_B11T, inside_TT, width, *row)  # type: ignore[operator]
            x_BTD = self.norm.relaxed(x_BTD, width)
        token_BT1 = attention_mask_BT[:, :, None].to(x_BTD.dtype)
        mean_BD = (x_BTD * token_BT1).sum(dim=1) / token_BT1.sum(dim=1)
        logits: Tensor = self.classifier(mean_BD)
        return logits


@dataclass(frozen=True)
class EncoderFamily:
    """The encoders of one space over one vocabulary.

    Raises:
        ValueError: a size under 1.
    """

    space: SearchSpace
    vocab_size: int
    num_classes: int
    max_tokens: int = 64
    head_size: int = 32
    window: int = 8

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_classes", "max_tokens", "head_size", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    @property
    def signature(self) -> str:
        """Changes with whatever changes a network's cost, its graph or its weights' shapes."""
        facts = [self.space.to_json(), self.vocab_size, self.num_classes, self.max_tokens, self.head_size, self.window]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def hand_designed(self) -> dict[str, Architecture]:
        """What one would build without a search: the largest network, and it with 2 layers and with 1 if the space has them."""
        largest = self.space.largest()
        depths = [d for d in (2, 1) if d in self.space.by_name["depth"].options and d < self.num_layers]
        shallow = {f"{d} layer{'s' * (d > 1)}": self.space.canonical({**largest.as_dict, "depth": d}) for d in depths}
        return {"largest": largest, **shallow}

    @property
    def num_layers(self) -> int:
        return self.space.by_name["depth"].largest

    def supernet(self) -> Encoder:
        """The largest network, with a full-attention layer everywhere so that it holds every shared weight."""
        sizes = {name: self.space.by_name[name].largest for name in ("width", "layer1.heads", "layer1.ffn")}
        layers = [("full", sizes["layer1.heads"], sizes["layer1.ffn"])] * self.num_layers
        return self._build(sizes["width"], layers, "matmul")

    def network(self, arch: Architecture, *, backend: Backend = "matmul") -> Encoder:
        self.space.validate(arch)
        layers = []
        for layer in range(1, arch.size("depth") + 1):
            attention = str(arch[f"layer{layer}.attention"])
            heads = arch.size(f"layer{layer}.heads") if attention != "none" else 0
            layers.append((attention, heads, arch.size(f"layer{layer}.ffn")))
        return self._build(arch.size("width"), layers, backend)

    def _build(self, width: int, layers: Sequence[tuple[str, int, int]], backend: Backend) -> Encoder:
        blocks = [
            Block(width, heads=heads, ffn=ffn, attention=kind, head_size=self.head_size, window=self.window, backend=backend)
            for kind, heads, ffn in layers
        ]
        embedding, positions = Table(self.vocab_size, width), Table(self.max_tokens, width)
        return Encoder(embedding, positions, blocks, self.num_classes, self.window)

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

    def example_input(self, workload: Workload) -> dict[str, Tensor]:
        """Random tokens without padding, by input name; the same for the same workload.

        Raises:
            ValueError: more tokens than the family's positions.
        """
        if workload.tokens > self.max_tokens:
            raise ValueError(f"tokens: {workload.tokens} of the workload are more than max_tokens {self.max_tokens}")
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocab_size, (workload.batch, workload.tokens), generator=generator)
        return {"token_ids": ids, "attention_mask": torch.ones_like(ids)}

    def operators(self, encoding: Encoding, workload: Workload) -> list[Operator]:
        """Per kind of operator: count, FLOPs, bytes in fp32 and parameters, as expectations over the encoding; and what lives in
        the exported graph, where the stream, a branch's input and its intermediate results are side by side."""
        tokens = workload.batch * workload.tokens
        width, classes = encoding.expected("width"), self.num_classes
        table, final = (self.vocab_size + self.max_tokens) * width, (width + 1.0) * classes + 2.0 * width
        operators = [
            Operator("embedding", 1.0, 0.0 * width, 8.0 * tokens * width, table, 12.0 * tokens * width),
            Operator("head", 1.0, 2.0 * workload.batch * width * classes, 4.0 * classes * width, final),
        ]
        for layer in range(1, self.num_layers + 1):
            gate = encoding.at_least("depth", layer)
            operators += self._attention_operators(encoding, f"layer{layer}", gate, width, workload)
            hidden = encoding.expected(f"layer{layer}.ffn")
            operators += [
                _norm("ffn", gate, tokens, width),
                Operator(
                    "ffn",
                    gate,
                    gate * 4.0 * tokens * width * hidden,
                    gate * (8.0 * width * hidden + 8.0 * tokens * (width + hidden)),
                    gate * (2.0 * width * hidden + width + hidden),
                    gate * 4.0 * tokens * (width + 2.0 * hidden),
                ),
            ]
        return operators

    def _attention_operators(
        self, encoding: Encoding, layer: str, gate: Array, width: Array, workload: Workload
    ) -> list[Operator]:
        T, tokens = workload.tokens, workload.batch * workload.tokens
        blocks = -(-T // self.window)
        seen = {"full": T * T, "window": blocks * self.window * 3 * self.window}
        full = (
            4.0 * workload.batch * T * (T + max(T, 2 * self.head_size))
        )  # of a head: scores, and scores again or the values twice
        window = (
            40.0 * workload.batch * blocks * self.window * self.head_size
        )  # query; keys and values, three times; slices of keys
        heads = encoding.expected(f"{layer}.heads")
        channels = heads * float(self.head_size)
        operators = []
        for kind in encoding.space.by_name[f"{layer}.attention"].options:
            if kind == "none":
                continue
            p = gate * encoding.probability(f"{layer}.attention", kind)
            pairs = float(workload.batch * seen[str(kind)])
            operators += [
                _norm("attention", p, tokens, width),
                Operator(
                    "projections",
                    p,
                    p * 8.0 * tokens * width * channels,
                    p * (16.0 * width * channels + 16.0 * tokens * (width + channels)),
                    p * (4.0 * width * channels + 3.0 * channels + width),
                ),
                Operator(
                    f"attention.{kind}",
                    p,
                    p * 4.0 * pairs * channels,
                    p * heads * 8.0 * pairs,
                    0.0 * p,
                    p * (heads * full + 8.0 * tokens * width if kind == "full" else heads * window + 4.0 * tokens * width),
                ),
            ]
        return operators


def _norm(branch: str, p: Array, tokens: int, width: Array) -> Operator:
    streams = p * 4.0 * tokens * width
    return Operator(f"{branch}.norm", p, 2.0 * streams, 2.0 * streams, p * 2.0 * width, 3.0 * streams)


def encoder(
    *, vocab_size: int, num_classes: int, max_tokens: int, width: Sequence[int], depth: Sequence[int], heads: Sequence[int],
    ffn: Sequence[int], attention: Sequence[str], head_size: int, window: int, name: str = "encoder",
) -> EncoderFamily:  # fmt: skip
    """The family of a space that is given by its options; what a configuration builds. Raises ValueError like its parts."""
    space = encoder_space(width=width, depth=depth, heads=heads, ffn=ffn, attention=attention, name=name)
    return EncoderFamily(space, vocab_size, num_classes, max_tokens, head_size, window)
