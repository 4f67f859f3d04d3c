"""`paretoformer pareto run=DIR`: the table of a finished run, and its picture and page drawn again, without searching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from experiments.arguments import parse
from experiments.finished_run import existing_run, load
from experiments.progress import Reporter
from experiments.report import write_report
from experiments.summary import summary, written


@dataclass
class Words:
    """What the command takes."""

    run: str = MISSING  # the directory of a finished run


def main(words: Sequence[str]) -> int:
    """What is known is shown before anything is written: also where nothing can be.

    Raises:
        RunError: no such run, or one that is not finished.
        OSError: its files cannot be written.
    """
    run = existing_run(parse(Words, words).run)
    results, candidates = load(run)
    console = Reporter().console
    for line in summary(results):
        console.print(line)
    write_report(results, candidates, run.path)
    for said in written(results, run.path):
        console.print(said)
    return 0
