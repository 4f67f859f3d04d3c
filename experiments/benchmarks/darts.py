"""Whether the differentiable search lands on its budgets, what ten proposals cost, and which of its options is worth having.

The device is invented, a roofline whose times scatter by 3 %, so that the figures do not depend on how busy this machine is; the
latency model is fitted to 44 such times, as a calibration would be. The networks and the task are the default ones.

- *Budgets*: spread over the space from the fastest network's time to the largest's; a proposal hits if its predicted upper bound,
  which is what the search compares with a budget, lies in [0.93, 1] of it (`budget_hit_percent`). Once after a search, once from
  random probabilities, where nothing but the projection can hit. `budget_hit_percent_predicted` asks the same of the predicted
  mean: that is as many times below the bound as the bound is wide, and lies in that range where the bound is narrow.
- *Cost*: CPU time of ten proposals over that of the first, by the settings that a search has by default.
- *Options*: validation error in percent, with the weights of one supernet that all share, of the proposals for three budgets,
  after equal steps; the mean over seeds. Second order, beta decay, auxiliary skips, early stopping (at the paper's threshold and
  at half of it) and perturbation stand on softmax, as in their papers; the full preset has them with gumbel noise, the default,
  too. Beside them stand projections of random probabilities, the mean of many and the best of as many as a search proposes, and
  the projection of even ones, which spends the budget in the order of the space.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from experiments.benchmarks.supernet import Words
from experiments.benchmarks.tabular import FLOPS_PER_MS, LAUNCH_MS
from experiments.budgets import Ends
from experiments.progress import Reporter
from experiments.tasks.languages import Languages
from hardware.local_torch import num_threads
from latency_models.additive import AdditiveLatency
from nas.compute import Compute, choose_compute
from nas.constraints import within_ms
from nas.darts import Darts
from nas.darts_config import DartsConfig
from nas.encoding import Encoding
from nas.projection import USED, discretise
from nas.protocols import Family, Task
from nas.space import Architecture, SearchSpace
from nas.supernet import evaluation_batches, inherited_error
from nas.training import TrainConfig, supernet_trainer
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space

WORKLOAD = Workload(tokens=64)
BYTES_PER_MS, SCATTER = 1e7, 0.03  # of the invented device, beside a launch and a FLOP
SHARES = (0.5, 0.3, 0.15)  # of the largest network's time: the budgets of the options
RANDOM = 4  # projections of random probabilities for each budget
VALIDATION_BATCHES = 3
SOFTMAX = {"relaxation": "softmax"}
OPTIONS: dict[str, dict[str, Any]] = {
    "gumbel": {},
    "softmax": SOFTMAX,
    "dirichlet": {"relaxation": "dirichlet"},
    "second_order": {**SOFTMAX, "unroll_rate": 0.05},
    "beta_decay": {**SOFTMAX, "beta_decay": 1.0},
    "auxiliary_skip": {**SOFTMAX, "auxiliary_skip": 1.0},
    "early_stopping": {**SOFTMAX, "operation_early_stopping": 0.4},
    "early_stopping_less": {**SOFTMAX, "operation_early_stopping": 0.2},
    "perturbation": {**SOFTMAX, "discretisation": "perturbation"},
    "even_perturbation": {**SOFTMAX, "discretisation": "perturbation", "logit_rate": 1e-9},
}
WITH_GUMBEL: dict[str, dict[str, Any]] = {
    "gumbel_second_order": {"unroll_rate": 0.05},
    "gumbel_beta_decay": {"beta_decay": 1.0},
    "gumbel_auxiliary_skip": {"auxiliary_skip": 1.0},
    "gumbel_early_stopping": {"operation_early_stopping": 0.4},
    "gumbel_perturbation": {"discretisation": "perturbation"},
    "gumbel_cosine": {"schedule": "cosine"},
}


def _options_config(*, steps: int, tokens_per_batch: int = 512) -> DartsConfig:
    """Without guards: what they do must not help one option more than another."""
    return DartsConfig(tokens_per_batch=tokens_per_batch, steps=steps, remedy="none", check_every=1000)


@dataclass(frozen=True)
class Preset:
    """Budgets, seeds, and steps of the supernet and of the search; `brief` are the steps for each of many budgets."""

    budgets: int = 40
    brief: int = 2
    seeds: int = 3
    supernet_steps: int = 600
    tokens_per_batch: int = 2048
    cost: DartsConfig = field(default_factory=DartsConfig)
    options: DartsConfig = field(default_factory=lambda: _options_config(steps=15))
    compared: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: OPTIONS)
    max_examples: int | None = 10_000


TINY = DartsConfig(steps=2, steps_more=1, tokens_per_batch=128, remedy="none", early_stopping_steps=1)
PRESETS = {
    "tiny": Preset(
        budgets=3, brief=1, seeds=1, supernet_steps=2, tokens_per_batch=256, cost=TINY, options=TINY, max_examples=3000
    ),
    "quick": Preset(),
    "full": Preset(
        budgets=120, brief=10, seeds=5, supernet_steps=1000, tokens_per_batch=1024,
        options=_options_config(steps=60, tokens_per_batch=2048), compared={**OPTIONS, **WITH_GUMBEL}, max_examples=None,
    ),
}  # fmt: skip


def run(words: Words, report: Reporter) -> dict[str, float]:
    """Shares of budgets that were hit, the cost ratio, and error in percent by option, with what it loses to the best one."""
    preset = PRESETS[words.preset]
    task = Languages(max_examples=preset.max_examples)
    sizes: dict[str, Any] = dict(task.sizes)
    family = EncoderFamily(encoder_space(), **sizes)
    model = invented_device(family)
    batch = next(iter(task.batches("train", tokens_per_batch=preset.tokens_per_batch, seed=0)))
    with num_threads(1):
        compute, _ = choose_compute(family, task, batch)
        supernets = [_supernet(family, task, preset, compute, seed, report) for seed in range(preset.seeds)]
        figures = budgets_hit(family, supernets[0], model, task, preset, compute, report)
        figures |= _cost(family, supernets[0], model, task, preset, compute, report)
        errors = _options(family, supernets, model, task, preset, compute, report)
    means = {name: float(of_seeds.mean()) for name, of_seeds in errors.items()}
    best = min(preset.compared, key=lambda name: means[name])
    figures |= {f"error_percent_{name}": mean for name, mean in means.items()}
    for name in errors:
        lost = (errors[name] - errors[best]).mean(axis=1)  # seed by seed: they share a supernet
        figures[f"points_to_best_{name}"] = float(lost.mean())
        figures[f"points_to_best_sem_{name}"] = float(lost.std(ddof=1) / len(lost) ** 0.5) if len(lost) > 1 else float("nan")
    _show(figures, best, preset, report)
    return {**figures, "num_seeds": preset.seeds, "num_budgets": preset.budgets}


def invented_device(family: Family, workload: Workload = WORKLOAD) -> AdditiveLatency:
    """A latency model that was fitted to times of the device that is described above."""
    rng = np.random.default_rng(0)

    def roofline_ms(arch: Architecture) -> float:
        operators = family.operators(Encoding.of(family.space, [arch]), workload)
        ms = sum(LAUNCH_MS * o.count + np.maximum(o.flops / FLOPS_PER_MS, o.bytes / BYTES_PER_MS) for o in operators)
        return float(np.sum(ms) * np.exp(SCATTER * rng.normal()))

    archs = {a.id: a for a in (family.space.smallest(), *family.hand_designed().values(), *map(family.space.sample, [rng] * 40))}
    return AdditiveLatency().fit(
        family, [Measurement(a, "invented", workload, ((roofline_ms(a),),), ((1.0,),), 1.0, {}) for a in archs.values()]
    )


def _supernet(family: Family, task: Task, preset: Preset, compute: Compute, seed: int, report: Reporter) -> nn.Module:
    torch.manual_seed(seed)
    supernet = family.supernet()
    config = TrainConfig(steps=preset.supernet_steps, tokens_per_batch=preset.tokens_per_batch)
    with report.phase(f"Supernet, seed {seed}", config.steps) as advance:
        supernet_trainer(family, supernet, task, config, compute=compute, seed=seed).run(
            on_step=lambda step, loss: advance(step, f"loss {loss:.3f}")
        )
    return supernet


def random_log_p(space: SearchSpace, rng: np.random.Generator) -> np.ndarray:
    """The logarithms of random probabilities of all options, [E]."""
    log_p: np.ndarray = np.log(np.concatenate([rng.dirichlet(np.ones(len(choice.options))) for choice in space]))
    return log_p


def budgets_hit(
    family: Family, supernet: nn.Module, model: AdditiveLatency, task: Task, preset: Preset, compute: Compute, report: Reporter
) -> dict[str, float]:
    """Shares in percent of proposals that use 93 to 100 % of their budget, by the predicted upper bound and by the predicted
    mean, and how much of it they use, by the bound."""
    ends = Ends.of(family.space, model.predict, {})
    budgets = np.geomspace(ends.largest.upper_ms, 1.05 * ends.fastest.upper_ms, preset.budgets)
    config = replace(preset.options, tokens_per_batch=preset.tokens_per_batch // 4)
    darts = Darts(family, supernet, model, task, config, compute=compute, seed=0)
    rng = np.random.default_rng(0)
    use: list[float] = []
    predicted: list[float] = []
    of_random: list[float] = []
    with report.phase("Many budgets", len(budgets)) as advance:
        for number, budget in enumerate(budgets, 1):
            proposal = darts.propose(budget, steps=preset.brief)
            use.append(proposal.upper_ms / budget)
            predicted.append(proposal.predicted_ms / budget)
            arch = discretise(family.space, random_log_p(family.space, rng), [within_ms(model, budget)])
            of_random.append(model.predict([arch]).upper_ms[0] / budget)
            advance(number, f"{use[-1]:.3f} of {budget:.3f} ms")
    return {
        "budget_hit_percent": _hits(use),
        "budget_hit_percent_predicted": _hits(predicted),
        "budget_hit_percent_random_probabilities": _hits(of_random),
        "median_budget_use_percent": 100 * float(np.median(use)),
        "smallest_budget_use_percent": 100 * float(np.min(use)),
    }


def _hits(use: list[float]) -> float:
    return 100 * float(np.mean([USED <= u <= 1.0 for u in use]))


def _cost(
    family: Family, supernet: nn.Module, model: AdditiveLatency, task: Task, preset: Preset, compute: Compute, report: Reporter
) -> dict[str, float]:
    ends = Ends.of(family.space, model.predict, {})
    darts = Darts(family, supernet, model, task, preset.cost, compute=compute, seed=0)
    budgets = np.geomspace(ends.largest.upper_ms / 2, 1.05 * ends.fastest.upper_ms, 10)
    seconds = []
    start = time.process_time()
    with report.phase("Ten proposals", 10) as advance:
        for number, budget in enumerate(budgets):
            darts.propose(budget, steps=preset.cost.steps_more if number else preset.cost.steps)
            seconds.append(time.process_time() - start)
            advance(number + 1, "")
    return {"cost_ratio_ten_to_one": seconds[-1] / seconds[0], "cpu_seconds_one": seconds[0], "cpu_seconds_ten": seconds[-1]}


def _options(
    family: Family, supernets: list[nn.Module], model: AdditiveLatency, task: Task, preset: Preset, compute: Compute,
    report: Reporter,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Errors in percent, [seeds, budgets], of each option and of what stands beside them."""
    validation = list(itertools.islice(evaluation_batches(task, "validation"), VALIDATION_BATCHES))
    budgets = [share * model.predict([family.space.largest()]).upper_ms[0] for share in SHARES]
    space = family.space
    errors = {name: np.empty((len(supernets), len(budgets))) for name in (*preset.compared, "even", "random", "random_best")}
    with report.phase("Options", len(supernets) * len(preset.compared)) as advance:
        for seed, supernet in enumerate(supernets):
            known: dict[str, float] = {}

            def error(arch: Architecture, supernet: nn.Module = supernet, known: dict[str, float] = known) -> float:
                if arch.id not in known:
                    known[arch.id] = inherited_error(family, supernet, arch, validation, task, compute)
                return known[arch.id]

            for number, (name, changes) in enumerate(preset.compared.items(), 1):
                config = replace(preset.options, **changes)
                darts = Darts(family, supernet, model, task, config, compute=compute, seed=seed)
                for i, budget in enumerate(budgets):
                    proposal = darts.propose(budget, steps=config.steps_more if i else config.steps)
                    errors[name][seed, i] = error(proposal.arch)
                advance(seed * len(preset.compared) + number, f"{name}: {errors[name][seed].mean():.2f} %")
            rng = np.random.default_rng([seed, 7])
            for i, budget in enumerate(budgets):
                errors["even"][seed, i] = error(discretise(space, np.zeros(space.encoding_size), [within_ms(model, budget)]))
                drawn = [error(discretise(space, random_log_p(space, rng), [within_ms(model, budget)])) for _ in range(RANDOM)]
                errors["random"][seed, i], errors["random_best"][seed, i] = np.mean(drawn), np.min(drawn)
            report.say(f"Seed {seed}: " + ", ".join(f"{name} {of_seeds[seed].mean():.2f} %" for name, of_seeds in errors.items()))
    return errors


def _show(figures: Mapping[str, float], best: str, preset: Preset, report: Reporter) -> None:
    report.say(
        f"{figures['budget_hit_percent']:.1f} % of {preset.budgets} proposals use 93 to 100 % of their budget by the upper bound "
        f"(aim: 95 %), {figures['budget_hit_percent_predicted']:.1f} % by the predicted mean; by the bound "
        f"{figures['budget_hit_percent_random_probabilities']:.1f} % from random probabilities; ten proposals cost "
        f"{figures['cost_ratio_ten_to_one']:.2f} times one (aim: 3)."
    )
    title = f"Proposals with inherited weights, {preset.seeds} seeds, {len(SHARES)} budgets: best is {best}"
    table = Table("option", "error %", "points behind the best", title=title, box=SIMPLE_HEAD)
    for name in [key.removeprefix("error_percent_") for key in figures if key.startswith("error_percent_")]:
        lost, sem = figures[f"points_to_best_{name}"], figures[f"points_to_best_sem_{name}"]
        table.add_row(name.replace("_", " "), f"{figures[f'error_percent_{name}']:.2f}", f"{lost:.2f} ± {sem:.2f}")
    report.console.print(table)
