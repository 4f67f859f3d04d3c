"""Families whose layers are all of full attention, and inputs for them."""

import torch

from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space

SIZES = {"width": (16, 32), "depth": (1, 2), "heads": (1, 2), "ffn": (32,)}


def tokens(*lengths):
    longest, ids = max(lengths), torch.randint(2, 50, (len(lengths), max(lengths)))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"token_ids": ids * mask, "attention_mask": mask}


def images(count):
    return {"image": torch.randn(count, 1, 8, 8)}


def encoder(**choices):
    return EncoderFamily(encoder_space(**{**SIZES, "attention": ("full",), **choices}), 50, 5, 40, 8)


def decoder(**options):
    return DecoderFamily(decoder_space(**{**SIZES, "attention": ("full",)}), 50, 40, 8, **options)


def vision(**choices):
    return VisionFamily(
        vision_space(**{**SIZES, "attention": ("full",), "patch": (2,), **choices}), (1, 8, 8), 5, (0.0,), (1.0,), 8
    )


FAMILIES = {
    "encoder": (encoder(), {}, tokens),
    "encoder, post-norm": (EncoderFamily(encoder().space, 50, 5, 40, 8, norm="post"), {}, tokens),
    "encoder of means": (encoder(pool=(1, 2, 4)), {"pool": "4"}, tokens),
    "decoder": (decoder(), {}, tokens),
    "vision": (vision(), {}, lambda *lengths: images(len(lengths))),
}
