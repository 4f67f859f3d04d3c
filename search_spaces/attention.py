"""The attention of a trunk's layers: its choices, its modules, its masks and its costs.

Shapes: B sequences, T tokens, H heads, K channels of a head, G heads of keys and values, W window.

A sparse kind has a number, the window W (see `nas.attention_kinds`): a query sees W tokens to both sides (`window`), the W of
its block and the first one (`block`), every W-th (`strided`), the W with the largest scores (`topk`), or W mixtures of all
(`lowrank`). It is written behind the name, as in `window16`; a name alone has the window of the space.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.attention import LOOKS_AHEAD, PATTERNS, Attention, AttentionMasks, Backend, Hides, Layout
from nas.attention_kinds import AttentionKind, Form, pattern_at
from nas.encoding import Array, Encoding
from nas.protocols import Operator
from nas.space import Architecture, Choice, Condition, SearchSpace
from search_spaces.common import TINY, Uses, in_precisions, norm_operators

FORMS: tuple[Form, ...] = get_args(Form)
ATTENTION_KINDS = (*FORMS, "none")
SIZED = (*PATTERNS, "topk", "lowrank")  # forms that may have a number; of the patterns there may be several
WRITTEN = re.compile(rf"({'|'.join(SIZED)})([1-9]\d*)")
DEFAULT_KINDS = ("full", "window", "none")
READ_LATE = ("full", "strided", "lowrank")  # forms that still need the layer's input when most is alive


def attention_choices(
    layer: int, requires: Sequence[Condition], *, attention: Sequence[str], heads: Sequence[int], kv_heads: Sequence[int]
) -> list[Choice]:
    """Kind, heads and, where they may be fewer than the heads, heads of keys and values of one layer.

    A number of heads that has a choice of its divisors among `kv_heads` has it by a name of its own, as `layer1.kv_heads_of_4`;
    without `kv_heads`, or where there is only the number itself, every head has its own keys and values.

    Raises:
        ValueError: a kind that is unknown or stands twice, none but "none", options that a `Choice` refuses, or heads that no
            `kv_heads` divides.
    """
    kinds = _ordered(attention)
    attends = Condition(f"layer{layer}.attention", tuple(kind for kind in kinds if kind != "none"))
    if not attends.options:
        raise ValueError(f"attention: {tuple(attention)} needs at least one of {FORMS}")
    choices = [
        Choice(f"layer{layer}.attention", kinds, tuple(requires)),
        Choice(f"layer{layer}.heads", tuple(heads), (attends,)),
    ]
    for number in choices[1].sizes:
        allowed = Choice("kv_heads", tuple(kv_heads)).sizes if kv_heads else (number,)
        divisors = tuple(size for size in allowed if number % size == 0)
        if not divisors:
            raise ValueError(f"kv_heads: none of {allowed} divides {number} heads")
        if divisors != (number,):
            choices.append(Choice(f"layer{layer}.kv_heads_of_{number}", divisors, (Condition(f"layer{layer}.heads", (number,)),)))
    return choices


def _ordered(attention: Sequence[str]) -> tuple[str, ...]:
    """From those that see the most to those that see the least."""
    for option in attention:
        if option not in ATTENTION_KINDS and not WRITTEN.fullmatch(option):
            raise ValueError(f"attention: {option!r} is not one of {ATTENTION_KINDS}, nor of {SIZED} with a size, as window16")
    kinds = {option: _kind(option, window=0) for option in attention}
    for form in SIZED:
        same = tuple(option for option, kind in kinds.items() if kind.form == form)
        if len(same) > 1 and (form in same or form not in PATTERNS):
            raise ValueError(f"attention: {same} are {form} twice; of {tuple(PATTERNS)} there may be several, with a size each")

    def rank(option: str) -> tuple[int, int]:
        form, W = kinds[option]
        return ATTENTION_KINDS.index(form), W if form == "strided" else -W

    return tuple(sorted(kinds, key=rank))


def _kind(option: str, *, window: int) -> AttentionKind:
    found = WRITTEN.fullmatch(option)
    return AttentionKind(cast(Form, found[1]), int(found[2])) if found else AttentionKind(cast(Form, option), window)


@dataclass(frozen=True)
class LayerAttention:
    """The attention of the layers of a space whose choices are those of `attention_choices`; all layers have the same.

    Args:
        window: of kinds without one of their own.
        rotary: whether queries and keys are turned by their positions (see `nas.rotary`).
        hides: what the bias of a network says that pools no tokens.

    Raises:
        ValueError: a size under 1, a causal network with a kind that looks at what comes after, or rotary positions of heads with
            an odd size.
    """

    space: SearchSpace
    head_size: int
    window: int
    max_tokens: int
    causal: bool = False
    rotary: bool = False
    hides: Hides = "padding"

    def __post_init__(self) -> None:
        for option, kind in self.kinds.items():
            if self.causal and kind.form in LOOKS_AHEAD:
                raise ValueError(f"attention: {option!r} looks at what comes after, a causal network cannot have it")
        for name in ("head_size", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.rotary and self.head_size % 2:
            raise ValueError(f"head_size: {self.head_size} is odd, rotary positions turn pairs of channels")

    @functools.cached_property
    def kinds(self) -> dict[str, AttentionKind]:
        """Those that a relaxed layer mixes, by option."""
        options = (str(option) for option in self.space.by_name["layer1.attention"].options if option != "none")
        return {option: _kind(option, window=self.window) for option in options}

    @property
    def forms(self) -> set[Form]:
        return {kind.form for kind in self.kinds.values()}

    @functools.cached_property
    def patterns(self) -> list[AttentionKind]:
        """Those with a fixed pattern."""
        return [kind for kind in self.kinds.values() if kind.form in PATTERNS]

    @functools.cached_property
    def heads(self) -> tuple[int, ...]:
        return self.space.by_name["layer1.heads"].sizes

    @functools.cached_property
    def kv_heads(self) -> dict[int, tuple[int, ...]]:
        """Options by the number of heads, where there is a choice."""
        names = {number: f"layer1.kv_heads_of_{number}" for number in self.heads}
        return {number: self.space.by_name[name].sizes for number, name in names.items() if name in self.space.by_name}

    @property
    def most_kv_heads(self) -> int:
        return max(self.kv_heads.get(number, (number,))[-1] for number in self.heads)

    def largest(self, width: int) -> Attention:
        """With every kind and the most heads, so that it holds every shared weight."""
        return self._module(width, self.heads[-1], self.most_kv_heads, list(self.kinds.values()), "matmul", self.hides)

    def module(self, arch: Architecture, layer: int, width: int, backend: Backend, hides: Hides | None) -> Attention | None:
        """Of one layer of an architecture; None if it does not attend."""
        kind = self.kinds.get(str(arch[f"layer{layer}.attention"]))
        if kind is None:
            return None
        heads = arch.size(f"layer{layer}.heads")
        kv_heads = arch.size(f"layer{layer}.kv_heads_of_{heads}") if heads in self.kv_heads else heads
        return self._module(width, heads, kv_heads, [kind], backend, hides)

    def _module(
        self, width: int, heads: int, kv_heads: int, kinds: Sequence[AttentionKind], backend: Backend, hides: Hides | None
    ) -> Attention:  # fmt: skip
        return Attention(
            width, heads, kv_heads=kv_heads, head_size=self.head_size, kinds=kinds, max_tokens=self.max_tokens,
            backend=backend, causal=self.causal, hides=hides,
        )  # fmt: skip

    @torch.no_grad()
    def layout(self, num_tokens: int, like: Tensor, pools: Sequence[tuple[int, float | Tensor]] = ((1, 1.0),)) -> Layout:
        """The mean of layouts, without a gradient: exact where it is decided.

        Args:
            pools: of how many neighbours a token may have the mean (see `nas.reduction.spread`), and the probability.
        """
        own_T = torch.arange(num_tokens, device=like.device)
        patterns = torch.stack([share * self._patterns_at(own_T // size, like) for size, share in pools]).sum(dim=0)
        if "lowrank" not in self.forms or all(size == 1 for size, _ in pools):
            return Layout(patterns)
        standing = [share / size * F.one_hot(own_T // size, num_tokens).T.to(like) for size, share in pools]
        return Layout(patterns, torch.stack(standing).sum(dim=0)[None])

    def _patterns_at(self, places: Tensor, like: Tensor) -> Tensor:
        """What the kinds with a pattern see where tokens stand at these places, [..., T]: [P, ..., T, T]."""
        found = [pattern_at(form, places, W, like, causal=self.causal) for form, W in self.patterns]
        return torch.stack(found) if found else like.new_empty(0, *places.shape, places.shape[-1])

    @torch.no_grad()
    def moved(self, layout: Layout, keeps_RBT: Tensor, shares_R: Tensor) -> Layout:
        """The mean of layouts where what is kept moves up, without a gradient: exact where it is decided.

        Args:
            shares_R: probability of each; what is missing to one stays.
        """
        places_RBT = (keeps_RBT.cumsum(dim=-1) - 1.0).clamp_min(0.0).long()
        shares_R, stays, T = shares_R.to(keeps_RBT), 1.0 - shares_R.sum().to(keeps_RBT), keeps_RBT.shape[-1]
        patterns, standing = stays * layout.patterns[:, None, None], stays * torch.eye(T).to(keeps_RBT)
        for share, places_BT in zip(shares_R, places_RBT, strict=True):
            patterns = patterns + share * self._patterns_at(places_BT, keeps_RBT)[:, :, None]
            standing = standing + share * F.one_hot(places_BT, T).transpose(1, 2)
        return Layout(patterns, standing if "lowrank" in self.forms else None)

    def masks(self, rows: Mapping[str, Tensor], kv_LHG: Tensor | None, gates_L: Tensor) -> list[AttentionMasks]:
        """Of each layer.

        Args:
            rows: [layers, size] of kinds but none ("attention") and heads, given that there is the layer.
        """
        kinds_LN = rows["attention"] * gates_L[:, None]
        kinds_LNH = kinds_LN[..., None] * rows["heads"][:, None]
        kvs = [None] * len(gates_L) if kv_LHG is None else kv_LHG.unbind()
        return list(map(AttentionMasks, kinds_LN.sum(dim=1).unbind(), kinds_LNH.unbind(), kvs))

    def kv_masks(self, encoding: Encoding, layers: Sequence[int], heads_LH: Tensor) -> Tensor | None:
        """[layers, H, G]: P(query head h sees head g of the keys and values), given that there is an h; None without a choice.

        Args:
            layers: their numbers, which count from 1.
            heads_LH: P(there is an h).
        """
        if not self.kv_heads:
            return None
        values = encoding.values
        total = values.new_zeros(len(heads_LH), self.heads[-1], self.most_kv_heads)
        for index, number in enumerate(self.heads):
            is_number_L = torch.stack([values[self.space.offsets[f"layer{layer}.heads"].start + index] for layer in layers])
            sees = torch.as_tensor(self._sees(number)).to(values)
            if number in self.kv_heads:
                choices = [encoding.probabilities(f"layer{layer}.kv_heads_of_{number}") for layer in layers]
                seen = torch.einsum("lo,ohg->lhg", torch.stack(choices), sees)
            else:
                seen = sees
            total = total + is_number_L[:, None, None] * seen
        given: Tensor = total / heads_LH[..., None].clamp_min(TINY)
        return given

    def _sees(self, number: int) -> np.ndarray:
        """[options, H, G] of one number of heads: 1 where query head h sees head g of the keys and values."""
        head, other = np.arange(self.heads[-1])[:, None], np.arange(self.most_kv_heads)
        options = self.kv_heads.get(number, (number,))
        return np.stack([(head < number) & (head % option == other) for option in options]).astype(float)

    def expected_kv_heads(self, encoding: Encoding, layer: str) -> Array:
        """Given that the layer attends."""
        if not self.kv_heads:
            return encoding.expected(f"{layer}.heads")
        sizes = {n: encoding.expected(f"{layer}.kv_heads_of_{n}") if n in self.kv_heads else float(n) for n in self.heads}
        return sum(encoding.probability(f"{layer}.heads", number) * size for number, size in sizes.items())

    def in_one(self, encoding: Encoding, layer: str) -> Array:
        """P(full attention of the layer is one operator of a file): see `nas.runtime_attention`."""
        if self.rotary or not self.kv_heads:
            return 0.0 if self.rotary else 1.0
        own = {n: encoding.probability(f"{layer}.kv_heads_of_{n}", n) if n in self.kv_heads else 1.0 for n in self.heads}
        return sum(encoding.probability(f"{layer}.heads", n) * p for n, p in own.items())

    def pairs_of(self, tokens: int) -> dict[str, float]:
        """By option, of one head over so many tokens: the pairs of a query and a key that are computed, or what costs as many
        products; the floats that are read and written (moved), and those that are alive together (live), also if it is one
        operator of a file (in one)."""
        T, K = tokens, self.head_size

        def of(form: Form, W: int) -> tuple[float, float, float]:
            blocks = -(-T // W)
            padded = blocks * W
            pairs = {
                "full": T * T,
                "window": padded * (2 if self.causal else 3) * W,
                "block": padded * (W + 1) + (not self.causal) * T,
                "strided": padded * blocks,
                "topk": (T * T + T * min(W, T)) / 2,  # every score, and values of the largest
                "linear": T * K,  # keys times values, and queries times that
                "lowrank": 2 * T * W,  # keys and values into mixtures, and attention to these
            }[form]
            live = {
                "full": T * (T + max(T, 2 * K)),  # scores, and scores again or the values twice
                "window": 10.0 * padded * K,  # query; keys and values, three times; slices of keys
                "block": (7.0 * padded + 3.0 * blocks) * K,  # query, keys, values; these with the first token, and what is joined
                "strided": max(3.0 * padded * K, 2.0 * padded * blocks),  # in classes; or scores twice
                "topk": max(T * W * (K + 3.0) + T * K, 2.0 * T * T + 2.0 * T * K),  # gathered values; or scores twice
                "linear": 4.0 * T * K + T,
                "lowrank": 3.0 * T * K,
            }[form]
            return pairs, 2.0 * T * (T + min(W, T) * K) if form == "topk" else 2.0 * pairs, live

        in_one = {f"{option} in one": float(T * (T + 5 * K)) for option, (form, _) in self.kinds.items() if form == "full"}
        return _table({option: of(*kind) for option, kind in self.kinds.items()}) | in_one

    def pairs_of_next(self, past: int) -> dict[str, float]:
        """The same of a single token that sees the kept ones of `past` tokens and itself."""
        seen, K = past + 1, self.head_size

        def of(form: Form, W: int) -> tuple[float, float, float]:
            keys = {
                "full": seen,
                "window": min(past, W) + 1,
                "block": past % W + 1 + (past >= W),
                "strided": past // W + 1,
                "topk": (seen + min(W, seen)) / 2,
            }[form]
            return (
                keys,
                2.0 * keys,
                keys * (2.0 + 4 * K),
            )  # of a head scores twice, and keys and values as before and with the new

        return _table({option: of(*kind) for option, kind in self.kinds.items()})

    def operators(
        self, encoding: Encoding, layer: str, uses: Uses, width: Array, *, batch: int, tokens: Array, pairs: Mapping[str, Array]
    ) -> list[Operator]:
        """Of one block of weights; `pairs` are what `pairs_of` gives, or expectations of it."""
        all_tokens = batch * tokens
        heads = encoding.expected(f"{layer}.heads")
        channels = heads * float(self.head_size)
        kv_channels = self.expected_kv_heads(encoding, layer) * float(self.head_size)
        weights, outputs = 2.0 * width * (channels + kv_channels), channels + 2.0 * kv_channels + width
        operators = []
        for option, (form, window) in self.kinds.items():
            p, held = of_kind = uses.times(encoding.probability(f"{layer}.attention", option))
            seen, moved, live = (batch * pairs[f"{option}{what}"] for what in ("", " moved", " live"))
            if f"{option} in one" in pairs:
                live = live + self.in_one(encoding, layer) * (batch * pairs[f"{option} in one"] - live)
            shortening = float(window * self.max_tokens) if form == "lowrank" else 0.0
            operators += [
                *norm_operators(encoding, "attention", of_kind, all_tokens, width),
                *in_precisions(
                    encoding,
                    layer,
                    of_kind,
                    Operator(
                        "projections",
                        p,
                        p * 2.0 * all_tokens * weights,
                        p * (4.0 * weights + 8.0 * all_tokens * (2.0 * width + channels + kv_channels)),
                        held * (weights + outputs),
                    ),
                    weights=weights,
                    read=all_tokens * (width + channels),
                    outputs=outputs,
                ),
                *([_turning(of_kind, all_tokens, width, channels, kv_channels)] if self.rotary else []),
                Operator(
                    f"attention.{form}",
                    p,
                    p * 4.0 * seen * channels,
                    p * (heads * 4.0 * moved + 4.0 * shortening),
                    held * shortening,
                    held * (heads * 4.0 * live + (8.0 if form in READ_LATE else 4.0) * all_tokens * width),
                ),
            ]
        return operators

    def alive(
        self, encoding: Encoding, layer: str, width: Array, *, batch: int, tokens: Array, pairs: Mapping[str, Array]
    ) -> Array:
        """Bytes that are alive together, given the layer, without its normed input; full attention is written out."""
        heads = encoding.expected(f"{layer}.heads")
        each = {option: 4.0 * batch * (heads * pairs[f"{option} live"] + tokens * width) for option in self.kinds}
        return sum(encoding.probability(f"{layer}.attention", option) * live for option, live in each.items())


def _table(costs: Mapping[str, tuple[float, float, float]]) -> dict[str, float]:
    """Pairs, moved and live of each option, by name."""
    return {f"{option}{what}": n for option, row in costs.items() for what, n in zip(("", " moved", " live"), row, strict=True)}


def _turning(uses: Uses, tokens: Array, width: Array, channels: Array, kv_channels: Array) -> Operator:
    """Of queries and keys: two products and a sum of each value, after its head's halves are exchanged."""
    turned = tokens * (channels + kv_channels)
    live = 4.0 * tokens * (width + 3.0 * channels + 2.0 * kv_channels)  # two summands of the queries beside what is projected
    return Operator("rotary", uses.runs, uses.runs * 3.0 * turned, uses.runs * 36.0 * turned, 0.0, uses.held * live)
