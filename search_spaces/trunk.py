"""What all families are made of: a stack of transformer layers, each with choices of its own.

A family puts something before a `Stack` (an embedding of tokens or of patches) and something behind it (a head); a `Trunk` knows
its choices, its masks and its costs. Shapes: E encoding, L layers, N layers that may have weights of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from nas.attention import Backend, Hides
from nas.encoding import Array, Encoding, prefix_membership
from nas.layers import Width
from nas.protocols import Operator
from nas.space import Architecture, Choice, Condition, SearchSpace
from search_spaces.attention import DEFAULT_KINDS, LayerAttention, attention_choices
from search_spaces.common import (
    DEFAULTS,
    SHARING,
    NormPlace,
    common_choices,
    leader,
    leaders,
    leaders_of,
    options,
    precision_choices,
    users,
    uses,
)
from search_spaces.feed_forward import LayerFeedForward, ffn_choices
from search_spaces.pooling import pool_shares, pool_size, pool_sizes
from search_spaces.reduction import Counts, Reduction, keep_choices, scoring
from search_spaces.stack import Block, LayerMasks, Masks, Stack


class TrunkOptions(TypedDict, total=False):
    """What `trunk_choices` takes: the words of a space's YAML that all families share."""

    width: Sequence[int]
    depth: Sequence[int]
    heads: Sequence[int]
    ffn: Sequence[int]
    attention: Sequence[str]
    kv_heads: Sequence[int]
    ffn_kind: Sequence[str]
    rank: Sequence[int]
    activation: Sequence[str]
    norm_kind: Sequence[str]
    sharing: Sequence[str]
    precision: Sequence[str]
    keep: Sequence[int]
    keep_after: int


def trunk_choices(
    *, width: Sequence[int] = (32, 48, 64, 96, 128), depth: Sequence[int] = (1, 2, 3, 4, 5, 6), heads: Sequence[int] = (1, 2, 4),
    ffn: Sequence[int] = (64, 128, 192, 256), attention: Sequence[str] = DEFAULT_KINDS, kv_heads: Sequence[int] = (),
    ffn_kind: Sequence[str] = ("mlp",), rank: Sequence[int] = (), activation: Sequence[str] = ("gelu",),
    norm_kind: Sequence[str] = ("layer",), sharing: Sequence[str] = ("none",), precision: Sequence[str] = ("fp32",),
    keep: Sequence[int] = (), keep_after: int = 1,
) -> list[Choice]:  # fmt: skip
    """Width, depth, those of `common_choices` and of `keep_choices`, and for each layer that may have weights of its own those of
    `attention_choices`, of `ffn_choices` and of `precision_choices`.

    Raises:
        ValueError: like these.
    """
    choices = [Choice("width", tuple(width)), Choice("depth", tuple(depth))]
    most = min(max(width), max(ffn, default=0))
    if rank and max(rank) > most:
        raise ValueError(f"rank: {max(rank)} is more than {most}, the smaller one of width and feed-forward size")
    choices += common_choices(sharing=sharing, activation=activation, norm_kind=norm_kind)
    choices += keep_choices(choices[1], keep=keep, keep_after=keep_after, precision=precision)
    scores = scoring(choices, sharing)
    for layer in range(1, choices[1].largest + 1):
        own = tuple(option for option in SHARING if option in sharing and leader(layer, option) == layer)
        deep_enough = Condition("depth", tuple(d for d in choices[1].sizes if d >= layer))
        requires = [deep_enough] * (deep_enough.options != choices[1].options)
        requires += [Condition("sharing", own)] * (len(own) < len(set(sharing)))
        if own:
            kinds = [kind for kind in attention if kind != "none" or layer not in scores]
            choices += attention_choices(layer, requires, attention=kinds, heads=heads, kv_heads=kv_heads)
            choices += ffn_choices(layer, requires, ffn=ffn, ffn_kind=ffn_kind, rank=rank)
            choices += precision_choices(layer, requires, precision=precision, ffn_kind=ffn_kind)
    return choices


@dataclass(frozen=True)
class Trunk:
    """The stacks of a space whose choices are those of `trunk_choices` (and others, which it does not look at).

    Raises:
        ValueError: a `norm_eps` that is not positive.
    """

    attention: LayerAttention
    norm: NormPlace
    norm_eps: float

    def __post_init__(self) -> None:
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: {self.norm_eps} is not positive")

    @property
    def space(self) -> SearchSpace:
        return self.attention.space

    @property
    def ffn(self) -> LayerFeedForward:
        return LayerFeedForward(self.space)

    @functools.cached_property
    def reduction(self) -> Reduction:
        return Reduction(self.space)

    @property
    def num_layers(self) -> int:
        return self.space.by_name["depth"].largest

    @property
    def layers(self) -> range:
        """Their numbers."""
        return range(1, self.num_layers + 1)

    def shallow(self) -> dict[str, Architecture]:
        """What one would build without a search: the largest network, and it with 2 layers and with 1 if the space has them."""
        largest = self.space.largest()
        depths = [d for d in (2, 1) if d in self.space.by_name["depth"].options and d < self.num_layers]
        shallow = {f"{d} layer{'s' * (d > 1)}": self.space.canonical({**largest.as_dict, "depth": d}) for d in depths}
        return {"largest": largest, **shallow}

    def largest_stack(self) -> Stack:
        """The one that holds every shared weight."""
        width, norms = self.space.by_name["width"].largest, self._norms(options(self.space, "norm_kind")[0])
        blocks = {n - 1: Block(width, self.attention.largest(width), self.ffn.largest(width), **norms) for n in self._leaders}
        users = [[m - 1 for m in numbers] for numbers in self._leaders_of]
        return Stack(blocks, users, width, self.attention, keep=self.reduction.largest, pool=pool_sizes(self.space), **norms)

    def stack(self, arch: Architecture, backend: Backend) -> Stack:
        """The stand-alone stack of an architecture."""
        picks, width = {**DEFAULTS, **arch.as_dict}, arch.size("width")
        norms = self._norms(picks["norm_kind"])
        used = [leader(layer, picks["sharing"]) for layer in range(1, arch.size("depth") + 1)]
        keep, pool = self.reduction.of(arch), [pool_size(arch)]
        scored = used[keep.after - 1] if keep.after <= len(used) and keep.fewer else 0
        blocks = {}
        for n in dict.fromkeys(used):
            hides: Hides | None = None if n == scored else "shares" if pool[0] > 1 else self.attention.hides
            branches = self.attention.module(arch, n, width, backend, hides), self.ffn.module(arch, n, width)
            blocks[n - 1] = Block(width, *branches, **norms, precision=str(arch.as_dict.get(f"layer{n}.precision", "")))
        return Stack(blocks, [[n - 1] for n in used], width, self.attention, keep=keep, pool=pool, **norms)

    def _norms(self, kind: object) -> dict[str, Any]:
        return {"norm": self.norm, "norm_kind": kind, "norm_eps": self.norm_eps}

    @functools.cached_property
    def _leaders(self) -> tuple[int, ...]:
        return leaders(self.space)

    @functools.cached_property
    def _leaders_of(self) -> list[tuple[int, ...]]:
        return [leaders_of(self.space, layer) for layer in self.layers]

    @property
    def _roundings(self) -> list[str]:
        """The precisions of layers but fp32."""
        return [str(option) for option in options(self.space, "layer1.precision") if option != "fp32"]

    def masks(self, encoding: Encoding) -> Masks:
        """Masks of one relaxed architecture: `encoding.values` is a tensor [E]. Those of layers with weights of their own are,
        but for keys and values, linear in the probabilities: one product with a constant matrix. A layer has those of the layer
        whose weights it uses."""
        with torch.autocast(encoding.values.device.type, enabled=False):
            product = encoding.values @ self._mask_matrix.to(encoding.values)
            parts = product.split([column.shape[1] for column in self._mask_columns.values()])
            width_D, gates_L, *others = parts
            names = list(self._mask_columns)[2:]
            rows = {name: part.view(len(self._leaders), -1) for name, part in zip(names, others, strict=True)}
            kv = self.attention.kv_masks(encoding, self._leaders, rows["heads"])
            shares = None
            if "sharing" in self.space.by_name:
                users_LN = torch.einsum(
                    "s,sln->ln", encoding.probabilities("sharing"), torch.as_tensor(users(self.space)).to(width_D)
                )
                shares = [users_LN[i, [self._leaders.index(m) for m in found]] for i, found in enumerate(self._leaders_of)]
                rows = {name: users_LN @ part for name, part in rows.items()}
                kv = None if kv is None else torch.einsum("ln,nhg->lhg", users_LN, kv)
            precisions = [{name: rows[name][i, 0] for name in self._roundings} for i in range(self.num_layers)]
            layers = map(LayerMasks, self.attention.masks(rows, kv, gates_L), self.ffn.masks(encoding, rows, gates_L), precisions)
            width = Width.of(width_D, self._centred(encoding))
            return Masks(width, list(layers), shares, self.reduction.mask(encoding), pool_shares(encoding))

    def _centred(self, encoding: Encoding) -> Array:
        """P(norms are layer norms); None if they all are."""
        if "norm_kind" not in self.space.by_name:
            return None
        return (
            encoding.probability("norm_kind", "layer")
            if "layer" in options(self.space, "norm_kind")
            else 0.0 * encoding.values[0]
        )

    @functools.cached_property
    def _mask_matrix(self) -> Tensor:
        """[E, sum of mask sizes]; in the type that most need, and exact in any."""
        return torch.as_tensor(np.concatenate(list(self._mask_columns.values()), axis=1), dtype=torch.float32)

    @functools.cached_property
    def _mask_columns(self) -> dict[str, np.ndarray]:
        """What makes each mask of an encoding, [E, its size]; those of layers one after the other."""

        def rows(choice: str, columns: np.ndarray) -> np.ndarray:
            block = np.zeros((self.space.encoding_size, columns.shape[1]))
            block[self.space.offsets[choice]] = columns
            return block

        def prefix(choice: str) -> np.ndarray:
            return rows(choice, prefix_membership(self.space.by_name[choice]))

        def kinds(choice: str, wanted: Sequence[tuple[str, ...]]) -> np.ndarray:
            options = self.space.by_name[choice].options
            return rows(choice, np.array([[option in group for group in wanted] for option in options], dtype=float))

        def each(columns: Callable[[str], np.ndarray]) -> np.ndarray:
            return np.concatenate([columns(f"layer{layer}") for layer in self._leaders], axis=1)

        mixed = [(kind,) for kind in self.attention.kinds]
        return {
            "width": prefix("width"),
            "gates": prefix("depth"),
            "attention": each(lambda layer: kinds(f"{layer}.attention", mixed)),
            "heads": each(lambda layer: prefix(f"{layer}.heads")),
            "ffn": each(lambda layer: prefix(f"{layer}.ffn")),
            **({"rank": each(lambda layer: prefix(f"{layer}.rank"))} if "layer1.rank" in self.space.by_name else {}),
            **{
                name: each(lambda layer, group=group: kinds(f"{layer}.ffn_kind", [group]))  # type: ignore[misc]
                for name, group in self.ffn.columns.items()
            },
            **{
                name: each(lambda layer, name=name: kinds(f"{layer}.precision", [(name,)]))  # type: ignore[misc]
                for name in self._roundings
            },
        }

    def operators(
        self, encoding: Encoding, counts: Counts, *, batch: int, pairs_of: Callable[[int], Mapping[str, float]]
    ) -> list[Operator]:
        """Per block of weights and kind of operator: count, FLOPs, bytes in fp32 and parameters, as expectations over the
        encoding; and what lives in the exported graph, where the stream, a branch's input and its intermediate results are side
        by side. Weights that several layers use run in each of them, and are held once.

        Args:
            counts: tokens of one sequence.
            pairs_of: of a number of tokens, as `LayerAttention.pairs_of` gives.
        """
        width, after = encoding.expected("width"), self.reduction.largest.after

        def expected(counts: Counts) -> dict[str, Any]:
            pairs = {name: sum(p * pairs_of(n)[name] for n, p in counts) for name in pairs_of(1)}
            return {"batch": batch, "tokens": sum(p * float(n) for n, p in counts), "pairs": pairs}

        def alive(layer: str) -> list[Array]:
            given = expected(counts)
            in_ffn = self.ffn.alive(encoding, layer, width, batch * given["tokens"])
            return [self.attention.alive(encoding, layer, width, **given), in_ffn]

        operators = self.reduction.operators(encoding, counts, self.attention, batch=batch, alive=alive)
        for layers, seen in ((self.layers[:after], counts), (self.layers[after:], self.reduction.left(encoding, counts))):
            given = expected(seen)
            for layer in (n for n in self._leaders if any(n in self._leaders_of[other - 1] for other in layers)):
                name, of_layer = f"layer{layer}", uses(encoding, layer, layers)
                operators += self.attention.operators(encoding, name, of_layer, width, **given)
                operators += self.ffn.operators(encoding, name, of_layer, width, batch * given["tokens"])
        return operators
