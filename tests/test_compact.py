"""Compact BERTs of the literature: only those that a space holds, with the parameters that their papers state."""

import pytest
import torch

from search_spaces.compact import ENCODERS, inside
from search_spaces.encoder import EncoderFamily, encoder_space

MILLIONS = {"BERT-tiny": 4.4, "BERT-mini": 11.3, "BERT-small": 29.1, "BERT-medium": 41.7, "DistilBERT": 66.0, "TinyBERT-4": 14.5}


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_the_published_ones(name):
    """To 3 %: some count a pooling layer and token types, which our encoder has not."""
    width, depth, heads, ffn, *_ = ENCODERS[name]
    space = encoder_space(width=(width,), depth=(depth,), heads=(heads,), ffn=(ffn,), attention=("full",))
    family = EncoderFamily(space, 30522, 2, 512, head_size=width // heads)
    with torch.device("meta"):
        network = family.network(inside(space, head_size=width // heads)[name])
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.03)


def test_a_space_shows_those_that_it_holds():
    space = encoder_space(width=(128, 256), depth=(1, 2, 4), heads=(2, 4), ffn=(512, 1024))
    family = EncoderFamily(space, 100, 2, head_size=64)
    assert list(family.hand_designed()) == ["largest", "BERT-tiny", "BERT-mini", "2 layers", "1 layer"]
    tiny = family.hand_designed()["BERT-tiny"]
    assert [tiny[name] for name in ("width", "depth", "layer2.heads", "layer1.ffn", "layer1.attention")] == [
        128,
        2,
        2,
        512,
        "full",
    ]
    assert inside(space, head_size=32) == {}


def test_none_of_them_is_gated():
    space = encoder_space(width=(128,), depth=(2,), heads=(2,), ffn=(512,), ffn_kind=("glu", "mlp"))
    [tiny] = inside(space, head_size=64).values()
    assert tiny["layer1.ffn_kind"] == tiny["layer2.ffn_kind"] == "mlp"


def test_one_with_shared_and_one_with_factored_layers():
    sizes = {"width": (512, 768), "depth": (12, 24), "heads": (4, 12), "ffn": (512, 3072), "attention": ("full",)}
    kinds = {"activation": ("gelu", "relu"), "sharing": ("none", "all"), "ffn_kind": ("mlp", "lowrank"), "rank": (128,)}
    space = encoder_space(**sizes, **kinds, norm_kind=("layer", "rms"))
    [(name, mobile)] = inside(space, head_size=32).items()
    assert name == "MobileBERT-like"
    assert [mobile[choice] for choice in ("width", "activation", "layer24.ffn_kind", "layer24.rank")] == [
        512,
        "relu",
        "lowrank",
        128,
    ]
    assert list(inside(space, head_size=64)) == ["BERT-base", "ALBERT-like"]
    family = EncoderFamily(space, 100, 2, 512, head_size=64)
    with torch.device("meta"):
        stack = family.network(inside(space, head_size=64)["ALBERT-like"]).stack
    assert (
        sum(p.numel() for p in stack.blocks.parameters()) == 7_087_872
    )  # of the 12 M of the paper, without embedding and pooling


def test_equal_networks_have_one_name():
    space = encoder_space(width=(768,), depth=(6,), heads=(12,), ffn=(3072,))
    assert list(inside(space, head_size=64)) == ["DistilBERT"]


def test_the_default_space_is_too_narrow_for_any():
    assert inside(encoder_space(), head_size=32) == {}
