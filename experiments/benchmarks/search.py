"""Whether our searchers find better networks than random search does, and what they cost.

    paretoformer bench search [preset=quick|full] [data=DIR] [directory=DIR]

- *Regret*: the share of the best hypervolume that a search has missed after so many evaluations, where the best front is known
  (`experiments.benchmarks.tabular`): the space of HAT on recorded devices, from the tables in `data=`, a small space of encoders
  that were all trained, and a synthetic law over our default one. The ratio is that of the medians over seeds, over all problems
  their geometric mean; ours is the default strategy, evolution on a surrogate, without the proposals that a run begins with. GP
  takes about a second a trial, so it joins for few on the law. Searches of other packages join where these are installed
  (`experiments.benchmarks.peers`).
- *Real tasks* (`experiments.benchmarks.on_tasks`): hypervolume of the default, differentiable proposals and then that strategy,
  over the best peer's and over its own without them, with inherited weights, within half of the largest network's time and, as
  `tight`, within a budget that one of five random networks keeps. Supernets are trained once; with `directory=` they
  stay there for the next call, and a picture of each task shows what the fronts of all seeds attain.
- *Overhead*: CPU time of asking and telling, mean of the trials of a long search of the law; what evaluates is not in it.
- *Budgets*: the share of them that the differentiable search hits, as `bench darts` counts it.

Everything runs on one thread. A ratio is a median over seeds with a bootstrap interval of 95 %.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.benchmarks import darts, tabular
from experiments.benchmarks.compared import COMPARED, OURS, POPULATION, SEARCHERS, cell, ratio_with_interval
from experiments.benchmarks.inherited import Inherited
from experiments.benchmarks.on_tasks import Effort, compare
from experiments.benchmarks.supernet import default_family
from experiments.benchmarks.tabular import Tabular
from experiments.benchmarks.trained_table import TrainedTable
from experiments.progress import Reporter
from hardware.local_torch import num_threads
from hardware.tables import is_there
from nas.protocols import Searcher
from nas.search import search
from nas.space import Architecture
from nas.types import Candidate, Provenance

RECORDED = ("hat_raspberrypi4", "hat_xeon", "hat_titanxp_wmt")
OBJECTIVES = ("first", "second")
# Overrides of the main job, by the names of tasks in the figures
TASKS: dict[str, tuple[str, ...]] = {
    "languages": (),
    "tags": ("experiment=tags",),
    "digits": ("experiment=digits",),
}
SMALLEST_REGRET = 1e-3  # a smaller one counts as this in ratios: of a few thousand networks a search may miss none

Regrets = dict[str, np.ndarray]
"""Of each searcher [seeds, numbers of evaluations]."""


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick or full (tiny shows only that it runs)
    out: str | None = None  # a file for the figures
    data: str | None = None  # folder of the recorded tables; null: the user's cache folder
    directory: str | None = None  # where the trained supernet and the picture of fronts stay; null: a temporary one


@dataclass(frozen=True)
class Preset:
    """Evaluations at which regret is read and seeds of that; trials that are timed; and the real tasks."""

    evaluations: tuple[int, ...] = (50, 100, 200)
    seeds: int = 6
    gp_seeds: int = 2  # up to the first number of evaluations
    trials: int = 1000
    on_tasks: Effort = field(
        default_factory=lambda: Effort({name: (*words, "init.train.steps=200") for name, words in TASKS.items()}, seeds=2)
    )


TINY = (
    "task.max_examples=3000", "init.train.steps=8", "init.train.tokens_per_batch=512", "darts.steps=2", "darts.steps_more=1",
    "darts.tokens_per_batch=128", "darts.remedy=none", "searcher.proposals=1",
)  # fmt: skip
PRESETS = {
    "tiny": Preset(
        evaluations=(21, 23), seeds=2, gp_seeds=0, trials=24,
        on_tasks=Effort({"languages": TINY}, evaluations=5, seeds=1, timed=2),
    ),
    "quick": Preset(),
    "full": Preset(seeds=30, on_tasks=Effort(TASKS, seeds=5)),
}  # fmt: skip


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    law = tabular.law(default_family())
    with num_threads(1), contextlib.ExitStack() as stack:
        folder = Path(words.directory or stack.enter_context(tempfile.TemporaryDirectory()))
        known = [law, tabular.trained(TrainedTable.read()), *_recorded(words.data, report)]
        figures = _regrets(known, preset, report)
        figures |= _overhead(law, preset.trials, report)
        problems = {name: Inherited.of(of, folder, report) for name, of in preset.on_tasks.tasks.items()}
        figures |= compare(preset.on_tasks, problems, folder, report)
        (folder / "tight").mkdir(exist_ok=True)
        tight = {name: problem.tight() for name, problem in problems.items()}
        figures |= {f"tight_{key}": value for key, value in compare(preset.on_tasks, tight, folder / "tight", report).items()}
        first = next(iter(problems.values()))
        figures |= darts.budgets_hit(
            first.family, first.supernet, first.model, first.task, darts.PRESETS[words.preset], first.compute, report
        )
    report.say(
        f"{figures['budget_hit_percent']:.1f} % of budgets are hit by the upper bound (aim: 95 %), "
        f"{figures['budget_hit_percent_predicted']:.1f} % by the predicted mean."
    )
    return figures


def _recorded(data: str | None, report: Reporter) -> Iterator[Tabular]:
    folder = Path(data) if data is not None else None
    for name in RECORDED:
        if is_there(name, folder):
            yield tabular.recorded(name, folder)
        else:
            report.say(f"SKIPPED: {name}, whose table is not there; data=DIR names its folder")


# --- regret


def _regrets(problems: Sequence[Tabular], preset: Preset, report: Reporter) -> dict[str, float]:
    figures: dict[str, float] = {"num_tabular_problems": len(problems), "num_seeds": preset.seeds}
    found: dict[str, Regrets] = {}
    for problem in problems:
        found[problem.name] = regrets = _regrets_of(problem, preset, report)
        for name, values in regrets.items():
            medians = zip(preset.evaluations, np.median(values, axis=0), strict=False)
            figures |= {f"regret_{problem.name}_{name}_{number}": float(median) for number, median in medians}
    counted = [{name: np.maximum(values, SMALLEST_REGRET) for name, values in of.items()} for of in found.values()]
    for column, number in enumerate(preset.evaluations):
        for name in COMPARED:
            pairs = [(of[name][:, column], of["random"][:, column]) for of in counted]
            key = f"regret_ratio_to_random_{number}" if name == OURS else f"regret_ratio_{name}_to_random_{number}"
            figures |= ratio_with_interval(key, pairs)
            if name == OURS:
                figures[f"worst_{key}"] = float(max(np.median(ours) / np.median(theirs) for ours, theirs in pairs))
    _show_ratios(figures, preset.evaluations, report)
    return figures


def _regrets_of(problem: Tabular, preset: Preset, report: Reporter) -> Regrets:
    seeds = dict.fromkeys(("random", *COMPARED), preset.seeds) | {"gp": preset.gp_seeds * (problem.name == "law")}
    regrets: Regrets = {}
    with report.phase(f"Regret: {problem.name}", sum(seeds.values())) as advance:
        for name, num in seeds.items():
            numbers = preset.evaluations[:1] if name == "gp" else preset.evaluations
            values = [_regret(problem, SEARCHERS[name], numbers, seed) for seed in range(num)]
            regrets |= {name: np.array(values)} if values else {}
            advance(sum(map(len, regrets.values())), name)
    _show_regrets(problem, regrets, preset.evaluations, report)
    return regrets


def _regret(problem: Tabular, make: Callable[..., Searcher], numbers: Sequence[int], seed: int) -> list[float]:
    searcher = make(problem.space, objectives=OBJECTIVES, seed=seed, population=POPULATION)
    candidates = search(searcher, lambda arch: _candidate(problem, arch), num_evaluations=max(numbers)).candidates
    costs = np.array([[c.objectives[name] for name in OBJECTIVES] for c in candidates])
    return [problem.regret(costs[:number]) for number in numbers]


def _candidate(problem: Tabular, arch: Architecture) -> Candidate:
    return Candidate(
        arch, dict(zip(OBJECTIVES, problem.costs(arch), strict=True)), dict.fromkeys(OBJECTIVES, Provenance.PREDICTED)
    )


# --- what asking and telling costs


def _overhead(problem: Tabular, trials: int, report: Reporter) -> dict[str, float]:
    """Means over all trials and, with `_last`, over the last tenth of them, in CPU ms."""
    figures: dict[str, float] = {"overhead_trials": trials}
    names = ("random", *COMPARED)
    table = Table("searcher", "mean", "last tenth", title=f"Asking and telling, CPU ms a trial, {trials} trials", box=SIMPLE_HEAD)
    with report.phase("Overhead", len(names)) as advance:
        for number, name in enumerate(names, 1):
            ms = _ask_tell_ms(problem, SEARCHERS[name], trials)
            last = float(np.mean(ms[trials * 9 // 10 :]))
            key = "ask_tell_ms" if name == OURS else f"ask_tell_ms_{name}"
            figures |= {key: float(np.mean(ms)), f"{key}_last": last}
            table.add_row(name, f"{figures[key]:.2f}", f"{last:.2f}", *(["ours"] * (name == OURS)))
            advance(number, name)
    report.console.print(table)
    return figures


def _ask_tell_ms(problem: Tabular, make: Callable[..., Searcher], trials: int) -> np.ndarray:
    searcher = make(problem.space, objectives=OBJECTIVES, seed=0, population=POPULATION)
    ms = np.empty(trials)
    for trial in range(trials):
        start = time.process_time()
        arch = searcher.ask()
        asked = time.process_time()
        candidate = _candidate(problem, arch)
        begin = time.process_time()
        searcher.tell(candidate)
        ms[trial] = 1000 * (time.process_time() - begin + asked - start)
    return ms


# --- what people see


def _show_regrets(problem: Tabular, regrets: Regrets, evaluations: Sequence[int], report: Reporter) -> None:
    table = Table("searcher", *(f"{number} evaluations" for number in evaluations), box=SIMPLE_HEAD)
    table.title = f"{problem.name}: regret in %, median of seeds (and the middle half)"
    for name, values in regrets.items():
        quartiles = np.quantile(100 * values, (0.25, 0.5, 0.75), axis=0).T
        table.add_row(name, *(f"{median:.2f} ({low:.2f} to {high:.2f})" for low, median, high in quartiles))
    report.console.print(table)


def _show_ratios(figures: Mapping[str, float], evaluations: Sequence[int], report: Reporter) -> None:
    table = Table("searcher", *(f"{number} evaluations" for number in evaluations), box=SIMPLE_HEAD)
    table.title = "Regret over random search's (aim at 100 evaluations: 0.5)"
    for name in COMPARED:
        keys = (f"regret_ratio_{'' if name == OURS else f'{name}_'}to_random_{number}" for number in evaluations)
        table.add_row(name, *(cell(figures, key) for key in keys))
    worst = (figures[f"worst_regret_ratio_to_random_{number}"] for number in evaluations)
    table.add_row(f"{OURS}, worst problem", *(f"{ratio:.3f}" for ratio in worst))
    report.console.print(table)
