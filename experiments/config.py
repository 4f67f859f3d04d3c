"""The root of the configuration: the run's own values, typed, so that a typo is an error when the configuration is composed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.mistakes import in_words, unknown


@dataclass
class Surroundings:
    """What the study may choose beside the network, by what the device calls it; an empty list is no choice."""

    threads: list[int] = field(default_factory=list)
    precision: list[str] = field(default_factory=list)
    provider: list[str] = field(default_factory=list)


@dataclass
class SearchConfig:
    """Not frozen: a frozen schema is read-only, and every override would fail. Components are checked by their constructors."""

    seed: int = 0
    budget_ms: float | None = None  # latency that must not be exceeded; null: half of the largest network's
    budget_mib: float | None = None  # memory at inference that must not be exceeded; null: no such budget
    budget_mj: float | None = (
        None  # energy of one call that must not be exceeded, on a device that measures it; null: no such budget
    )
    objectives: list[str] = field(default_factory=lambda: ["error", "latency_ms"])  # and of memory_mib, parameters, energy_mj
    batch: int = 1  # sequences in one call of the timed workload
    tokens: int | None = None  # tokens of each; null: the task's longest input
    mode: str = "encode"  # whose latency counts: encode (whole inputs), prefill (a prompt), decode (one more token of a decoder)
    past: int = 0  # tokens before the decoded one
    torch_threads: int = 2  # threads that training uses
    train_on: str = "auto"  # a torch device; auto: CUDA where there is one
    train_precision: str = "auto"  # float32, bfloat16; auto: what a short trial on this machine found fastest, remembered
    train_attention: str = "auto"  # matmul, fused
    checkpoint_seconds: float = 10.0  # how much of any training a kill may cost
    run: str = "runs/unnamed"  # the run's directory, new or to be continued
    store: str | None = None  # folder of measurements kept between runs; null: the user's cache folder
    task: Any = field(default_factory=dict)
    space: Any = field(default_factory=dict)
    device: Any = field(default_factory=dict)
    also: Any = None  # further devices by name, '{board: {device: recorded, table: jetson_nano_cpu, budget_ms: 40}}'
    surroundings: Surroundings = field(default_factory=Surroundings)  # e.g. surroundings.threads=[1,2]
    calibration: Any = field(default_factory=dict)
    latency_model: Any = field(default_factory=dict)
    init: Any = field(default_factory=dict)
    darts: Any = field(default_factory=dict)
    searcher: Any = field(default_factory=dict)
    finish: Any = field(default_factory=dict)
    stages: Any = field(default_factory=dict)
    experiment: Any = None


def register() -> None:
    ConfigStore.instance().store(name="schema", node=SearchConfig)


def composed(*overrides: str) -> DictConfig:
    """The configuration of a search with these overrides. Raises ValueError in one line."""
    register()
    try:
        begun = GlobalHydra.instance().is_initialized()  # by a search, whose configuration names further devices
        with nullcontext() if begun else initialize_config_module("conf", version_base="1.3"):
            config = compose("search", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(in_words(error, overrides, composed)) from error
    check_names(config, overrides)
    return config


def check_dashes(words: Sequence[str]) -> None:
    """Raises ValueError for a value that is given like a flag; `--run` alone is one of Hydra's."""
    names = {known.name for known in fields(SearchConfig)}
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and word != "--run" and name.split(".")[0] in names:
            raise ValueError(f"{word}: values are given without dashes, as {name}=VALUE")


def check_names(config: DictConfig, words: Sequence[str]) -> None:
    """Raises ValueError for a value that the schema does not have, which came by +NAME=VALUE."""
    for name in config.keys() - {known.name for known in fields(SearchConfig)}:
        raise ValueError(unknown(str(name), words, composed))
