"""A loss that is no number: training goes back to where it was sound, slows down, says so, and gives up in the end."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nas import guards
from nas.compute import Compute
from nas.finish.teaching import Lesson, teach
from nas.training import GOOD_EVERY, MOST_SETBACKS, TrainConfig, Trainer, TrainingError, is_sound
from tests.support.tiny_search import Task, darts, latency_model


@pytest.fixture(scope="module")
def latency():
    return latency_model()


class Failing:
    """A line through points; some calls give no number."""

    def __init__(self, *, nan_at=(), poison_at=()) -> None:
        torch.manual_seed(0)
        self.module, self.nan_at, self.poison_at, self.calls = nn.Linear(1, 1), set(nan_at), set(poison_at), 0

    def __call__(self, number: int) -> float:
        self.calls += 1
        x = torch.linspace(-1, 1, 16)[:, None]
        loss = (self.module(x) - 3 * x - 1).square().mean()
        loss.backward()
        if self.calls in self.poison_at:
            self.module.weight.grad.fill_(float("inf"))
        return float("nan") if self.calls in self.nan_at else float(loss.detach())


def trained(gradient, *, steps=200, **config):
    trainer, said, losses = Trainer(gradient.module, TrainConfig(steps=steps, learning_rate=0.1, **config), gradient), [], []
    trainer.run(on_step=lambda step, loss: losses.append((step, loss)), on_setback=said.append)
    return trainer, said, losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"learning_rate": ".nan"}, r"learning_rate: '\.nan' is not a finite number"),
        ({"clip_norm": float("inf")}, "clip_norm: inf is not a finite number"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1 is negative"),
        ({"accumulate": 0}, "accumulate: 0 is not positive"),
        ({"ema": 1.0}, r"ema: 1.0 is not in \[0, 1\)"),
    ],
)
def test_rates_that_nothing_can_learn_at_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 1, **changes})


def test_training_goes_back_to_the_last_sound_state_and_on_at_half_the_rate():
    gradient = Failing(nan_at=[121])
    trainer, said, losses = trained(gradient)
    assert said == ["the loss is nan at step 120; training goes back to step 100, and on at half the rate"]
    assert [step for step, _ in losses] == [*range(1, 121), *range(101, 201)]
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(trainer.config.rate(199) / 2)
    assert losses[-1][1] < 0.01
    assert losses[120][1] == pytest.approx(losses[100][1], rel=1e-5), "the same weights"


@pytest.mark.parametrize("steps", [2 * GOOD_EVERY, 200])
def test_an_infinite_gradient_is_not_followed_in_the_last_step_either(steps):
    gradient = Failing(poison_at=[2 * GOOD_EVERY])
    trainer, said, losses = trained(gradient, steps=steps)
    goes_back = f"training goes back to step {GOOD_EVERY}, and on at half the rate"
    assert said == [f"the norm of the gradient is inf at step 99; {goes_back}"]
    assert np.isfinite([loss for _, loss in losses]).all()
    assert trainer.step == steps
    assert is_sound(trainer.module)


def test_weights_that_give_no_loss_are_no_state_to_go_back_to_or_to_end_with():
    """Weights of 1e30 are numbers, and the loss is not: a state counts as good when the loss of the step after it is known."""
    gradient, steps = Failing(), GOOD_EVERY

    def explodes(step: int, _: float) -> None:
        if step == steps and gradient.calls == steps:
            gradient.module.weight.data.fill_(1e30)

    trainer = Trainer(gradient.module, TrainConfig(steps=steps, learning_rate=0.1), gradient)
    said: list[str] = []
    trainer.run(on_step=explodes, on_setback=said.append)
    assert said == [f"the loss is inf at step {steps}; training goes back to step 0, and on at half the rate"]
    assert gradient.module.weight.detach().abs().item() < 10


def test_a_rate_that_breaks_the_only_step_is_named():
    gradient = Failing()
    with pytest.raises(TrainingError, match=r"the loss is \w+ at step 1, .* a lower learning rate than 1.25e\+29 may help"):
        Trainer(gradient.module, TrainConfig(steps=1, learning_rate=1e30), gradient).run()


def test_it_gives_up_after_a_few_times():
    gradient = Failing(nan_at=range(60, 10_000))
    with pytest.raises(TrainingError, match=r"at step 50, and was 3 times before; a lower learning rate than 0.0125"):
        trained(gradient)
    assert gradient.calls == 60 + MOST_SETBACKS


def test_setbacks_survive_a_stop():
    gradient = Failing(nan_at=[20])
    trainer, _, _ = trained(gradient, steps=40)
    again = Trainer(Failing().module, trainer.config, Failing())
    again.load_state_dict(trainer.state_dict())
    assert again.setbacks == 1


def test_a_network_that_is_taught_says_so():
    class Once(nn.Linear):
        calls = itertools.count()

        def forward(self, x, mask=None):
            answer = super().forward(torch.ones(len(x), 4))
            return answer * float("nan") if self.training and next(self.calls) == 3 else answer

    said: list[str] = []
    network = Once(4, 8)
    teach(network, Task(), TrainConfig(steps=6), Lesson(), compute=Compute(), seed=0, on_setback=said.append)
    assert said == ["the loss is nan at step 3; training goes back to step 0, and on at half the rate"]
    assert all(p.isfinite().all() for p in network.parameters())


def test_a_differentiable_search_begins_its_budget_again(latency, monkeypatch):
    search, said, steps = darts(latency), [], []
    loss_of, calls = search._loss, itertools.count()

    def failing(*words, **more):
        loss = loss_of(*words, **more)
        return loss * float("nan") if next(calls) == 4 else loss

    monkeypatch.setattr(search, "_loss", failing)
    rate = search.logit_optimizer.param_groups[0]["lr"]
    proposal = search.propose(0.8, steps=6, on_step=lambda step, _: steps.append(step), on_setback=said.append)
    [words] = said
    assert words.startswith("the loss of the differentiable search is nan at step 2")
    assert words.endswith("it begins the budget of 0.8 ms again at half its rates")
    assert steps == [1, 2, *range(1, 7)]
    assert search.num_steps == 6
    assert search.logit_optimizer.param_groups[0]["lr"] == rate / 2
    assert proposal.upper_ms <= 0.8
    monkeypatch.setattr(search, "_loss", lambda *words, **more: loss_of(*words, **more) * float("nan"))
    with pytest.raises(TrainingError, match="is nan"):
        search.propose(0.7, steps=6)


def test_the_last_step_of_a_budget_is_looked_at_before_the_next_begins(latency):
    search, said = darts(latency, weight_rate=1e30), []
    with pytest.raises(
        TrainingError, match=r"nan at step 1, and was 3 times before; a lower weight_rate than 1.25e\+29 may help"
    ):
        search.propose(0.8, steps=1, on_setback=said.append)
    assert len(said) == MOST_SETBACKS
    assert all(words.startswith("the loss of the differentiable search is nan at step 1; it begins") for words in said)


def test_what_broke_in_the_last_step_is_mended(latency, monkeypatch):
    search, said = darts(latency), []

    def breaks(step: int, _: float) -> None:
        if step == 6 and not said:
            next(search.supernet.parameters()).data.fill_(float("nan"))

    proposal = search.propose(0.8, steps=6, on_step=breaks, on_setback=said.append)
    assert len(said) == 1
    assert is_sound(search.supernet)
    assert np.isfinite(proposal.loss)
    again = darts(latency)
    again.load_state_dict(search.state_dict())
    again.propose(0.7, steps=1)
    assert again.weight_optimizer.param_groups[0]["lr"] == again.config.weight_rate / 2


def test_a_supernet_that_is_broken_is_named_at_once(latency):
    search, said = darts(latency), []
    for parameter in search.supernet.parameters():
        parameter.data.fill_(1e30)
    with pytest.raises(TrainingError, match="before the first step: what it begins with is broken; a lower learning rate of"):
        search.propose(0.8, steps=6, on_setback=said.append)
    assert not said


def test_logits_that_are_no_numbers_are_a_setback(latency, monkeypatch):
    search, said = darts(latency), []
    logit_step, calls = search._logit_step, itertools.count()

    def breaks(*words):
        loss = logit_step(*words)
        if next(calls) == 5:
            search.logits.data[0] = float("nan")
        return loss

    monkeypatch.setattr(search, "_logit_step", breaks)
    assert search.propose(0.8, steps=6, on_setback=said.append).upper_ms <= 0.8
    assert said == [
        "a logit of the differentiable search is nan at step 5; it begins the budget of 0.8 ms again at half its rates"
    ]


@pytest.mark.parametrize("remedy", ["beta_decay", "perturbation"])
def test_a_remedy_that_diverges_is_a_setback_too(latency, monkeypatch, remedy):
    monkeypatch.setattr(guards, "alarm", lambda **_: "all is skipped")
    search, said = darts(latency, check_every=2, remedy=remedy), []
    even_logits, weight = search._even_logits, next(search.supernet.parameters())

    def breaks() -> None:
        even_logits()
        if not said:
            weight.data.fill_(float("nan"))

    monkeypatch.setattr(search, "_even_logits", breaks)
    proposal = search.propose(0.8, steps=6, on_setback=said.append)
    assert [words.split(";")[0] for words in said] == ["the loss of the differentiable search is nan at step 0"]
    assert proposal.remedy == remedy
    assert is_sound(search.supernet)
