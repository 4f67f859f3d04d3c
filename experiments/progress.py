"""Progress for people: a bar with the time left on a terminal, a line a phase and at most one a minute anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from experiments.formatting import format_seconds

PAUSE = 60.0  # seconds between lines where there is no terminal
REDRAW = 0.1  # seconds between two drawings at least: steps may take less
WIDE, BARS = 110, (8, 30)  # columns of a terminal from which on a bar is the longer


class Advance(Protocol):
    """Called with the number of finished steps, a few words, and how many steps there are where that has changed."""

    def __call__(self, finished: int, words: str = "", *, total: int | None = None) -> None: ...


class Reporter:
    """Says what a run does. `quiet` says nothing at all."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=not sys.stdout.isatty())

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def phase(self, title: str, total: int | None = None, *, done: int = 0) -> Iterator[Advance]:
        """A phase of `total` steps, of which `done` were finished by an earlier process; without `total` nothing is counted."""
        start = time.perf_counter()
        if not self.console.is_terminal or self.console.quiet:
            again = f" (going on at {done} of {total})" if done else ""
            self.say(f"{title} …{again}")
            yield self._line_a_minute(title, total, done)
            self.say(f"{title}: done in {time.perf_counter() - start:.0f} s")
            return
        counts, width = total is not None, BARS[self.console.width >= WIDE]
        middle = Column(no_wrap=True, min_width=width)
        columns = (
            TextColumn("{task.description:<29}", table_column=Column(no_wrap=True)),
            BarColumn(width, table_column=middle) if counts else SpinnerColumn("line", finished_text="", table_column=middle),
            _Figures("done", 9), _Figures("clock", 5), _Figures("left", 10),
            TextColumn("{task.fields[words]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )  # fmt: skip
        # Drawn when a step is done and not by a thread, which would disturb what is timed; a thread is for what counts nothing.
        with Progress(*columns, console=self.console, auto_refresh=not counts, refresh_per_second=2, expand=True) as progress:
            task = progress.add_task(title, total=total, completed=done, words="", begun=done, counts=counts)
            progress.refresh()
            drawn = time.monotonic()

            def advance(finished: int, words: str = "", *, total: int | None = None) -> None:
                nonlocal drawn
                progress.update(task, completed=finished, words=words, total=total)
                if time.monotonic() - drawn > REDRAW:
                    progress.refresh()
                    drawn = time.monotonic()

            yield advance
            all_steps = progress.tasks[0].total or 1
            progress.update(task, completed=all_steps, total=all_steps, refresh=True)

    def _line_a_minute(self, title: str, of: int | None, done: int) -> Advance:
        """Says how far a phase is, and about how much longer it takes, if the last words were a minute ago."""
        start = last = time.perf_counter()

        def advance(finished: int, words: str = "", *, total: int | None = None) -> None:
            nonlocal last, of
            now, of = time.perf_counter(), total or of
            if of is not None and now - last > PAUSE and done < finished < of:
                last = now
                left = (now - start) * (of - finished) / (finished - done)
                self.say(f"{title}: {finished} of {of}, about {format_seconds(left)} left")

        return advance


class _Figures(ProgressColumn):
    """One figure of a phase, in a column that no words squeeze: the steps "done", the "clock", or the time "left"."""

    def __init__(self, which: str, width: int) -> None:
        super().__init__(Column(no_wrap=True, min_width=width, justify="right"))
        self.which = which

    def render(self, task: Task) -> Text:
        done, elapsed, fresh = int(task.completed), task.elapsed or 0.0, task.completed - task.fields["begun"]
        if self.which == "clock":
            return Text(_clock(elapsed))
        if task.total is None or not task.fields["counts"]:
            return Text("")
        if self.which == "done":
            return Text(f"{done}/{int(task.total)}")
        return Text(f"{_clock(elapsed * (task.total - done) / fresh)} left" if fresh > 0 and done < task.total else "")


def _clock(seconds: float) -> str:
    """3:49, or 2:03:49."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
