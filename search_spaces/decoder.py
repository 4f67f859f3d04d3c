"""Causal language models: width, depth, and for each layer heads, feed-forward size and kind of attention.

Shapes: B sequences, T tokens, P tokens of the past, D width, H heads, K channels of a head, V words. Positions are learned, or
rotary in every layer (arXiv:2104.09864); the output matrix is the embedding (tied, Press & Wolf, arXiv:1608.05859), or one of its
own.

    tokens -> embedding [+ position] -> causal stack -> logits of the next token, at every token

One network has three forms over the same weights, all of which are exported: the network itself answers at every token at once,
`Prefill` reads a prompt, and `Decode` goes on token by token with the keys and values that both of these return.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.attention import Backend, Cache
from nas.attention_kinds import causal_bias, padding_bias
from nas.encoding import Encoding
from nas.layers import Linear, Table
from nas.protocols import Operator
from nas.rotary import Rotary, Rotation
from nas.space import Architecture, SearchSpace
from nas.types import Workload
from search_spaces import pretrained
from search_spaces.attention import LayerAttention
from search_spaces.common import GRAPHS, NORM_EPS, leaders, norm_parameters, uses
from search_spaces.stack import Block, Masks, Stack
from search_spaces.tokens import embedding_operator, example_tokens
from search_spaces.trunk import Trunk, TrunkOptions, trunk_choices

Positions = Literal["learned", "rotary"]
POSITIONS = ("learned", "rotary")
DEFAULT_FFN = (64, 128, 256, 384)


def decoder_space(*, name: str = "decoder", **choices: Unpack[TrunkOptions]) -> SearchSpace:
    """The choices of a decoder. Raises ValueError like `trunk_choices`."""
    options: TrunkOptions = {"ffn": DEFAULT_FFN, **choices}
    return SearchSpace(name, tuple(trunk_choices(**options)))


class TiedTable(Table):
    """An embedding that is the output matrix too. Small networks that are trained briefly learn much faster from larger weights:
    width 64, 600 steps of 1024 bytes, 60.3 % wrong against 66.7 %."""

    std = 0.1


class Decoder(nn.Module):
    """A decoder; at its largest size and called with `masks` it is the supernet."""

    dynamic_axes = {name: {0: "batch", 1: "sequence"} for name in ("token_ids", "attention_mask", "logits")}  # noqa: RUF012

    def __init__(self, embedding: Table, positions: Table | Rotary, stack: Stack, head: Linear | None) -> None:
        super().__init__()
        self.embedding, self.positions, self.stack, self.head = embedding, positions, stack, head

    def forward(self, token_ids_BT: Tensor, attention_mask_BT: Tensor, masks: Masks | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each, of token ids and a mask that is 1 for tokens and 0 for padding behind them,
        both int64 [B, T]. At padding they mean nothing."""
        x_BTD, rotation = self.begin(token_ids_BT)
        x_BTD = x_BTD * attention_mask_BT[:, :, None].to(x_BTD.dtype)  # so that it is an input even if no layer attends
        return self.logits(self.stack(x_BTD, self.bias(attention_mask_BT, x_BTD), masks, rotation)[0])

    def begin(self, token_ids_BT: Tensor) -> tuple[Tensor, Rotation | None]:
        """The stream of the first T tokens, and by what their queries and keys are turned."""
        x_BTD, T = self.embedding(token_ids_BT), token_ids_BT.shape[1]
        if isinstance(self.positions, Rotary):
            return x_BTD, self.positions.first(T)
        return x_BTD + self.positions.weight[:T], None

    def begin_at(self, token_ids_BT: Tensor, position_ids_BT: Tensor) -> tuple[Tensor, Rotation | None]:
        """The same of tokens at other positions."""
        x_BTD = self.embedding(token_ids_BT)
        if isinstance(self.positions, Rotary):
            there = (position_ids_BT >= 0)[:, :, None].to(x_BTD.dtype)  # so that it is an input even if no layer attends
            return x_BTD * there, self.positions.at(position_ids_BT)
        return x_BTD + self.positions(position_ids_BT), None

    def bias(self, attention_mask_BT: Tensor, like: Tensor) -> Tensor:
        """[B, 1, T, T], added to the scores."""
        return padding_bias(attention_mask_BT, like.dtype) + causal_bias(attention_mask_BT.shape[1], like)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Inactive channels of a masked stream are zero, so that the whole matrix serves every width."""
        logits: Tensor = F.linear(x_BTD, self.embedding.weight) if self.head is None else self.head(x_BTD)
        return logits

    @property
    def blocks(self) -> list[Block]:
        return self.stack.layers


class Prefill(nn.Module):
    """Reads prompts of one length and answers once: the logits after the last token, and what `Decode` takes as the past."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        presents = {name: {0: "batch", 2: "past"} for name in cache_names(decoder, "present")}
        self.dynamic_axes = {"token_ids": {0: "batch", 1: "sequence"}, "logits": {0: "batch"}, **presents}

    def forward(self, token_ids_BT: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, 1, V], then keys and values [B, H, P, K] layer by layer."""
        decoder = self.decoder
        x_BTD, rotation = decoder.begin(token_ids_BT)
        bias = decoder.bias(torch.ones_like(token_ids_BT), x_BTD)
        presents: list[Tensor] = []
        for block in decoder.blocks:
            x_BTD, present = block.cached(x_BTD, bias, None, rotation)
            presents += present or ()
        return decoder.logits(decoder.stack.norm(x_BTD[:, -1:])), *presents


class Decode(nn.Module):
    """Answers for one more token of each sequence, given the keys and values of the past; the past may be empty.

    A layer without attention has none, and one with a window only its last W: hence the position is an input.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.dynamic_axes = {
            **{name: {0: "batch"} for name in ("token_ids", "position_ids", "logits")},
            **{name: {0: "batch", 2: "past"} for name in cache_names(decoder, "past_key_values")},
            **{name: {0: "batch", 2: "past + 1"} for name in cache_names(decoder, "present")},
        }

    def forward(self, token_ids_B1: Tensor, position_ids_B1: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, 1, V], then keys and values layer by layer; `past` are those of the call before, [B, H, P, K] each."""
        decoder, pairs = self.decoder, iter(zip(past[::2], past[1::2], strict=True))
        x_B1D, rotation = decoder.begin_at(token_ids_B1, position_ids_B1)
        presents: list[Tensor] = []
        for block in decoder.blocks:
            kept: Cache | None = next(pairs) if block.has_attention else None
            x_B1D, present = block.cached(x_B1D, None, kept, rotation)
            presents += present or ()
        return decoder.logits(decoder.stack.norm(x_B1D)), *presents


def cache_names(decoder: Decoder, kind: str) -> list[str]:
    """Names as other runtimes expect them, of the layers that attend: past_key_values.0.key, past_key_values.0.value, ..."""
    attending = [index for index, block in enumerate(decoder.blocks) if block.has_attention]
    return [f"{kind}.{index}.{part}" for index in attending for part in ("key", "value")]


@dataclass(frozen=True)
class DecoderFamily:
    """The decoders of one space over one vocabulary.

    Args:
        positions: learned, one vector for each of `max_tokens`, or rotary, which no weights hold.
        rotary_base: of the angles' frequencies.
        tied: whether the output matrix is the embedding.

    Raises:
        ValueError: a size under 1, unknown positions, or a base or epsilon that is not positive.
    """

    space: SearchSpace
    vocab_size: int
    max_tokens: int = 128
    head_size: int = 32
    window: int = 16
    positions: Positions = "learned"
    rotary_base: float = 10000.0
    tied: bool = True
    norm_eps: float = NORM_EPS["pre"]

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions: {self.positions!r} is not one of {POSITIONS}")
        if not self.rotary_base > 0:
            raise ValueError(f"rotary_base: {self.rotary_base} is not positive")
        _ = self.trunk

    @functools.cached_property
    def trunk(self) -> Trunk:
        attention = LayerAttention(
            self.space, self.head_size, self.window, self.max_tokens, causal=True, rotary=self.positions == "rotary"
        )  # fmt: skip
        return Trunk(attention, "pre", self.norm_eps)

    @property
    def signature(self) -> str:
        """Changes with whatever changes a network's cost, its graph or its weights' shapes."""
        facts = [GRAPHS, "causal", self.space.to_json(), self.vocab_size, self.max_tokens, self.head_size, self.window]
        facts += [self.positions] * (self.positions != "learned") + ["untied"] * (not self.tied)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def hand_designed(self) -> dict[str, Architecture]:
        return self.trunk.shallow()

    def supernet(self) -> Decoder:
        return self._around(self.trunk.largest_stack(), self.space.by_name["width"].largest)

    def network(self, arch: Architecture, *, backend: Backend = "matmul") -> Decoder:
        self.space.validate(arch)
        return self._around(self.trunk.stack(arch, backend), arch.size("width"))

    def _around(self, stack: Stack, width: int) -> Decoder:
        table, head = (TiedTable, None) if self.tied else (Table, Linear(width, self.vocab_size, bias=False))
        rotary = self.positions == "rotary"
        positions = Rotary(self.max_tokens, self.head_size, self.rotary_base) if rotary else table(self.max_tokens, width)
        return Decoder(table(self.vocab_size, width), positions, stack, head)

    def pretrained(self, folder: Path) -> dict[str, Tensor]:
        """Weights of a GPT-2 or a Llama-like checkpoint (see `search_spaces.pretrained`).

        Raises:
            ValueError: a checkpoint of another kind or shape than the largest network.
        """
        facts = {"positions": self.positions, "rotary_base": self.rotary_base, "tied": self.tied}
        return pretrained.read(folder, ("gpt2", "llama"), self.supernet, self.trunk, facts)

    def masks(self, encoding: Encoding) -> Masks:
        return self.trunk.masks(encoding)

    def example_input(self, workload: Workload) -> dict[str, Tensor]:
        """Random tokens without padding for a network in one call, with those of the past. Raises ValueError like
        `example_tokens`."""
        return example_tokens(workload.encoded, vocab_size=self.vocab_size, max_tokens=self.max_tokens)

    def form(self, network: nn.Module, workload: Workload) -> tuple[nn.Module, dict[str, Tensor]]:
        """See `nas.protocols.GenerativeFamily`. Raises ValueError like `example_input`."""
        assert isinstance(network, Decoder)
        inputs = self.example_input(workload)
        ids_BT = inputs["token_ids"]
        if workload.mode == "encode":
            return network, inputs
        if workload.mode == "prefill":
            return Prefill(network), {"token_ids": ids_BT}
        position_ids_B1 = torch.full((workload.batch, 1), workload.past)
        return Decode(network), {"token_ids": ids_BT[:, -1:], "position_ids": position_ids_B1, **self._past(network, workload)}

    def _past(self, network: Decoder, workload: Workload) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        shapes = []
        for block in network.blocks:
            if block.has_attention:
                attention = block.attention
                form, window = attention.kind
                kept = min(workload.past, window) if form == "window" else workload.past
                shapes += [(workload.batch, attention.kv_heads, kept, self.head_size)] * 2
        names = cache_names(network, "past_key_values")
        return {name: torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=True)}

    def operators(self, encoding: Encoding, workload: Workload) -> list[Operator]:
        """Those of the embedding, the head, the trunk and, where something is kept, of writing it.

        What is exported is counted: full attention computes all T * T pairs and blocks those above the diagonal.
        """
        width, words = encoding.expected("width"), float(self.vocab_size)
        tokens = workload.batch * workload.tokens
        answers = tokens if workload.mode == "encode" else workload.batch
        one = workload.mode == "decode"
        attention = self.trunk.attention
        pairs_of = (lambda _: attention.pairs_of_next(workload.past)) if one else attention.pairs_of
        moved = 4.0 * (words * width + answers * (width + words))
        held = norm_parameters(encoding) + (0.0 if self.tied else words * width)
        rotary = self.positions == "rotary"
        angles = self.max_tokens * self.head_size + 0.0 * width  # an expectation like the others
        return [
            embedding_operator(self.vocab_size + (0 if rotary else self.max_tokens), tokens, width),
            *([Operator("angles", 1.0, 0.0 * width, 4.0 * angles, angles)] if rotary else []),
            Operator("head", 1.0, 2.0 * answers * words * width, moved, held, 4.0 * answers * (width + words)),
            *self.trunk.operators(encoding, [(workload.tokens, 1.0)], batch=workload.batch, pairs_of=pairs_of),
            *([] if workload.mode == "encode" else self._cache_operators(encoding, workload)),
        ]

    def _cache_operators(self, encoding: Encoding, workload: Workload) -> list[Operator]:
        """Keys and values of each layer, read and written once."""
        seen = workload.past + workload.tokens
        attention = self.trunk.attention
        operators = []
        for layer in leaders(self.space):
            channels = attention.expected_kv_heads(encoding, f"layer{layer}") * float(self.head_size)
            for option, (form, window) in attention.kinds.items():
                p = uses(encoding, layer, self.trunk.layers).runs * encoding.probability(f"layer{layer}.attention", option)
                kept = min(seen, window) if form == "window" else seen
                operators.append(Operator(f"cache.{form}", p, 0.0 * p, p * 16.0 * workload.batch * kept * channels))
        return operators


def decoder(
    *, vocab_size: int, max_tokens: int, head_size: int, window: int, positions: Positions = "learned",
    rotary_base: float = 10000.0, tied: bool = True, norm_eps: float = NORM_EPS["pre"], name: str = "decoder",
    **choices: Unpack[TrunkOptions],
) -> DecoderFamily:  # fmt: skip
    """The family of a space that is given by its options; what a configuration builds. Raises ValueError like its parts."""
    space = decoder_space(name=name, **choices)
    return DecoderFamily(space, vocab_size, max_tokens, head_size, window, positions, rotary_base, tied, norm_eps)
