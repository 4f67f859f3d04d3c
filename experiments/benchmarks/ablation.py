"""What each choice of a space buys on the front: the same networks with one option of it, and without.

    paretoformer bench ablation [preset=quick|full] [directory=DIR]

A few plain networks of different sizes are trained on their own and measured, and then the same sizes with another option of one
choice in every layer that may have it, all in equally many steps. Of an option the table says by how much the time and the test
error change, network by network, and what the front gains: the hypervolume of both groups together over that of the plain one.
More networks gain by chance alone, so the plain ones are trained once more from another seed: `again` is what to beat.

With `directory=`, everything trained and measured stays there, and a benchmark that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.benchmarks.alone import finisher_of, geometric, test_error, train
from experiments.build import build
from experiments.config import composed
from experiments.finishing import Finisher
from experiments.layers import in_all_layers
from experiments.progress import Advance, Reporter
from hardware.local_torch import num_threads
from nas.finish.teaching import Lesson
from nas.pareto import hypervolume
from nas.space import Architecture, Choice, Option, SearchSpace
from search_spaces.common import DEFAULTS

THREADS = 1
HEADS = 4
SIZES = ("width", "depth", "heads", "ffn", "rank")  # what networks of all options have alike
PLAIN: dict[str, Option] = {**DEFAULTS, "attention": "full"}
"""The options of a plain network; of a choice that is not among them the last, which is the largest."""
AGAIN = "again"
FURTHER = 1000  # seeds between the plain networks and the same once more
MARGINS = (1.1, 1.5)  # on the slowest time and the largest error of plain networks: where hypervolumes end

Costs = tuple[float, float]
"""Latency in ms and test error in percent."""


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick or full (tiny shows only that it runs)
    out: str | None = None  # a file for the figures
    directory: str | None = None  # where everything stays; null: a temporary one


@dataclass(frozen=True)
class Preset:
    """Tasks by name, with overrides of the main job's configuration; seeds; width, depth and ffn of the plain networks."""

    tasks: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    sizes: tuple[tuple[int, int, int], ...] = ((48, 1, 128), (48, 2, 128), (96, 3, 192))


def steps(number: int) -> tuple[str, ...]:
    return (
        f"finish.train.steps={number}", f"finish.most_steps={number}", "finish.train.tokens_per_batch=1024", "finish.rounds=4",
    )  # fmt: skip


SPACE = (
    "space=encoder_full", "space.width=[48,96]", "space.depth=[1,2,3]", "space.heads=[4]", "space.kv_heads=[1,4]",
    "space.ffn=[128,192]",
)  # fmt: skip
ALIKE = (
    "space.attention=[full]", "space.ffn_kind=[mlp]", "space.rank=[]", "space.activation=[gelu]", "space.norm_kind=[layer]",
    "space.sharing=[none]", "space.keep=[]", "space.ngrams=[1]",
)  # fmt: skip
TASKS = {
    "languages": SPACE,
    "tags": ("task=python_words", *SPACE, "space.keep=[]"),
    "means": (*SPACE, *ALIKE, "space.pool=[1,2,4,8]"),  # on languages too; they do not go with all of the others
}
TINY = (
    *SPACE, "space.attention=[full,linear]", "space.ffn_kind=[mlp]", "space.rank=[]", "space.activation=[gelu]",
    "space.norm_kind=[layer]", "space.keep=[]", "space.ngrams=[1]", "task.vocab_size=1000", "task.max_tokens=32",
    "task.max_examples=3000",
)  # fmt: skip
PRESETS = {
    "tiny": Preset({"languages": (*TINY, *steps(2))}, (0,), sizes=((48, 1, 128), (96, 2, 192))),
    "quick": Preset({name: (*words, *steps(100)) for name, words in TASKS.items()}, (0,)),
    "full": Preset({name: (*words, *steps(250)) for name, words in TASKS.items()}, (0, 1, 2)),
}


@dataclass(frozen=True)
class Gain:
    """Of an option on one task and seed: factor on the time, points of test error, and factor on the hypervolume."""

    time: float
    points: float
    hypervolume: float

    @classmethod
    def of(cls, plain: Mapping[Architecture, Costs], other: Mapping[Architecture, Costs]) -> Gain:
        """Of networks in place of plain ones, by these."""
        before, after = (np.array([costs[arch] for arch in other]) for costs in (plain, other))
        everyone = np.array(list(plain.values()))
        limit = everyone.max(axis=0) * MARGINS
        return cls(
            time=geometric((after[:, 0] / before[:, 0]).tolist()),
            points=float(np.mean(after[:, 1] - before[:, 1])),
            hypervolume=hypervolume(np.vstack([everyone, after]), limit) / hypervolume(everyone, limit),
        )


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    figures: dict[str, float] = {"num_seeds": len(preset.seeds)}
    with contextlib.ExitStack() as stack:
        folder = Path(words.directory or stack.enter_context(tempfile.TemporaryDirectory())) / words.preset
        stack.enter_context(num_threads(THREADS))
        for task, overrides in preset.tasks.items():
            trials = [gains(task, overrides, seed, preset, folder, report) for seed in preset.seeds]
            _show(task, trials, report)
            for option in trials[0]:
                means = _mean([trial[option] for trial in trials])
                figures |= {f"{task}_{option}_{name}": value for name, value in means.items()}
    return figures


def gains(task: str, overrides: Sequence[str], seed: int, preset: Preset, folder: Path, report: Reporter) -> dict[str, Gain]:
    """Of each option, by its name; trains and measures what is missing."""
    finisher, further = (_finisher(task, overrides, number, folder, report) for number in (seed, seed + FURTHER))
    space = finisher.family.space
    plain = [space.canonical(picks) for picks in (plain_picks(space, *sizes) for sizes in preset.sizes)]
    groups = options(space, plain)
    total = 2 * len(plain) + sum(len(group) for group in groups.values())
    with report.phase(f"{task}, seed {seed}", total) as advance:
        job = Job(advance)
        known = job.points(finisher, plain)
        found = {AGAIN: Gain.of(known, dict(zip(plain, job.points(further, plain).values(), strict=True)))}
        for option, group in groups.items():
            points = job.points(finisher, list(group.values()))
            found[option] = Gain.of(known, {before: points[after] for before, after in group.items()})
    return found


def _finisher(task: str, overrides: Sequence[str], seed: int, folder: Path, report: Reporter) -> Finisher:
    path = folder / f"{task}-{seed}"
    path.mkdir(parents=True, exist_ok=True)
    return finisher_of(build(composed(*overrides, f"seed={seed}", f"run={path}"), report=report), path, lesson=Lesson())


def plain_picks(space: SearchSpace, width: int, depth: int, ffn: int) -> dict[str, Option]:
    """Of every choice the plain option."""
    plain = {**PLAIN, "width": width, "depth": depth, "ffn": ffn, "heads": HEADS}
    return {choice.name: plain.get(_last(choice), choice.options[-1]) for choice in space}


def options(space: SearchSpace, plain: Sequence[Architecture]) -> dict[str, dict[Architecture, Architecture]]:
    """By name, what each plain network becomes with another option of one choice, wherever it has that; those that it changes."""
    groups = {}
    for name, by_option in in_all_layers(space).items():
        for option, picks in by_option.items() if name not in SIZES else ():
            changed = {arch: space.canonical({**_whole(space, arch), **picks}) for arch in plain}
            group = {before: after for before, after in changed.items() if after != before}
            if group:
                groups[f"{name}_{option}"] = group
    return groups


def _whole(space: SearchSpace, arch: Architecture) -> dict[str, Option]:
    """Picks of all choices, of those that the architecture lacks the plain ones."""
    return {**plain_picks(space, 0, 0, 0), **arch.as_dict}


def _last(choice: Choice) -> str:
    return choice.name.rpartition(".")[2]


@dataclass
class Job:
    """Trains and measures group after group, all in the conditions of the first."""

    advance: Advance
    done: int = 0
    reference_ms: float | None = None

    def points(self, finisher: Finisher, archs: Sequence[Architecture]) -> dict[Architecture, Costs]:
        for arch in archs:
            train(finisher, arch, finisher.seed)
            self.done += 1
            self.advance(self.done, f"error {finisher.files.record(arch)['error_percent']:.1f} %")
        times = finisher.times.measure(
            archs, reference_ms=self.reference_ms, phase="ablation", rounds=finisher.settings.rounds, tag=""
        )
        self.reference_ms = self.reference_ms or times[archs[0].id].sentinel_reference_ms
        return {arch: (times[arch.id].latency_ms, test_error(finisher, arch)) for arch in archs}


def _mean(gains: Sequence[Gain]) -> dict[str, float]:
    """Over seeds: geometric means of factors, and the mean of points."""
    factors = {name: geometric([getattr(gain, name) for gain in gains]) for name in ("time", "hypervolume")}
    return {**factors, "points": float(np.mean([gain.points for gain in gains]))}


def _show(task: str, trials: Sequence[Mapping[str, Gain]], report: Reporter) -> None:
    title = f"{task}: networks with one option beside the plain ones, {len(trials)} seed{'s' * (len(trials) > 1)}"
    table = Table("option", "time", "points of error", "hypervolume", "of each seed", box=SIMPLE_HEAD, title=title)
    for option in trials[0]:
        of_seeds = [trial[option] for trial in trials]
        mean = _mean(of_seeds)
        each = " ".join(f"{gain.hypervolume:.3f}" for gain in of_seeds)
        table.add_row(option, f"{mean['time']:.2f}", f"{mean['points']:+.2f}", f"{mean['hypervolume']:.3f}", each)
    report.console.print(table)
