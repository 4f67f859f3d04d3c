"""`paretoformer bench NAME [preset=quick|full] [out=FILE] …`: runs a benchmark of this package on this machine.

Progress and a table for people go to stdout on the way; the last line of stdout is one JSON document of plain keys and numbers.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import parse
from experiments.formatting import rounded
from experiments.progress import Reporter
from experiments.run_directory import replacing
from experiments.usage import HELP, described

BENCHMARKS = {
    "supernet": "experiments.benchmarks.supernet",
    "first_light": "experiments.benchmarks.first_light",
    "latency": "experiments.benchmarks.latency",
    "spaces": "experiments.benchmarks.spaces",
    "ship": "experiments.benchmarks.ship",
    "darts": "experiments.benchmarks.darts",
    "search": "experiments.benchmarks.search",
    "exhaustive": "experiments.benchmarks.exhaustive",
    "pretrained": "experiments.benchmarks.pretrained",
    "ablation": "experiments.benchmarks.ablation",
}
WIDTH = 130  # of a table where there is no terminal


def main(words: Sequence[str]) -> int:
    """Runs a benchmark, prints its figures and writes them to `out` if that is given.

    Raises:
        ValueError: no or an unknown benchmark or preset, a word that it does not take, or no folder to write to.
    """
    name, *rest = words or [""]
    if any(word in HELP for word in words):
        print(described(BENCHMARKS.get(name, __name__)))
        if name not in BENCHMARKS:
            print(f"\nNAME is one of {', '.join(BENCHMARKS)}; `paretoformer bench NAME --help` says what it takes.")
        return 0
    if name not in BENCHMARKS:
        raise ValueError(f"bench: {name!r} is not one of {tuple(BENCHMARKS)}")
    benchmark = importlib.import_module(BENCHMARKS[name])
    given = parse(benchmark.Words, rest)
    if given.preset not in benchmark.PRESETS:
        raise ValueError(f"preset: {given.preset!r} is not one of {tuple(benchmark.PRESETS)}")
    if given.out is not None and not Path(given.out).absolute().parent.is_dir():
        raise ValueError(f"out: the folder of {given.out!r} does not exist")
    report = Reporter()
    if not report.console.is_terminal:
        report.console.width = WIDTH
    line = json.dumps(rounded(benchmark.run(given, report)), allow_nan=False)
    if given.out is not None:
        with replacing(Path(given.out)) as unfinished:
            unfinished.write_text(line + "\n")
    print(line, flush=True)
    return 0
