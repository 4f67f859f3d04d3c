"""`paretoformer pareto run=DIR`: the table of a finished run, and its picture and page drawn again, without searching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from experiments.arguments import parse
from experiments.finished_run import existing_run, load
from experiments.progress import Reporter
from experiments.report import write_report
from experiments.summary import summary


@dataclass
class Words:
    """What the command takes."""

    run: str = MISSING  # the directory of a finished run


def main(words: Sequence[str]) -> int:
    """Raises RunError: no such run, or one that is not finished."""
    run = existing_run(parse(Words, words).run)
    results, candidates = load(run)
    write_report(results, candidates, run.path)
    report = Reporter()
    for line in summary(results, run.path):
        report.console.print(line)
    return 0
