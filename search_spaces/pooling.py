"""Neighbouring tokens that become one before the first layer of an encoder: the choice, its masks and its costs.

Shapes: P sizes.

With a size of 2 the layers see the mean of each two tokens (see `nas.reduction.merged`), so half as many: all that a layer costs
is halved, in training too, and the products of full attention are quartered. Funnel-Transformer (arXiv:2006.03236) pools between
layers, Charformer (arXiv:2106.12672) before the first, like here; hashed n-grams may have seen before who stands beside whom.

The choice is categorical, with the most tokens first, like patches of images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nas.encoding import Encoding
from nas.protocols import Operator
from nas.reduction import ALL
from nas.space import Architecture, Choice, SearchSpace
from search_spaces.common import DEFAULTS, options
from search_spaces.reduction import Counts

NAME = "pool"


def pool_choices(pool: Sequence[int], *, attention: Sequence[str], keep: Sequence[int]) -> list[Choice]:
    """None without sizes, or with 1 alone.

    Raises:
        ValueError: sizes that are no ascending numbers of tokens, or beside what a mixture of means and tokens could not be exact
            for: the largest scores, and tokens that are left out.
    """
    if tuple(pool) in ((), (1,)):
        return []
    sizes = Choice(NAME, tuple(pool))
    if not sizes.is_nested:
        raise ValueError(f"{NAME}: {sizes.options} are not numbers of tokens")
    if largest := [kind for kind in attention if kind.startswith("topk")]:
        raise ValueError(f"{NAME}: {sizes.options} do not go with the attention {largest[0]!r} (space.pool=[1])")
    if tuple(keep) not in ((), (ALL,)):
        raise ValueError(f"{NAME}: {sizes.options} do not go with keep: {tuple(keep)} (space.pool=[1], or space.keep=[])")
    return [Choice(NAME, tuple(map(str, sizes.options)))]


def pool_sizes(space: SearchSpace) -> tuple[int, ...]:
    """Of all networks of a space."""
    return tuple(int(option) for option in options(space, NAME))


def pool_size(arch: Architecture) -> int:
    return int({**DEFAULTS, **arch.as_dict}[NAME])


def pool_shares(encoding: Encoding) -> Tensor | None:
    """P(each size), [P]; None if it is no choice."""
    return encoding.probabilities(NAME) if NAME in encoding.space.by_name else None


def pooled_counts(encoding: Encoding, tokens: int) -> Counts:
    """Numbers of tokens that the layers see."""
    if NAME not in encoding.space.by_name:
        return [(tokens, 1.0)]
    return [(-(-tokens // size), encoding.probability(NAME, str(size))) for size in pool_sizes(encoding.space)]


def pool_operators(encoding: Encoding, tokens: int, *, batch: int) -> list[Operator]:
    """The means: the stream is read, weighed by what is no padding and summed up."""
    width, operators = encoding.expected("width"), []
    for size, (after, p) in zip(pool_sizes(encoding.space), pooled_counts(encoding, tokens), strict=True):
        if size > 1:
            read, written = p * batch * tokens * width, p * batch * after * width
            operators.append(Operator(NAME, p, 2.0 * read, 12.0 * read + 8.0 * written, 0.0, 8.0 * read + 4.0 * written))
    return operators
