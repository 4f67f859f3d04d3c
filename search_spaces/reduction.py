"""How many tokens go on after one layer of a trunk: the choice, its masks and its costs (see `nas.reduction`).

Shapes: R shares.

The choice is named after the layer, `keep_after_2`, and its options are percent. It exists for networks that have a layer behind,
and the layer that scores the tokens always attends: so two architectures never are one network.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nas.encoding import Array, Encoding
from nas.protocols import Operator
from nas.reduction import ALL, num_kept
from nas.space import Architecture, Choice, Condition, SearchSpace
from search_spaces.attention import LayerAttention
from search_spaces.common import leader, leaders_of, share_of
from search_spaces.stack import Keep

KEEP = re.compile(r"keep_after_(\d+)")
Counts = Sequence[tuple[int, Array]]
"""Numbers of tokens of a sequence, and the probability of each."""


def keep_choices(depth: Choice, *, keep: Sequence[int], keep_after: int, precision: Sequence[str]) -> list[Choice]:
    """None without shares, or with that of all alone.

    Raises:
        ValueError: shares that are no ascending percentages, a layer behind which no network has another, or layers that may be
            in integers: the range of what is rounded would be that of the tokens that a supernet hides, too.
    """
    if tuple(keep) in ((), (ALL,)):
        return []
    if not 1 <= keep_after < depth.largest:
        raise ValueError(
            f"keep_after: {keep_after} is not one of the layers 1 to {depth.largest - 1}, which have one behind them"
        )
    if set(precision) != {"fp32"}:
        raise ValueError(f"keep: {tuple(keep)} goes with the precision 'fp32' alone, and {tuple(precision)} are chosen")
    deeper = Condition(depth.name, tuple(d for d in depth.sizes if d > keep_after))
    choice = Choice(f"keep_after_{keep_after}", tuple(keep), (deeper,) * (deeper.options != depth.options))
    if not choice.is_nested or choice.largest > ALL:
        raise ValueError(f"keep: {choice.options} are not percentages of 1 to {ALL}")
    return [choice]


def scoring(choices: Sequence[Choice], sharing: Sequence[str]) -> set[int]:
    """The layers whose weights may score tokens, of a space whose choices these are."""
    return {leader(int(match[1]), option) for c in choices if (match := KEEP.fullmatch(c.name)) for option in sharing}


@dataclass(frozen=True)
class Reduction:
    """That of a space whose choices are those of `keep_choices`, or none."""

    space: SearchSpace

    @functools.cached_property
    def choice(self) -> Choice | None:
        return next((choice for choice in self.space if KEEP.fullmatch(choice.name)), None)

    @functools.cached_property
    def largest(self) -> Keep:
        """Of all shares."""
        match = self.choice and KEEP.fullmatch(self.choice.name)
        if not self.choice or not match:
            return Keep(self.space.by_name["depth"].largest, (ALL,))
        return Keep(int(match[1]), self.choice.sizes)

    def of(self, arch: Architecture) -> Keep:
        """The share of an architecture."""
        kept = arch.size(self.choice.name) if self.choice and self.choice.name in arch else ALL
        return Keep(self.largest.after, (kept,))

    def mask(self, encoding: Encoding) -> Tensor | None:
        """Probabilities of the shares but that of all, [R], times that there is a layer behind; None without a choice."""
        if not self.choice:
            return None
        given_R = encoding.probabilities(self.choice.name)[: len(self.largest.fewer)]
        shares_R: Tensor = given_R * encoding.exists(self.choice.name)
        return shares_R

    def left(self, encoding: Encoding, counts: Counts) -> Counts:
        """Numbers of tokens that layers behind see."""
        if not self.choice:
            return counts
        shares = [(size, encoding.probability(self.choice.name, size)) for size in self.choice.sizes]
        return [(num_kept(tokens, size), p * share) for tokens, p in counts for size, share in shares]

    def operators(
        self, encoding: Encoding, counts: Counts, attention: LayerAttention, *, batch: int, alive: Callable[[str], list[Array]]
    ) -> list[Operator]:
        """Of the mean token, its queries, the scores of all and the copy of those that stay; the keys are the layer's own.

        ONNX Runtime scores at the end of the layer: until then keys and normed stream are alive beside what the layer makes.

        Args:
            alive: bytes that are alive together in each branch of a layer, by its name.
        """
        if not self.choice:
            return []
        after, exists = self.largest.after, encoding.exists(self.choice.name)
        shares = [(size, exists * encoding.probability(self.choice.name, size)) for size in self.largest.fewer]
        runs, tokens = sum(share for _, share in shares), batch * sum(p * float(n) for n, p in counts)
        kept = batch * sum(p * share * float(num_kept(n, size)) for n, p in counts for size, share in shares)
        layers = {f"layer{n}": share_of(encoding, after, n) for n in leaders_of(self.space, after)}
        width, size = encoding.expected("width"), float(attention.head_size)
        queries = size * sum(p * encoding.expected(f"{layer}.heads") for layer, p in layers.items())
        keys = size * sum(p * attention.expected_kv_heads(encoding, layer) for layer, p in layers.items())
        products = tokens * (width + queries) + batch * width * queries
        moved = runs * (tokens * (width + keys) + width * queries) + 2.0 * kept * width
        beside = 4.0 * tokens * (width + keys)
        branches = zip(*([p * part for part in alive(layer)] for layer, p in layers.items()), strict=True)
        return [
            Operator("reduction", runs, 2.0 * runs * products, 4.0 * moved),
            *(Operator("reduction", 0.0, 0.0, 0.0, 0.0, runs * (sum(parts) + beside)) for parts in branches),
        ]
