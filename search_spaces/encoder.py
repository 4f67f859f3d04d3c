"""Text encoders with one answer for a sequence or for each token: width, depth, and for each layer what the trunk offers.

Shapes: B sequences, T tokens, D width. Learned positions, pre-norm or post-norm, linear head. An answer is as many logits as
there are classes or tags, and for a number one.

    tokens -> embedding [+ n-grams] + position [-> means of neighbours] -> stack -> mean over the tokens that are left -> logits
    tokens -> embedding [+ n-grams] + position -> stack -> logits of each token
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from torch import Tensor, nn

from nas.attention import Backend
from nas.attention_kinds import padding_bias
from nas.encoding import Encoding
from nas.layers import Linear, Table
from nas.protocols import Operator
from nas.reduction import visible
from nas.space import Architecture, SearchSpace
from nas.types import Workload
from search_spaces import pretrained
from search_spaces.attention import LayerAttention
from search_spaces.common import GRAPHS, NORM_EPS, NormPlace, norm_parameters
from search_spaces.compact import inside
from search_spaces.ngrams import NGrams, length, longest, ngram_choices, ngram_operators, shares
from search_spaces.pooling import pool_choices, pool_operators, pool_sizes, pooled_counts
from search_spaces.stack import Masks, Stack
from search_spaces.tokens import embedding_operator, example_tokens
from search_spaces.trunk import Trunk, TrunkOptions, trunk_choices


def encoder_space(
    *, name: str = "encoder", ngrams: Sequence[int] = (), pool: Sequence[int] = (), **choices: Unpack[TrunkOptions]
) -> SearchSpace:
    """The choices of an encoder; the default holds about 10^9.4 architectures.

    Raises:
        ValueError: like `trunk_choices`, `ngram_choices` and `pool_choices`.
    """
    pools = pool_choices(pool, attention=choices.get("attention", ()), keep=choices.get("keep", ()))
    return SearchSpace(name, (*trunk_choices(**choices), *ngram_choices(ngrams), *pools))


@dataclass(frozen=True)
class EncoderMasks:
    """A relaxed network: the masks of the stack, and P(n-grams of 2, 3, … tokens are added), [N], where that is a choice."""

    stack: Masks
    ngrams: Tensor | None


class Encoder(nn.Module):
    """An encoder; at its largest size and called with `masks` it is the supernet."""

    def __init__(
        self, embedding: Table, ngrams: NGrams | None, positions: Table, stack: Stack, num_classes: int, *, per_token: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding, self.ngrams, self.positions = embedding, ngrams, positions
        self.stack, self.per_token = stack, per_token
        self.classifier = Linear(embedding.embedding_dim, num_classes)
        sequence = {0: "batch", 1: "sequence"}
        logits = sequence if per_token else {0: "batch"}
        self.dynamic_axes = {"token_ids": sequence, "attention_mask": sequence, "logits": logits}

    def forward(self, token_ids_BT: Tensor, attention_mask_BT: Tensor, masks: EncoderMasks | None = None) -> Tensor:
        """Logits [B, num_classes], or [B, T, num_classes] of each token, of token ids and a mask that is 1 for tokens and 0 for
        padding, both int64 [B, T]. At padding they mean nothing."""
        T = token_ids_BT.shape[1]
        x_BTD = self.embedding(token_ids_BT) + self.positions.weight[:T]
        if self.ngrams is not None:
            x_BTD = x_BTD + self.ngrams(token_ids_BT, None if masks is None else masks.ngrams)
        bias = padding_bias(attention_mask_BT, x_BTD.dtype)
        x_BTD, left = self.stack(x_BTD, bias, None if masks is None else masks.stack)
        token_BT1 = attention_mask_BT[:, :, None].to(x_BTD.dtype) if left is bias else visible(left)
        x_BTD = x_BTD * token_BT1
        logits: Tensor = self.classifier(x_BTD if self.per_token else x_BTD.sum(dim=1) / token_BT1.sum(dim=1))
        return logits


@dataclass(frozen=True)
class EncoderFamily:
    """The encoders of one space over one vocabulary.

    Args:
        num_classes: logits of an answer.
        per_token: whether each token has an answer.
        ngram_buckets: rows of a table of n-grams.

    Raises:
        ValueError: a size under 1, a `norm` that is not "pre" or "post", or answers of tokens that are not kept.
    """

    space: SearchSpace
    vocab_size: int
    num_classes: int
    max_tokens: int = 64
    head_size: int = 32
    window: int = 8
    norm: NormPlace = "pre"
    per_token: bool = False
    ngram_buckets: int = 16_384

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_classes", "max_tokens", "ngram_buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.norm not in NORM_EPS:
            raise ValueError(f"norm: {self.norm!r} is not one of {tuple(NORM_EPS)}")
        fewer = self.trunk.reduction.largest.fewer
        if self.per_token and fewer:
            raise ValueError(f"keep: {fewer} % of the tokens are too few for a task that asks for each (space.keep=[])")
        if self.per_token and pool_sizes(self.space) != (1,):
            raise ValueError(f"pool: {pool_sizes(self.space)} tokens are one, and the task asks for each (space.pool=[1])")

    @functools.cached_property
    def trunk(self) -> Trunk:
        return Trunk(LayerAttention(self.space, self.head_size, self.window, self.max_tokens), self.norm, NORM_EPS[self.norm])

    @property
    def signature(self) -> str:
        """Changes with whatever changes a network's cost, its graph or its weights' shapes."""
        facts = [GRAPHS, self.space.to_json(), self.vocab_size, self.num_classes, self.max_tokens, self.head_size, self.window]
        facts += [self.norm] * (self.norm != "pre")  # what was measured before there was a choice stays valid
        facts += ["per token"] * self.per_token
        facts += [f"{self.ngram_buckets} buckets"] * (longest(self.space) > 1)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def hand_designed(self) -> dict[str, Architecture]:
        """The largest network, compact BERTs that the space holds, and the shallow ones."""
        largest, *shallow = self.trunk.shallow().items()
        return dict([largest, *inside(self.space, head_size=self.head_size).items(), *shallow])

    def supernet(self) -> Encoder:
        return self._around(self.trunk.largest_stack(), self.space.by_name["width"].largest, longest(self.space))

    def network(self, arch: Architecture, *, backend: Backend = "matmul") -> Encoder:
        self.space.validate(arch)
        return self._around(self.trunk.stack(arch, backend), arch.size("width"), length(arch))

    def _around(self, stack: Stack, width: int, num_tokens: int) -> Encoder:
        ngrams = NGrams(num_tokens, self.ngram_buckets, width, vocab_size=self.vocab_size) if num_tokens > 1 else None
        tables = Table(self.vocab_size, width), ngrams, Table(self.max_tokens, width)
        return Encoder(*tables, stack, self.num_classes, per_token=self.per_token)

    def pretrained(self, folder: Path) -> dict[str, Tensor]:
        """Weights of a BERT-like checkpoint, the classifier's not among them (see `search_spaces.pretrained`).

        Raises:
            ValueError: a pre-norm space, or a checkpoint of another kind or shape than the largest network.
        """
        return pretrained.read(folder, ("bert", "distilbert"), self.supernet, self.trunk, {})

    def masks(self, encoding: Encoding) -> EncoderMasks:
        return EncoderMasks(self.trunk.masks(encoding), shares(encoding))

    def example_input(self, workload: Workload) -> dict[str, Tensor]:
        """Random tokens without padding, by input name; the same for the same workload.

        Raises:
            ValueError: more tokens than the family's positions, or another mode than `encode`.
        """
        if workload.mode != "encode":
            raise ValueError(f"mode: {workload.mode!r} is not one of ('encode',), an encoder keeps nothing for later tokens")
        return example_tokens(workload, vocab_size=self.vocab_size, max_tokens=self.max_tokens)

    def operators(self, encoding: Encoding, workload: Workload) -> list[Operator]:
        """Those of the embeddings, the head and the trunk."""
        tokens = workload.batch * workload.tokens
        width, classes = encoding.expected("width"), self.num_classes
        final = (width + 1.0) * classes + norm_parameters(encoding)
        answers = tokens if self.per_token else workload.batch
        moved = 4.0 * (classes * width + (answers * (width + classes) if self.per_token else 0.0))
        seen = pooled_counts(encoding, workload.tokens)
        return [
            embedding_operator(self.vocab_size + self.max_tokens, tokens, width),
            *ngram_operators(encoding, tokens, self.ngram_buckets),
            *pool_operators(encoding, workload.tokens, batch=workload.batch),
            Operator("head", 1.0, 2.0 * answers * width * classes, moved, final),
            *self.trunk.operators(encoding, seen, batch=workload.batch, pairs_of=self.trunk.attention.pairs_of),
        ]


def encoder(
    *, vocab_size: int, num_classes: int, max_tokens: int, head_size: int, window: int, norm: NormPlace = "pre",
    per_token: bool = False, ngrams: Sequence[int] = (), ngram_buckets: int = 16_384, pool: Sequence[int] = (),
    name: str = "encoder", **choices: Unpack[TrunkOptions],
) -> EncoderFamily:  # fmt: skip
    """The family of a space that is given by its options; what a configuration builds. Raises ValueError like its parts.

    Where each token has an answer, a choice of pools that holds 1 is none: it is 1.
    """
    sizes = (1,) if per_token and 1 in pool else pool
    space = encoder_space(name=name, ngrams=ngrams, pool=sizes, **choices)
    return EncoderFamily(space, vocab_size, num_classes, max_tokens, head_size, window, norm, per_token, ngram_buckets)
