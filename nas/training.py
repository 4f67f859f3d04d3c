"""Training loops that can be stopped after any step and go on from there to the same weights.

Nothing is drawn from a random state that lives between steps: the batches of an epoch follow from (seed, epoch), the random
sub-networks of a step from (seed, step). So a checkpoint is the weights, the optimiser's state and the number of steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from nas.compute import Compute
from nas.protocols import Batch, Family, Task
from nas.ranges import check_not_negative, check_positive, check_whole
from nas.seeds import seed_of
from nas.space import Architecture
from nas.supernet import sandwich, sandwich_step

GOOD_EVERY = 50  # steps between the states that a training goes back to
MOST_SETBACKS = 3  # of one training; each halves the learning rate

Rule = Literal["single", "sandwich"]
"""Which networks of a supernet learn in a step: a random one (single path, arXiv:1904.00420), or those of the sandwich rule."""
RULES = get_args(Rule)


class TrainingError(RuntimeError):
    """Training diverged again and again: says what is not a number any more, at which step, and what may help."""


@dataclass(frozen=True)
class TrainConfig:
    """AdamW with a linear warm-up and a cosine decay to zero.

    Args:
        accumulate: batches whose gradients make one step.
        ema: how much of the moving average of the weights stays at each step; it takes their place at the end. 0: no average.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int
    tokens_per_batch: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.05
    clip_norm: float = 1.0
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self) -> None:
        check_whole(self, "steps", "tokens_per_batch", "accumulate")
        check_positive(self, "learning_rate", "clip_norm")
        check_not_negative(self, "weight_decay", "warmup_fraction", "ema")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction: {self.warmup_fraction} is not in [0, 1)")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: {self.ema} is not in [0, 1)")

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0."""
        warmup = max(1, round(self.steps * self.warmup_fraction))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * cosine((step - warmup) / max(1, self.steps - warmup))


def cosine(done: float) -> float:
    """Half a cosine, from 1 at the start to 0 when all is done."""
    return 0.5 * (1 + math.cos(math.pi * done))


def stream(task: Task, split: str, *, tokens_per_batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Endless batches of a split, epoch after epoch, from batch number `start` on."""
    epoch, skipped = 0, 0
    while True:
        for batch in task.batches(split, tokens_per_batch=tokens_per_batch, seed=seed_of(seed, epoch)):
            if skipped < start:
                skipped += 1
                continue
            yield batch
        epoch += 1


def is_sound(module: nn.Module) -> bool:
    """Whether all weights are numbers."""
    return all(bool(p.isfinite().all()) for p in module.parameters())


def make_optimizer(parameters: Iterator[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; norms and biases are not decayed."""
    everything = list(parameters)
    decayed = [p for p in everything if p.ndim > 1]
    free = [p for p in everything if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


class Trainer:
    """Steps of one module under one config; `gradient(number)` adds to the gradients what one batch says and returns its loss.

    Batches are counted from 0; a step takes `config.accumulate` of them. Where the loss or its gradient is no number any more,
    training goes back to the last state whose weights and whose loss were numbers, and on from there at half the rate. Of the
    weights that it ends with the loss of one more step tells, which is not taken.

    Args:
        bind: does to the weights after each step whatever must hold for them, and for their average.
    """

    def __init__(
        self, module: nn.Module, config: TrainConfig, gradient: Callable[[int], float], *, bind: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        self.module, self.config, self.gradient, self.bind = module, config, gradient, bind
        self.optimizer = make_optimizer(module.parameters(), config)
        self.step = 0
        self.average = [p.detach().clone() for p in module.parameters()] if config.ema else []
        self.setbacks = 0

    def run(
        self, *, on_step: Callable[[int, float], None] = lambda step, loss: None,
        enough: Callable[[int], bool] = lambda step: False, on_setback: Callable[[str], None] = lambda words: None,
    ) -> None:  # fmt: skip
        """Trains from the current step to the last, or until `enough` says so of the number of finished steps, which `on_step`
        gets with the loss. `on_setback` is told in words when training went back.

        Raises:
            TrainingError: the loss or its gradient was not finite, and going back did not help.
        """
        self.module.train()
        good = copy.deepcopy(self.state_dict())
        finished = self.step >= self.config.steps
        while True:
            loss, norm = self._gradients()
            is_kept = finished or self.step % GOOD_EVERY == 0
            if wrong := self._wrong(loss, norm, look_inside=is_kept):
                on_setback(self._go_back(good, wrong))
                finished = self.step >= self.config.steps
                continue
            if finished:
                break
            if is_kept and self.step > good["step"]:
                good = copy.deepcopy(self.state_dict())
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.rate(self.step) / 2**self.setbacks
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                self.bind()
                for mean, parameter in zip(self.average, self.module.parameters(), strict=False):
                    mean.lerp_(parameter, 1 - min(self.config.ema, self.step / (self.step + 9)))  # it forgets the start soon
            on_step(self.step, loss)
            finished = enough(self.step) or self.step >= self.config.steps
        if self.average:
            self.swap()

    def _gradients(self) -> tuple[float, float]:
        """The loss of a step, and the norm of its gradient, which is clipped then."""
        self.optimizer.zero_grad(set_to_none=True)
        num = self.config.accumulate
        first = min(self.step, self.config.steps - 1) * num
        loss = sum(self.gradient(first + number) for number in range(num)) / num
        if num > 1:
            torch._foreach_div_([p.grad for p in self.module.parameters() if p.grad is not None], num)
        return loss, float(nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm))

    def _wrong(self, loss: float, norm: float, *, look_inside: bool) -> str:
        """What is no number, in words, or nothing."""
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                return f"the {what} is {value}"
        return "" if not look_inside or is_sound(self.module) else "a weight is no number"

    def _go_back(self, good: Mapping[str, Any], what: str) -> str:
        """Returns what happened, in words. Raises TrainingError after `MOST_SETBACKS`."""
        what = f"{what} at step {self.step}"
        if self.setbacks == MOST_SETBACKS:
            rate = self.config.learning_rate / 2**self.setbacks
            raise TrainingError(f"{what}, and was {self.setbacks} times before; a lower learning rate than {rate:.3g} may help")
        setbacks = self.setbacks + 1
        self.load_state_dict(copy.deepcopy(dict(good)))
        self.setbacks = setbacks
        return f"{what}; training goes back to step {self.step}, and on at half the rate"

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the weights and their moving average, if there is one."""
        for mean, parameter in zip(self.average, self.module.parameters(), strict=False):
            weight = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        return {**state, "average": self.average, "setbacks": self.setbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.average, self.setbacks = list(state.get("average", [])), int(state.get("setbacks", 0))


def supernet_trainer(
    family: Family, supernet: nn.Module, task: Task, config: TrainConfig, *, compute: Compute, seed: int, rule: Rule = "single",
    num_random: int = 1, distillation: float = 0.5, together: Sequence[Architecture] = (), state: Mapping[str, Any] | None = None,
) -> Trainer:  # fmt: skip
    """Training of a supernet, from a state or from the start; `num_random` and `distillation` are the sandwich rule's (see
    `nas.supernet.sandwich_step`). A random network alone learns from the targets. Where networks are to learn `together`, it is
    they in each step, whatever the rule, and the first one teaches the others."""
    batches: list[Iterator[Batch]] = []

    def gradient(number: int) -> float:
        if not batches:
            batches.append(stream(task, "train", tokens_per_batch=config.tokens_per_batch, seed=seed, start=number))
        rng, space = np.random.default_rng([seed, number]), family.space
        archs = together or ([space.sample(rng)] if rule == "single" else sandwich(space, rng, num_random=num_random))
        batch = next(batches[0]).to(compute.device)
        return sandwich_step(family, supernet, archs, batch, task, compute, distillation=distillation)

    trainer = Trainer(supernet, config, gradient)
    if state is not None:
        trainer.load_state_dict(state)
    return trainer


@torch.no_grad()
def shrink_and_perturb(network: nn.Module, fresh: nn.Module, *, inherit: float) -> None:
    """Moves inherited weights towards freshly initialised ones: inherit * w + (1 - inherit) * fresh, in place.

    Weights that have fitted the training split once generalise worse after more training than fresh ones do; shrunk and perturbed
    they keep the head start and lose that (Ash & Adams, arXiv:1910.08475).
    """
    for weight, start in zip(network.parameters(), fresh.parameters(), strict=True):
        weight.lerp_(start.to(weight.device), 1 - inherit)
