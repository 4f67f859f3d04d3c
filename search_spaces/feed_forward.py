"""The feed-forward branch of a trunk's layers: its choices, its modules, its masks and its costs.

Shapes: F hidden size, R rank.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nas.encoding import Array, Encoding
from nas.feed_forward import FFN_KINDS, FeedForward, FeedForwardMasks
from nas.protocols import Operator
from nas.space import Architecture, Choice, Condition, SearchSpace
from search_spaces.common import DEFAULTS, TINY, Uses, in_precisions, norm_operators, options, ordered


def ffn_choices(
    layer: int, requires: Sequence[Condition], *, ffn: Sequence[int], ffn_kind: Sequence[str], rank: Sequence[int]
) -> list[Choice]:
    """Kind, if there are several, hidden size and the rank of factored matrices of one layer.

    Raises:
        ValueError: an unknown kind, none but "none", ranks without the kind `lowrank` or the other way round, or options that a
            `Choice` refuses.
    """
    if bool(rank) != ("lowrank" in ffn_kind):
        raise ValueError(f"rank: {tuple(rank)} belongs to the ffn_kind 'lowrank', and {tuple(ffn_kind)} are chosen")
    kinds = ordered("ffn_kind", ffn_kind, FFN_KINDS)
    if kinds == ("none",):
        raise ValueError(f"ffn_kind: {kinds} needs at least one of {FFN_KINDS[:-1]}")
    if not kinds:
        return [Choice(f"layer{layer}.ffn", tuple(ffn), tuple(requires))]
    kind = Choice(f"layer{layer}.ffn_kind", kinds, tuple(requires))
    there = Condition(kind.name, tuple(k for k in kinds if k != "none"))
    choices = [kind, Choice(f"layer{layer}.ffn", tuple(ffn), (there,) if "none" in kinds else tuple(requires))]
    if rank:
        choices.append(Choice(f"layer{layer}.rank", tuple(rank), (Condition(kind.name, ("lowrank",)),)))
    return choices


@dataclass(frozen=True)
class LayerFeedForward:
    """The feed-forward branches of a space whose choices are those of `ffn_choices`; all layers have the same."""

    space: SearchSpace

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(map(str, options(self.space, "layer1.ffn_kind")))

    @property
    def activations(self) -> tuple[str, ...]:
        return tuple(map(str, options(self.space, "activation")))

    def largest(self, width: int) -> FeedForward:
        """Of every kind, so that it holds every shared weight."""
        rank = self.space.by_name["layer1.rank"].largest if "lowrank" in self.kinds else 0
        hidden = self.space.by_name["layer1.ffn"].largest
        return FeedForward(width, hidden, kinds=self.kinds, rank=rank, activations=self.activations)

    def module(self, arch: Architecture, layer: int, width: int) -> FeedForward | None:
        """Of one layer of an architecture; None if it has none."""
        picks = {**DEFAULTS, **arch.as_dict}
        kind = str(picks.get(f"layer{layer}.ffn_kind", DEFAULTS["ffn_kind"]))
        if kind == "none":
            return None
        rank = arch.size(f"layer{layer}.rank") if kind == "lowrank" else 0
        hidden, activations = arch.size(f"layer{layer}.ffn"), (str(picks["activation"]),)
        return FeedForward(width, hidden, kinds=(kind,), rank=rank, activations=activations)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The kinds whose joint probability a mask needs, by its name."""
        if len(self.kinds) == 1:
            return {}
        wanted = {kind: (kind,) for kind in ("glu", "lowrank") if kind in self.kinds}
        there = {"there": tuple(kind for kind in self.kinds if kind != "none")} if "none" in self.kinds else {}
        return wanted | there

    def masks(self, encoding: Encoding, rows: Mapping[str, Tensor], gates_L: Tensor) -> list[FeedForwardMasks]:
        """Of each layer.

        Args:
            rows: [layers, size] of hidden sizes ("ffn"), ranks and `columns`, given that there is the layer.
        """
        layers = [None] * len(gates_L)
        there_L = rows["there"][:, 0] if "there" in rows else gates_L.new_ones(len(gates_L))
        given = {kind: (rows[kind][:, 0] / there_L.clamp_min(TINY)).unbind() for kind in ("glu", "lowrank") if kind in rows}
        activation = encoding.probabilities("activation") if len(self.activations) > 1 else None
        gates_L = gates_L * there_L
        return list(
            map(
                FeedForwardMasks,
                gates_L.unbind(),
                (rows["ffn"] * gates_L[:, None]).unbind(),
                given.get("glu", layers),
                given.get("lowrank", layers),
                rows["rank"].unbind() if "rank" in rows else layers,
                [activation] * len(gates_L),
            )
        )

    def operators(self, encoding: Encoding, layer: str, uses: Uses, width: Array, tokens: Array) -> list[Operator]:
        """Of one block of weights; a gated one is a plain one and a gate."""
        hidden = encoding.expected(f"{layer}.ffn")
        operators = []
        for kind in self.kinds:
            if kind == "none":
                continue
            chosen = f"{layer}.ffn_kind" in self.space.by_name
            p, held = of_kind = uses.times(encoding.probability(f"{layer}.ffn_kind", kind)) if chosen else uses
            rank = encoding.expected(f"{layer}.rank") if kind == "lowrank" else 0.0
            weights = 2.0 * rank * (width + hidden) if kind == "lowrank" else 2.0 * width * hidden
            plain = Operator(
                "ffn.lowrank" if kind == "lowrank" else "ffn",
                p,
                p * 2.0 * tokens * weights,
                p * (4.0 * weights + 8.0 * tokens * (width + hidden + 2.0 * rank)),
                held * (weights + width + hidden),
                held * 4.0 * tokens * (width + 2.0 * hidden),
            )
            outputs, read = width + hidden, tokens * (width + hidden)
            operators += [
                *norm_operators(encoding, "ffn", of_kind, tokens, width),
                *self._activation_operators(encoding, p, tokens * hidden),
                *in_precisions(encoding, layer, of_kind, plain, weights=weights, read=read, outputs=outputs),
            ]
            if kind == "glu":
                gate = Operator(
                    "ffn.gate",
                    p,
                    p * 2.0 * tokens * width * hidden,
                    p * (4.0 * width * hidden + 4.0 * tokens * (width + 3.0 * hidden)),
                    held * (width * hidden + hidden),
                    held * 4.0 * tokens * (width + 3.0 * hidden),
                )
                weights, read = width * hidden, tokens * width
                operators += in_precisions(encoding, layer, of_kind, gate, weights=weights, read=read, outputs=hidden)
        return operators

    def alive(self, encoding: Encoding, layer: str, width: Array, tokens: Array) -> Array:
        """Bytes that are alive together, given the layer."""
        chosen, hidden = f"{layer}.ffn_kind" in self.space.by_name, encoding.expected(f"{layer}.ffn")
        each = {kind: 4.0 * tokens * (width + (3.0 if kind == "glu" else 2.0) * hidden) for kind in self.kinds if kind != "none"}
        return sum((encoding.probability(f"{layer}.ffn_kind", kind) if chosen else 1.0) * live for kind, live in each.items())

    def _activation_operators(self, encoding: Encoding, runs: Array, values: Array) -> list[Operator]:
        """Where it is a choice: a pass over the hidden values, at a price of each kind's own."""
        if len(self.activations) == 1:
            return []
        shares = {kind: runs * encoding.probability("activation", kind) for kind in self.activations}
        return [Operator(f"activation.{kind}", p, p * values, p * 8.0 * values) for kind, p in shares.items()]
