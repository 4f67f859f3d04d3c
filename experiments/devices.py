"""`paretoformer devices [data=DIR]`: the devices that a search can be asked for.

First those that measure: each file of `conf/device`, and whether this machine has what it needs. Then those that others have
measured: the recorded tables, with the licence, the home and the state of each file.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.arguments import parse
from experiments.build import make
from experiments.formatting import aligned
from experiments.progress import Reporter
from hardware.table_checks import cautions, same_device
from hardware.tables import TABLES, default_folder, is_there, load_table, origin
from nas.protocols import DeviceError
from nas.tables import RecordedTable
from search_spaces.named import match

HEADER = ("table", "device", "kind", "runtime", "precision", "rows", "unit", "flagged", "known")


@dataclass
class Words:
    """What the command takes."""

    data: str | None = None  # the folder of the recorded tables


def main(words: Sequence[str]) -> int:
    """Raises ValueError: a word that it does not take, or a folder that does not exist."""
    given = parse(Words, words)
    if given.data is not None and not Path(given.data).is_dir():
        raise ValueError(f"data: {given.data!r} is not a folder")
    folder = Path(given.data) if given.data is not None else default_folder()
    report = Reporter()
    report.say("Devices that measure (device=NAME):")
    for line in aligned([list(row) for row in live_devices()]):
        report.say(f"  {line}")
    report.say(f"\nRecorded devices (device=recorded device.table=NAME), in {folder}:")
    tables, refused = there(folder)
    lines = iter(aligned([list(HEADER), *(described(table) for table in tables.values())]))
    report.say(f"  {next(lines)}")
    for file, names in groupby(TABLES, key=lambda name: TABLES[name].source.file):
        chosen = list(names)
        report.say(f"{file}: {origin(TABLES[chosen[0]].source)}")
        if not is_there(chosen[0], folder):
            report.say(f"  not there: {len(chosen)} tables from {chosen[0]} to {chosen[-1]} need it in {folder}")
        for why in dict.fromkeys(refused[name] for name in chosen if name in refused):
            of_it = [name for name in chosen if refused.get(name) == why]
            report.say(f"  CHANGED: {len(of_it)} tables from {of_it[0]} to {of_it[-1]} cannot be used: {why}")
        for name in chosen:
            if name in tables:
                report.say(f"  {next(lines)}")
                for words_ in (*cautions(tables[name]), *filter(None, [TABLES[name].note])):
                    report.say(f"    note: {words_}")
    for a, b, rows in same_device(tables):
        report.say(
            f"{a} and {b} are one measurement under two names ({rows} equal rows): do not train on one and test on the other"
        )
    report.say(
        "\nflagged: rows that look disturbed (never dropped); known: rows of well-known transformers whose sizes are published, "
        "from which a predictor for other transformers on that device can be fitted"
    )
    return 0


def there(folder: Path) -> tuple[dict[str, RecordedTable], dict[str, str]]:
    """The tables whose files lie in the folder, and of those that are not what was recorded why."""
    tables, refused = {}, {}
    for name in TABLES:
        if is_there(name, folder):
            try:
                tables[name] = load_table(name, folder)
            except ValueError as error:
                refused[name] = str(error).removeprefix(f"{name}: ")
    return tables, refused


def live_devices() -> Iterator[tuple[str, str, str]]:
    """The name, the state and what it is of each device in `conf/device`; nothing is measured and nobody is called."""
    for path in sorted(importlib.resources.files("conf").joinpath("device").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            name, text = path.name.removesuffix(".yaml"), path.read_text()
            words = (line.lstrip("# ") for line in text.splitlines() if not line.startswith("# @package"))
            yield name, state(text), next(words)


def state(text: str) -> str:
    """Whether a device can be used as it is written, in words."""
    written: Any = OmegaConf.create(text)
    config = OmegaConf.create({"device": written.get("device", written)})  # a file for the whole configuration has it in a group
    if missing := sorted(OmegaConf.missing_keys(config)):
        return f"needs {missing[0]}=…"
    try:
        facts = make(config, "device").environment
    except (DeviceError, ValueError) as error:
        return f"not here: {error}"
    return "here, emulated" if facts.get("emulated") else "here"


def described(table: RecordedTable) -> list[str]:
    """The cells of a table's line, in the order of `HEADER`."""
    known = len(match(table))
    numbers = (len(table), table.unit, int(table.outliers.sum()), known or "-")
    return [table.name, table.device, table.kind, table.runtime, table.precision, *map(str, numbers)]
