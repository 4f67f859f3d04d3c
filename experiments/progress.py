"""Progress for people: a bar with the time left on a terminal, a line a phase and at most one a minute anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.formatting import format_seconds

PAUSE = 60.0  # seconds between lines where there is no terminal
Advance = Callable[[int, str], None]
"""Called with the number of finished steps and a few words (may be empty)."""


class Reporter:
    """Says what a run does. `quiet` says nothing at all."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=not sys.stdout.isatty())

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def phase(self, title: str, total: int, *, done: int = 0) -> Iterator[Advance]:
        """A phase of `total` steps, of which `done` were finished by an earlier process."""
        start = time.perf_counter()
        if not self.console.is_terminal or self.console.quiet:
            again = f" (going on at {done} of {total})" if done else ""
            self.say(f"{title} …{again}")
            yield self._line_a_minute(title, total, done)
            self.say(f"{title}: done in {time.perf_counter() - start:.0f} s")
            return
        columns = (
            TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), TextColumn("{task.fields[words]}"),
        )  # fmt: skip
        # Drawn when a step is done and not by a thread, which would disturb what is timed.
        with Progress(*columns, console=self.console, auto_refresh=False) as progress:
            bar = progress.add_task(title, total=total, completed=done, words="")
            progress.refresh()
            yield lambda finished, words: progress.update(bar, completed=finished, words=words, refresh=True)
            progress.update(bar, completed=total, refresh=True)

    def _line_a_minute(self, title: str, total: int, done: int) -> Advance:
        """Says how far a phase is, and about how much longer it takes, if the last words were a minute ago."""
        start = last = time.perf_counter()

        def advance(finished: int, words: str) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > PAUSE and done < finished < total:
                last = now
                left = (now - start) * (total - finished) / (finished - done)
                self.say(f"{title}: {finished} of {total}, about {format_seconds(left)} left")

        return advance
