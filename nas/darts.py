"""Differentiable architecture search under a latency budget, and limits beside it.

DARTS (Liu et al., arXiv:1806.09055, algorithm 1) over the entangled supernet: the weights learn on the training split, the
architecture's logits on a split of their own, and both see the architecture that `nas.relaxations` makes of the logits. With
`unroll_rate` 0 the logits' gradient is that of first order (eq. 7 with xi = 0); otherwise it goes, exactly, through one step of
gradient descent of that rate on the weights (eq. 6; the paper's eq. 8 approximates it by finite differences).

The budget is a constraint, not a weight to guess, and so is every limit beside it: an augmented Lagrangian with a multiplier for
each drives the expected costs under them (Nocedal & Wright, section 17.4, for inequalities), and what comes out is discrete and
within all of them by projection (`nas.projection`). Costs are those of the mean probabilities, however the relaxation draws:
expected latency is multilinear, so that this is its mean over draws.

`nas.guards` looks after the search. Its options against collapse:

- `auxiliary_skip` puts a skip of its own, whose weight falls to 0 within each budget, beside the options of every choice that has
  a skip among them (DARTS-, arXiv:2009.01027, see `nas.skips`), so that a skip is not picked for what it does for training;
- `beta_decay` adds the log-sum-exp of each choice's logits to their loss (beta-DARTS, arXiv:2203.01665, eq. 15), more and more of
  it, which holds logits together;
- `discretisation="perturbation"` ranks options not by logits but by the loss of the relaxed network with the option alone in its
  choice (`nas.perturbation`);
- `operation_early_stopping` freezes the weights of branches that learn the training split by heart: those whose gradients on the
  two splits have a cosine below it, in the mean over `early_stopping_steps` (OLES, NeurIPS 2023, see `nas.early_stopping`). In a
  default search (languages, 6 budgets, 60 steps after 400 of the supernet) that cosine is 0.13 to 0.27 for attention and 0.19 to
  0.23 for feed-forwards in the first 20 steps, and no less later (0.19 and 0.24 in the first layer after 40): the paper's 0.4
  freezes everything at the first look there.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas import guards
from nas.compute import Compute
from nas.constraints import Constraint, within_ms
from nas.darts_config import DartsConfig
from nas.early_stopping import EarlyStopping
from nas.encoding import Encoding
from nas.guards import Health
from nas.perturbation import RANKERS, option_losses, part
from nas.projection import discretise
from nas.proposals import Proposal
from nas.protocols import Batch, DifferentiableLatencyModel, Family, Task
from nas.relaxations import cooled, relax
from nas.skips import skip_share, with_auxiliary_skip
from nas.space import Architecture
from nas.supernet import call, fixed, skeleton
from nas.training import MOST_SETBACKS, TrainingError, cosine, is_sound, stream

STRENGTHS = {"auxiliary_skip": 1.0, "beta_decay": 1.0, "operation_early_stopping": 0.4}  # of the remedies
SMALLER = 4  # what sharpness is measured on: this part of a batch
JUDGES = 12  # batches that tell whether a remedy helped; of texts of one length each, so that a few would not do
SETTLING = 2  # the look at a budget from which an alarm counts: a smaller one than before overshoots at first


class Darts:
    """A differentiable search over budgets, one after the other; works on its own copy of the supernet's weights.

    Args:
        limits: what is kept beside every budget in ms.
    """

    def __init__(
        self, family: Family, supernet: nn.Module, latency_model: DifferentiableLatencyModel, task: Task, config: DartsConfig, *,
        compute: Compute, seed: int, limits: Sequence[Constraint] = (),
    ) -> None:  # fmt: skip
        self.family, self.space, self.latency_model, self.task = family, family.space, latency_model, task
        self.config, self.compute, self.limits = config, compute, tuple(limits)
        self.supernet = copy.deepcopy(supernet)
        self.logits = nn.Parameter(torch.empty(self.space.encoding_size, device=compute.device))
        self.weight_optimizer = torch.optim.AdamW(self.supernet.parameters(), lr=config.weight_rate, fused=True)
        self.remedy, self.was_helped = "", False
        self.logit_optimizer: torch.optim.Optimizer
        self.option_losses = np.empty(0)
        self.num_steps, self.halvings, self.seed = 0, 0, seed
        self.auxiliary_skip = 0.0  # weight of now
        stops = config.operation_early_stopping > -1 or config.remedy == "operation_early_stopping"
        self.stopping = EarlyStopping(self.supernet, steps=config.early_stopping_steps) if stops else None
        self._even_logits()
        self._open_streams()

    def propose(
        self, budget_ms: float, *, steps: int, on_step: Callable[[int, float], None] = lambda step, loss: None,
        on_check: Callable[[Health], None] = lambda health: None, on_setback: Callable[[str], None] = lambda words: None,
    ) -> Proposal:  # fmt: skip
        """Searches on from where the last budget ended, and anew if the guards' alarm trips. Where a loss, a gradient, a weight
        or a logit is no number any more, after the last step at the latest, it begins the budget again at half its rates, and
        tells `on_setback` so. What it returns and keeps in its state is sound.

        Raises:
            TrainingError: going back did not help, or could not, because nothing was changed yet.
            BudgetError: no architecture meets the budget and the limits.
        """
        constraints = (within_ms(self.latency_model, budget_ms), *self.limits)
        before = copy.deepcopy(self.state_dict())
        setbacks = 0
        while True:
            try:
                return self._proposal(constraints, steps, on_step, on_check)
            except TrainingError as error:
                begun = self.num_steps > before["num_steps"]
                if not begun or setbacks == MOST_SETBACKS:
                    raise TrainingError(f"{error}, {self._advice(begun=begun)}") from error
                setbacks += 1
                self.load_state_dict(copy.deepcopy(before))
                self.halvings += setbacks
                on_setback(f"{error}; it begins the budget of {budget_ms:.3g} ms again at half its rates")

    def _advice(self, *, begun: bool) -> str:
        if not begun:
            return "before the first step: what it begins with is broken; a lower learning rate of the supernet may help"
        weight_rate, logit_rate = (rate / 2**self.halvings for rate in (self.config.weight_rate, self.config.logit_rate))
        lower = f"a lower weight_rate than {weight_rate:.3g} may help, or a lower logit_rate than {logit_rate:.3g}"
        return f"and was {MOST_SETBACKS} times before; {lower}"

    def _proposal(
        self, constraints: Sequence[Constraint], steps: int, on_step: Callable[[int, float], None],
        on_check: Callable[[Health], None],
    ) -> Proposal:  # fmt: skip
        """Of one attempt at a budget, which is the first limit. Raises TrainingError where anything is no number."""
        can_help = self.config.remedy != "none" and not self.was_helped
        losses, alarm = self._search(constraints, steps, on_step, on_check, until_alarm=can_help)
        arch = self._discrete(constraints)
        remedy_losses: tuple[float, ...] = ()
        if alarm and can_help:
            steps_left = max(steps - len(losses), SETTLING * self.config.check_every)
            arch, losses, remedy_losses = self._help(arch, losses, constraints, steps_left, on_step, on_check)
        encoding = self._encoding(self.config.temperature[1])
        prediction = self.latency_model.predict([arch])
        return Proposal(
            arch=arch,
            budget_ms=constraints[0].limit,
            predicted_ms=float(prediction.mean_ms[0]),
            upper_ms=float(prediction.upper_ms[0]),
            relaxed_ms=self.latency_model.expected_ms(_exact(encoding)).item(),
            entropy=guards.mean(guards.entropies(self.space, encoding.values.double().cpu().numpy())),
            loss=float(np.mean(losses[-10:])),
            frozen=self._frozen,
            alarm=alarm,
            remedy=self.config.remedy if remedy_losses else "",
            remedy_losses=remedy_losses,
            others={limit.name: float(limit.cost.upper([arch])[0]) for limit in self.limits},
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "logits": self.logits.detach().clone(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "logit_optimizer": self.logit_optimizer.state_dict(),
            "multipliers": self.multipliers,
            "remedy": self.remedy,
            "was_helped": self.was_helped,
            "option_losses": torch.from_numpy(self.option_losses),
            "num_steps": self.num_steps,
            "halvings": self.halvings,
            "early_stopping": self.stopping.state_dict() if self.stopping else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.logits.data.copy_(state["logits"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.logit_optimizer.load_state_dict(state["logit_optimizer"])
        self.multipliers, self.remedy, self.num_steps = list(state["multipliers"]), state["remedy"], state["num_steps"]
        self.was_helped, self.option_losses = state["was_helped"], state["option_losses"].numpy()
        self.halvings = int(state.get("halvings", 0))
        if self.stopping:
            self.stopping.load_state_dict(state["early_stopping"])
        self._open_streams()

    def _help(
        self, arch: Architecture, losses: list[float], constraints: Sequence[Constraint], steps: int,
        on_step: Callable[[int, float], None], on_check: Callable[[Health], None],
    ) -> tuple[Architecture, list[float], tuple[float, float]]:  # fmt: skip
        """Begins again with the remedy, which stays if its architecture has less loss than the one found before. Otherwise the
        alarm was false, and the search goes on from where it was, with the weights of now.

        Returns the better architecture, the losses of the steps that led to it, and both architectures' losses.
        """
        before = self.logits.detach().clone(), self.logit_optimizer, self.multipliers
        frozen = self.stopping.state_dict() if self.stopping else {}
        self.remedy, self.was_helped = self.config.remedy, True
        self._even_logits()
        helped_losses, _ = self._search(constraints, steps, on_step, on_check, until_alarm=False)
        helped = self._discrete(constraints)
        judged = self._loss_of(helped), self._loss_of(arch)
        if judged[0] < judged[1]:
            return helped, helped_losses, judged
        logits, self.logit_optimizer, self.multipliers = before
        self.logits.data.copy_(logits)
        self.remedy, self.option_losses = "", np.empty(0)
        if self.stopping:
            self.stopping.load_state_dict(frozen)
        return arch, losses, judged

    def _judges(self, num: int, *, start: int = 0) -> list[Batch]:
        """Batches of the architecture split from a number on, the same whatever the search has seen."""
        tokens = self.config.tokens_per_batch
        batches = stream(self.task, "architecture", tokens_per_batch=tokens, seed=self.seed, start=start)
        return [batch.to(self.compute.device) for batch in itertools.islice(batches, num)]

    @torch.no_grad()
    def _loss_of(self, arch: Architecture) -> float:
        """Of a discrete architecture on the first batches of the architecture split."""
        network, losses = skeleton(self.family, arch, self.compute), []
        for batch in self._judges(JUDGES):
            with self.compute.autocast():
                losses.append(float(self.task.loss(call(self.supernet, network, batch.inputs), batch.targets)))
        return _number(float(np.mean(losses)), "the loss of what was found", self.num_steps)

    def _discrete(self, constraints: Sequence[Constraint]) -> Architecture:
        """The architecture within the limits that the probabilities, or the losses of the options alone, prefer."""
        encoding = self._encoding(self.config.temperature[1])
        if "perturbation" in (self.config.discretisation, self.remedy):
            if self.remedy != "perturbation" or not len(self.option_losses):  # the remedy's even probabilities stay the same
                self.option_losses = self._option_losses(encoding)
            log_p = -self.option_losses
        else:
            log_p = np.log(np.clip(encoding.values.double().cpu().numpy(), 1e-9, 1.0))
        return discretise(self.space, log_p, constraints)

    @property
    def _frozen(self) -> int:
        return len(self.stopping.frozen) if self.stopping else 0

    def _strength(self, option: str) -> float:
        return STRENGTHS[option] if self.remedy == option else float(getattr(self.config, option))

    def _even_logits(self) -> None:
        self.logits.data.zero_()
        self.logit_optimizer = torch.optim.Adam([self.logits], lr=self.config.logit_rate, betas=(0.5, 0.999))
        self.multipliers = [0.0] * (1 + len(self.limits))

    def _open_streams(self) -> None:
        self._train, self._architecture = (
            stream(self.task, split, tokens_per_batch=self.config.tokens_per_batch, seed=self.seed, start=self.num_steps)
            for split in ("train", "architecture")
        )

    def _search(
        self, constraints: Sequence[Constraint], steps: int, on_step: Callable[[int, float], None],
        on_check: Callable[[Health], None], *, until_alarm: bool,
    ) -> tuple[list[float], str]:  # fmt: skip
        """The losses of the steps on the architecture split, and the last alarm, which may have ended them; where that is what it
        waits for and the steps end too early for an alarm, it takes more of them in doubt."""
        losses: list[float] = []
        gaps: list[float] = []
        alarm, last, step = "", steps, 0
        while step < last:
            done = min(1.0, step / max(1, steps - 1))
            temperature = cooled(self.config.temperature, done)
            self._set_rates(step / last)
            self.auxiliary_skip = self._strength("auxiliary_skip") * (1.0 - done)
            train, self._batch = (next(batches).to(self.compute.device) for batches in (self._train, self._architecture))
            losses.append(_number(self._logit_step(train, self._batch, temperature, constraints, done), "the loss", step))
            _number(float(self.logits.detach().abs().max()), "a logit", step)
            gaps.append(losses[-1] - self._weight_step(train, temperature, step))
            step += 1
            self.num_steps += 1
            on_step(step, losses[-1])
            if step % self.config.check_every == 0 or step == last:
                health = self._check(constraints, temperature, float(np.mean(gaps)), step)
                if health.alarm and step < SETTLING * self.config.check_every:
                    last = max(last, SETTLING * self.config.check_every) if until_alarm else last
                    health = replace(health, alarm="")
                on_check(health)
                gaps, alarm = [], health.alarm
                if alarm and until_alarm:
                    break
        return losses, alarm

    def _set_rates(self, done: float) -> None:
        weight_rate = self.config.weight_rate * (cosine(done) if self.config.schedule == "cosine" else 1.0)
        rates = {self.weight_optimizer: weight_rate, self.logit_optimizer: self.config.logit_rate}
        for optimizer, rate in rates.items():
            for group in optimizer.param_groups:
                group["lr"] = rate / 2**self.halvings

    def _check(self, constraints: Sequence[Constraint], temperature: float, gap: float, step: int) -> Health:
        """Raises TrainingError where the last step left weights that are no numbers, or that give no loss."""
        encoding = self._encoding(temperature)
        skipped = skip_share(encoding)
        used = max(constraint.expected_use(_exact(encoding)).item() for constraint in constraints)
        some = part(self._batch, SMALLER)

        def loss(logits_E: Tensor) -> Tensor:
            return self._loss(some, relax(self.space, logits_E, temperature=temperature, kind=self.config.relaxation))

        _number(loss(self.logits).item() if is_sound(self.supernet) else math.nan, "the loss", step)
        return Health(
            step=self.num_steps,
            budget_ms=constraints[0].limit,
            entropy=guards.entropies(self.space, encoding.values.double().cpu().numpy()),
            skip_share=skipped,
            used=used,
            gap=gap,
            sharpness=guards.sharpness(loss, self.logits, seed=(self.seed, self.num_steps)),
            frozen=self._frozen,
            alarm=guards.alarm(skip_share=skipped, used=used),
        )

    def _encoding(self, temperature: float) -> Encoding:
        """The mean probabilities of the options, without a gradient."""
        return relax(self.space, self.logits.detach(), temperature=temperature, kind=self.config.relaxation)

    def _drawn(self, logits_E: Tensor, temperature: float, number: int) -> Encoding:
        """What the networks of this step see; each draw of a step has a number."""
        seed = (self.seed, self.num_steps, number)
        drawn = relax(self.space, logits_E, temperature=temperature, kind=self.config.relaxation, seed=seed)
        return with_auxiliary_skip(drawn, self.auxiliary_skip)

    def _loss(self, batch: Batch, encoding: Encoding, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        with self.compute.autocast():
            masks = {"masks": self.family.masks(encoding)}
            outputs = functional_call(self.supernet, dict(weights or {}), batch.inputs, masks)
            return self.task.loss(outputs, batch.targets)

    def _weight_step(self, batch: Batch, temperature: float, step: int) -> float:
        self.weight_optimizer.zero_grad(set_to_none=True)
        drawn = self._drawn(self.logits.detach(), temperature, 0)
        loss = self._loss(batch, drawn)
        loss.backward()
        if self.stopping and (threshold := self._strength("operation_early_stopping")) > -1:
            self.stopping.look(lambda: self._loss(self._batch, drawn), threshold)
        norm = nn.utils.clip_grad_norm_(self.supernet.parameters(), 1.0)
        _number(float(norm), "the norm of the weights' gradient", step)
        self.weight_optimizer.step()
        return _number(float(loss.detach()), "the training loss", step)

    def _logit_step(
        self, train: Batch, batch: Batch, temperature: float, constraints: Sequence[Constraint], done: float
    ) -> float:  # fmt: skip
        if self.remedy == "perturbation":
            with torch.no_grad():
                return float(self._loss(batch, self._encoding(temperature)))
        weights = self._unrolled(train, temperature) if self.config.unroll_rate else fixed(self.supernet)
        loss = self._loss(batch, self._drawn(self.logits, temperature, 1), weights)
        mean = _exact(relax(self.space, self.logits, temperature=temperature, kind=self.config.relaxation))
        total, penalty, pulls = loss, self.config.penalty, []
        for constraint, multiplier in zip(constraints, self.multipliers, strict=True):
            pulls.append(torch.clamp(multiplier + penalty * (constraint.expected_use(mean) - 1.0), min=0.0))
            total = total + (pulls[-1].square() - multiplier**2) / (2 * penalty)
        if beta := self._strength("beta_decay"):
            total = total + beta * done * torch.stack([self.logits[s].logsumexp(0) for s in self.space.offsets.values()]).mean()
        (self.logits.grad,) = torch.autograd.grad(total, [self.logits])
        self.logit_optimizer.step()
        self.multipliers = [float(pull.detach()) for pull in pulls]
        return float(loss.detach())

    def _unrolled(self, train: Batch, temperature: float) -> dict[str, Tensor]:
        """The weights after one step of gradient descent, as a function of the logits; those that stand still as they are."""
        held = self.stopping.held() if self.stopping else set()
        weights = dict(self.supernet.named_parameters())
        learning = {n: w for n, w in weights.items() if n not in held}
        loss = self._loss(train, self._drawn(self.logits, temperature, 0))
        gradients = torch.autograd.grad(loss, list(learning.values()), create_graph=True)
        return weights | {n: w - self.config.unroll_rate * g for (n, w), g in zip(learning.items(), gradients, strict=True)}

    def _option_losses(self, encoding: Encoding) -> np.ndarray:
        """Of each option alone in its choice, [E], on other batches than those that judge a remedy."""
        parts = [part(batch, RANKERS) for batch in self._judges(RANKERS, start=JUDGES)]
        weights = fixed(self.supernet)
        losses = option_losses(encoding, lambda number, alone: self._loss(parts[number], alone, weights), len(parts))
        _number(float(losses.sum()), "the loss of an option alone", self.num_steps)
        return losses


def _number(value: float, what: str, step: int) -> float:
    """The value. Raises TrainingError if it is not finite."""
    if not math.isfinite(value):
        raise TrainingError(f"{what} of the differentiable search is {value} at step {step}")
    return value


def _exact(encoding: Encoding) -> Encoding:
    """What costs are computed from."""
    return Encoding(encoding.space, encoding.values.double().cpu())
