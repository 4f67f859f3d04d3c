"""Hashed n-grams: what the last n tokens are together is looked up, too, and added to the embedding of a token.

Shapes: B sequences, T tokens, D width, N lengths of n-grams.

A table has a row for each n-gram, or for several that share it (the hashing trick, as in fastText, arXiv:1607.01759; added to the
embeddings of a transformer as in N-Grammer, arXiv:2207.06366, and in the Byte Latent Transformer, arXiv:2412.09871, section
3.2.1). It costs memory and little time (13 us of 0.39 ms), so that a layer or two need not find out who stands beside
whom. On `languages` with 8,000 tokens, one layer, 1,000 steps, one seed, in % wrong answers:

| width | without | two tokens, 8,192 rows | 16,384 rows | 65,536 rows | three tokens, 65,536 rows | 16,384 x 64, projected |
|---|---|---|---|---|---|---|
| 48 | 17.3 | | 14.0 | | | |
| 128 | 16.1 | 14.3 | 12.8 | 12.4 | 13.0 | 14.0 |

The choice is a length: with 3, n-grams of two and of three tokens are added, and with 1 there are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.encoding import Encoding
from nas.layers import Table
from nas.protocols import Operator
from nas.space import Architecture, Choice, SearchSpace
from search_spaces.common import DEFAULTS, options

NAME = "ngrams"
MULTIPLIER = 2654435761  # Knuth's, 2^32 over the golden ratio: the n-grams of frequent tokens, whose ids are small, lie far apart


def ngram_choices(ngrams: Sequence[int]) -> list[Choice]:
    """None without lengths, or with 1 alone. Raises ValueError like `Choice`, or for lengths that are no sizes."""
    if tuple(ngrams) in ((), (1,)):
        return []
    choice = Choice(NAME, tuple(ngrams))
    if not choice.is_nested:
        raise ValueError(f"{NAME}: {choice.options} are not numbers of tokens")
    return [choice]


def longest(space: SearchSpace) -> int:
    """Of a space's n-grams, in tokens."""
    return int(options(space, NAME)[-1])


def length(arch: Architecture) -> int:
    """Of an architecture's n-grams, in tokens."""
    return int({**DEFAULTS, **arch.as_dict}[NAME])


class NGramTable(Table):
    """Begins with zeros: a network with a new table answers as without."""

    std = 0.0


class NGrams(nn.Module):
    """Tables of n-grams of 2 to `length` tokens that end with a token, all of them ids below `vocab_size`."""

    def __init__(self, length: int, buckets: int, width: int, *, vocab_size: int) -> None:
        super().__init__()
        self.buckets, self.vocab_size = buckets, vocab_size
        self.tables = nn.ModuleList(NGramTable(buckets, width) for _ in range(2, length + 1))

    def forward(self, token_ids_BT: Tensor, shares_N: Tensor | None = None) -> Tensor:
        """What is added to the embeddings, [B, T, D]; of a relaxed network with P(n-grams of 2, 3, … tokens are added)."""
        rows = zip(self.tables, self.rows(token_ids_BT), strict=True)
        found = [table(rows_BT) for table, rows_BT in rows]
        if shares_N is not None:
            found = [share * x_BTD for share, x_BTD in zip(shares_N, found, strict=True)]
        return torch.stack(found).sum(dim=0) if len(found) > 1 else found[0]

    def rows(self, token_ids_BT: Tensor) -> list[Tensor]:
        """Of each table, the row for each token, int64 [B, T]; before the first token stands padding."""
        found = [token_ids_BT]
        for n in range(1, len(self.tables) + 1):
            earlier_BT = F.pad(token_ids_BT, (n, 0))[:, :-n]
            scattered_BT = self._scattered(found[-1], below=self.vocab_size if n == 1 else self.buckets)
            found.append((scattered_BT + earlier_BT) % self.buckets)
        return found[1:]

    def _scattered(self, ids_BT: Tensor, *, below: int) -> Tensor:
        """`MULTIPLIER` times ids below a number, but for multiples of the number of rows. With up to 2^20 rows each step fits in
        32 bits: OpenVINO, which has no more, looks up the same."""
        factor = MULTIPLIER % self.buckets
        if below * factor + self.vocab_size <= 2**31:
            return ids_BT * factor
        digit = math.isqrt(self.buckets)
        ids_BT = ids_BT if below <= self.buckets else ids_BT % self.buckets
        return ids_BT.div(digit, rounding_mode="trunc") * (digit * factor % self.buckets) + ids_BT % digit * factor


def shares(encoding: Encoding) -> Tensor | None:
    """P(n-grams of 2, 3, … tokens are added), [N]; None if they are no choice."""
    if NAME not in encoding.space.by_name:
        return None
    found = [encoding.at_least(NAME, n) for n in range(2, longest(encoding.space) + 1)]
    return torch.stack([torch.as_tensor(p, dtype=encoding.values.dtype, device=encoding.values.device) for p in found])


def ngram_operators(encoding: Encoding, tokens: int, buckets: int) -> list[Operator]:
    """Of each table: a lookup and a sum with the stream."""
    width = encoding.expected("width")
    operators = []
    for n in range(2, longest(encoding.space) + 1):
        p = encoding.at_least(NAME, n)
        moved = p * 4.0 * tokens * width
        operators.append(Operator(NAME, p, 0.0 * moved, 4.0 * moved, p * buckets * width, 3.0 * moved))
    return operators
