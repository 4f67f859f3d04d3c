"""What people read of a finished run: the page, the picture and the table as files, and the last lines on the screen."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments.formatting import format_count, format_ms, format_seconds
from experiments.layers import arch_in_short
from experiments.networks import PLANE, Network
from experiments.objectives import OBJECTIVES, column, objective
from experiments.plots.architecture import architecture_figure
from experiments.plots.gains import gains_figure
from experiments.plots.ledger import ledger_figure
from experiments.plots.pareto import pareto_figure
from experiments.plots.predictor import predictor_figure
from experiments.plots.style import NARROW, WIDE, png, svg
from experiments.results import PredictorReport, Results
from experiments.roles import ROLES
from experiments.run_directory import replacing
from experiments.trust import evidence, gained, sentences
from nas.types import Candidate, Provenance

FILES = ("report.html", "pareto.png", "pareto.csv", "results.json", "trust.json")
KINDS = ("predicted", "measured")
FEW_EXAMPLES = 100  # of a split, below which one more wrong answer is more than a point of error
COLUMNS_OF_TERMINAL, LEAST_OF_BY = 80, len("random")
TONES = {True: "green", False: "red", None: "yellow"}
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
        warnings=[results.lost] * bool(results.lost)
        + [trivial_sentence(results)] * trivial_wins(results)
        + [s for s in (few_sentence(results), beaten_sentence(results), tied_sentence(results)) if s]
        + [f"Differentiable search: {alarm}" for alarm in results.alarms]
        + list(results.cautions),
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


def by_time(networks: Sequence[Network]) -> list[Network]:
    return sorted(networks, key=lambda n: (n.latency_ms, n.error_percent))


@dataclass(frozen=True)
class Comparison:
    """A network of another origin, and the search's most accurate one that takes no more time, if there is any."""

    other: Network
    ours: Network | None

    @property
    def points(self) -> float:
        """Error of ours minus that of the other: negative where the search is better."""
        assert self.ours is not None
        return self.ours.error_percent - self.other.error_percent


def compare_at_equal_time(results: Results) -> list[Comparison]:
    """For every network that the search did not find, the fastest first."""
    comparisons = []
    for other in by_time(results.of_role("random") + results.of_role("hand")):
        as_fast = [n for n in results.of_role("search") if n.latency_ms <= other.latency_ms]
        comparisons.append(Comparison(other, min(as_fast, key=lambda n: n.error_percent, default=None)))
    return comparisons


def trivial_wins(results: Results) -> bool:
    """Whether something that needs no network has a lower validation error than what ships."""
    return results.best_trivial is not None and results.best_trivial[1] < results.shipped.error_percent


def after_stages(results: Results) -> str:
    """Which stages are in what ships, and what it was before; empty without any."""
    kept = [stage.name for stage in results.kept_stages]
    return f" after {', '.join(kept)} ({results.picked.error_percent:.2f} % before)" if kept else ""


def trivial_sentence(results: Results) -> str:
    """Whether the networks are worth having at all, in plain words."""
    if results.best_trivial is None:
        return "No baseline without a network was run for this task."
    name, error = results.best_trivial
    ships = results.shipped
    best = min(*results.networks, ships, key=lambda n: n.error_percent)
    if error < best.error_percent:
        return (
            f"A baseline without a network is better than every network here: {name} has {error:.2f} % validation error, the "
            f"network that ships {ships.error_percent:.2f} %, the best one trained {best.error_percent:.2f} %. Where the device "
            f"can run it, it is the better choice."
        )
    if error < ships.error_percent:
        return (
            f"A baseline without a network is better than the network that ships: {name} has {error:.2f} % validation error, the "
            f"network {ships.error_percent:.2f} %. The best one trained, {best.id}, has {best.error_percent:.2f} %."
        )
    verb = "is level with" if error == ships.error_percent else "beats"
    return (
        f"The network that ships {verb} the best baseline without a network: {ships.error_percent:.2f} % validation error, "
        f"{name} has {error:.2f} %."
    )


def beaten_sentence(results: Results) -> str:
    """Says so if what ships, or what is better and no slower, was not found by the search; empty otherwise."""
    ships = results.picked
    if ships.role != "search":
        name = f"{ships.id} ({ships.label})"
        return f"The network that ships was not found by the search: {name} is the most accurate within the budget."
    others = [c.other for c in compare_at_equal_time(results)]
    others = [n for n in others if all(n.value(name) <= verdict.asked for name, verdict in results.beside.items())]
    better = [n for n in others if n.latency_ms <= ships.latency_ms and n.error_percent < ships.error_percent]
    if not better:
        return ""
    best = min(better, key=lambda n: n.error_percent)
    return (
        f"A network that the search did not find is better than the one that ships: {best.id} ({best.label}) has "
        f"{best.error_percent:.2f} % validation error in {format_ms(best.latency_ms)} ms, {ships.id} "
        f"{ships.error_percent:.2f} % in {format_ms(ships.latency_ms)} ms."
    )


def tied_sentence(results: Results) -> str:
    """Says so if what ships is tied for best with a network that takes less time; empty otherwise."""
    ships, tied = results.picked, [n for n in results.networks if n.id in results.tied_for_best]
    fastest = min(tied, key=lambda n: n.latency_ms, default=ships)
    if ships not in tied or fastest.latency_ms >= ships.latency_ms:
        return ""
    return (
        f"The test split cannot tell {fastest.id} ({fastest.label}) from the best either, as they were trained, and it takes "
        f"{fastest.latency_ms / ships.latency_ms:.2f} of the time: pick={fastest.id} exports it."
    )


def few_sentence(results: Results) -> str:
    """Says so if the splits that errors are read from are small; empty otherwise."""
    num = results.ties["num_test"] if results.ties else FEW_EXAMPLES
    if num >= FEW_EXAMPLES:
        return ""
    return f"Errors are rough: the test split has only {num} examples, one of which is {100 / num:.1f} % of it."


def objective_words(objectives: Sequence[str]) -> str:
    """`both latency and error`, or `all of latency, error and memory`."""
    words = [objective(name).words for name in sorted(objectives, key=_rank)]
    listed = f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{'both' if len(words) == 2 else 'all of'} {listed}"


def _rank(name: str) -> int:
    known = [*PLANE, *OBJECTIVES]
    return known.index(name) if name in known else len(known)


def search_sentences(results: Results) -> list[str]:
    """How the search did against random search and hand-designed networks, as it came out."""
    on_front = results.front
    counts = [f"{words} {sum(n.role == role for n in on_front)}" for role, words in ROLES.items() if results.of_role(role)]
    sentences = [f"Networks that no other one beats in {objective_words(results.objectives)}, by origin: {', '.join(counts)}."]
    comparisons = compare_at_equal_time(results)
    if comparisons:
        won = sum(c.ours is not None and c.points < 0 for c in comparisons)
        sentences.append(
            f"For {won} of {len(comparisons)} other networks the search has one with a lower error and no more time."
        )
    areas = results.hypervolumes
    if areas:
        ms, percent = results.hypervolume_reference
        listed = ", ".join(f"{ROLES.get(role, role)} {area:.5g}" for role, area in areas.items())
        sentences.append(
            f"Hypervolume up to {format_ms(ms)} ms and {percent:.4g} % error, of trained networks (larger is better): {listed}."
        )
    if areas.get("search", 0.0) > 0 and areas.get("random", 0.0) > 0:
        lead = 100 * (areas["search"] / areas["random"] - 1)
        if abs(lead) < 0.005:
            sentences.append("By this measure the search and random search are level.")
        elif lead > 0:
            sentences.append(f"By this measure the search is {lead:.2f} % ahead of random search.")
        else:
            sentences.append(f"By this measure the search is {-lead:.2f} % behind random search: here it was not worth its cost.")
    return sentences


def trust_sentence(predictor: PredictorReport, *, how: str = "measured") -> str:
    """How far the predicted latencies can be believed; `how` is `Verdict.how`."""
    p = predictor
    rank = "too few to rank" if p.spearman is None else f"rank correlation {p.spearman:.3f}"
    useless = (
        " It is no better than a constant: do not trust its predictions." if p.mape_percent >= p.constant_mape_percent else ""
    )
    return (
        f"The latency model was fitted to {p.num_fit} {how} networks and judged on {p.num_held_out} others that it had not "
        f"seen: mean error {p.mape_percent:.1f} % (always guessing the median: {p.constant_mape_percent:.1f} %), {rank}, "
        f"{p.within_10_percent:.0f} % of the predictions within 10 %. {p.coverage_percent:.0f} % of the networks were no slower "
        f"than their upper bound.{useless}"
    )


def health_sentence(checks: Sequence[Mapping[str, Any]]) -> str:
    """How the differentiable search went, from what `nas.guards.Health` wrote; empty if it wrote nothing."""
    if not checks:
        return ""
    first, last = checks[0], checks[-1]
    entropy = [fmean(check["entropy"].values()) for check in (first, last)]
    alarms = sum(bool(check["alarm"]) for check in checks)
    frozen = f"; the weights of {last['frozen']} of its branches stand still in the end" if last.get("frozen") else ""
    return (
        f"The differentiable search was looked at {len(checks)} times. Mean entropy of its choices {entropy[0]:.2f} at first and "
        f"{entropy[1]:.2f} in the end, share of what can be skipped and is {first['skip_share']:.2f} and "
        f"{last['skip_share']:.2f}, largest eigenvalue of the loss's Hessian in the logits {first['sharpness']:.2g} and "
        f"{last['sharpness']:.2g}; loss on the architecture split at most "
        f"{max(check['gap'] for check in checks):.3f} above that on the training split; its alarm tripped {alarms} times"
        f"{frozen}."
    )


def cost_sentence(results: Results) -> str:
    """What the run cost in all."""
    ledger = results.ledger
    wall, cpu = sum(entry.seconds for entry in ledger), sum(entry.cpu_seconds for entry in ledger)
    memory = max((entry.peak_memory_mib for entry in ledger), default=0.0)
    trained = sum(entry.networks_trained for entry in ledger)
    return (
        f"{format_seconds(wall)} in all ({format_seconds(cpu)} of CPU time), {trained} networks trained, at most "
        f"{memory:.0f} MiB of memory."
    )


def front_table(results: Results) -> Table:
    """Every trained network for the terminal, the fastest first; where it is narrow, only who designed a network is cut. What is
    predicted of latency gives way to objectives for which `COLUMNS_OF_TERMINAL` has no room."""
    more = [name for name in results.further if name != "parameters"]
    on_front = {n.id for n in results.front}
    rows = []
    for n in by_time(results.listed):
        marks = ["front"] * (n.id in on_front) + ["ships"] * (n.id == results.picked_id)
        times = {results.verdict.how: n.measured_ms, "predicted": n.predicted_ms, "upper": n.predicted_upper_ms}
        cells = {"network": n.id, "by": n.label if n.role == "hand" else n.role, "error %": f"{n.error_percent:.2f}"}
        cells |= {name: format_ms(time) for name, time in times.items()} | {"params": format_count(n.num_parameters)}
        rows.append(cells | {_in_lines(column(name)): f"{n.value(name):.3g}" for name in more} | {"": ", ".join(marks)})
    left_out = []
    for name in ("upper", "predicted"):
        if _width(rows) > COLUMNS_OF_TERMINAL:
            left_out.append(name)
            rows = [{head: cell for head, cell in cells.items() if head != name} for cells in rows]
    elsewhere = f"; {' and '.join(left_out)} {'is' if len(left_out) == 1 else 'are'} in pareto.csv" if left_out else ""
    staged = (
        f"\n{results.picked_id} as it ships, after its stages; all others as they were trained" if results.kept_stages else ""
    )
    caption = Text(f"latency in ms; errors are {results.error_means}{elsewhere}{staged}", style="dim")
    table = Table(
        title=Text(f"{results.title}: trained networks"), title_justify="left", title_style="bold", caption=caption,
        caption_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False,
    )  # fmt: skip
    for head in rows[0]:
        if head == "by":
            table.add_column(head, min_width=LEAST_OF_BY)
        else:
            table.add_column(head, justify="left" if head in ("network", "") else "right", no_wrap=True)
    for cells in rows:
        style = "bold green" if cells["network"] == results.picked_id else "" if cells["network"] in on_front else "dim"
        shown = (Text(cell, no_wrap=head == "by", overflow="ellipsis") for head, cell in cells.items())
        table.add_row(*shown, style=style)
    return table


def _in_lines(head: str) -> str:
    """The parts of a name one under the other: a device's may be longer than its times."""
    return re.sub(r"[ _-]", "\n", head)


def _width(rows: Sequence[Mapping[str, str]]) -> int:
    """Of a table of these cells, with as little as may be of who designed a network."""
    widths = [
        LEAST_OF_BY if head == "by" else max(map(len, (*head.split("\n"), *(cells[head] for cells in rows)))) for head in rows[0]
    ]
    return sum(widths) + len(widths) - 1


def summary(results: Results, folder: Path | str) -> list[Table | Text]:
    """The last lines of a run: the table, what ships, the verdict, whether a trivial baseline is better, and the files."""
    shipped, verdict = results.shipped, results.verdict
    return [
        front_table(results),
        Text(
            f"Ships {shipped.id}{after_stages(results)}: validation error {shipped.error_percent:.2f} %, test error of the "
            f"exported file {results.test_error_percent:.2f} %, {shipped.num_parameters:,} parameters."
        ),
        *([Text(results.lost, style="bold red")] if results.lost else []),
        Text(verdict.sentence, style=f"bold {TONES[verdict.kept]}"),
        *(Text(f"On {name}: {v.sentence}", style=f"bold {TONES[v.kept]}") for name, v in results.elsewhere.items()),
        *(Text(v.sentence, style=f"bold {TONES[v.kept]}") for v in results.beside.values()),
        Text(trivial_sentence(results), style="yellow" if trivial_wins(results) else ""),
        *(
            Text(said, style="yellow")
            for said in (few_sentence(results), beaten_sentence(results), tied_sentence(results))
            if said
        ),
        *(Text(f"Differentiable search: {alarm}", style="yellow") for alarm in results.alarms),
        *(Text(caution, style="yellow") for caution in results.cautions),
        Text(f"Written to {folder}: {', '.join((*FILES, *_folders(results.files)))}"),
    ]


def _folders(files: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(f"{Path(file).parent}/" for file in files))
