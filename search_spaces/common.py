"""What holds for all layers of a trunk: the kind of norm, the activation, which layers have the same weights, and precisions.

A choice that a space does not have is decided by `DEFAULTS`. Weights belong to a layer, the first that uses them; the others of
its group are the same block once more, with its heads, its kinds and its sizes. They could have prefixes of them, but then a file
would hold these prefixes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from nas.encoding import Array, Encoding
from nas.feed_forward import ACTIVATIONS
from nas.layers import Norm, RMSNorm
from nas.protocols import Operator
from nas.rounding import BLOCK, ROUNDINGS
from nas.space import Choice, Condition, Option, SearchSpace

GRAPHS = 3  # part of signatures: another number whenever networks are exported as other operators, whose times are others

NORM_KINDS = ("layer", "rms")
SHARING = ("none", "pairs", "all")
"""No layers share, each second one has the weights of the one before (MobileLLM, arXiv:2402.14905), or all have the same (ALBERT,
arXiv:1909.11942)."""
PRECISIONS = ("fp32", *ROUNDINGS)
"""Of the linear maps of a layer."""
SAVED = {"fp16": (-2.0, 0.0), "int8": (3.0, -5.0), "int4": (4.0 - 0.5 - 4.0 / BLOCK, 0.0)}
"""Bytes that a weight, and an output, takes less than in fp32: in int8 a byte, and of an output a scale and a zero point; in int4
half a byte and its part of a scale; in fp16 two bytes more, as ONNX Runtime holds floats beside them on a CPU of x86."""
DEFAULTS: dict[str, Option] = {
    "ffn_kind": "mlp", "activation": "gelu", "norm_kind": "layer", "sharing": "none", "precision": "fp32", "ngrams": 1,
    "pool": "1", "stem": "patches",
}  # fmt: skip
NormPlace = Literal["pre", "post"]
NORM_EPS = {"pre": 1e-5, "post": 1e-12}  # of torch, of BERT
TINY = 1e-6  # what is as good as no probability


def common_choices(*, sharing: Sequence[str], activation: Sequence[str], norm_kind: Sequence[str]) -> list[Choice]:
    """Raises ValueError: unknown kinds, or none."""
    given = (("sharing", sharing, SHARING), ("activation", activation, ACTIVATIONS), ("norm_kind", norm_kind, NORM_KINDS))
    return [Choice(name, kinds) for name, options, known in given if (kinds := ordered(name, options, tuple(known)))]


def precision_choices(
    layer: int, requires: Sequence[Condition], *, precision: Sequence[str], ffn_kind: Sequence[str]
) -> list[Choice]:
    """That of one layer, if there are several precisions.

    Raises:
        ValueError: an unknown precision, or none, or a choice where layers may be factored, or without a feed-forward.
    """
    precisions = ordered("precision", precision, PRECISIONS)
    if precisions and set(ffn_kind) - {"glu", "mlp"}:
        raise ValueError(f"precision: {precisions} go with the ffn_kind 'glu' and 'mlp', and {tuple(ffn_kind)} are chosen")
    return [Choice(f"layer{layer}.precision", precisions, tuple(requires))] if precisions else []


def ordered(name: str, given: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The options of a categorical choice in their order; none if the only one is the default, which makes no choice.

    Raises:
        ValueError: unknown kinds, or none.
    """
    if not given or set(given) - set(known):
        raise ValueError(f"{name}: {tuple(given)} are not some of {known}")
    return () if tuple(given) == (DEFAULTS[name],) else tuple(kind for kind in known if kind in given)


def options(space: SearchSpace, name: str) -> tuple[Option, ...]:
    """Those of a choice, or the default alone."""
    return space.by_name[name].options if name in space.by_name else (DEFAULTS[name.rpartition(".")[2]],)


def leader(layer: int, sharing: Option) -> int:
    """The layer whose weights a layer uses; both count from 1."""
    return {"none": layer, "pairs": layer - 1 + layer % 2, "all": 1}[str(sharing)]


def leaders(space: SearchSpace) -> tuple[int, ...]:
    """The layers that may have weights, and then choices, of their own."""
    return tuple(layer for layer in range(1, space.by_name["depth"].largest + 1) if f"layer{layer}.attention" in space.by_name)


def leaders_of(space: SearchSpace, layer: int) -> tuple[int, ...]:
    """The layers whose weights a layer may use."""
    return tuple(dict.fromkeys(leader(layer, sharing) for sharing in options(space, "sharing")))


def users(space: SearchSpace) -> np.ndarray:
    """[options of `sharing`, layers, leaders]: 1 where a layer uses the weights of a leader."""
    layers = range(1, space.by_name["depth"].largest + 1)
    found = [[[leader(n, sharing) == m for m in leaders(space)] for n in layers] for sharing in options(space, "sharing")]
    return np.array(found, dtype=float)


class Uses(NamedTuple):
    """Of one block of weights, or of a part of it, as expectations."""

    runs: Array  # layers that use it
    held: Array  # P(one does)

    def times(self, p: Array) -> Uses:
        return Uses(self.runs * p, self.held * p)


def share_of(encoding: Encoding, layer: int, first: int) -> Array:
    """P(a layer uses the weights of a leader)."""
    kept = [sharing for sharing in options(encoding.space, "sharing") if leader(layer, sharing) == first]
    everyone = len(kept) == len(options(encoding.space, "sharing"))
    return 1.0 if everyone else sum(encoding.probability("sharing", sharing) for sharing in kept)


def uses(encoding: Encoding, first: int, layers: Iterable[int]) -> Uses:
    """Of the weights of a leader, by some of the layers; they are held where it is one of them itself."""
    its = [n for n in layers if first in leaders_of(encoding.space, n)]
    found = {n: encoding.at_least("depth", n) * share_of(encoding, n, first) for n in its}
    return Uses(sum(found.values()), found.get(first, 0.0))


def make_norm(width: int, kind: str, eps: float) -> Norm | RMSNorm:
    return Norm(width, eps=eps) if kind == "layer" else RMSNorm(width, eps=eps)


def in_precisions(
    encoding: Encoding, layer: str, uses: Uses, fp32: Operator, *, weights: Array, read: Array, outputs: Array
) -> list[Operator]:
    """Linear maps of a layer in each precision that it may have.

    Args:
        uses: of the maps.
        fp32: what they cost where there is no choice.
        weights, read, outputs: weights in matrices, values that are read (and rounded first in fewer bits), and outputs.
    """
    name = f"{layer}.precision"
    if name not in encoding.space.by_name:
        return [fp32]
    kinds = {"fp32": fp32}
    for precision, (of_weight, of_output) in SAVED.items():
        kinds[precision] = replace(
            fp32,
            kind=f"{fp32.kind}.{precision}",
            bytes=fp32.bytes + uses.runs * (2.0 * read - of_weight * weights),
            saved_bytes=uses.held * (of_weight * weights + of_output * outputs),
        )
    return [_times(kinds[str(option)], encoding.probability(name, option)) for option in options(encoding.space, name)]


def _times(operator: Operator, p: Array) -> Operator:
    costs = {name: value * p for name, value in vars(operator).items() if name != "kind"}
    return replace(operator, **costs)


def norm_operators(encoding: Encoding, branch: str, of: Uses, tokens: Array, width: Array) -> list[Operator]:
    """A norm of each kind that the space has; an RMS norm has no bias."""
    operators = []
    for kind in options(encoding.space, "norm_kind"):
        p = of.times(encoding.probability("norm_kind", kind)) if "norm_kind" in encoding.space.by_name else of
        streams, parameters = 4.0 * tokens * width, (2.0 if kind == "layer" else 1.0) * width
        name = f"{branch}.norm" if kind == "layer" else f"{branch}.rms.norm"
        moved = p.runs * 2.0 * streams
        operators.append(Operator(name, p.runs, moved, moved, p.held * parameters, p.held * 3.0 * streams))
    return operators


def norm_parameters(encoding: Encoding) -> Array:
    """Expected weights of one norm, as that behind the last layer."""
    return sum(op.parameters for op in norm_operators(encoding, "last", Uses(1.0, 1.0), 0.0, encoding.expected("width")))
