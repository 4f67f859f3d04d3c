"""How the networks of a run learn, as a study: learning rate, weight decay and the first weight of a teacher.

The most accurate network within the budgets that the search found is trained several times, each time as long as it would be for
the short-list: first as it is configured, then as Optuna's TPE proposes. The split "architecture" judges, so that the one that
chooses what ships has seen none of it. Then every network learns as in the best trial, those designed by hand, too, and so do
stages that were to learn as the short-list does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import nn

from experiments.budgets import Budget
from experiments.finishing import Finisher
from experiments.formatting import params_in_words
from experiments.ledger import spent
from experiments.outcome import Explored
from experiments.progress import Reporter
from experiments.settings import FinishSettings, Settings
from nas.finish.learn import Learn
from nas.finish.stage import Stage
from nas.seeds import seed_of
from nas.space import Architecture
from nas.training import TrainConfig, TrainingError

TRIALS = "tuning.jsonl"
RATES = (1 / 8, 4.0)  # how far from the configured learning rate
DECAYS = (1e-3, 1.0)
MOST_TAUGHT = 2.0  # times the loss of the targets

Params = Mapping[str, float]


@dataclass(frozen=True)
class Tuner:
    """Tunes the training of one run; trials that it has are read from its `tuning.jsonl`."""

    finisher: Finisher
    budget: Budget
    settings: Settings
    report: Reporter

    def tuned(self, explored: Explored, supernet: nn.Module) -> tuple[Settings, Mapping[str, Any] | None]:
        """The settings to go on with, and what was found; without trials, or a network to try, the same and None."""
        within = [c for c in explored.by_phase["search"] if self.budget.allows(c.objectives)]
        if not self.settings.finish.trials or not within:
            return self.settings, None
        arch = min(within, key=lambda c: (c.objectives["error"], c.arch.id)).arch
        trials = self._trials(arch, supernet)
        sound = [trial for trial in trials if trial["error_percent"] is not None]
        if not sound:
            return self.settings, None
        best = min(sound, key=lambda trial: trial["error_percent"])
        found = {"network": arch.id, "trials": len(trials), "configured": trials[0], "best": best}
        return with_params(self.settings, best["params"]), found

    def _trials(self, arch: Architecture, supernet: nn.Module) -> list[dict[str, Any]]:
        """Those of the run, and new ones up to the number that is wanted: parameters, error (None if it diverged), seconds."""
        num, title = self.settings.finish.trials, "Tuning the training"
        trials = list(self.finisher.run.read_lines(TRIALS))
        if len(trials) >= num:
            return trials
        configured, allowed = _configured(self.settings.finish, taught=self.finisher.lesson(arch).needs_teacher)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study()
        for known in trials:
            study.add_trial(_frozen(known, allowed))
        with self.report.phase(title, num, done=len(trials)) as advance:
            for number in range(len(trials), num):
                start = time.perf_counter()
                study.sampler = TPESampler(seed=seed_of(self.settings.seed, number), n_startup_trials=max(2, num // 3))
                if number == 0:
                    study.enqueue_trial(dict(configured))
                asked = study.ask(dict(allowed))
                with spent(self.finisher.run, title, networks_trained=1):
                    error = self._error_percent(arch, supernet, asked.params)
                study.tell(asked, error, TrialState.FAIL if error is None else TrialState.COMPLETE)
                seconds = round(time.perf_counter() - start, 2)
                trials.append({"params": asked.params, "error_percent": error, "seconds": seconds})
                self.finisher.run.append(TRIALS, trials[-1])
                words = "diverged" if error is None else f"error {error:.1f} %"
                advance(number + 1, f"{params_in_words(asked.params)}: {words}")
        return trials

    def _error_percent(self, arch: Architecture, supernet: nn.Module, params: Params) -> float | None:
        finisher = replace(self.finisher, settings=with_params(self.settings, params).finish)
        try:
            return finisher.error_after(arch, supernet, share=1.0)
        except TrainingError:
            return None


def _configured(finish: FinishSettings, *, taught: bool) -> tuple[Params, Mapping[str, BaseDistribution]]:
    """What is configured, and the ranges of what may be changed; a weight of zero is none that may be."""
    rate, decay, weight = finish.train.learning_rate, finish.train.weight_decay, finish.lesson.beta[0]
    params, allowed = {"learning_rate": rate}, {"learning_rate": FloatDistribution(RATES[0] * rate, RATES[1] * rate, log=True)}
    if decay > 0:
        params["weight_decay"] = decay
        allowed["weight_decay"] = FloatDistribution(min(DECAYS[0], decay), max(DECAYS[1], decay), log=True)
    if taught and weight > 0:
        params["teacher_weight"] = weight
        allowed["teacher_weight"] = FloatDistribution(0.0, max(MOST_TAUGHT, weight))
    return params, allowed


def with_params(settings: Settings, params: Params) -> Settings:
    """The settings in which the short-list learns so, and each stage that was to learn as it does."""
    finish = settings.finish
    lesson = replace(finish.lesson, beta=(params.get("teacher_weight", finish.lesson.beta[0]), finish.lesson.beta[1]))

    def tuned(train: TrainConfig) -> TrainConfig:
        decay = params.get("weight_decay", train.weight_decay)
        return replace(train, learning_rate=params["learning_rate"], weight_decay=decay)

    def of_stage(stage: Stage) -> Stage:
        if not isinstance(stage, Learn) or stage.lesson != finish.lesson:
            return stage
        return replace(stage, train=tuned(stage.train), lesson=lesson)

    stages = {name: of_stage(stage) for name, stage in settings.stages.items()}
    return replace(settings, finish=replace(finish, train=tuned(finish.train), lesson=lesson), stages=stages)


def _frozen(trial: Mapping[str, Any], allowed: Mapping[str, BaseDistribution]) -> FrozenTrial:
    error = trial["error_percent"]
    state = TrialState.FAIL if error is None else TrialState.COMPLETE
    return create_trial(params=trial["params"], distributions=dict(allowed), value=error, state=state)
