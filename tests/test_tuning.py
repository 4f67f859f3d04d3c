"""The study of how networks learn: what it tries, whom it asks, that all learn so afterwards, and that nothing is done twice."""

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from experiments.budgets import Budget
from experiments.config import composed
from experiments.finishing import Finisher
from experiments.outcome import Explored
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings, Settings
from experiments.trust import evidence, sentences
from experiments.tuning import Tuner, with_params
from nas.finish.learn import Learn
from nas.finish.prune import Prune
from nas.finish.teaching import Lesson
from nas.supernet import state_of
from nas.training import TrainConfig, TrainingError
from nas.types import Candidate, Provenance
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.made_up_run import make_results
from tests.support.stages import finisher_of, stopped_and_done

SPACE = encoder_space()
SMALLEST, LARGEST = SPACE.smallest(), SPACE.largest()
BEST_RATE = 0.0005


@dataclass(frozen=True)
class Trainer:
    """Its networks learn best at one rate and diverge far above it; may be killed before one of them."""

    settings: FinishSettings
    run: RunDirectory
    taught: bool = True
    kill_at: int | None = None
    trained: list[tuple[str, TrainConfig, Lesson]] = field(default_factory=list)

    def lesson(self, arch):
        return self.settings.lesson if self.taught else Lesson()

    def error_after(self, arch, supernet, *, share):
        assert share == 1.0
        if len(self.trained) == self.kill_at:
            raise KeyboardInterrupt
        train = self.settings.train
        self.trained.append((arch.id, train, self.settings.lesson))
        if train.learning_rate > 0.004:
            raise TrainingError("the loss is nan")
        return 10 + abs(math.log(train.learning_rate / BEST_RATE))


def candidate(arch, error, ms):
    provenance = {"error": Provenance.INHERITED, "latency_ms": Provenance.PREDICTED, "upper_ms": Provenance.PREDICTED}
    return Candidate(arch, {"error": error, "latency_ms": ms, "upper_ms": ms}, provenance, "search", 0.1)


EXPLORED = Explored({"search": (candidate(SMALLEST, 30.0, 0.5), candidate(LARGEST, 20.0, 2.0))})


def tuner(folder, *, trials=8, budget=1.0, finish=FinishSettings(), **how):  # noqa: B008
    finish = replace(finish, trials=trials)
    trainer = Trainer(finish, RunDirectory(folder), **how)
    settings = Settings(finish=finish, stages={"longer": Learn(lesson=finish.lesson), "prune": Prune()})
    return Tuner(cast(Any, trainer), Budget(budget, "user"), settings, Reporter(quiet=True)), trainer


def found_by(one):
    return one.tuned(EXPLORED, nn.Identity())


def trials_of(folder):
    return [json.loads(line) for line in (folder / "tuning.jsonl").read_text().splitlines()]


def test_the_best_training_is_taken_and_the_configured_one_is_the_first(tmp_path):
    one, trainer = tuner(tmp_path)
    settings, found = found_by(one)
    assert {arch for arch, *_ in trainer.trained} == {SMALLEST.id}, "the most accurate one within the budget"
    assert trainer.trained[0][1:] == (one.settings.finish.train, one.settings.finish.lesson)
    errors = [trial["error_percent"] for trial in trials_of(tmp_path)]
    assert found is not None
    assert len(errors) == found["trials"] == 8
    assert found["best"]["error_percent"] == min(e for e in errors if e is not None) < found["configured"]["error_percent"]
    assert set(found["best"]["params"]) == {"learning_rate", "weight_decay", "teacher_weight"}
    assert settings.finish.train.learning_rate == found["best"]["params"]["learning_rate"]
    assert settings.finish.lesson.beta == (found["best"]["params"]["teacher_weight"], one.settings.finish.lesson.beta[1])


@pytest.mark.parametrize("after", [2, 13])
def test_a_training_of_the_study_goes_on_after_a_kill(tmp_path, monkeypatch, after):
    """To the same weights, of the same trials; after 13 steps it is the third that is killed."""
    family = EncoderFamily(encoder_space(width=(16,), depth=(1,), ffn=(16,)), 20, 3, max_tokens=8, head_size=8)
    arch, supernet, weights = family.space.largest(), family.supernet(), list[dict]()
    monkeypatch.setattr(Finisher, "_error_percent", lambda self, network, split: weights.append(state_of(network)) or 50.0)
    explored = Explored({"search": (candidate(arch, 30.0, 0.5),)})

    def found(name):
        train = TrainConfig(steps=5, tokens_per_batch=64)
        finisher = finisher_of(family, tmp_path / name, train=train, most_steps=5, trials=3)
        Tuner(finisher, Budget(1.0, "user"), Settings(finish=finisher.settings), Reporter(quiet=True)).tuned(explored, supernet)
        return [trial["params"] for trial in trials_of(tmp_path / name)]

    whole = found("whole")
    stopped_and_done(lambda: found("stopped"), monkeypatch, after=after, steps=15)
    assert found("stopped") == whole
    assert len(weights) == 6
    for first, second in zip(weights[:3], weights[3:], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_study_that_was_killed_goes_on_to_the_same_end(tmp_path):
    _, whole = found_by(tuner(tmp_path / "whole")[0])
    with pytest.raises(KeyboardInterrupt):
        found_by(tuner(tmp_path / "killed", kill_at=3)[0])
    again, trainer = tuner(tmp_path / "killed")
    _, found = found_by(again)
    assert len(trainer.trained) == 5
    assert [t["params"] for t in trials_of(tmp_path / "killed")] == [t["params"] for t in trials_of(tmp_path / "whole")]
    assert found["best"]["params"] == whole["best"]["params"]
    third, idle = tuner(tmp_path / "killed")
    found_by(third)
    assert not idle.trained


def test_a_training_that_diverges_is_never_the_best(tmp_path):
    wild = FinishSettings(train=TrainConfig(steps=70, learning_rate=0.005))
    settings, found = found_by(tuner(tmp_path, finish=wild)[0])
    assert found is not None
    assert found["configured"]["error_percent"] is None
    assert settings.finish.train.learning_rate <= 0.004


def test_where_all_diverge_or_nothing_may_be_tried_all_stays_as_it_is(tmp_path):
    hopeless = FinishSettings(train=TrainConfig(steps=70, learning_rate=1.0))
    for one, trainer in (
        tuner(tmp_path / "a", finish=hopeless), tuner(tmp_path / "b", trials=0), tuner(tmp_path / "c", budget=0.1),
    ):  # fmt: skip
        assert found_by(one) == (one.settings, None)
        assert len(trainer.trained) == (8 if trainer.settings.train.learning_rate == 1.0 else 0)


def test_without_a_teacher_or_decay_these_are_not_tuned(tmp_path):
    plain = FinishSettings(train=TrainConfig(steps=70, weight_decay=0.0))
    _, found = found_by(tuner(tmp_path, finish=plain, taught=False)[0])
    assert found is not None
    assert set(found["best"]["params"]) == {"learning_rate"}


def test_a_stage_that_learns_as_the_short_list_does_learns_so(tmp_path):
    settings = tuner(tmp_path)[0].settings
    own = Learn(train=TrainConfig(steps=5), lesson=Lesson(beta=(1.0, 1.0)))
    settings = replace(settings, stages={"longer": settings.stages["longer"], "distil": own, "prune": Prune()})
    changed = with_params(settings, {"learning_rate": 0.1, "teacher_weight": 0.3})
    longer = cast(Learn, changed.stages["longer"])
    assert (longer.train.learning_rate, longer.train.steps) == (0.1, cast(Learn, settings.stages["longer"]).train.steps)
    assert longer.lesson.beta == (0.3, 0.0)
    assert changed.stages["distil"] == own
    assert changed.stages["prune"] == settings.stages["prune"]


def test_the_default_stage_learns_as_the_default_short_list_does():
    configured = composed()
    assert configured.stages.longer.lesson == configured.finish.lesson


def test_a_negative_number_of_trials_is_refused():
    with pytest.raises(ValueError, match=r"trials: -1 is negative"):
        FinishSettings(trials=-1)


def test_the_report_says_what_tuning_found():
    trials = [{"params": {"learning_rate": rate}, "error_percent": error} for rate, error in ((0.002, 12.0), (0.0011, 11.25))]
    tuned = {"network": "abc", "trials": 8, "configured": trials[0], "best": trials[1]}
    results = replace(make_results(), tuned=tuned)
    said = " ".join(sentences(evidence(results, []), results))
    assert "in the best of 8 trainings of abc, with learning rate 0.0011: 11.25 % error" in said
    assert "has 12.00 %" in said
    results = replace(results, tuned={**tuned, "best": trials[0]})
    assert "Of 8 trainings of abc none was better" in " ".join(sentences(evidence(results, []), results))
