"""Bayesian optimisation with Gaussian processes by Optuna: the expected improvement of the hypervolume times the probability that
the limits are kept (Daulton et al., arXiv:2006.05078; Gardner et al., 2014). It takes seconds a trial: for dear evaluations."""

from __future__ import annotations

from optuna.samplers import BaseSampler, GPSampler

from nas.searchers.study import StudySearcher


class Gp(StudySearcher):
    """GP as a `Searcher`."""

    def sampler(self, seed: int) -> BaseSampler:
        return GPSampler(seed=seed, n_startup_trials=self.population, warn_independent_sampling=False)
