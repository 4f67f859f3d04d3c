"""NSGA-II (Deb et al., 2002, "A fast and elitist multiobjective genetic algorithm") by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler

from nas.searchers.study import GenerationSearcher


class Nsga2(GenerationSearcher):
    """NSGA-II as a `Searcher`."""

    def sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(seed=seed, population_size=self.population)
