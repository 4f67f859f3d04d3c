"""Architectures as trials of an Optuna study: what the strategies that Optuna brings have in common.

The study lives in memory, and each trial that has ended is written to a storage at once: one record a trial, where Optuna itself
writes one a parameter. A trial draws from a sampler seeded by (seed, trial number), so a study that is continued in another
process asks for the same architectures as one that was never stopped, and one that was asked for and never answered is asked for
again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from nas.searchers.costs import NO_LIMITS, Costs, unknown
from nas.seeds import seed_of
from nas.space import Architecture, Choice, Option, SearchSpace
from nas.types import Candidate

NAME = "search"
SAME = 1e-6  # relative difference of limits that are the same


class StudySearcher(ABC):
    """A strategy of Optuna's; a subclass says which by its `sampler`.

    Sizes are given to Optuna as indices into their options, so that their order counts; the picks of absent choices are sampled
    too and dropped.

    Args:
        initial: architectures to begin with, such as the proposals of a differentiable search.
        limits: numbers of a candidate that must not be exceeded (Deb's constrained domination, through `Trial.set_constraint`);
            a violation counts by its share of the limit, so that ms and MiB can be added up.
        costs: what of a candidate's numbers is known before it is scored; Optuna's own strategies learn of it afterwards.
        storage: an Optuna storage that keeps the study, or None; a study that it already holds is continued.
        population: trials before the strategy begins to learn, and those of one generation.

    Raises:
        ValueError: a population under 2, a limit that is not positive, or a storage that holds another study (see `check_study`).
    """

    def __init__(
        self, space: SearchSpace, *, objectives: Sequence[str], seed: int, initial: Iterable[Architecture] = (),
        limits: Mapping[str, float] = NO_LIMITS, costs: Costs = unknown, storage: BaseStorage | None = None, population: int = 20,
    ) -> None:  # fmt: skip
        if population < 2:
            raise ValueError(f"population: {population} is not at least 2")
        for name, limit in limits.items():
            if not limit > 0:
                raise ValueError(f"limits: {limit} of {name} is not positive")
        self.space, self.objectives, self.seed, self.population = space, tuple(objectives), seed, population
        self.limits, self.costs = dict(limits), costs
        self._distributions = {c.name: _distribution(c) for c in space}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(self.objectives)
        self._memory = InMemoryStorage()
        self.study = optuna.create_study(study_name=NAME, storage=self._memory, directions=directions)
        self._storage = storage
        if storage is not None:
            check_study(storage, space, objectives=objectives, limits=limits)
            self._kept = optuna.create_study(study_name=NAME, storage=storage, directions=directions, load_if_exists=True)
            self._continue(storage)
        ended = {self._arch(trial).id for trial in self.study.get_trials(deepcopy=False)}
        self._initial = [arch for arch in initial if arch.id not in ended]
        self._open: dict[str, list[Trial]] = {}

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """A fresh sampler, for one trial."""

    @property
    def batch(self) -> int:
        """Those of the beginning at once, in which a strategy only draws; then it learns from each."""
        return max(1, self.population - len(self._complete))

    @property
    def _complete(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def ask(self) -> Architecture:
        """The next architecture: those to begin with first."""
        number = len(self.study.get_trials(deepcopy=False))
        if self._initial:
            self.study.enqueue_trial(self._params(self._initial.pop(0).as_dict))
        seed = seed_of(self.seed, number)
        self.study.sampler = _WithinSpace(self.sampler(seed), self._distributions)
        trial = self.study.ask(self._distributions)
        arch = self._arch(trial)
        self._open.setdefault(arch.id, []).append(trial)
        return arch

    def tell(self, candidate: Candidate) -> None:
        """Scores what was asked for, or adds what was not."""
        values = [candidate.objectives[name] for name in self.objectives]
        excess = {name: candidate.objectives[name] / limit - 1.0 for name, limit in self.limits.items()}
        waiting = self._open.get(candidate.arch.id)
        if waiting:
            trial = waiting.pop(0)
            for name, value in excess.items():
                trial.set_constraint(name, value)
            self._keep(self.study.tell(trial, values))
        else:
            added = self._unasked(candidate.arch, values, excess)
            self.study.add_trial(added)
            self._keep(added)

    def fail(self, arch: Architecture, reason: str) -> None:
        waiting = self._open.get(arch.id)
        if waiting:
            trial = waiting.pop(0)
            trial.set_user_attr("reason", reason)
            self._keep(self.study.tell(trial, state=TrialState.FAIL))

    def _unasked(self, arch: Architecture, values: list[float], excess: Mapping[str, float]) -> FrozenTrial:
        """A finished trial with a pick for every choice: a study whose trials lack parameters searches only what they share."""
        picks = self.space.complete(arch, np.random.default_rng(int(arch.id, 16)))
        return optuna.trial.create_trial(
            values=values, params=self._params(picks), distributions=self._distributions, constraints=dict(excess)
        )

    def _continue(self, storage: BaseStorage) -> None:
        """Takes over what the storage holds: ended trials, and what strategies have written beside them."""
        attrs = self._kept.user_attrs
        for name, value in _about(self.space, self.objectives, self.limits).items():
            if name not in attrs:
                self._kept.set_user_attr(name, value)
        self.study.add_trials(trial for trial in self._kept.get_trials(deepcopy=False) if trial.state.is_finished())
        _copy_attrs(storage, self._memory)

    def _keep(self, trial: FrozenTrial) -> None:
        if self._storage is not None:
            self._kept.add_trial(trial)
            _copy_attrs(self._memory, self._storage)

    def _params(self, picks: Mapping[str, Option]) -> dict[str, Any]:
        return {name: self.space.by_name[name].index(pick) if isinstance(pick, int) else pick for name, pick in picks.items()}

    def _arch(self, trial: Trial | FrozenTrial) -> Architecture:
        params = trial.params
        return self.space.canonical({c.name: c.options[params[c.name]] if c.is_nested else params[c.name] for c in self.space})


class GenerationSearcher(StudySearcher):
    """A strategy of Optuna's that draws a generation of `population` trials from those before it."""

    @property
    def batch(self) -> int:
        """What is left of a generation, which holds no trial that was told and not asked for."""
        grown = sum(any(name.endswith(":generation") for name in trial.system_attrs) for trial in self._complete)
        return self.population - grown % self.population


def check_study(storage: BaseStorage, space: SearchSpace, *, objectives: Sequence[str], limits: Mapping[str, float]) -> None:
    """Writes nothing.

    Raises:
        ValueError: the storage holds a study of another space, or with other objectives or limits.
    """
    if NAME not in {study.study_name for study in storage.get_all_studies()}:
        return
    id_ = storage.get_study_id_from_name(NAME)
    known = storage.get_study_user_attrs(id_)
    if not known and not storage.get_n_trials(id_):  # it was stopped before it began
        return
    ours = _about(space, objectives, limits)
    if known.get("space") != ours["space"]:
        name = known.get("space", {}).get("name")
        raise ValueError(f"the study holds a search of the space {name!r} with other choices")
    if known.get("objectives", ours["objectives"]) != ours["objectives"]:
        raise ValueError(
            f"the study holds a search for the objectives {known['objectives']}, this one is for {ours['objectives']}"
        )
    then, now = known.get("limits", ours["limits"]), ours["limits"]
    if then.keys() != now.keys() or not all(math.isclose(then[name], now[name], rel_tol=SAME) for name in now):
        raise ValueError(f"the study holds a search within {then}, this one is within {now}")


def _about(space: SearchSpace, objectives: Sequence[str], limits: Mapping[str, float]) -> dict[str, Any]:
    """What trials mean, as a study says it."""
    return {"space": space.to_json(), "objectives": list(objectives), "limits": dict(limits)}


class _WithinSpace(BaseSampler):
    """A sampler that is told the space of all trials, which it would else look for in each of them."""

    def __init__(self, sampler: BaseSampler, distributions: Mapping[str, BaseDistribution]) -> None:
        self._sampler = sampler
        self._distributions = {name: d for name, d in sorted(distributions.items()) if not d.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def _distribution(choice: Choice) -> BaseDistribution:
    return IntDistribution(0, len(choice.options) - 1) if choice.is_nested else CategoricalDistribution(choice.options)


def _copy_attrs(source: BaseStorage, target: BaseStorage) -> None:
    """What samplers note of the whole study, such as the parents of a generation, where the target lacks it."""
    here, there = (storage.get_study_id_from_name(NAME) for storage in (source, target))
    known = target.get_study_system_attrs(there)
    for name, value in source.get_study_system_attrs(here).items():
        if name not in known:
            target.set_study_system_attr(there, name, value)
