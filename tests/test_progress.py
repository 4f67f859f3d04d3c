"""What a run says on its way, on a terminal and where there is none."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from experiments import progress


def test_a_long_phase_says_once_a_minute_how_much_longer_it_takes(monkeypatch, capsys):
    seconds = iter([0, 0, 30, 61, 90, 125, 180, 180])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    with progress.Reporter().phase("Training", 10, done=2) as advance:
        for finished in (3, 4, 5, 6, 10):
            advance(finished, "loss 1.0")
    assert capsys.readouterr().out.splitlines() == [
        "Training … (going on at 2 of 10)",
        "Training: 4 of 10, about 3 min 3 s left",
        "Training: 6 of 10, about 2 min 5 s left",
        "Training: done in 180 s",
    ]


def drawn(width, monkeypatch, *, title, total, steps):
    """The last line that a phase draws on a terminal of so many columns, before it ends."""
    reporter, screen = progress.Reporter(), io.StringIO()
    reporter.console = Console(force_terminal=True, no_color=True, width=width, file=screen, legacy_windows=False)
    monkeypatch.setattr(progress, "REDRAW", -1.0)
    with reporter.phase(title, total) as advance:
        for finished, words in steps:
            advance(finished, words)
        time.sleep(0.0 if total else 1.3)
        lines = Text.from_ansi(screen.getvalue()).plain.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-1]


@pytest.mark.parametrize("title", ["Training the short-list", "Random search, for comparison", "Comparing on the test split"])
def test_words_alone_are_cut_on_a_terminal_of_80_columns(title, monkeypatch):
    line = drawn(80, monkeypatch, title=title, total=45000, steps=[(1200, "1 of 9, random search ad0fa99f65: error 97.7 %")])
    assert len(line) <= 80
    assert re.fullmatch(rf"{title} +1200/45000 +0:00 +0:\d\d left .*…? *", line), line


def test_what_cannot_be_counted_shows_a_clock_that_runs_by_itself(monkeypatch):
    line = drawn(80, monkeypatch, title="Trivial baselines", total=None, steps=[])
    assert re.fullmatch(r"Trivial baselines +[-\\|/] +0:01 *", line), line
