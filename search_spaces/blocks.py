"""Single blocks of vision transformers, as tables of measurements list them, by what they cost.

The blocks of nn-Meter's tables (Microsoft, branch dev/hybrid-transformer) are those of LeViT (Graham et al., arXiv:2104.01136),
with layer norms: attention with heads of 16 channels and values that may be wider than the keys, and a feed-forward. Both are
counted as `Trunk.operators` counts our own, so a price that is fitted to them is a price for the layers of a search.

Convolutions, down-sampling between stages and the pooling at the end have no counterpart in our networks and are left out.
"""

from __future__ import annotations

from nas.protocols import Operator
from nas.tables import RecordedTable

HEAD_SIZE = 16
SIZES = ("is_transattn", "is_transffn", "resolution", "channels_in", "expansion", "value_scale")


def are_in(table: RecordedTable) -> bool:
    return set(SIZES) <= set(table.features)


def match(table: RecordedTable) -> list[tuple[int, list[Operator]]]:
    """The rows of a table of blocks whose operators our networks have too, with these operators."""
    columns = zip(*(table.rows[:, table.features.index(name)] for name in SIZES), strict=True)
    found = []
    for row, (attends, feeds, resolution, width, expansion, value_scale) in enumerate(columns):
        if attends:
            found.append((row, attention(resolution**2, width, value_scale)))
        elif feeds:
            found.append((row, feed_forward(resolution**2, width, expansion)))
    return found


def attention(tokens: float, width: float, value_scale: float) -> list[Operator]:
    """Full attention of one sequence; values and what is read of them are `value_scale` times as wide as queries and keys."""
    heads = width // HEAD_SIZE
    channels = (1.0 + value_scale) * heads * HEAD_SIZE
    weights, pairs = 2.0 * width * channels, tokens**2
    moved = 4.0 * weights + 8.0 * tokens * (2.0 * width + channels)
    return [
        _norm("attention", tokens, width),
        Operator("projections", 1.0, 2.0 * tokens * weights, moved),
        Operator("attention.full", 1.0, 2.0 * pairs * channels, 8.0 * heads * pairs),
    ]


def feed_forward(tokens: float, width: float, expansion: float) -> list[Operator]:
    hidden = expansion * width
    weights = 2.0 * width * hidden
    moved = 4.0 * weights + 8.0 * tokens * (width + hidden)
    return [_norm("ffn", tokens, width), Operator("ffn", 1.0, 2.0 * tokens * weights, moved)]


def _norm(branch: str, tokens: float, width: float) -> Operator:
    return Operator(f"{branch}.norm", 1.0, 8.0 * tokens * width, 8.0 * tokens * width)
