"""Whether our searchers find better networks than random search does, and what they cost.

    paretoformer bench search [preset=quick|full] [data=DIR] [directory=DIR]

- *Regret*: the share of the best hypervolume that a search has missed after so many evaluations, where the best front is known
  (`experiments.benchmarks.tabular`): the space of HAT on recorded devices, from the tables in `data=`, a small space of encoders
  that were all trained, and a synthetic law over our default one. The ratio is that of the medians over seeds, over all problems
  their geometric mean; ours is the default strategy, evolution on a surrogate, without the proposals that a run begins with. GP
  takes about a second a trial, so it joins for few on the law.
- *Inherited weights* (`experiments.benchmarks.inherited`): hypervolume of the default, differentiable proposals and then that
  strategy, over the best peer's and over its own without them. At equal time, the others go on for as many evaluations as the
  proposals would have bought, in CPU time. The supernet is trained once, and briefly; with `directory=` it stays there for the
  next call, and `attainment.png` shows what the fronts of all seeds attain. *Epsilon* is how far a front is behind the best that
  any found.
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
from experiments.benchmarks.inherited import Inherited
from experiments.benchmarks.supernet import default_family, threads
from experiments.benchmarks.tabular import Tabular
from experiments.benchmarks.trained_table import TrainedTable
from experiments.plots.attainment import attainment_figure
from experiments.plots.style import png
from experiments.progress import Reporter
from experiments.settings import OuterSettings
from experiments.tasks.languages import Languages
from hardware.tables import is_there
from nas.darts import DartsConfig
from nas.pareto import epsilon, non_dominated
from nas.protocols import Searcher
from nas.search import search
from nas.searchers.gp import Gp
from nas.searchers.nsga2 import Nsga2
from nas.searchers.nsga3 import Nsga3
from nas.searchers.random import Random
from nas.searchers.regularised_evolution import RegularisedEvolution
from nas.searchers.surrogate_evolution import SurrogateEvolution
from nas.searchers.tpe import Tpe
from nas.space import Architecture
from nas.training import TrainConfig
from nas.types import Candidate, Provenance

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "surrogate_evolution": SurrogateEvolution,
    "tpe": Tpe,
    "random": Random,
    "nsga2": Nsga2,
    "nsga3": Nsga3,
    "regularised_evolution": RegularisedEvolution,
    "gp": Gp,
}
OURS = "surrogate_evolution"  # of the default configuration
COMPARED = (OURS, "tpe", "nsga2", "nsga3", "regularised_evolution")  # with random search, at all numbers of evaluations
PEERS = ("random", "tpe", "nsga2", "regularised_evolution")
OTHERS = {"without_proposals": OURS, **{name: name for name in PEERS}}  # what the default is compared with
RECORDED = ("hat_raspberrypi4", "hat_xeon", "hat_titanxp_wmt")
OBJECTIVES = ("first", "second")
POPULATION = OuterSettings().population
RESAMPLES = 2000
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
    """Evaluations at which regret is read and seeds of that; evaluations, seeds and training of inherited weights; trials that
    are timed."""

    evaluations: tuple[int, ...] = (50, 100, 200)
    seeds: int = 6
    gp_seeds: int = 2  # up to the first number of evaluations
    trials: int = 1000
    inherited: int = 60
    inherited_seeds: int = 3
    supernet: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100))
    darts: DartsConfig = field(default_factory=DartsConfig)
    proposals: int = OuterSettings().proposals
    timed: int = 30  # evaluations, for their number a minute
    max_examples: int | None = None


PRESETS = {
    "tiny": Preset(
        evaluations=(21, 23), seeds=2, gp_seeds=0, trials=24, inherited=3, inherited_seeds=1, timed=2,
        supernet=TrainConfig(steps=2, tokens_per_batch=128), darts=darts.TINY, proposals=1, max_examples=3000,
    ),
    "quick": Preset(),
    "full": Preset(seeds=30, inherited_seeds=5, supernet=TrainConfig(steps=1000)),
}  # fmt: skip


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    law = tabular.law(default_family())
    with threads(1), contextlib.ExitStack() as stack:
        folder = Path(words.directory or stack.enter_context(tempfile.TemporaryDirectory()))
        known = [law, tabular.trained(TrainedTable.read()), *_recorded(words.data, report)]
        figures = _regrets(known, preset, report)
        figures |= _overhead(law, preset.trials, report)
        task = Languages(max_examples=preset.max_examples)
        problem = Inherited.of(task, preset.supernet, folder, report)
        figures |= _inherited(problem, preset, folder, report)
        preset_of_darts = darts.PRESETS[words.preset]
        figures |= darts.budgets_hit(
            problem.family, problem.supernet, problem.model, task, preset_of_darts, problem.compute, report
        )
    report.say(f"{figures['budget_hit_percent']:.1f} % of budgets are hit (aim: 95 %).")
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


def ratio_with_interval(key: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Geometric mean over pairs of the ratio of medians over seeds, and the ends of its interval when seeds are drawn again, for
    both of a pair the same; not a number where a median is 0."""
    rng, logs = np.random.default_rng(0), []
    with np.errstate(divide="ignore", invalid="ignore"):
        for ours, theirs in pairs:
            drawn = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
            rows = np.vstack([np.arange(len(ours)), drawn])
            logs.append(np.log(np.median(ours[rows], axis=1) / np.median(theirs[rows], axis=1)))
        ratio, *draws = np.exp(np.mean(logs, axis=0)).tolist()
        low, high = np.quantile(draws, (0.025, 0.975))
    return {key: ratio, f"{key}_low": float(low), f"{key}_high": float(high)}


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


# --- inherited weights


def _inherited(problem: Inherited, preset: Preset, folder: Path, report: Reporter) -> dict[str, float]:
    """Hypervolume ratios at equal evaluations and at equal time, epsilon at equal time, and how many evaluations a minute holds;
    draws the fronts."""
    seconds = problem.seconds_of_complete(preset.timed)
    cpu, wall = np.mean(seconds, axis=0)
    num, bought = preset.inherited, []
    volumes: dict[str, list[float]] = {}
    fronts: dict[str, list[np.ndarray]] = {}
    with report.phase("Inherited weights", preset.inherited_seeds) as advance:
        for seed in range(preset.inherited_seeds):
            proposals, spent = problem.propose(preset.darts, num=preset.proposals, seed=seed)
            bought.append(round(spent / cpu))
            found = {"hybrid": problem.found(SEARCHERS[OURS], num, seed=seed, initial=proposals)}
            found |= {name: problem.found(SEARCHERS[key], num + bought[-1], seed=seed) for name, key in OTHERS.items()}
            for name, points in found.items():
                volumes.setdefault(name, []).append(problem.volume(points[:num]))
                volumes.setdefault(f"{name}_equal_time", []).append(problem.volume(points))
                fronts.setdefault(name, []).append(points[~np.isnan(points[:, 0])][:, ::-1])
            advance(seed + 1, "")
            report.say(f"Seed {seed}: " + ", ".join(f"{name} {of[-1]:.4g}" for name, of in volumes.items()))
    figures: dict[str, float] = {
        "evaluations_per_minute": 60 / wall,
        "evaluations_per_cpu_minute": 60 / cpu,
        "evaluations_for_proposals": float(np.median(bought)),
        "num_inherited_seeds": preset.inherited_seeds,
    }
    figures |= _volume_ratios({name: np.array(of) for name, of in volumes.items()}) | _epsilons(fronts)
    title, words = "Inherited weights, at equal time", ("predicted latency (ms)", "validation error (%)")
    (folder / "attainment.png").write_bytes(png(attainment_figure(fronts, title=title, axes_words=words)))
    _show_volumes(figures, num, report)
    return figures


def _volume_ratios(volumes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of the hybrid to each peer and to the best of them, which is the one with the largest median."""
    figures: dict[str, float] = {}
    ours = volumes["hybrid"]
    for words in ("", "_equal_time"):
        best = max(PEERS, key=lambda name: np.median(volumes[name + words]))
        figures |= ratio_with_interval(f"hypervolume_ratio_to_best_peer{words}", [(ours, volumes[best + words])])
        for name in OTHERS:
            figures |= ratio_with_interval(f"hypervolume_ratio_to_{name}{words}", [(ours, volumes[name + words])])
    return figures


def _epsilons(fronts: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """Medians over seeds, in percent of the range of the front of all."""
    points = np.concatenate([front for of_seeds in fronts.values() for front in of_seeds])
    best = points[non_dominated(points)]
    span = np.where(np.ptp(best, axis=0) > 0, np.ptp(best, axis=0), 1.0)
    return {
        f"epsilon_percent_{name}": 100 * float(np.median([epsilon(front / span, best / span) for front in of_seeds]))
        for name, of_seeds in fronts.items()
    }


# --- what people see


def _show_regrets(problem: Tabular, regrets: Regrets, evaluations: Sequence[int], report: Reporter) -> None:
    table = Table("searcher", *(f"{number} evaluations" for number in evaluations), box=SIMPLE_HEAD)
    table.title = f"{problem.name}: regret in %, median of seeds (and the middle half)"
    for name, values in regrets.items():
        quartiles = np.quantile(100 * values, (0.25, 0.5, 0.75), axis=0).T
        table.add_row(name, *(f"{median:.2f} ({low:.2f} to {high:.2f})" for low, median, high in quartiles))
    report.console.print(table)


def _show_ratios(figures: Mapping[str, float], evaluations: Sequence[int], report: Reporter) -> None:
    table = Table("evaluations", *COMPARED, f"{OURS}, worst problem", box=SIMPLE_HEAD)
    table.title = "Regret over random search's (aim at 100 evaluations: 0.5)"
    for number in evaluations:
        keys = [f"regret_ratio_{'' if name == OURS else f'{name}_'}to_random_{number}" for name in COMPARED]
        worst = figures[f"worst_regret_ratio_to_random_{number}"]
        table.add_row(str(number), *(_cell(figures, key) for key in keys), f"{worst:.3f}")
    report.console.print(table)


def _show_volumes(figures: Mapping[str, float], num: int, report: Reporter) -> None:
    title = f"Hypervolume of the default over each peer's, {figures['num_inherited_seeds']:.0f} seeds (aim: 1.05)"
    table = Table("peer", f"{num} evaluations", "equal time", title=title, box=SIMPLE_HEAD)
    for name in ("best_peer", *OTHERS):
        keys = [f"hypervolume_ratio_to_{name}{words}" for words in ("", "_equal_time")]
        table.add_row(name.replace("_", " "), *(_cell(figures, key) for key in keys))
    report.console.print(table)
    report.say(
        f"{figures['evaluations_per_minute']:.0f} evaluations with inherited weights a minute on one thread "
        f"({figures['evaluations_per_cpu_minute']:.0f} a minute of CPU time; aim: 200 on two cores). The default's "
        f"proposals take as long as {figures['evaluations_for_proposals']:.0f} of them."
    )


def _cell(figures: Mapping[str, float], key: str) -> str:
    return f"{figures[key]:.3f} ({figures[f'{key}_low']:.3f} to {figures[f'{key}_high']:.3f})"
