"""The space of HAT (Wang et al., ACL 2020, arXiv:2005.14187) as its latency tables describe it: ten numbers a network.

An encoder-decoder transformer for translation that writes one token after the other. Its tables give averages over the active
layers; what it costs depends on the sums, so a cost is an average times the number of layers.

The tables were sampled from more than the space that was searched: they also hold feed-forward sizes of 512 and 2 heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.space import Architecture, Choice, Condition, SearchSpace

FEATURES = (
    "encoder_embed_dim",
    "encoder_layer_num",
    "encoder_ffn_embed_dim_avg",
    "encoder_self_attention_heads_avg",
    "decoder_embed_dim",
    "decoder_layer_num",
    "decoder_ffn_embed_dim_avg",
    "decoder_self_attention_heads_avg",
    "decoder_ende_attention_heads_avg",
    "decoder_arbitrary_ende_attn_avg",
)
ENCODER_LAYERS = 6


def hat_space(
    *,
    width: Sequence[int] = (512, 640),
    depth: Sequence[int] = (1, 2, 3, 4, 5, 6),
    heads: Sequence[int] = (4, 8),
    ffn: Sequence[int] = (1024, 2048, 3072),
    attended: Sequence[int] = (1, 2, 3),
    name: str = "hat",
) -> SearchSpace:
    """The choices of HAT for WMT; the default holds about 10^14.6 architectures.

    `depth` is the decoder's, the encoder always has 6 layers. A decoder layer attends to the last 1, 2 or 3 encoder layers, which
    the published configurations write as -1, 1 and 2.

    Raises:
        ValueError: options that a `Choice` refuses.
    """
    choices = [
        Choice("encoder.width", tuple(width)),
        Choice("decoder.width", tuple(width)),
        Choice("decoder.depth", tuple(depth)),
    ]
    for layer in range(1, ENCODER_LAYERS + 1):
        choices += [Choice(f"encoder{layer}.heads", tuple(heads)), Choice(f"encoder{layer}.ffn", tuple(ffn))]
    for layer in range(1, choices[2].largest + 1):
        exists = (Condition("decoder.depth", tuple(d for d in choices[2].sizes if d >= layer)),)
        options = {"heads": heads, "cross_heads": heads, "attended": attended, "ffn": ffn}
        choices += [Choice(f"decoder{layer}.{part}", tuple(sizes), exists) for part, sizes in options.items()]
    return SearchSpace(name, tuple(choices))


def features(archs: Sequence[Architecture]) -> np.ndarray:
    """The ten numbers of a table's row for each architecture, [N, 10]."""
    rows = []
    for arch in archs:
        depth = arch.size("decoder.depth")
        encoder = [_mean(arch, "encoder", part, ENCODER_LAYERS) for part in ("ffn", "heads")]
        decoder = [_mean(arch, "decoder", part, depth) for part in ("ffn", "heads", "cross_heads", "attended")]
        rows.append([arch.size("encoder.width"), ENCODER_LAYERS, *encoder, arch.size("decoder.width"), depth, *decoder])
    return np.array(rows, dtype=float)


def _mean(arch: Architecture, stack: str, part: str, layers: int) -> float:
    return sum(arch.size(f"{stack}{layer}.{part}") for layer in range(1, layers + 1)) / layers


def costs(rows: np.ndarray) -> np.ndarray:
    """What grows with each part of a network, [N, 11], of the ten features [N, 10]; a device's prices make it a time.

    Once for the network; the encoder's projections (those of all heads have 512 channels) and feed-forwards; the output layer
    (vocabulary times width, for each token); and for the decoder's layers: once, projections, feed-forwards, hidden channels,
    heads of self-attention and of cross-attention, encoder layers attended.
    """
    width, layers, ffn, _, decoder_width, steps, decoder_ffn, heads, cross_heads, attended = rows.T
    once = np.ones(len(rows))
    encoder = [once, layers * width, layers * width * ffn]
    sizes = [once, decoder_width, decoder_width * decoder_ffn, decoder_ffn, heads, cross_heads, attended]
    return np.stack([*encoder, decoder_width, *(steps * size for size in sizes)], axis=1)


def num_parameters(rows: np.ndarray) -> np.ndarray:
    """Weights of all layers without the vocabulary's, [N]: the capacity that a budget buys."""
    width, layers, ffn, _, decoder_width, steps, decoder_ffn, *_ = rows.T
    channels = 512
    encoder = layers * (4 * channels * width + 2 * width * ffn)
    cross = 2 * channels * decoder_width + 2 * channels * width
    total: np.ndarray = encoder + steps * (4 * channels * decoder_width + cross + 2 * decoder_width * decoder_ffn)
    return total
