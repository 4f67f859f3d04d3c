"""Differentiable architecture search under a latency budget.

First-order DARTS (Liu et al., arXiv:1806.09055, eq. 7 with xi = 0) over the entangled supernet: the weights learn on the training
split, the architecture's logits on a split of their own, and both see the relaxed architecture softmax(logits / temperature). The
budget is a constraint, not a weight to guess: an augmented Lagrangian drives the expected latency under it (Nocedal & Wright,
section 17.4, for one inequality). What comes out is discrete and within the budget, by projection and not by hope.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.compute import Compute
from nas.encoding import Encoding
from nas.protocols import Batch, DifferentiableLatencyModel, Family, Task
from nas.space import Architecture, SearchSpace
from nas.training import TrainingError, stream


class BudgetError(ValueError):
    """No architecture of the space meets the budget; names the fastest and its time."""


@dataclass(frozen=True)
class DartsConfig:
    """Steps of one search and how fast things move.

    `steps` are for the first budget, `steps_more` for each further one, which starts from the logits and weights of the one
    before. The temperature falls geometrically from `temperature[0]` to `temperature[1]` in every search.
    """

    steps: int = 30
    steps_more: int = 10
    tokens_per_batch: int = 2048
    logit_rate: float = 0.1
    weight_rate: float = 5e-4
    temperature: tuple[float, float] = (1.0, 0.4)
    penalty: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", tuple(self.temperature))
        for name in ("steps", "steps_more", "tokens_per_batch", "logit_rate", "penalty"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if len(self.temperature) != 2 or min(self.temperature) <= 0:
            raise ValueError(f"temperature: {self.temperature} is not a pair of positive numbers")


def relax(space: SearchSpace, logits_E: Tensor, *, temperature: float = 1.0) -> Encoding:
    """Softmax over the options of each choice; the logits of all choices are one vector [E]."""
    sizes = torch.tensor([len(choice.options) for choice in space], device=logits_E.device)
    is_option = torch.arange(int(sizes.max()), device=logits_E.device) < sizes[:, None]  # one row for each choice
    rows = logits_E.new_full(is_option.shape, -math.inf).masked_scatter(is_option, logits_E / temperature)
    return Encoding(space, torch.softmax(rows, dim=1)[is_option])


@dataclass(frozen=True)
class Proposal:
    """What one differentiable search found for one budget, and how decided it was."""

    arch: Architecture
    budget_ms: float
    predicted_ms: float
    upper_ms: float
    relaxed_ms: float  # expected latency of the relaxed architecture at the end
    entropy: float  # mean over choices, 0 (decided) to 1 (uniform)
    loss: float  # of the relaxed architecture on the architecture split, mean of the last ten batches

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "arch": self.arch.to_json()}

    @classmethod
    def from_json(cls, space: SearchSpace, record: Mapping[str, Any]) -> Proposal:
        return cls(**{**record, "arch": space.canonical(record["arch"])})


class Darts:
    """A differentiable search over budgets, one after the other; works on its own copy of the supernet's weights."""

    def __init__(
        self, family: Family, supernet: nn.Module, latency_model: DifferentiableLatencyModel, task: Task, config: DartsConfig, *,
        compute: Compute, seed: int,
    ) -> None:  # fmt: skip
        self.family, self.space, self.latency_model, self.task = family, family.space, latency_model, task
        self.config, self.compute = config, compute
        self.supernet = copy.deepcopy(supernet)
        self.logits = nn.Parameter(torch.zeros(self.space.encoding_size, device=compute.device))
        self.weight_optimizer = torch.optim.AdamW(self.supernet.parameters(), lr=config.weight_rate, fused=True)
        self.logit_optimizer = torch.optim.Adam([self.logits], lr=config.logit_rate, betas=(0.5, 0.999))
        self.multiplier = 0.0
        self.num_steps, self.seed = 0, seed
        self._open_streams()

    def propose(
        self, budget_ms: float, *, steps: int, on_step: Callable[[int, float], None] = lambda step, loss: None
    ) -> Proposal:
        """Searches on from where the last budget ended.

        Raises:
            TrainingError: the loss is not finite.
            BudgetError: no architecture meets the budget.
        """
        target_ms = budget_ms / self.latency_model.upper_factor()
        start, end = self.config.temperature
        losses: list[float] = []
        encoding = relax(self.space, self.logits.detach(), temperature=end)
        for step in range(steps):
            temperature = start * (end / start) ** (step / max(1, steps - 1))
            self._weight_step(temperature)
            loss, encoding = self._logit_step(temperature, target_ms)
            losses.append(loss)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of the differentiable search is {loss} at step {step}")
            self.num_steps += 1
            on_step(step + 1, loss)
        probabilities = encoding.values.detach().double().cpu().numpy()
        arch = discretise(self.space, probabilities, self.latency_model, budget_ms)
        prediction = self.latency_model.predict([arch])
        return Proposal(
            arch=arch,
            budget_ms=budget_ms,
            predicted_ms=float(prediction.mean_ms[0]),
            upper_ms=float(prediction.upper_ms[0]),
            relaxed_ms=float(self.latency_model.expected_ms(Encoding(self.space, encoding.values.detach().double().cpu()))),
            entropy=mean_entropy(self.space, probabilities),
            loss=float(np.mean(losses[-10:])),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "logits": self.logits.detach().clone(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "logit_optimizer": self.logit_optimizer.state_dict(),
            "multiplier": self.multiplier,
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.logits.data.copy_(state["logits"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.logit_optimizer.load_state_dict(state["logit_optimizer"])
        self.multiplier, self.num_steps = state["multiplier"], state["num_steps"]
        self._open_streams()

    def _open_streams(self) -> None:
        self._train, self._architecture = (
            stream(self.task, split, tokens_per_batch=self.config.tokens_per_batch, seed=self.seed, start=self.num_steps)
            for split in ("train", "architecture")
        )

    def _loss(self, batches: Iterator[Batch], temperature: float, *, detach: bool) -> tuple[Tensor, Encoding]:
        batch = next(batches).to(self.compute.device)
        encoding = relax(self.space, self.logits.detach() if detach else self.logits, temperature=temperature)
        with self.compute.autocast():
            outputs = self.supernet(*batch.inputs, masks=self.family.masks(encoding))
            return self.task.loss(outputs, batch.targets), encoding

    def _weight_step(self, temperature: float) -> None:
        self.weight_optimizer.zero_grad(set_to_none=True)
        loss, _ = self._loss(self._train, temperature, detach=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.supernet.parameters(), 1.0)
        self.weight_optimizer.step()

    def _logit_step(self, temperature: float, target_ms: float) -> tuple[float, Encoding]:
        loss, encoding = self._loss(self._architecture, temperature, detach=False)
        excess = self.latency_model.expected_ms(Encoding(self.space, encoding.values.double().cpu())) / target_ms - 1.0
        penalty = self.config.penalty
        pull = torch.clamp(self.multiplier + penalty * excess, min=0.0)
        total = loss + (pull.square() - self.multiplier**2) / (2 * penalty)
        (self.logits.grad,) = torch.autograd.grad(total, [self.logits])
        self.logit_optimizer.step()
        self.multiplier = float(pull.detach())
        return float(loss.detach()), encoding


def mean_entropy(space: SearchSpace, probabilities_E: np.ndarray) -> float:
    """Entropy of each choice over that of a uniform one, averaged over choices with more than one option."""
    entropies = []
    for choice in space:
        p = probabilities_E[space.offsets[choice.name]]
        if len(p) > 1:
            entropies.append(-np.sum(p * np.log(np.clip(p, 1e-12, 1.0))) / math.log(len(p)))
    return float(np.mean(entropies))


def discretise(space: SearchSpace, probabilities_E: np.ndarray, latency_model: Any, budget_ms: float) -> Architecture:
    """The most probable architecture, projected on the budget: its upper bound is at most `budget_ms`.

    Over the budget, the pick changes that gives up the least log-probability for each millisecond saved. Under it, the slack is
    spent on the larger options (a size, attention where there was none) that give up the least log-probability.

    Raises:
        BudgetError: even the fastest neighbour of every step is over the budget.
    """
    log_p = np.log(np.clip(probabilities_E, 1e-9, 1.0))
    picks = {c.name: c.options[int(np.argmax(probabilities_E[space.offsets[c.name]]))] for c in space}

    def upper(candidates: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.asarray(latency_model.predict([space.canonical(p) for p in candidates]).upper_ms)

    def neighbours(*, grow: bool = False) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Picks that differ in one present choice, and the log-probability that each gives up."""
        found, costs = [], []
        present = space.canonical(picks)
        for choice in (c for c in space if c.name in present):
            offset, now = space.offsets[choice.name].start, choice.index(picks[choice.name])
            for index, option in enumerate(choice.options):
                larger = index > now if choice.is_nested else index < now  # kinds stand from the most to the least capable
                if index != now and (larger or not grow):
                    found.append({**picks, choice.name: option})
                    costs.append(log_p[offset + now] - log_p[offset + index])
        return found, np.array(costs)

    current = upper([picks])[0]
    while current > budget_ms * (1 + 1e-9):  # sums of another order differ in the last digits
        found, costs = neighbours()
        times = upper(found)
        faster = times < current - 1e-9
        if not faster.any():
            raise BudgetError(f"budget_ms: {budget_ms:.4g} is below the fastest network reached, {current:.4g} ms (upper bound)")
        price = np.where(faster, np.maximum(costs, 1e-6) / np.maximum(current - times, 1e-9), np.inf)
        best = int(np.argmin(price))
        picks, current = found[best], times[best]
    while True:
        found, costs = neighbours(grow=True)
        times = upper(found)
        fits = (times <= budget_ms) & (times > current + 1e-9)
        if not fits.any():
            return space.canonical(picks)
        best = int(np.argmin(np.where(fits, costs, np.inf)))
        picks, current = found[best], times[best]
