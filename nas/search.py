"""The outer loop: a searcher proposes, an evaluation scores, and everything found so far counts.

`OptunaSearcher` keeps its study in Optuna's own storage. Each trial draws from a sampler seeded by (seed, trial number), so a
study that is continued in another process asks for the same architectures as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from nas.protocols import Searcher
from nas.space import Architecture, Option, SearchSpace
from nas.types import Candidate, SearchResult

SAMPLERS = ("nsga2", "tpe", "random")


class ExhaustedError(RuntimeError):
    """A searcher has nothing left to propose."""


class RandomSearcher:
    """Uniform random architectures that `accept` lets through, none twice; the n-th draw follows from (seed, n)."""

    def __init__(self, space: SearchSpace, *, seed: int, accept: Callable[[Architecture], bool] = lambda arch: True) -> None:
        self.space, self.seed, self.accept = space, seed, accept
        self._told: set[str] = set()
        self._drawn = 0

    def ask(self) -> Architecture:
        """Raises ExhaustedError when 10,000 draws in a row were known or refused."""
        for _ in range(10_000):
            arch = self.space.sample(np.random.default_rng([self.seed, self._drawn]))
            self._drawn += 1
            if arch.id not in self._told and self.accept(arch):
                return arch
        raise ExhaustedError(f"the space {self.space.name} has no more architectures to draw after {len(self._told)}")

    def tell(self, candidate: Candidate) -> None:
        self._told.add(candidate.arch.id)

    def fail(self, arch: Architecture, reason: str) -> None:
        self._told.add(arch.id)


class OptunaSearcher:
    """NSGA-II or multi-objective TPE over architectures, as an Optuna study.

    Sizes are given to Optuna as indices into their options, so that their order counts; the picks of absent choices are sampled
    too and dropped. `constraint` names an objective that must not exceed `limit` (Deb's constrained domination, through
    `Trial.set_constraint`).

    Args:
        initial: architectures to begin with, such as the proposals of a differentiable search.
        storage: an Optuna storage, or None for memory; a study that it already holds is continued.

    Raises:
        ValueError: an unknown sampler, or a storage that holds a study of another space.
    """

    def __init__(
        self, space: SearchSpace, *, objectives: Sequence[str], sampler: str, seed: int, initial: Iterable[Architecture] = (),
        constraint: tuple[str, float] | None = None, storage: Any = None, population: int = 20,
    ) -> None:  # fmt: skip
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler: {sampler!r} is not one of {SAMPLERS}")
        if population < 2:
            raise ValueError(f"population: {population} is not at least 2")
        self.space, self.objectives, self.sampler, self.seed = space, tuple(objectives), sampler, seed
        self.constraint, self.population = constraint, population
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name="search", storage=storage, directions=["minimize"] * len(self.objectives), load_if_exists=True
        )
        known = self.study.user_attrs.get("space")
        if known is None:
            self.study.set_user_attr("space", space.to_json())
            for arch in initial:
                self.study.enqueue_trial(self._params(arch.as_dict))
        elif known != space.to_json():
            raise ValueError(f"the study holds a search of the space {known['name']!r} with other choices")
        self._open: dict[str, list[optuna.Trial]] = {}
        running = self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
        self._interrupted = [(trial.number, trial._trial_id) for trial in running]

    def ask(self) -> Architecture:
        """The next architecture; first those that were asked for and never answered before a stop."""
        if self._interrupted:
            number, trial_id = self._interrupted.pop(0)
            self.study.sampler = self._sampler(number)
            trial = optuna.Trial(self.study, trial_id)
        else:
            asked = [t for t in self.study.get_trials(deepcopy=False) if t.state != optuna.trial.TrialState.WAITING]
            self.study.sampler = self._sampler(len(asked))
            trial = self.study.ask()
        picks: dict[str, Option] = {}
        for choice in self.space:
            if choice.is_nested:
                picks[choice.name] = choice.options[trial.suggest_int(choice.name, 0, len(choice.options) - 1)]
            else:
                picks[choice.name] = str(trial.suggest_categorical(choice.name, list(choice.options)))
        arch = self.space.canonical(picks)
        self._open.setdefault(arch.id, []).append(trial)
        return arch

    def tell(self, candidate: Candidate) -> None:
        values = [candidate.objectives[name] for name in self.objectives]
        excess = {}
        if self.constraint is not None:
            name, limit = self.constraint
            excess = {name: candidate.objectives[name] - limit}
        waiting = self._open.get(candidate.arch.id)
        if not waiting:
            self.study.add_trial(self._unasked(candidate.arch, values, excess))
            return
        trial = waiting.pop(0)
        held = self.study.get_trials(deepcopy=False)[trial.number].constraints
        for name, value in excess.items():
            if name not in held:  # a run that was stopped just here has set it already
                trial.set_constraint(name, value)
        self.study.tell(trial, values)

    def _unasked(self, arch: Architecture, values: list[float], excess: dict[str, float]) -> optuna.trial.FrozenTrial:
        """A finished trial with a pick for every choice: a study whose trials lack parameters searches only what they share."""
        picks = self.space.complete(arch, np.random.default_rng(int(arch.id, 16)))
        return optuna.trial.create_trial(
            values=values, params=self._params(picks), distributions=self._distributions(), constraints=excess
        )

    def fail(self, arch: Architecture, reason: str) -> None:
        for trial in self._open.pop(arch.id, [])[:1]:
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _params(self, picks: Mapping[str, Option]) -> dict[str, Any]:
        return {name: self.space.by_name[name].index(pick) if isinstance(pick, int) else pick for name, pick in picks.items()}

    def _distributions(self) -> dict[str, Any]:
        return {
            c.name: optuna.distributions.IntDistribution(0, len(c.options) - 1)
            if c.is_nested
            else optuna.distributions.CategoricalDistribution(c.options)
            for c in self.space
        }

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=self.population)
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)


def search(
    searcher: Searcher, evaluate: Callable[[Architecture], Candidate], *, num_evaluations: int,
    known: Iterable[Candidate] = (), on_candidate: Callable[[Candidate], None] = lambda candidate: None,
    max_repeats: int = 200,
) -> SearchResult:  # fmt: skip
    """Asks, evaluates and tells until `num_evaluations` different architectures are known.

    An architecture is never evaluated twice: one that comes again, or is in `known`, is told with the score that it has. An
    evaluation that raises ValueError fails that architecture alone. `on_candidate` is called with each new candidate before it is
    told, so that a run stopped between the two finds it in `known` again. The search also ends when `max_repeats` questions in a
    row brought nothing new, or the searcher has nothing left to propose.
    """
    found = {candidate.arch.id: candidate for candidate in known}
    failures: dict[str, tuple[Architecture, str]] = {}
    repeats = 0
    while len(found) + len(failures) < num_evaluations and repeats < max_repeats:
        try:
            arch = searcher.ask()
        except ExhaustedError:
            break
        repeats += 1
        if arch.id in failures:
            searcher.fail(arch, failures[arch.id][1])
            continue
        if arch.id not in found:
            repeats = 0
            try:
                candidate = evaluate(arch)
            except ValueError as error:
                failures[arch.id] = (arch, str(error))
                searcher.fail(arch, str(error))
                continue
            on_candidate(candidate)
            found[arch.id] = candidate
        searcher.tell(found[arch.id])
    return SearchResult(tuple(found.values()), tuple(failures.values()))
