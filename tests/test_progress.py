"""What a run says on its way where there is no terminal."""

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
