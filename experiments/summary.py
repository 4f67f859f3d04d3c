"""The last lines of a run on the screen: the table of its networks, what ships, the verdicts and the files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments.formatting import format_count, format_ms
from experiments.networks import by_time
from experiments.objectives import column
from experiments.report import FILES
from experiments.results import Results
from experiments.sentences import after_stages, doubts, trivial_sentence, trivial_wins

COLUMNS_OF_TERMINAL, LEAST_OF_BY = 80, len("random")
TONES = {True: "green", False: "red", None: "yellow"}


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


def summary(results: Results) -> list[Table | Text]:
    """What a run found: the table, what ships, the verdict, whether a trivial baseline is better."""
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
        *(Text(doubt, style="yellow") for doubt in doubts(results)),
    ]


def written(results: Results, folder: Path | str) -> list[Text]:
    """The files of a run, and the commands that one goes on with: what ships answers, another network is exported."""
    files = ", ".join((*FILES, *_folders(results.files)))
    answers = [shlex.join(["python", f"{folder}/{file}", "--help"]) for file in results.files if Path(file).name == "predict.py"]
    another = shlex.join(["paretoformer", "export", f"run={folder}", "pick=ID"])
    lines = (f"Written to {folder}: {files}", *(f"It answers by: {line}" for line in answers), f"Another by: {another}")
    return [Text(line) for line in lines]


def _folders(files: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(f"{Path(file).parent}/" for file in files))
