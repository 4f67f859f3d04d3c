"""A loss that is no number: training goes back to where it was sound, slows down, says so, and gives up in the end."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nas.compute import Compute
from nas.finish.teaching import Lesson, teach
from nas.training import GOOD_EVERY, MOST_SETBACKS, TrainConfig, Trainer, TrainingError
from tests.test_darts import Task, darts, latency  # noqa: F401


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
        if self.calls in self.poison_at:  # an infinite gradient: the loss of the next step tells
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


def test_weights_that_are_no_numbers_are_no_state_to_go_back_to():
    gradient = Failing(poison_at=[2 * GOOD_EVERY])
    _, said, losses = trained(gradient)
    assert said == [f"the loss is nan at step 100; training goes back to step {GOOD_EVERY}, and on at half the rate"]
    assert np.isfinite([loss for _, loss in losses]).all()


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


def test_a_differentiable_search_begins_its_budget_again(latency, monkeypatch):  # noqa: F811
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
