"""NSGA-III (Deb & Jain, 2014), which spreads a front of more than two objectives by reference points, by Optuna."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler

from nas.searchers.study import GenerationSearcher


class Nsga3(GenerationSearcher):
    """NSGA-III as a `Searcher`."""

    def sampler(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the name of a class that Optuna may still change
            return NSGAIIISampler(seed=seed, population_size=self.population)
