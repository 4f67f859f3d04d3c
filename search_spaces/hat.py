"""The space of HAT (Wang et al., ACL 2020, arXiv:2005.14187) as its latency tables describe it: ten numbers a network.

An encoder-decoder transformer for translation that writes one token after the other. Its tables give averages over the active
layers; what it costs depends on the sums, so a cost is an average times the number of layers.
"""

from __future__ import annotations

import numpy as np

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
COSTS = (
    "network",  # once
    "encoder projections",  # the projections of all heads have 512 channels
    "encoder feed-forward",
    "output layer",  # vocabulary times width, for each token
    "decoder layers",
    "decoder projections",
    "decoder feed-forward",
    "decoder hidden channels",
    "decoder self-attention heads",
    "decoder cross-attention heads",
    "encoder layers attended",
)


def costs(rows: np.ndarray) -> np.ndarray:
    """What grows with each part of a network, [N, 11], of the ten features [N, 10]; a device's prices make it a time."""
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
