"""The root of the configuration: the run's own values, typed, so that a typo is an error when the configuration is composed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class Surroundings:
    """What the study may choose beside the network, by what the device calls it; an empty list is no choice."""

    threads: list[int] = field(default_factory=list)
    precision: list[str] = field(default_factory=list)


@dataclass
class SearchConfig:
    """Not frozen: a frozen schema is read-only, and every override would fail. Components are checked by their constructors."""

    seed: int = 0
    budget_ms: float | None = None  # latency that must not be exceeded; null: half of the largest network's
    budget_mib: float | None = None  # memory at inference that must not be exceeded; null: no such budget
    objectives: list[str] = field(default_factory=lambda: ["error", "latency_ms"])  # and of memory_mib, parameters, energy_mj
    batch: int = 1  # sequences in one call of the timed workload
    tokens: int | None = None  # tokens of each; null: the task's longest input
    mode: str = "encode"  # whose latency counts: encode (whole inputs), prefill (a prompt), decode (one more token of a decoder)
    past: int = 0  # tokens before the decoded one
    torch_threads: int = 2  # threads that training uses
    train_on: str = "auto"  # a torch device; auto: CUDA where there is one
    checkpoint_seconds: float = 10.0  # how much supernet training a kill may cost
    run: str = "runs/unnamed"  # the run's directory, new or to be continued
    store: str | None = None  # folder of measurements kept between runs; null: the user's cache folder
    task: Any = field(default_factory=dict)
    space: Any = field(default_factory=dict)
    device: Any = field(default_factory=dict)
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
