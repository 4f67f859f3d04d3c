"""`paretoformer calibrate device=…`: fits a latency predictor to a device and says how far it can be trusted.

    paretoformer calibrate device=recorded device.table=hat_raspberrypi4 data=DIR
    paretoformer calibrate device=recorded device.table=FILE.csv device.features=depth,width device.target=time device.unit=ms
    paretoformer calibrate device=recorded device.table=jetson_nano_cpu data=DIR space=encoder
    paretoformer calibrate device=local_cpu space=encoder run=DIR minutes=5 margin=4

A recorded device is a table; `predict=FILE` writes mean, std and bounds for new rows. With a space of networks, prices for these
are fitted to the well-known networks of the table, as a search does. Any other device is measured as in the first phase of a
search, then on where the predictor is least certain, until its upper bound is at most `margin` percent above the mean or the
`minutes` are over. It can be stopped and goes on, and its measurements are known to every later search. Ten are enough for a
device where others are known: `latency_model=onboarded latency_model.known=[FILE] calibration.num_fit=10`. With networks,
`predict=FILE` is a CSV file whose column `arch` holds them as JSON, as in the `pareto.csv` of a run.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.arguments import parse
from experiments.build import build
from experiments.config import composed
from experiments.formatting import format_figure
from experiments.progress import Reporter
from experiments.run_directory import replacing
from hardware.csv_table import read_csv_rows, read_csv_table
from hardware.table_checks import cautions
from hardware.tables import TABLES, load_table, origin
from latency_models.table import TablePredictor
from nas.protocols import DifferentiableLatencyModel
from nas.space import Architecture, SearchSpace
from nas.tables import RecordedTable
from nas.types import Prediction
from search_spaces import hat

OF_NETWORKS = ("space", "task", "experiment")  # words of a search for networks that can be built
WORST = 10  # rows of a table that are shown: those with the largest errors
FIGURES = ("mean", "std", "lower", "upper")


@dataclass
class TableWords:
    """What `device=recorded` takes; the features, target and unit of a table of one's own."""

    table: str = MISSING  # a name of `paretoformer devices`, or a CSV file
    features: str = ""  # columns, with commas between
    target: str = ""
    unit: str = ""
    data: str | None = None  # folder of the recorded tables; null: the user's cache folder
    predict: str | None = None  # a CSV file with the features of networks that nobody has measured
    out: str | None = None  # where their predictions go; null: beside it
    space: str = ""  # hat, whose networks are the rows of HAT's tables
    coverage: float = field(default=0.9)  # of the upper bound


def main(words: Sequence[str]) -> int:
    """Raises ValueError: whatever a table, a configuration or a predictor refuses, in one line."""
    words = [word.removeprefix("--") for word in words]
    for index, word in enumerate(words[:-1]):
        if word == "predict":  # also as --predict FILE
            words[index : index + 2] = [f"predict={words[index + 1]}"]
    report = Reporter()
    of_networks = any(word.partition("=")[0] in OF_NETWORKS and word != "space=hat" for word in words)
    if "device=recorded" in words and not of_networks:
        rest = [word.removeprefix("device.") for word in words if word != "device=recorded"]
        calibrate_table(parse(TableWords, [_quoted(word) for word in rest]), report)
    else:
        calibrate_device(words, report)
    return 0


def _quoted(word: str) -> str:
    """Commas belong to the value of `features`."""
    name, equals, value = word.partition("=")
    return f"{name}='{value}'" if name == "features" and equals else word


def calibrate_table(words: TableWords, report: Reporter) -> None:
    """Fits, judges and predicts."""
    table = read_table(words)
    if words.space and table.features != hat.FEATURES:
        raise ValueError(f"space: {table.name} does not hold networks of the space {words.space}")
    with report.phase(f"Fitting {len(table)} rows"):
        costs = hat.costs if table.features == hat.FEATURES else None
        predictor = TablePredictor(costs=costs, coverage=words.coverage).fit(table)
    for line in cautions(table):
        report.say(f"{table.name}: {line}")
    _show(table, predictor, report)
    if words.predict is not None:
        rows = read_csv_rows(words.predict, features=table.features)
        known = [dict(zip(table.features, row, strict=True)) for row in rows.tolist()]
        _write(words.predict, words.out, known, predictor.predict(rows), table.unit, report)


def read_table(words: TableWords) -> RecordedTable:
    """A recorded table by its name, or a user's own file."""
    if words.table in TABLES:
        return load_table(words.table, words.data)
    if not words.table.endswith(".csv"):
        raise ValueError(f"device.table: {words.table!r} is neither a name that `paretoformer devices` lists nor a .csv file")
    for name in ("features", "target", "unit"):
        if not getattr(words, name):
            raise ValueError(f"device.{name}=… is missing: a table of your own needs its features, target and unit")
    features = tuple(name.strip() for name in words.features.split(","))
    return read_csv_table(words.table, features=features, target=words.target, unit=words.unit)


def _show(table: RecordedTable, predictor: TablePredictor, report: Reporter) -> None:
    quality, drift = predictor.quality_, predictor.sessions_
    shown = Table("", "", box=SIMPLE_HEAD, title=f"{table.name}: {table.device}", show_header=False)
    shown.add_row("rows", f"{len(table)}, {int(table.outliers.sum())} flagged as outliers, none dropped")
    shown.add_row("source", origin(table.source) if table.source.repository else table.source.file)
    members = ", ".join(f"{name} {weight:.0%}" for name, weight in predictor.model_.weights_.items())
    shown.add_row("predictor", members)
    shown.add_row(
        "error (MAPE)", f"{quality.mape_percent:.1f} %; of the constant predictor {quality.constant_mape_percent:.1f} %"
    )
    shown.add_row("rank correlation", f"{quality.spearman:.3f}")
    shown.add_row("within 10 %", f"{quality.within_10_percent:.0f} %")
    shown.add_row("upper bound", f"mean x {predictor.interval_.upper:.3f}, covers {quality.coverage_percent:.0f} %")
    shown.add_row("lower bound", f"mean x {predictor.interval_.lower:.3f}")
    shown.add_row("drift", f"{drift.share_shifted:.0%} of the rows, in the order of the file, are of sessions more than 5 % off")
    if predictor.drift_removed_:
        recorded = predictor.recorded_quality_
        shown.add_row(
            "drift removed", f"with it, MAPE {recorded.mape_percent:.1f} % and the bound covers {recorded.coverage_percent:.0f} %"
        )
    report.console.print(shown)
    report.say("Errors are cross-validated: every row was predicted by a fit that did not see it.")


def _write(
    source: str, out: str | None, rows: Sequence[Mapping[str, Any]], prediction: Prediction, unit: str, report: Reporter
) -> None:
    """The rows of a file with what is predicted of each, beside it unless `out` names another place."""
    path = Path(out) if out is not None else Path(source).with_suffix(".predicted.csv")
    columns = (getattr(prediction, f"{name}_ms").tolist() for name in FIGURES)
    names = [f"{name}_{unit}" for name in FIGURES]
    with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(name for name in rows[0] if name not in names), *names], extrasaction="ignore")
        writer.writeheader()
        for row, *values in zip(rows, *columns, strict=True):
            writer.writerow({**row, **{name: f"{value:.6g}" for name, value in zip(names, values, strict=True)}})
    report.say(f"Written: {path} ({len(rows)} rows)")


def read_networks(path: str, space: SearchSpace) -> tuple[list[dict[str, str]], list[Architecture]]:
    """The rows of a CSV file, and the networks that its column `arch` holds as JSON.

    Raises:
        ValueError: a file that cannot be read or has no rows or no such column, or a row that is no network of the space.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"predict: {path} cannot be read: {error}") from error
    if not rows or "arch" not in rows[0]:
        raise ValueError(f"predict: {path} has no rows with a column arch, which holds networks as in the pareto.csv of a run")
    archs = []
    for number, row in enumerate(rows, 2):
        try:
            archs.append(space.canonical(dict(json.loads(row["arch"]))))
        except (TypeError, ValueError) as error:
            raise ValueError(f"predict: line {number} of {path} is no network of the space {space.name}: {error}") from error
    return rows, archs


def calibrate_device(words: Sequence[str], report: Reporter) -> None:
    """The first phase of a search with the same words, and then on until the bound is narrow or the minutes are over; these count
    from the start, though what a search needs is measured whatever it takes."""
    limits, files = {"minutes": 0.0, "margin": 0.0}, {}
    for word in words:
        name, _, value = word.partition("=")
        if name in limits:
            limits[name] = _not_negative(name, value)
        if name in ("predict", "out"):
            files[name] = value
    words = [word for word in words if word.partition("=")[0] not in (*limits, *files)]
    recorded = "device=recorded" in words
    if recorded and any(limits.values()):
        raise ValueError("minutes, margin: nothing can be measured on a recorded table; leave them out")
    words = [f"device.{word}" if recorded and word.startswith("data=") else word for word in words]
    start = time.monotonic()
    pipeline = build(composed(*words), report=report)
    space = pipeline.family.space
    rows, archs = read_networks(files["predict"], space) if "predict" in files else ([], [])
    with pipeline.run.lock():
        pipeline.claim()
        calibration = pipeline.calibrate()
        if any(limits.values()):
            minutes = limits["minutes"] - (time.monotonic() - start) / 60 if limits["minutes"] else math.inf
            pipeline.calibrator().refine(
                calibration.model, calibration, minutes=minutes, margin_percent=limits["margin"], seed=pipeline.settings.seed
            )
            calibration = pipeline.calibrate()  # judged with all that is known now
    held_out = sorted(calibration.held_out, key=lambda row: -abs(math.log(row["predicted_ms"] / row["measured_ms"])))
    title = f"The worst of {len(held_out)}" if recorded and len(held_out) > WORST else "Held out"
    shown = Table("network", "measured (ms)", "predicted (ms)", "upper bound (ms)", box=SIMPLE_HEAD, title=title)
    for row in held_out[:WORST] if recorded else calibration.held_out:
        shown.add_row(row["id"], *(format_figure(row[f"{name}_ms"]) for name in ("measured", "predicted", "upper")))
    report.console.print(shown)
    quality = calibration.quality
    report.say(
        f"From {quality['num_fit']:.0f} networks: MAPE {quality['mape_percent']:.1f} %, rank correlation "
        f"{quality['spearman']:.3f}, within 10 % {quality['within_10_percent']:.0f} %, the bound covers "
        f"{quality['coverage_percent']:.0f} %"
    )
    assert isinstance(calibration.model, DifferentiableLatencyModel)  # as the pipeline requires
    margin = 100 * (calibration.model.upper_factor() - 1)
    bound = f"the upper bound is {margin:.1f} % above the mean."
    if recorded:
        report.say(f"For networks of the space {space.name}, {bound} A search with the same words fits the same again.")
    else:
        kept = pipeline.store.path(pipeline.device, pipeline.family.signature, pipeline.workload)
        report.say(f"Known now: {len(calibration.measurements)} networks; {bound} Kept in {kept}")
    if archs:
        _write(files["predict"], files.get("out"), rows, calibration.model.predict(archs), "ms", report)


def _not_negative(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: {text!r} is not a number that is at least 0")
    return value
