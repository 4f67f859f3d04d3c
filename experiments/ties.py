"""Which trained networks cannot be told apart: a paired bootstrap over the examples of the test split.

All networks answer the same examples, and most of the noise of an error rate is that of the examples, so that differences of
pairs say far more than two intervals would (Dror et al., 2018, "The hitchhiker's guide to testing statistical significance in
natural language processing"). It is read after the choice: nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.finishing import Finisher
from experiments.ledger import spent
from experiments.progress import Reporter
from nas.space import Architecture

TIES = "ties.json"
RESAMPLES = 2000
AT_ONCE = 100  # resamples that are drawn together
INTERVAL = (0.025, 0.975)
METHOD = (
    f"paired bootstrap over the examples of the test split, {RESAMPLES} resamples, 95 % percentile intervals of differences; of "
    "each pair alone: no correction for how many pairs there are"
)


def told_apart(finisher: Finisher, archs: Sequence[Architecture], report: Reporter) -> Mapping[str, Any]:
    """The tie groups of finished networks, before any stage; from the run's file where they are known."""
    run = finisher.run
    if not run.has(TIES):
        errors = {}
        with spent(run, "telling ties"), report.phase("Comparing on the test split", len(archs)) as advance:
            for number, arch in enumerate(archs, 1):
                errors[arch.id] = finisher.scores.errors_by_example(arch, "test", tag="")
                advance(number, f"{arch.id}: error {errors[arch.id].mean():.1f} %")
            run.write_json(TIES, ties(errors, seed=finisher.seed))
    known: dict[str, Any] = run.read_json(TIES)
    return known


def ties(errors: Mapping[str, np.ndarray], *, seed: int) -> dict[str, Any]:
    """Groups of networks by error, from the errors of each example in percent, [N] of each network: in a group, nobody can be
    told apart from its first."""
    ids = sorted(errors, key=lambda id_: float(errors[id_].mean()))
    of_all = np.stack([errors[id_] for id_ in ids], axis=1)
    resampled = _resampled_means(of_all, seed)
    groups: list[list[int]] = []
    for network in range(len(ids)):
        if groups and not _differ(resampled[:, groups[-1][0]], resampled[:, network]):
            groups[-1].append(network)
        else:
            groups.append([network])
    return {
        "method": METHOD,
        "num_test": len(of_all),
        "test_error_percent": {id_: float(errors[id_].mean()) for id_ in ids},
        "groups": [[ids[network] for network in group] for group in groups],
    }


def _resampled_means(errors: np.ndarray, seed: int) -> np.ndarray:
    """Mean errors [R, n] over resamples of the examples; `errors` is [N, n]."""
    rng, num = np.random.default_rng([seed, 5]), len(errors)
    even = np.full(num, 1 / num)
    return np.concatenate([rng.multinomial(num, even, size=AT_ONCE) @ errors / num for _ in range(RESAMPLES // AT_ONCE)])


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether zero is outside the interval of the differences of resampled means [R]."""
    low, high = np.quantile(other - one, INTERVAL)
    return not low <= 0 <= high
