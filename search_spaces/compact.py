"""Compact BERTs of the literature by their published sizes: what one would take without a search, where a space holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nas.space import Architecture, SearchSpace


class Sizes(NamedTuple):
    """Of an encoder whose layers are all the same, with full attention."""

    width: int
    depth: int
    heads: int
    ffn: int


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
}


def inside(space: SearchSpace, *, head_size: int) -> dict[str, Architecture]:
    """Those that a space of `search_spaces.trunk.trunk_choices` holds, by name: all their sizes are options, and its heads have
    theirs. Of two names for one network the first."""
    found: dict[Architecture, str] = {}
    for name, sizes in ENCODERS.items():
        layers = range(1, sizes.depth + 1)
        picks: dict[str, int | str] = {"width": sizes.width, "depth": sizes.depth}
        picks |= {f"layer{i}.{part}": pick for i in layers for part, pick in _layer(sizes).items()}
        picks |= {kv: sizes.heads for i in layers if (kv := f"layer{i}.kv_heads_of_{sizes.heads}") in space.by_name}
        picks |= {kind: "mlp" for i in layers if (kind := f"layer{i}.ffn_kind") in space.by_name}
        held = all(choice in space.by_name and pick in space.by_name[choice].options for choice, pick in picks.items())
        if held and sizes.width == sizes.heads * head_size:
            found.setdefault(space.canonical({**space.largest().as_dict, **picks}), name)
    return {name: arch for arch, name in found.items()}


def _layer(sizes: Sizes) -> dict[str, int | str]:
    return {"attention": "full", "heads": sizes.heads, "ffn": sizes.ffn}
