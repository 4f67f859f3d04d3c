"""Configurations and families for the small commands, which run no search."""

from __future__ import annotations

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.build import make
from experiments.config import register
from nas.protocols import Family

VOCABULARY, CLASSES = 8000, 2


def composed(*overrides: str) -> DictConfig:
    """The configuration of a search with these overrides. Raises ValueError in one line."""
    register()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            return compose("search", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(str(error).split("Config search path")[0].split())) from error


def stand_in_family(config: DictConfig, *, tokens: int, vocab_size: int = VOCABULARY) -> Family:
    """The family of a space without a task: texts of so many tokens, two classes.

    Raises:
        ValueError: like `make`; a space that is not one of texts.
    """
    try:
        family: Family = make(config, "space")(vocab_size=vocab_size, num_classes=CLASSES, max_tokens=tokens)
    except TypeError as error:
        raise ValueError(f"space: {config.space._target_} cannot be built for texts; without a task=… it is ({error})") from error
    return family
