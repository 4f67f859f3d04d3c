"""What `bench search` compares, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.benchmarks.peers import installed
from experiments.settings import OuterSettings
from nas.protocols import Searcher
from nas.searchers.gp import Gp
from nas.searchers.nsga2 import Nsga2
from nas.searchers.nsga3 import Nsga3
from nas.searchers.random import Random
from nas.searchers.regularised_evolution import RegularisedEvolution
from nas.searchers.surrogate_evolution import SurrogateEvolution
from nas.searchers.tpe import Tpe

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "surrogate_evolution": SurrogateEvolution,
    "tpe": Tpe,
    "random": Random,
    "nsga2": Nsga2,
    "nsga3": Nsga3,
    "regularised_evolution": RegularisedEvolution,
    "gp": Gp,
    **installed(),
}
OURS = "surrogate_evolution"  # of the default configuration
COMPARED = (OURS, "tpe", "nsga2", "nsga3", "regularised_evolution", *installed())
"""With random search, at all numbers of evaluations."""
PEERS = ("random", "tpe", "nsga2", "regularised_evolution")
POPULATION = OuterSettings().population
RESAMPLES = 2000


def ratio_with_interval(key: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Geometric mean over pairs of the ratio of medians over seeds, and the ends of its interval when seeds are drawn again, for
    both of a pair the same; not a number where a median is 0."""
    rng, logs = np.random.default_rng(0), []
    with np.errstate(divide="ignore", invalid="ignore"):
        for ours, theirs in pairs:
            drawn = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
            rows = np.vstack([np.arange(len(ours)), drawn])
            logs.append(np.log(np.median(ours[rows], axis=1) / np.median(theirs[rows], axis=1)))
        ratio, *draws = np.exp(np.mean(logs, axis=0)).tolist()
        low, high = np.quantile(draws, (0.025, 0.975))
    return {key: ratio, f"{key}_low": float(low), f"{key}_high": float(high)}


def cell(figures: Mapping[str, float], key: str) -> str:
    """A ratio with its interval, for a table."""
    return f"{figures[key]:.3f} ({figures[f'{key}_low']:.3f} to {figures[f'{key}_high']:.3f})"
