"""What was measured side by side, as a table for people in the manner of hyperfine, and as files of raw samples."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.formatting import format_ms
from experiments.run_directory import replacing
from hardware.ethos_u import Estimate
from hardware.placement import CPU
from hardware.quality import LEAST_ROUNDS, Session, outlier_flags, uncertainty
from hardware.timing import Exported
from nas.robust import OUTLIER_SCORE
from nas.types import Measurement

MANY = 0.1  # share of outliers from which other programs are the likely cause


@dataclass(frozen=True)
class Timed:
    """A network and its times."""

    name: str
    network: Exported
    measurement: Measurement

    @cached_property
    def figures(self) -> dict[str, float]:
        """`latency_ms` has the machine's drift and disturbances removed; all others are of wall times as they were taken."""
        wall = self.measurement.wall_ms
        energy = self.measurement.environment.get("energy_mj")
        return {
            "latency_ms": self.measurement.latency_ms,
            "mean_ms": float(wall.mean()),
            "std_ms": float(wall.std(ddof=1)) if len(wall) > 1 else 0.0,
            "median_ms": float(np.median(wall)),
            "min_ms": float(wall.min()),
            "max_ms": float(wall.max()),
            "p90_ms": float(np.percentile(wall, 90)),
            "p99_ms": float(np.percentile(wall, 99)),
            "runs": len(wall),
            "outliers": sum(map(sum, self.outliers)),
            **({"energy_mj": float(np.median(energy))} if energy else {}),
        }

    @cached_property
    def outliers(self) -> tuple[tuple[bool, ...], ...]:
        return outlier_flags(self.measurement)

    def relative_to(self, other: Timed) -> tuple[float, float]:
        """How many times as long it takes as another network, and the standard error of that (NaN of a single round)."""
        ratio = self.figures["latency_ms"] / other.figures["latency_ms"]
        return ratio, ratio * uncertainty(self.measurement, beside=other.measurement)


def said(timed: Sequence[Timed]) -> Iterator[Table | str]:
    """The table, and what is to be said about it."""
    first = timed[0].measurement
    session = Session.of([t.measurement for t in timed])
    yield times_table(timed)
    yield "latency: of the quietest visits, drift removed. The other times are wall times as they were taken."
    for inputs, alike in groupby(timed, key=_inputs):
        yield f"Inputs of {', '.join(t.name for t in alike)}: {inputs}."
    noise = f"{session.noise:.1%}" if math.isfinite(session.noise) else f"not known of less than {LEAST_ROUNDS} rounds"
    yield (
        f"Device {first.device}, {first.environment['rounds']} rounds: the uncertainty of a latency is {noise}, the quiet speed "
        f"of the machine changed by {session.drift:.1%}."
    )
    for kind in ("emulated", "estimated"):
        if first.environment.get(kind):
            yield f"These times are {kind}: they are no latencies of a real device."
    for t in timed:
        if "estimate" in t.measurement.environment:
            yield f"{t.name}: {Estimate(**t.measurement.environment['estimate'])}."
    for t in timed:
        if "operators" in t.measurement.environment:
            yield f"{t.name}: {_placed(t.measurement.environment['operators'])}."
    if counts := [f"{t.name} {t.figures['outliers']}" for t in timed if t.figures["outliers"]]:
        yield f"Outliers (modified Z-score above {OUTLIER_SCORE}; flagged, none dropped): {', '.join(counts)}."
    if session.outliers > MANY:
        yield f"Advice: {session.outliers:.0%} of the runs are outliers: other programs interrupt them, close those."
    if session.loads:
        yield f"Meanwhile ran: {', '.join(map(str, session.loads))}."
    if advice := session.advice():
        yield f"Advice: {advice}."


def _inputs(t: Timed) -> str:
    return ", ".join(f"{name} {v.dtype} [{', '.join(map(str, v.shape))}]" for name, v in t.network.inputs.items())


def _placed(operators: Sequence[Mapping[str, Any]]) -> str:
    """Who runs how many operators, and which ones the CPU was left."""
    counts = Counter[str]()
    for ran in operators:
        counts[ran["provider"]] += ran["count"]
    left = ", ".join(f"{ran['count']} {ran['operator']}" for ran in operators if ran["provider"] == CPU)
    said = ", ".join(f"{count} of {counts.total()} operators on {provider}" for provider, count in counts.most_common())
    return f"{said}; left to the CPU: {left}" if left else f"{said}; none falls back"


def times_table(timed: Sequence[Timed]) -> Table:
    """One row a network, in the order in which they were given; in µs if the fastest takes less than 0.1 ms."""
    fastest = min(timed, key=lambda t: t.figures["latency_ms"])
    unit, factor = ("µs", 1000.0) if fastest.figures["latency_ms"] < 0.1 else ("ms", 1.0)
    has_energy = any("energy_mj" in t.figures for t in timed)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"Times in {unit}", title_justify="left", title_style="bold")
    table.add_column("network", overflow="fold")
    for name in ("latency", "mean ± σ", "median", "min … max", "p90 / p99", "runs", *["mJ"] * has_energy, "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for t in timed:
        f = {name: format_ms(factor * value) for name, value in t.figures.items() if name.endswith("_ms")}
        ratio, error = t.relative_to(fastest)
        relative = "1.00" if t is fastest else f"{ratio:.2f} ± {error:.2f}" if math.isfinite(error) else f"{ratio:.2f}"
        energy = [format_ms(t.figures["energy_mj"])] if "energy_mj" in t.figures else [""] * has_energy
        table.add_row(
            t.name, f["latency_ms"], f"{f['mean_ms']} ± {f['std_ms']}", f["median_ms"], f"{f['min_ms']} … {f['max_ms']}",
            f"{f['p90_ms']} / {f['p99_ms']}", str(t.figures["runs"]), *energy, relative, style="bold" if t is fastest else "",
        )  # fmt: skip
    return table


def write(path: Path, timed: Sequence[Timed]) -> None:
    """Raw samples in the order in which they were taken, outliers flagged; of a .json file also everything that is known."""
    with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
        if path.suffix == ".json":
            file.write(json.dumps({"networks": [_record(t) for t in timed]}, indent=1, allow_nan=False) + "\n")
            return
        writer = csv.writer(file)
        writer.writerow(["network", "round", "of", "sample", "ms", "outlier"])
        for t in timed:
            for number, (visit, flags) in enumerate(zip(t.measurement.samples_ms, t.outliers, strict=True), start=1):
                rows = zip(visit, flags, strict=True)
                writer.writerows([t.name, number, "network", i, f"{ms:.6f}", int(flag)] for i, (ms, flag) in enumerate(rows))
            for number, visit in enumerate(t.measurement.sentinel_ms, start=1):
                writer.writerows([t.name, number, "sentinel", i, f"{ms:.6f}", ""] for i, ms in enumerate(visit))


def _record(t: Timed) -> dict[str, Any]:
    error = uncertainty(t.measurement)
    return {
        "name": t.name,
        "path": str(t.network.path),
        "inputs": {name: {"type": str(v.dtype), "shape": list(v.shape)} for name, v in t.network.inputs.items()},
        **t.figures,
        "latency_relative_error": error if math.isfinite(error) else None,
        "outlier": t.outliers,
        "measurement": t.measurement.to_json(),
    }
