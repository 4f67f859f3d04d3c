"""Families for the small commands, which run no search."""

from __future__ import annotations

import inspect

from omegaconf import DictConfig

from experiments.build import make_family
from nas.protocols import Family

VOCABULARY = 8000


def stand_in_family(config: DictConfig, *, tokens: int, vocab_size: int = VOCABULARY) -> Family:
    """The family of a space without a task: texts of so many tokens or images of 28 x 28 pixels, two classes.

    Raises:
        ValueError: like `make_family`.
    """
    make = make_family(config)
    sizes = {
        "vocab_size": vocab_size, "num_classes": 2, "max_tokens": tokens,
        "input_shape": (1, 28, 28), "mean": (0.0,), "std": (1.0,),
    }  # fmt: skip
    return make(**{name: size for name, size in sizes.items() if name in inspect.signature(make).parameters})
