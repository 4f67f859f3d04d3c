"""Multi-objective, multivariate tree-structured Parzen estimator (Ozaki et al., 2022, JAIR 73) by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler

from nas.searchers.study import StudySearcher


class Tpe(StudySearcher):
    """TPE as a `Searcher`."""

    def sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=self.population)
