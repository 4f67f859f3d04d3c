"""What people read of a finished run: the page, the picture and the table, as files."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from experiments.formatting import format_ms
from experiments.layers import arch_in_short
from experiments.networks import by_time
from experiments.objectives import objective
from experiments.plots.architecture import architecture_figure
from experiments.plots.gains import gains_figure
from experiments.plots.ledger import ledger_figure
from experiments.plots.pareto import pareto_figure
from experiments.plots.predictor import predictor_figure
from experiments.plots.style import NARROW, WIDE, png, svg
from experiments.results import Results
from experiments.roles import ROLES
from experiments.run_directory import replacing
from experiments.sentences import (
    after_stages,
    compare_at_equal_time,
    cost_sentence,
    doubts,
    objective_words,
    search_sentences,
    trivial_sentence,
    trivial_wins,
    trust_sentence,
)  # fmt: skip
from experiments.trust import evidence, gained, sentences
from nas.types import Candidate, Provenance

FILES = ("report.html", "pareto.png", "pareto.csv", "results.json", "trust.json")
KINDS = ("predicted", "measured")
COLUMNS = (
    "id", "role", "label", "error_percent", "error_provenance", "predicted_ms", "predicted_upper_ms", "measured_ms",
    "measured_low_ms", "measured_high_ms", "num_parameters", "on_front", "picked", "arch",
)  # fmt: skip


def write_report(results: Results, candidates: Sequence[Candidate], folder: Path | str) -> tuple[Path, ...]:
    """Writes pareto.csv, pareto.png, results.json, trust.json and report.html, each whole or not at all; returns their paths."""
    trust = evidence(results, candidates)
    contents = {
        "pareto.csv": pareto_csv(results).encode(),
        "pareto.png": png(pareto_figure(results, candidates)),
        "results.json": (json.dumps(results.to_json(), indent=1, allow_nan=False) + "\n").encode(),
        "trust.json": (json.dumps(trust, indent=1, allow_nan=False) + "\n").encode(),
        "report.html": page(results, candidates, trust).encode(),
    }
    for name, content in contents.items():
        with replacing(Path(folder) / name) as path:
            path.write_bytes(content)
    return tuple(Path(folder) / name for name in contents)


def pareto_csv(results: Results) -> str:
    """Every trained network, the fastest first; `on_front` says that no other beats it in all objectives. What is known
    beside error and latency comes last."""
    text = io.StringIO()
    more = results.further
    writer = csv.DictWriter(text, (*COLUMNS, *(f"{kind}_{name}" for name in more for kind in KINDS)), lineterminator="\n")
    writer.writeheader()
    on_front = results.front
    for n in by_time(results.networks):
        facts = {name: getattr(n, name) for name in COLUMNS if hasattr(n, name)}
        flags = {"on_front": n in on_front, "picked": n.id == results.picked_id}
        derived = {"error_provenance": Provenance.RETRAINED, "arch": json.dumps(dict(n.arch))}
        derived |= {f"{kind}_{name}": getattr(n, kind).get(name, "") for name in more for kind in KINDS}
        writer.writerow({**facts, **derived, **{name: str(flag).lower() for name, flag in flags.items()}})
    return text.getvalue()


def page(results: Results, candidates: Sequence[Candidate], trust: Mapping[str, Any]) -> str:
    """The report as one HTML page that needs nothing else; `trust` is their `evidence`."""
    environment = Environment(
        loader=PackageLoader("experiments"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(ms=format_ms, short=arch_in_short, unbroken=_unbroken, after_stages=after_stages)
    curves = trust["hypervolume"]
    pictures = {
        "pareto": _drawn(lambda width: pareto_figure(results, candidates, width=width)),
        "architecture": _drawn(lambda width: architecture_figure(results.picked, results.networks, width=width)),
        "ledger": _drawn(lambda width: ledger_figure(results.ledger, width=width)),
        "predictor": {"wide": _address(predictor_figure(results.predictor, how=results.verdict.how))},
    }
    if gained(curves):
        pictures["gains"] = _drawn(lambda width: gains_figure(curves, width=width))
    return environment.get_template("report.html.j2").render(
        r=results,
        who=ROLES,
        pictures=pictures,
        networks=by_time(results.listed),
        on_front={n.id for n in results.front},
        further=[(name, objective(name).header) for name in results.further],
        objective_words=objective_words(results.objectives),
        comparisons=compare_at_equal_time(results),
        trivial_sentence=trivial_sentence(results),
        warnings=[results.lost] * bool(results.lost) + [trivial_sentence(results)] * trivial_wins(results) + doubts(results),
        search_sentences=search_sentences(results),
        trust_sentence=trust_sentence(results.predictor, how=results.verdict.how),
        evidence=sentences(trust, results),
        gained=gained(curves),
        cost_sentence=cost_sentence(results),
    )


def _unbroken(sentence: str) -> str:
    """With no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|ms\b|MiB\b|mJ\b)", "\u00a0", sentence)


def _drawn(draw: Callable[[float], Figure]) -> dict[str, str]:
    """The picture for a desk and for a phone, as addresses that hold it."""
    widths = {"wide": WIDE, "narrow": NARROW}
    return {name: _address(draw(width)) for name, width in widths.items()}


def _address(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode()
