"""The default search against its peers on real tasks, with inherited weights (`experiments.benchmarks.inherited`).

For each task and seed the differentiable search proposes and the default strategy goes on; each peer searches alone, for as many
evaluations and, as *equal time*, for as many more as the proposals would have bought in CPU time, though for no more than three
times as many in all: where an evaluation takes a few ms, asking takes longer. Hypervolumes are up to the budget and the error of
the smallest network.

What all searches of all seeds found together says how much there is to gain: no ratio can be larger than that of its front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.benchmarks.compared import OURS, PEERS, SEARCHERS, cell, ratio_with_interval
from experiments.benchmarks.inherited import Inherited
from experiments.plots.attainment import attainment_figure
from experiments.plots.style import png
from experiments.progress import Reporter
from experiments.run_directory import replacing
from nas.pareto import epsilon, non_dominated

OTHERS = {"without_proposals": OURS, **{name: name for name in PEERS}}  # what the default is compared with
ALL = "all_found"  # what any search of any seed found, at equal time
EQUAL = ("", "_equal_time")
MOST = 3  # times the evaluations, at equal time

Volumes = Mapping[str, np.ndarray]
"""Of each side, and with `_equal_time`, [seeds]."""


@dataclass(frozen=True)
class Effort:
    """Real tasks by name, with overrides of the main job; evaluations of each search; seeds; evaluations that are timed."""

    tasks: Mapping[str, tuple[str, ...]]
    evaluations: int = 60
    seeds: int = 3
    timed: int = 30


@dataclass(frozen=True)
class Found:
    """What all searches of one task found."""

    volumes: dict[str, list[float]] = field(default_factory=dict)
    fronts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    bought: list[int] = field(default_factory=list)  # evaluations, by the time of the proposals

    def add(self, problem: Inherited, name: str, points: np.ndarray, num: int) -> None:
        """Of one seed: points in the order of a search, of which the first `num` count at equal evaluations."""
        self.volumes.setdefault(name, []).append(problem.volume(points[:num]))
        self.volumes.setdefault(f"{name}_equal_time", []).append(problem.volume(points))
        self.fronts.setdefault(name, []).append(points[~np.isnan(points[:, 0])][:, ::-1])

    def together(self, problem: Inherited) -> dict[str, np.ndarray]:
        """The volume of what all found, for each seed the same."""
        points = np.concatenate([front[:, ::-1] for of_seeds in self.fronts.values() for front in of_seeds])
        volume = np.full(len(self.bought), problem.volume(points))
        return {ALL + words: volume for words in EQUAL}


def compare(effort: Effort, problems: Mapping[str, Inherited], folder: Path, report: Reporter) -> dict[str, float]:
    """Hypervolume ratios of each task and over all, epsilon, and how many evaluations a minute holds on the first; draws the
    fronts."""
    seconds = {task: problem.seconds_of_complete(effort.timed).mean(axis=0) for task, problem in problems.items()}
    cpu, wall = next(iter(seconds.values())).tolist()
    figures: dict[str, float] = {
        "evaluations_per_minute": 60 / wall,
        "evaluations_per_cpu_minute": 60 / cpu,
        "num_real_tasks": len(problems),
        "num_inherited_seeds": effort.seeds,
    }
    volumes: dict[str, Volumes] = {}
    for task, problem in problems.items():
        found = _searched(problem, effort, task, report, cpu_seconds=float(seconds[task][0]))
        volumes[task] = {name: np.array(of_seeds) for name, of_seeds in found.volumes.items()} | found.together(problem)
        figures |= {f"{task}_{key}": value for key, value in ratios([volumes[task]]).items()}
        figures |= {f"{task}_{key}": value for key, value in epsilons(found.fronts).items()}
        figures[f"{task}_evaluations_for_proposals"] = float(np.median(found.bought))
        title = f"{task}: inherited weights, budget {problem.budget_ms:.3g} ms, at equal time"
        words = ("predicted latency (ms)", "error on the split of the search (%)")
        figure = attainment_figure(found.fronts, title=title, axes_words=words)
        with replacing(folder / f"attainment-{task}.png") as path:
            path.write_bytes(png(figure))
    figures |= ratios(list(volumes.values()))
    _show(figures, effort, problems, report)
    return figures


def _searched(problem: Inherited, effort: Effort, task: str, report: Reporter, *, cpu_seconds: float) -> Found:
    """`cpu_seconds` are those of one evaluation."""
    found, num = Found(), effort.evaluations
    with report.phase(f"Searching with inherited weights: {task}", effort.seeds) as advance:
        for seed in range(effort.seeds):
            proposals, spent = problem.propose(seed=seed)
            found.bought.append(round(spent / cpu_seconds))
            found.add(problem, "hybrid", problem.found(SEARCHERS[OURS], num, seed=seed, initial=proposals), num)
            for name, key in OTHERS.items():
                in_all = min(num + found.bought[-1], MOST * num)
                found.add(problem, name, problem.found(SEARCHERS[key], in_all, seed=seed), num)
            advance(seed + 1, "")
            report.say(f"{task}, seed {seed}: " + ", ".join(f"{name} {of[-1]:.4g}" for name, of in found.volumes.items()))
    return found


def ratios(of_tasks: Sequence[Volumes]) -> dict[str, float]:
    """Of the hybrid to each peer and to the best of them, which in a task is the one with the largest median; over several tasks
    their geometric mean."""
    figures: dict[str, float] = {}
    for words in EQUAL:
        best = [max((of[name + words] for name in PEERS), key=np.median) for of in of_tasks]
        ours = [of["hybrid"] for of in of_tasks]
        figures |= ratio_with_interval(f"hypervolume_ratio_to_best_peer{words}", list(zip(ours, best, strict=True)))
        most = [of[ALL + words] for of in of_tasks]
        figures |= ratio_with_interval(f"hypervolume_ratio_of_{ALL}_to_best_peer{words}", list(zip(most, best, strict=True)))
        for name in OTHERS:
            theirs = [of[name + words] for of in of_tasks]
            figures |= ratio_with_interval(f"hypervolume_ratio_to_{name}{words}", list(zip(ours, theirs, strict=True)))
    return figures


def epsilons(fronts: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """How far fronts are behind the best that any found: medians over seeds, in percent of the range of the front of all."""
    points = np.concatenate([front for of_seeds in fronts.values() for front in of_seeds])
    best = points[non_dominated(points)]
    span = np.where(np.ptp(best, axis=0) > 0, np.ptp(best, axis=0), 1.0)
    return {
        f"epsilon_percent_{name}": 100 * float(np.median([epsilon(front / span, best / span) for front in of_seeds]))
        for name, of_seeds in fronts.items()
    }


def _show(figures: Mapping[str, float], effort: Effort, problems: Mapping[str, Inherited], report: Reporter) -> None:
    tasks = list(problems)
    budgets = ", ".join(f"{problem.budget_ms:.3g} ms for {task}" for task, problem in problems.items())
    report.say(f"With budgets of {budgets}:")
    for words, said in zip(EQUAL, (f"{effort.evaluations} evaluations", "equal time"), strict=True):
        title = f"Hypervolume of the default over each peer's at {said}, {effort.seeds} seeds (aim: 1.05)"
        table = Table("peer", *tasks, *(["all"] if len(tasks) > 1 else []), title=title, box=SIMPLE_HEAD)
        rows = {name: f"hypervolume_ratio_to_{name}{words}" for name in ("best_peer", *OTHERS)}
        for name, key in {**rows, "most there is": f"hypervolume_ratio_of_{ALL}_to_best_peer{words}"}.items():
            cells = [cell(figures, f"{task}_{key}") for task in tasks] + ([cell(figures, key)] if len(tasks) > 1 else [])
            table.add_row(name.replace("_", " "), *cells)
        report.console.print(table)
    bought = ", ".join(f"{figures[f'{task}_evaluations_for_proposals']:.0f} of {task}" for task in tasks)
    report.say(
        f"{figures['evaluations_per_minute']:.0f} evaluations with inherited weights a minute on one thread "
        f"({figures['evaluations_per_cpu_minute']:.0f} a minute of CPU time; aim: 200 on two cores). The default's proposals "
        f"take as long as {bought}."
    )
