"""Evolution on a model of what was told, as a sampler for Optuna.

Gaussian processes (`nas.gaussian_process`) learn every objective and limit from the trials so far. A population evolves on their
means for some generations, which costs no evaluation, and of all that it met, those are asked for that together add most to the
hypervolume of the front, as the model sees it: batches like those of TSEMO (Bradford et al., 2018, J. Global Optimization 71), by
evolution on a surrogate like that of NSGANetV2 (arXiv:2007.10396). Draws from the processes in place of their means explored more
and found less.

What is known of an architecture before it is scored, such as its predicted latency, needs no model: random trials keep the limits
that are known, and what evolution met is judged by the known numbers in place of the model's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from nas.encoding import Encoding
from nas.gaussian_process import GaussianProcesses, Views
from nas.pareto import hypervolume, non_dominated, ranks
from nas.searchers.costs import Costs, within
from nas.searchers.study import StudySearcher
from nas.space import Architecture, SearchSpace

BATCH = 5  # trials that one fit of the model proposes
GENERATIONS = 6
CHILDREN = 200  # of a generation
DRAWN = 2.0  # picks of a child that are drawn anew, on average
MOST_TRIALS = 256  # that the model learns from: the best ones
MOST_PRICED = 100  # of what evolution met: the best ones by the model
MOST_DRAWS = 1000  # of a random trial, until one keeps the limits that are known


class SurrogateEvolution(StudySearcher):
    """Evolution on Gaussian processes as a `Searcher`; its first `population` trials are random."""

    @property
    def batch(self) -> int:
        """What is left of the random ones, or of a batch that was planned at once."""
        planned = len(self.study.get_trials(deepcopy=False)) - self.population
        return BATCH - planned % BATCH if planned >= 0 else -planned

    def sampler(self, seed: int) -> BaseSampler:
        return self._sampler

    @functools.cached_property
    def _sampler(self) -> BaseSampler:
        return SurrogateSampler(
            self.space, seed=self.seed, population=self.population, objectives=self.objectives, limits=self.limits,
            costs=self.costs,
        )  # fmt: skip


@dataclass(frozen=True)
class Known:
    """Finished trials: picks of all choices as indices [N, C], objectives [N, M], and constraints [N, L] that hold up to 0."""

    picks: np.ndarray
    costs: np.ndarray
    excess: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """What a model learns, [N, M + L]; limits as shares, which are positive."""
        return np.hstack([self.costs, 1.0 + self.excess])

    @property
    def beyond(self) -> np.ndarray:
        """How far each is beyond the limits, [N]."""
        result: np.ndarray = np.maximum(self.excess, 0.0).sum(axis=1)
        return result

    def best(self, num: int) -> np.ndarray:
        """Indices of so many: those within the limits first, or else least beyond them, and of equals by fronts."""
        return np.lexsort((ranks(self.costs, enough=num), self.beyond))[:num]

    def of(self, rows: np.ndarray) -> Known:
        return Known(self.picks[rows], self.costs[rows], self.excess[rows])

    def within(self) -> Known:
        """Those that keep the limits, or all if none does."""
        kept = self.beyond <= 0
        return self.of(kept) if kept.any() else self


class SurrogateSampler(BaseSampler):
    """Proposals for the trials of a batch follow from the seed and from what was told before the batch began."""

    def __init__(
        self, space: SearchSpace, *, seed: int, population: int, objectives: Sequence[str], limits: Mapping[str, float],
        costs: Costs,
    ) -> None:  # fmt: skip
        self.space, self.seed, self.population = space, seed, population
        self.objectives, self.limits, self.costs = objectives, limits, costs
        self._views = Views(space)
        self._sizes = np.array([len(choice.options) for choice in space])
        self._starts = np.array([space.offsets[choice.name].start for choice in space])
        self._picks: dict[int, list[int]] = {}  # of finished trials by their numbers
        self._planned: tuple[int, np.ndarray] = (-1, np.empty((0, len(space.choices)), dtype=int))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(trial.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        batch, place = divmod(trial.number - self.population, BATCH)
        if batch < 0:
            picks = self._drawn(np.random.default_rng([self.seed, trial.number]))
        else:
            if self._planned[0] != batch:
                self._planned = batch, self._plan(study, batch)
            picks = self._planned[1][place]
        return {c.name: i if c.is_nested else c.options[i] for c, i in zip(self.space, picks.tolist(), strict=True)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise NotImplementedError(f"{param_name}: every pick of a trial is drawn at once")

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Uniformly random picks [C], drawn until they keep the limits that are known, or often enough."""
        picks: np.ndarray = rng.integers(self._sizes)
        for _ in range(MOST_DRAWS):
            if within(self._archs(picks[None]), self.limits, self.costs).all():
                break
            picks = rng.integers(self._sizes)
        return picks

    def _plan(self, study: optuna.Study, batch: int) -> np.ndarray:
        """Picks of the trials of a batch, [BATCH, C]."""
        rng = np.random.default_rng([self.seed, self.population, batch])
        known = self._known(study, until=self.population + batch * BATCH)
        if known is None:
            return np.stack([self._drawn(rng) for _ in range(BATCH)])
        with threadpool_limits(1):  # the matrices are small: threads would wait for each other, eight times as long
            met = self._evolved(known, rng)
        met = self._priced(met.of(met.best(MOST_PRICED))).within()
        chosen = _adding_most(met.costs, known.within().costs, BATCH)
        missing = [self._drawn(rng) for _ in range(BATCH - len(chosen))]
        return np.stack([*met.picks[chosen], *missing])

    def _known(self, study: optuna.Study, *, until: int) -> Known | None:
        """The finished trials with numbers below `until`, if there are any."""
        trials = [t for t in study.get_trials(deepcopy=False)[:until] if t.state == TrialState.COMPLETE]
        for trial in trials:
            if trial.number not in self._picks:
                indices = [trial.params[c.name] if c.is_nested else c.index(trial.params[c.name]) for c in self.space]
                self._picks[trial.number] = indices
        if not trials:
            return None
        return Known(
            np.array([self._picks[trial.number] for trial in trials]),
            np.array([trial.values for trial in trials]),
            np.array([list(trial.constraints.values()) for trial in trials]).reshape(len(trials), -1),
        )

    def _evolved(self, known: Known, rng: np.random.Generator) -> Known:
        """All that a population met which began with the best of what is known, and what the model says of it."""
        best = known.best(MOST_TRIALS)
        rows = self._encoded(known.picks)
        model = GaussianProcesses(self._views, rows[best], known.values[best])
        seen, num_objectives = {row.tobytes() for row in rows}, known.costs.shape[1]
        elders = parents = known.picks[best[: self.population]]
        picks, values = known.picks[:0], known.values[:0]
        for _ in range(GENERATIONS):
            children = self._children(parents, rng)
            rows = self._encoded(children)
            places = {row.tobytes(): place for place, row in enumerate(rows)}
            fresh = [place for key, place in places.items() if key not in seen]
            seen |= places.keys()
            picks = np.vstack([picks, children[fresh]])
            values = np.vstack([values, model.means(rows[fresh])])
            met = Known(picks, values[:, :num_objectives], values[:, num_objectives:] - 1.0)
            parents = np.vstack([picks[met.best(self.population)], elders])
        return met

    def _priced(self, met: Known) -> Known:
        """With what is known of them in place of what the model says."""
        prices = self.costs(self._archs(met.picks))
        costs, excess = met.costs.copy(), met.excess.copy()
        for column, name in enumerate(self.objectives):
            costs[:, column] = prices.get(name, costs[:, column])
        for column, (name, limit) in enumerate(self.limits.items()):
            if name in prices:
                excess[:, column] = prices[name] / limit - 1.0
        return Known(met.picks, costs, excess)

    def _archs(self, picks: np.ndarray) -> list[Architecture]:
        """Of picks [N, C]."""
        return [
            self.space.canonical({c.name: c.options[i] for c, i in zip(self.space, row, strict=True)}) for row in picks.tolist()
        ]

    def _children(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[CHILDREN, C]: half of them of one parent, half of two, each pick from either; in all, some picks are drawn anew."""
        shape = (CHILDREN, len(self._sizes))
        one, other = parents[rng.integers(len(parents), size=(2, CHILDREN))]
        crossed = (rng.random(CHILDREN) < 0.5)[:, None] & (rng.random(shape) < 0.5)
        drawn = rng.random(shape) < DRAWN / len(self._sizes)
        drawn[np.arange(CHILDREN), rng.integers(len(self._sizes), size=CHILDREN)] = True
        result: np.ndarray = np.where(drawn, rng.integers(self._sizes, size=shape), np.where(crossed, other, one))
        return result

    def _encoded(self, picks: np.ndarray) -> np.ndarray:
        """One-hot rows [N, E], those of absent choices zero."""
        rows = np.zeros((len(picks), self.space.encoding_size))
        np.put_along_axis(rows, self._starts + picks, 1.0, axis=1)
        encoding = Encoding(self.space, rows)
        exists = [np.broadcast_to(encoding.exists(choice.name), len(picks)) for choice in self.space]
        result: np.ndarray = rows * np.repeat(np.stack(exists, axis=1), self._sizes, axis=1)
        return result


def _adding_most(costs: np.ndarray, front: np.ndarray, num: int) -> list[int]:
    """Indices of the points [N, M] that, one after the other, add most to the hypervolume of a front up to its worst values; at
    most `num` of them, and where nothing more is added, of the best fronts of the points themselves."""
    reference = np.nextafter(front.max(axis=0), np.inf)
    front = front[non_dominated(front)]
    volume = hypervolume(front, reference)
    hopeful = np.flatnonzero(~np.any(np.all(front[None] <= costs[:, None], axis=2), axis=1))
    left: list[int] = hopeful[non_dominated(costs[hopeful])].tolist()
    chosen: list[int] = []
    most = dict.fromkeys(left, np.inf)  # that a point can add: what it would have added before, as others only take of it
    while left and len(chosen) < num:
        best, gain = -1, -np.inf
        for i in sorted(left, key=lambda i: -most[i]):
            if most[i] <= gain:
                break
            most[i] = hypervolume(np.vstack([front, costs[i]]), reference) - volume
            best, gain = (i, most[i]) if most[i] > gain else (best, gain)
        left.remove(best)
        chosen.append(best)
        front, volume = np.vstack([front, costs[best]]), volume + gain
    others = np.setdiff1d(np.argsort(ranks(costs, enough=num), kind="stable"), chosen, assume_unique=True)
    return [*chosen, *others[: num - len(chosen)].tolist()]
