"""Compact BERTs of the literature by their published sizes: what one would take without a search, where a space holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nas.space import Architecture, SearchSpace
from search_spaces.common import DEFAULTS, leader


class Sizes(NamedTuple):
    """Of an encoder whose layers are all alike, with full attention and layer norms."""

    width: int
    depth: int
    heads: int
    ffn: int
    rank: int = 0  # of factored matrices in the feed-forward; 0: they are not
    channels: int = 0  # of all heads; 0: as many as the width
    activation: str = "gelu"
    sharing: str = "none"


ENCODERS: Mapping[str, Sizes] = {
    # Turc et al., arXiv:1908.08962
    "BERT-tiny": Sizes(128, 2, 2, 512),
    "BERT-mini": Sizes(256, 4, 4, 1024),
    "BERT-small": Sizes(512, 4, 8, 2048),
    "BERT-medium": Sizes(512, 8, 8, 2048),
    "BERT-base": Sizes(768, 12, 12, 3072),  # Devlin et al., arXiv:1810.04805
    "DistilBERT": Sizes(768, 6, 12, 3072),  # Sanh et al., arXiv:1910.01108
    # TinyBERT, Jiao et al., arXiv:1909.10351
    "TinyBERT-4": Sizes(312, 4, 12, 1200),
    "TinyBERT-6": Sizes(768, 6, 12, 3072),
    # MiniLM, Wang et al., arXiv:2002.10957
    "MiniLM-6": Sizes(384, 6, 12, 1536),
    "MiniLM-12": Sizes(384, 12, 12, 1536),
    # ALBERT-base, Lan et al., arXiv:1909.11942, but for its factored embedding
    "ALBERT-like": Sizes(768, 12, 12, 3072, sharing="all"),
    # MobileBERT, Sun et al., arXiv:2004.02984: the bottlenecks of 128 around a layer, and heads on 128 channels; without norms in
    # the bottleneck, and with one feed-forward a layer in the place of four
    "MobileBERT-like": Sizes(512, 24, 4, 512, rank=128, channels=128, activation="relu"),
}


def inside(space: SearchSpace, *, head_size: int) -> dict[str, Architecture]:
    """Those that a space of `search_spaces.trunk.trunk_choices` holds, by name: all their sizes are options, and its heads have
    theirs. Of two names for one network the first."""
    found: dict[Architecture, str] = {}
    for name, sizes in ENCODERS.items():
        wanted = _picks(sizes).items()
        picks = {choice: pick for choice, pick in wanted if choice in space.by_name or pick != DEFAULTS.get(_last(choice))}
        picks |= {kv: sizes.heads for n in _leaders(sizes) if (kv := f"layer{n}.kv_heads_of_{sizes.heads}") in space.by_name}
        held = all(choice in space.by_name and pick in space.by_name[choice].options for choice, pick in picks.items())
        if held and (sizes.channels or sizes.width) == sizes.heads * head_size:
            found.setdefault(space.canonical({**space.largest().as_dict, **picks}), name)
    return {name: arch for arch, name in found.items()}


def _picks(sizes: Sizes) -> dict[str, int | str]:
    alike: dict[str, int | str] = {
        "attention": "full",
        "heads": sizes.heads,
        "ffn": sizes.ffn,
        "ffn_kind": "lowrank" if sizes.rank else "mlp",
    }
    alike |= {"rank": sizes.rank} if sizes.rank else {}
    common: dict[str, int | str] = {
        "width": sizes.width,
        "depth": sizes.depth,
        "activation": sizes.activation,
        "sharing": sizes.sharing,
    }
    layers = {f"layer{n}.{part}": pick for n in _leaders(sizes) for part, pick in alike.items()}
    return {**common, "norm_kind": "layer", "ngrams": 1, **layers}


def _leaders(sizes: Sizes) -> list[int]:
    """The layers with weights of their own."""
    return sorted({leader(layer, sizes.sharing) for layer in range(1, sizes.depth + 1)})


def _last(choice: str) -> str:
    return choice.rpartition(".")[2]
