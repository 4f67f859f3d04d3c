"""Whether a search keeps what it promises: the whole main job against random search and against doing it oneself.

Fronts: for each seed the main job runs from its configuration; then `do_it_yourself` gets the same task, which it need not load,
the same budget and as many seconds. Four fronts are timed in one interleaved session, and every exported file is scored on the
test split: what the search and what random search found at equal cost (same supernet, same training); all that the main job
finished, which is those, the hand-designed networks, and what ships after its stages; and what was done by oneself. The
hypervolume is the area under 100 % test error and the budget.

Predictor: uniformly random networks are measured once; many random splits fit the latency model and judge it.

Budgets: for budgets over the whole range of the space, an architecture whose predicted upper bound is just within is measured.

With `directory=`, runs and measurements stay there, and a benchmark that was stopped goes on: finished seeds and measurements
count, a seed that was not finished begins anew.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.benchmarks import do_it_yourself
from experiments.benchmarks.darts import random_log_p
from experiments.budgets import Ends
from experiments.build import build
from experiments.calibration import CHUNK, quality
from experiments.conclude import conclude
from experiments.config import composed
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory, replacing
from experiments.timed_networks import export_for_timing, sentinel_of
from hardware.store import MeasurementStore, sentinel_reference
from hardware.timing import Exported, measure_on
from nas.constraints import within_ms
from nas.pareto import hypervolume
from nas.projection import discretise
from nas.protocols import DifferentiableLatencyModel
from nas.space import Architecture, Option, SearchSpace
from nas.types import Measurement
from search_spaces.common import DEFAULTS

WHO = {
    "ours": "the search",
    "random": "random search",
    "hand": "by hand",
    "ships": "what ships",
    "do_it_yourself": "do it yourself",
}
SIDE_OF = {"search": "ours", "random": "random", "hand": "hand"}  # of the main job's finalists
NUM_PICKS = 100  # budgets that random networks are picked for
SIDES = {
    "ours": ("ours",),
    "random": ("random",),
    "main_job": ("ours", "random", "hand", "ships"),
    "do_it_yourself": ("do_it_yourself",),
}


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick (shows only that it runs) or full
    out: str | None = None  # a file for the figures
    directory: str | None = None  # where runs and measurements stay; null: a temporary one


@dataclass(frozen=True)
class Preset:
    """Seeds, overrides of the main job's configuration, visits to each network, and how many networks, splits and budgets."""

    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    rounds: int
    num_fit: int
    num_held_out: int
    num_splits: int
    num_budgets: int


SMALL = ("experiment=smoke", "space=encoder", "calibration.num_fit=16", "torch_threads=1")
PRESETS = {
    "quick": Preset((0,), SMALL, rounds=2, num_fit=12, num_held_out=6, num_splits=5, num_budgets=3),
    "full": Preset((0, 1, 2), (), rounds=8, num_fit=60, num_held_out=40, num_splits=20, num_budgets=10),
}


@dataclass(frozen=True)
class Point:
    """A trained network: who found it, its latency in the common session, and its errors."""

    who: str
    id: str
    latency_ms: float
    validation_error_percent: float
    test_error_percent: float


@dataclass(frozen=True)
class Fronts:
    """What one seed found; `run` is the main job's directory, from that of all seeds."""

    seed: int
    run: str
    seconds: float
    budget_ms: float
    verdict: str
    kept: bool
    ngram_error_percent: float  # on the validation split
    points: tuple[Point, ...]

    def of(self, *who: str) -> list[Point]:
        return sorted((p for p in self.points if p.who in who), key=lambda p: p.latency_ms)

    def hypervolume(self, side: str) -> float:
        """Of one of `SIDES`, in ms times percent."""
        costs = np.array([[p.latency_ms, p.test_error_percent] for p in self.of(*SIDES[side])])
        return hypervolume(costs, (self.budget_ms, 100.0))

    def test_error_percent(self, side: str) -> float:
        """Of the network within the budget that does best on the validation split; 100 without one."""
        within = [p for p in self.of(*SIDES[side]) if p.latency_ms <= self.budget_ms]
        best = min(within, key=lambda p: p.validation_error_percent, default=None)
        return best.test_error_percent if best else 100.0


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    with contextlib.ExitStack() as stack:
        folder = Path(words.directory or stack.enter_context(tempfile.TemporaryDirectory())) / words.preset
        fronts = [fronts_of(preset, seed, folder / f"seed-{seed}", report) for seed in preset.seeds]
        for found in fronts:
            _show_fronts(found, report)
        pipeline = _build(preset, preset.seeds[0], folder / fronts[0].run, report)
        predictor = judge_predictor(pipeline, preset, folder / "predictor", report)
        budgets = try_budgets(pipeline, preset, folder / "budgets", report)
    figures = {**_summary(fronts), **budgets, **predictor}
    _show_figures(figures, fronts, report)
    return figures


def fronts_of(preset: Preset, seed: int, folder: Path, report: Reporter) -> Fronts:
    """The main job, then the same by oneself, then everything measured together; read again if it was finished before."""
    finished = folder / "fronts.json"
    if finished.is_file():
        record = json.loads(finished.read_text())
        return Fronts(**{**record, "points": tuple(Point(**point) for point in record["points"])})
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    report.say(f"Seed {seed}: the main job in {fresh}")
    start = time.perf_counter()
    pipeline = _build(preset, seed, fresh / "search", report)
    with pipeline.run.lock():
        outcome = pipeline.search()
        results = conclude(pipeline, outcome, command="paretoformer bench first_light", report=report)
    seconds = time.perf_counter() - start
    space, finisher = pipeline.family.space, outcome.finisher
    networks = [
        (SIDE_OF[f.role], f.arch, finisher.files.onnx_path(f.arch, tag=""), finisher.files.record(f.arch)["error_percent"])
        for f in outcome.finalists
    ]
    ships = outcome.choice.arch
    networks.append(("ships", ships, finisher.files.onnx_path(ships), finisher.scores.of(ships, "validation")["error_percent"]))
    with report.phase(f"The same by oneself, in {seconds:.0f} s", 1):
        by_oneself = do_it_yourself.run(
            pipeline.task, seconds=seconds, budget_ms=outcome.budget.ms, seed=seed, directory=fresh / "do_it_yourself",
            tokens=pipeline.workload.tokens,
        )  # fmt: skip
    networks += [("do_it_yourself", same_layers(space, n["arch"]), n["onnx"], n["error_percent"]) for n in by_oneself]
    inputs = {name: value.numpy() for name, value in pipeline.family.example_input(pipeline.workload).items()}
    with report.phase("Measuring all of them together", 1), tempfile.TemporaryDirectory() as timing:
        exported = [Exported(arch, path, inputs) for _, arch, path, _ in networks]
        measurements = measure_on(
            pipeline.device, exported, sentinel=_sentinel(pipeline, timing), workload=pipeline.workload, rounds=preset.rounds,
            sentinel_reference_ms=outcome.calibration.sentinel_reference_ms,
        )  # fmt: skip
        points = tuple(
            Point(who, arch.id, m.latency_ms, error, finisher.scores.of_file(path, "test")["error_percent"])
            for (who, arch, path, error), m in zip(networks, measurements, strict=True)
        )
    found = Fronts(
        seed=seed,
        run=f"{folder.name}/{fresh.name}/search",
        seconds=seconds,
        budget_ms=outcome.budget.ms,
        verdict=results.verdict.sentence,
        kept=results.verdict.kept is True,
        ngram_error_percent=min(outcome.trivial.values()),
        points=points,
    )
    with replacing(finished) as path:
        path.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return found


def _build(preset: Preset, seed: int, run: Path, report: Reporter) -> Pipeline:
    """The main job as the command line would build it, with a store of measurements of its own."""
    config = composed(*preset.overrides, f"seed={seed}")
    config.run, config.store = str(run), str(run.parent / "store")
    return build(config, report=report)


def same_layers(space: SearchSpace, arch: Mapping[str, int]) -> Architecture:
    """An architecture of `do_it_yourself`, whose layers are alike and see single tokens, as a point of the space."""
    layer: dict[str, Option] = {"attention": "full", "heads": arch["heads"], "ffn": arch["ffn"]}
    layers = {f"layer{i}.{name}": option for i in range(1, arch["depth"] + 1) for name, option in layer.items()}
    plain: dict[str, Option] = {name: DEFAULTS[name] for name in ("ngrams", "pool") if name in space.by_name}
    return space.canonical({"width": arch["width"], "depth": arch["depth"], **plain, **layers})


def judge_predictor(pipeline: Pipeline, preset: Preset, folder: Path, report: Reporter) -> dict[str, float]:
    """Quality on held-out networks, a mean over random splits of networks that are uniformly random."""
    rng = np.random.default_rng(0)
    archs: dict[str, Architecture] = {}
    while len(archs) < preset.num_fit + preset.num_held_out:
        arch = pipeline.family.space.sample(rng)
        archs[arch.id] = arch
    measurements = _measured(pipeline, list(archs.values()), folder, preset.rounds, None, report)
    splits = []
    for _ in range(preset.num_splits):
        shuffled = [measurements[i] for i in rng.permutation(len(measurements))]
        fitting, judging = shuffled[: preset.num_fit], shuffled[preset.num_fit :]
        model = copy.deepcopy(pipeline.latency_model).fit(pipeline.family, fitting)
        prediction = model.predict([m.arch for m in judging])
        measured = np.array([m.latency_ms for m in judging])
        judged = quality(measured, prediction.mean_ms, prediction.upper_ms, [m.latency_ms for m in fitting])
        splits.append({**judged, "picks_kept_percent": picks_kept_percent(prediction.upper_ms, measured)})
    mean = {name: float(np.mean([split[name] for split in splits])) for name in splits[0]}
    return {
        "predictor_spearman": mean["spearman"],
        "predictor_mape_percent": mean["mape_percent"],
        "predictor_within_10_percent": mean["within_10_percent"],
        "bound_coverage_percent": mean["coverage_percent"],
        "picks_kept_percent": mean["picks_kept_percent"],
        "num_fit": preset.num_fit,
        "num_held_out": preset.num_held_out,
        "num_measured": len(measurements),
    }


def picks_kept_percent(upper_ms: np.ndarray, measured_ms: np.ndarray) -> float:
    """The share of budgets that are kept by the network, of [N], whose bound uses them up: a pick, which may be one of those that
    the latency model underrates."""
    order = np.argsort(upper_ms, kind="stable")
    budgets = np.geomspace(upper_ms.min(), upper_ms.max(), NUM_PICKS)
    picked = order[np.searchsorted(upper_ms[order], budgets * (1 + 1e-9), side="right") - 1]
    return 100 * float(np.mean(measured_ms[picked] <= budgets))


def judge_local_predictor(*, num_fit: int, num_held_out: int, report: Reporter) -> dict[str, float]:
    """`judge_predictor` for the default space on this machine, without a main job."""
    preset = replace(PRESETS["full"], num_fit=num_fit, num_held_out=num_held_out)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = _build(preset, preset.seeds[0], Path(folder) / "run", report)
        return judge_predictor(pipeline, preset, Path(folder) / "predictor", report)


def try_budgets(pipeline: Pipeline, preset: Preset, folder: Path, report: Reporter) -> dict[str, float]:
    """How many budgets are kept by an architecture that is predicted to use them up, with the main job's calibration, corrected
    where the device is no longer what it was then."""
    space, calibration = pipeline.family.space, pipeline.calibrate()
    model = copy.deepcopy(calibration.model)
    if replace(pipeline.calibrator(), run=RunDirectory(folder)).look(calibration, before="budgets"):
        calibration.fit(model, pipeline.family)
    assert isinstance(model, DifferentiableLatencyModel)  # as the pipeline requires
    ends = Ends.of(space, model.predict, {})
    budgets = np.geomspace(1.1 * ends.fastest.upper_ms, ends.largest.upper_ms, preset.num_budgets)
    rng = np.random.default_rng(1)
    archs = [discretise(space, random_log_p(space, rng), [within_ms(model, budget)]) for budget in budgets]
    measurements = _measured(pipeline, archs, folder, preset.rounds, calibration.sentinel_reference_ms, report)
    times = np.array([m.latency_ms for m in measurements])
    table = Table(
        "asked (ms)", "upper bound (ms)", "predicted (ms)", "measured (ms)", "use", "", box=SIMPLE_HEAD, title="Budgets"
    )
    prediction = model.predict(archs)
    for row in zip(budgets, prediction.upper_ms, prediction.mean_ms, times, strict=True):
        table.add_row(*(f"{x:.3f}" for x in row), f"{row[3] / row[0]:.0%}", "kept" if row[3] <= row[0] else "BROKEN")
    report.console.print(table)
    return {
        "budgets_kept": int((times <= budgets).sum()),
        "budgets_asked": len(budgets),
        "median_budget_use_percent": 100 * float(np.median(times / budgets)),
    }


def _measured(
    pipeline: Pipeline, archs: Sequence[Architecture], folder: Path, rounds: int, reference_ms: float | None, report: Reporter
) -> list[Measurement]:
    """Times what the folder's store lacks, a few networks at a time, each chunk kept; all in the same sentinel's conditions."""
    family, device, workload, store = pipeline.family, pipeline.device, pipeline.workload, MeasurementStore(folder)
    stored, _ = store.load(family.space, device, family.signature, workload)
    have = {arch.id: stored[arch.id] for arch in archs if arch.id in stored}
    reference_ms = sentinel_reference(have.values()) or reference_ms
    missing = list({arch.id: arch for arch in archs if arch.id not in have}.values())
    total = len(have) + len(missing)
    with (
        report.phase(f"Measuring networks: {folder.name}", total, done=len(have)) as advance,
        tempfile.TemporaryDirectory() as timing,
    ):
        sentinel = _sentinel(pipeline, timing)
        for start in range(0, len(missing), CHUNK):
            networks = export_for_timing(family, missing[start : start + CHUNK], workload, Path(timing), device=device)
            chunk = measure_on(
                device, networks, sentinel=sentinel, workload=workload, rounds=rounds, sentinel_reference_ms=reference_ms
            )
            reference_ms = chunk[0].sentinel_reference_ms
            store.append(chunk, device=device, signature=family.signature)
            have |= {m.arch.id: m for m in chunk}
            advance(len(have), f"{chunk[-1].latency_ms:.2f} ms")
    return [have[arch.id] for arch in archs]


def _sentinel(pipeline: Pipeline, folder: str) -> Exported:
    [sentinel] = export_for_timing(
        pipeline.family, [sentinel_of(pipeline.family)], pipeline.workload, Path(folder), device=pipeline.device
    )
    return sentinel


def _summary(fronts: Sequence[Fronts]) -> dict[str, float]:
    """Means over the seeds."""
    volumes = {side: float(np.mean([f.hypervolume(side) for f in fronts])) for side in SIDES}

    def ratio(one: str, other: str) -> float:
        return volumes[one] / volumes[other] if volumes[other] else float("inf")

    return {
        "seconds_main_job": float(np.mean([f.seconds for f in fronts])),
        **{f"hypervolume_{side}": volume for side, volume in volumes.items()},
        "hypervolume_ratio_to_random": ratio("ours", "random"),
        "hypervolume_ratio_to_do_it_yourself": ratio("main_job", "do_it_yourself"),
        **{f"test_error_percent_{side}": float(np.mean([f.test_error_percent(side) for f in fronts])) for side in SIDES},
        "ngram_baseline_error_percent": float(np.mean([f.ngram_error_percent for f in fronts])),
        "verdicts_kept": sum(f.kept for f in fronts),
        "num_seeds": len(fronts),
    }


def _show_fronts(fronts: Fronts, report: Reporter) -> None:
    headings = ("who", "network", "latency (ms)", "validation error (%)", "test error (%)", "")
    table = Table(*headings, box=SIMPLE_HEAD, title=f"Seed {fronts.seed}, budget {fronts.budget_ms:.3f} ms")
    for who, words in WHO.items():
        for p in fronts.of(who):
            errors = (f"{p.validation_error_percent:.2f}", f"{p.test_error_percent:.2f}")
            table.add_row(
                words, p.id, f"{p.latency_ms:.3f}", *errors, "" if p.latency_ms <= fronts.budget_ms else "over the budget"
            )
    report.console.print(table)
    volumes = ", ".join(f"{side.replace('_', ' ')} {fronts.hypervolume(side):.2f}" for side in SIDES)
    report.say(f"Hypervolume in ms x %: {volumes}. {fronts.verdict}")


def _show_figures(figures: Mapping[str, Any], fronts: Sequence[Fronts], report: Reporter) -> None:
    table = Table("figure", "value", box=SIMPLE_HEAD, title=f"First light, {len(fronts)} seed{'s' * (len(fronts) > 1)}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    report.console.print(table)
    report.say("Latencies are measured, errors are of the test split; the n-gram baseline's is of the validation split.")
