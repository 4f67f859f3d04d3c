"""Whether latency predictors hold on real devices: recorded tables of ARM CPUs, GPUs and NPUs, and this machine's CPU.

    paretoformer bench latency data=DIR [preset=quick|full]

Every figure is a median over random splits of a table; a predictor never sees the rows that it is judged on. "As recorded" means
all rows, also those of sessions in which the device was slow. "Sound" rows are those that `latency_models.drift` has no complaint
of, decided on the whole table, before and apart from what is judged. MAPE is in percent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.benchmarks import first_light
from experiments.benchmarks.budgets import POOLS, of_budgets
from experiments.benchmarks.onboarding import onboard_cells, onboard_hat, onboard_npus
from experiments.benchmarks.splits import judged, mape, random_splits
from experiments.progress import Reporter
from hardware.tables import load_table
from latency_models.drift import no_signal, sessions
from latency_models.ensemble import Ensemble
from latency_models.hat_mlp import hat_mlp
from latency_models.intervals import Bounded
from latency_models.physical import PhysicalRegressor
from nas.tables import RecordedTable
from search_spaces import hat

HAT = {"pi": "hat_raspberrypi4", "xeon": "hat_xeon", "titanxp": "hat_titanxp_wmt", "titanxp_iwslt": "hat_titanxp_iwslt"}
FEWEST_OF_FAMILY = 4
MLP_SPLITS = 3  # HAT's perceptron takes some ten seconds a fit


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick or full (also networks that are measured on this machine: some minutes)
    out: str | None = None  # a file for the figures
    data: str | None = None  # folder of the recorded tables; null: the user's cache folder


@dataclass(frozen=True)
class Preset:
    splits: int
    budgets: int
    thorough: bool  # also what is slow: HAT's perceptron, and networks on this machine


PRESETS = {"tiny": Preset(1, 50, False), "quick": Preset(5, 500, False), "full": Preset(15, 500, True)}


@dataclass(frozen=True)
class Row:
    """A figure of the printed table: its key, what it is, and the value to stay under (or to reach, with `at_least`).

    `others` is what others reached; `beside` is the key of a reference in the same run, on the same splits.
    """

    key: str
    what: str
    target: float | None = None
    at_least: bool = False
    others: str = ""
    beside: str = ""


ROWS = (
    Row(
        "hat_pi_mape_32",
        "Raspberry Pi 4, as recorded, from 32",
        4.2,
        others="HAT's MLP from 1,600: 4.2",
        beside="hat_pi_mlp_mape_1600",
    ),
    Row(
        "hat_titanxp_mape_32",
        "TITAN Xp, as recorded, from 32",
        5.1,
        others="HAT's MLP from 1,600: 5.1",
        beside="hat_titanxp_mlp_mape_1600",
    ),
    Row("hat_titanxp_iwslt_mape_32", "TITAN Xp, other task, as recorded, from 32"),
    Row(
        "hat_xeon_mape_64", "Xeon, as recorded, from 64", 5.5, others="HAT's MLP from 1,600: 5.0", beside="hat_xeon_mlp_mape_1600"
    ),
    Row("hat_pi_sound_mape_50", "Raspberry Pi 4, sound rows, from 50", 1.1, others="robust physical ridge 1.1"),
    Row("hat_titanxp_sound_mape_50", "TITAN Xp, sound rows, from 50", 3.0, others="robust physical ridge 3.2"),
    Row("hat_xeon_sound_mape_50", "Xeon, sound rows, from 50", 5.5, others="robust physical ridge 5.7"),
    Row("hat_energy_mape_100", "GTX 1080, energy, from 100", 5.0),
    Row(
        "jetson_cpu_mape",
        "Jetson Nano CPU, transformers, from 160",
        7.0,
        others="gradient boosting 7.3",
        beside="jetson_cpu_by_sizes_mape",
    ),
    Row(
        "jetson_gpu_mape",
        "Jetson Nano GPU, transformers, from 160",
        14.0,
        others="gradient boosting 15.3",
        beside="jetson_gpu_by_sizes_mape",
    ),
    *(
        Row(
            f"onboarding_hat_{name}_mape_10",
            f"{words} as a new device, from 10",
            target,
            beside=f"onboarding_hat_{name}_stack_mape_10",
        )
        for name, words, target in (("pi", "Raspberry Pi 4", 8.6), ("xeon", "Xeon", 6.3), ("titanxp", "TITAN Xp", 9.4))
    ),
    Row("onboarding_hat_spearman_10", "… lowest rank correlation of the three", 0.95, at_least=True),
    Row(
        "onboarding_nb201_spearman_10",
        "NAS-Bench-201 devices, rank correlation from 10",
        0.93,
        at_least=True,
        others="HELP 0.93",
        beside="onboarding_nb201_ridge_spearman_10",
    ),
    Row(
        "onboarding_npu_float_mape_10",
        "Hexagon NPUs, float, as new devices, from 10",
        17.0,
        beside="onboarding_npu_float_one_scale_mape_10",
    ),
    Row(
        "onboarding_npu_w8a8_mape_10",
        "Hexagon NPUs, w8a8, as new devices, from 10",
        12.3,
        beside="onboarding_npu_w8a8_one_scale_mape_10",
    ),
    *(
        row
        for words, what in (("", "as recorded"), ("_known_state", "state of the device known"), ("_sound", "sound rows"))
        for row in (
            Row(
                f"budget_violation{words}_percent",
                f"picks over their budget, worst table, {what}",
                5.0,
                beside=f"budget_violation{words}_of_mean_percent",
            ),
            Row(f"budget_cost{words}_percent", "… capacity given up, median, worst table", 5.0),
        )
    ),
    Row("budget_cost_of_oracle_pi_percent", "… Raspberry Pi 4, as recorded, by an oracle that knows the law of the noise"),
    Row("budget_slow_rows_pi_percent", "… Raspberry Pi 4, rows in slow sessions"),
    *(
        Row(f"budget_violation_pool_{pool}{key}_percent", f"picks from {pool} over their budget, worst table, {what}", 5.0)
        for pool in POOLS
        for key, what in (("", "as recorded"), ("_dealt", "disturbances dealt anew"))
    ),
    Row("shuffled_refused_percent", "tables of shuffled times that are refused", 100.0, at_least=True),
    Row("real_refused_percent", "real tables that are refused", 0.0),
    Row("fit_seconds_200", "seconds to fit the default on 200", 10.0),
    Row("predict_seconds_100000", "seconds to predict 100,000", 2.0),
    Row("local_spearman", "this CPU: rank correlation", 0.98, at_least=True),
    Row("local_within_10_percent", "this CPU: share within 10 %", 90.0, at_least=True),
)

REFERENCES = {
    "stack": "stack of the others",
    "ridge": "ridge stacking",
    "one_scale": "one scale factor",
    "of_mean": "the mean as the bound",
    "mlp": "HAT's MLP from 1,600",
    "by_sizes": "without the family",
}


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    folder = Path(words.data) if words.data is not None else None
    tables = {name: load_table(table, folder) for name, table in HAT.items()}
    parts: dict[str, Callable[[], Mapping[str, float]]] = {
        "HAT's tables": lambda: of_hat(tables, preset.splits),
        "Energy": lambda: {"hat_energy_mape_100": of_energy(load_table("hat_gtx1080_energy", folder), preset.splits)},
        "Jetson Nano": lambda: of_jetson(folder, preset.splits),
        "Onboarding": lambda: {
            **onboard_hat(tables, preset.splits),
            **onboard_cells(folder, preset.splits),
            **onboard_npus(folder, preset.splits),
        },
        "Budgets": lambda: of_budgets(tables, splits=preset.splits, budgets=preset.budgets),
        "Shuffled tables": lambda: of_shuffled(tables, preset.splits),
        "Speed": lambda: of_speed(tables["pi"]),
    }
    if preset.thorough:
        parts["HAT's perceptron, for comparison"] = lambda: of_hat_mlp(tables)
        parts["This machine"] = lambda: of_this_machine(report)
    figures: dict[str, float] = {"splits": preset.splits}
    for title, part in parts.items():
        with report.phase(title, 1):
            figures |= part()
    _show(figures, report)
    return figures


def of_hat(tables: Mapping[str, RecordedTable], splits: int) -> dict[str, float]:
    """The default from 32 and 64 on all rows, and from 50 on sound rows; with the constant predictor and the ranks beside it."""
    figures = {}
    for name, table in tables.items():
        costs, num = hat.costs(table.rows), 64 if name == "xeon" else 32
        figures[f"hat_{name}_mape_{num}"], figures[f"hat_{name}_spearman_{num}"] = judged(
            Ensemble, costs, table.values, num, splits
        )
        figures[f"hat_{name}_constant_mape"] = mape(np.full(len(table.values), np.median(table.values)), table.values)
        found = sessions(table.values, PhysicalRegressor().fit(costs, table.values).predict(costs))
        figures[f"hat_{name}_sound_share_percent"] = 100 * float(np.mean(found.sound))
        figures[f"hat_{name}_sound_mape_50"], _ = judged(Ensemble, costs, table.values, 50, splits, rows=found.sound)
    return figures


def of_hat_mlp(tables: Mapping[str, RecordedTable]) -> dict[str, float]:
    """The published predictor by its own recipe: the ten features, 1,600 rows; `MLP_SPLITS` splits."""
    figures = {}
    for name in ("pi", "xeon", "titanxp"):
        table = tables[name]
        figures[f"hat_{name}_mlp_mape_1600"], _ = judged(hat_mlp, table.rows, table.values, 1600, MLP_SPLITS)
    return figures


def of_energy(table: RecordedTable, splits: int) -> float:
    return judged(Ensemble, hat.costs(table.rows), table.values, 100, splits)[0]


def of_jetson(folder: Path | None, splits: int) -> dict[str, float]:
    """Transformers of timm, from the sizes and the family that the table gives; four fifths are fitted.

    Families of several models have prices of their own for a network and for a multiplication: what these cost depends on what
    surrounds them. Sizes alone stand beside it.
    """
    figures = {}
    for name in ("cpu", "gpu"):
        table = load_table(f"jetson_nano_{name}", folder)
        chosen = np.array([kind == "transformer" for kind in table.extra["type"]])
        rows, families = table.rows[chosen], np.array(table.extra["family"])[chosen]
        known, counts = np.unique(families, return_counts=True)
        own = (families[:, None] == known[counts >= FEWEST_OF_FAMILY]).astype(float)
        ways = {"": own, "_by_sizes": own[:, :0]}
        for way, by_family in ways.items():
            gmacs = rows[:, [table.features.index("gmacs")]]
            costs = np.hstack([np.ones((len(rows), 1)), rows, by_family, by_family * gmacs])
            figures[f"jetson_{name}{way}_mape"], figures[f"jetson_{name}{way}_spearman"] = judged(
                Ensemble, costs, table.values[chosen], int(0.8 * len(costs)), splits
            )
    return figures


def of_shuffled(tables: Mapping[str, RecordedTable], splits: int) -> dict[str, float]:
    """From 64 measurements: shuffled times have no signal, the real ones have."""
    refused: dict[bool, list[bool]] = {True: [], False: []}
    for table in tables.values():
        costs = hat.costs(table.rows)
        for train, _ in random_splits(len(costs), 64, splits):
            for shuffle in (True, False):
                times = table.values[train]
                times = np.random.default_rng(0).permutation(times) if shuffle else times
                unseen = Bounded(PhysicalRegressor()).unseen(costs[train], times)
                refused[shuffle].append(no_signal(times, unseen) is not None)
    shares = {shuffle: 100 * float(np.mean(found)) for shuffle, found in refused.items()}
    return {"shuffled_refused_percent": shares[True], "real_refused_percent": shares[False]}


def of_speed(table: RecordedTable) -> dict[str, float]:
    costs = hat.costs(table.rows)
    start = time.perf_counter()
    model = Ensemble().fit(costs[:200], table.values[:200])
    fitted = time.perf_counter()
    model.predict(np.tile(costs, (50, 1)))
    return {"fit_seconds_200": fitted - start, "predict_seconds_100000": time.perf_counter() - fitted}


def of_this_machine(report: Reporter) -> dict[str, float]:
    """The encoder space on this CPU: fitted to 60 networks, judged on 20 others."""
    figures = first_light.judge_local_predictor(num_fit=60, num_held_out=20, report=report)
    return {
        "local_spearman": figures["predictor_spearman"],
        "local_mape_percent": figures["predictor_mape_percent"],
        "local_within_10_percent": figures["predictor_within_10_percent"],
    }


def _show(figures: Mapping[str, float], report: Reporter) -> None:
    table = Table(
        "figure", "value", "target", "", "others", box=SIMPLE_HEAD, title="Latency predictors on real devices, MAPE in %"
    )
    for row in (row for row in ROWS if row.key in figures):
        value, sign = figures[row.key], "≥" if row.at_least else "≤"
        missed = row.target is not None and (value < row.target if row.at_least else value > row.target)
        target = f"{sign} {row.target:g}" if row.target is not None else ""
        kind = next((words for part, words in REFERENCES.items() if part in row.beside), "")
        beside = f"{kind}, same run: {figures[row.beside]:.3g}" if row.beside in figures else ""
        others = "; ".join(filter(None, (row.others, beside)))
        table.add_row(row.what, f"{value:.3g}", target, "missed" if missed else "", others)
    report.console.print(table)
    report.say(
        f"Medians over {figures['splits']:.0f} random splits; rows that are judged were never fitted. HAT: 2,000 rows a table."
    )
