"""Every family with small sizes and all kinds of layers."""

import torch

from nas.feed_forward import ACTIVATIONS, FFN_KINDS
from nas.types import Workload
from search_spaces.common import NORM_KINDS, SHARING
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space

SIZES = {"width": (8, 12), "depth": (1, 3, 4), "heads": (1, 2), "ffn": (8, 16), "attention": ("full", "none")}
KINDS = {
    "ffn_kind": FFN_KINDS, "rank": (2, 5), "activation": tuple(ACTIVATIONS), "norm_kind": NORM_KINDS, "sharing": SHARING,
}  # fmt: skip
SPACES = {"encoder": encoder_space, "encoder, post-norm": encoder_space, "decoder": decoder_space}


def family_of(name: str, **options):
    chosen = {**SIZES, **KINDS, **options}
    if name == "vision":
        return VisionFamily(vision_space(patch=(2, 4), **chosen), (2, 8, 8), 5, (0.0, 1.0), (1.0, 2.0), head_size=4, window=3)
    if name == "decoder":
        return DecoderFamily(decoder_space(**chosen), 50, max_tokens=12, head_size=4, window=3)
    norm = "post" if "post" in name else "pre"
    return EncoderFamily(encoder_space(**chosen), 50, 5, max_tokens=12, head_size=4, window=3, norm=norm)


FAMILIES = ("encoder", "encoder, post-norm", "decoder", "vision")


def workload_of(family) -> Workload:
    return Workload(batch=2, tokens=getattr(family, "num_positions", 9))


def inputs_of(family) -> list[torch.Tensor]:
    inputs = family.example_input(workload_of(family))
    if "attention_mask" in inputs:
        inputs["attention_mask"][1, 6:] = 0
    return [x.double() if x.is_floating_point() else x for x in inputs.values()]
