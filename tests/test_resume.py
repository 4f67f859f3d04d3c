"""A run that is killed in every phase ends with the weights, proposals and trials of one that was never stopped."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from experiments import cli, search
from tests.support.commands import begun, command

SLOWER = (
    "init.train.steps=120", "darts.steps=30", "searcher.evaluations=25", "checkpoint_seconds=0.1", "finish.rungs=[0.4]",
    "finish.train.steps=20", "finish.most_steps=60", "stages=[longer]", "stages.longer.train.steps=150", "torch_threads=1",
    "budget_ms=5",  # which all networks keep, however wide the bound of so brief a calibration is
)  # fmt: skip


def words(run: Path) -> list[str]:
    return ["search", "experiment=smoke", *SLOWER, f"run={run}", f"store={run.parent / 'store'}"]


def lines(path: Path) -> list[dict]:
    """The complete ones: the last may still be written."""
    written = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in written if line.endswith("\n")]


PHASES = {
    "supernet": (signal.SIGKILL, lambda run: (run / "supernet.ckpt").exists()),
    "darts": (signal.SIGKILL, lambda run: (run / "darts.ckpt").exists()),
    "outer loop": (signal.SIGINT, lambda run: len(lines(run / "candidates.jsonl")) >= 7),
    "random search": (signal.SIGTERM, lambda run: len(lines(run / "candidates.jsonl")) >= 32),
    "rung": (signal.SIGKILL, lambda run: sum(c["phase"] == "rung 0.4" for c in lines(run / "candidates.jsonl")) >= 2),
    "network of the short-list": (signal.SIGKILL, lambda run: list((run / "shortlist").glob("*.ckpt"))),
    "short-list": (signal.SIGKILL, lambda run: len(list((run / "shortlist").glob("*.json"))) >= 2),
    "stage": (signal.SIGKILL, lambda run: list((run / "shortlist").glob("*.longer.ckpt"))),
}


def start_and_stop(run: Path, phase: str, *, said: Path) -> None:
    """Starts the search, and stops it as soon as the phase has left something behind."""
    stop, reached = PHASES[phase]
    process = begun(*words(run), said=said)
    deadline = time.monotonic() + 120
    while not reached(run):
        assert process.is_alive(), f"{phase}: it ended before it was stopped: {(said / 'err').read_text()}"
        assert time.monotonic() < deadline, f"{phase}: not reached"
        time.sleep(0.005)
    os.kill(process.pid, stop)
    process.join(60)
    if stop != signal.SIGKILL:
        errors = (said / "err").read_text()
        assert process.exitcode == 130, errors
        assert errors.strip() == f"Stopped. The same command with run={run} goes on where it was."
    else:
        assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command(*words(run))
    assert done.returncode == 0, done.stderr
    return run


def test_killed_in_every_phase(whole, tmp_path):
    cut = tmp_path / "run"
    cut.mkdir()
    for name in ("run.json", "compute.json", "trivial.json"):
        shutil.copy(whole / name, cut)
    calibration = [r for r in lines(whole / "measurements.jsonl") if r["phase"] == "calibration"]
    (cut / "measurements.jsonl").write_text("".join(json.dumps(r) + "\n" for r in calibration))

    for phase in PHASES:
        start_and_stop(cut, phase, said=tmp_path)
    done = command(*words(cut))
    assert done.returncode == 0, done.stderr

    for name in ("supernet.safetensors", "proposals.json", "darts.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("id", "phase", "objectives"):
        of_whole, of_cut = ([c[name] for c in lines(run / "candidates.jsonl")] for run in (whole, cut))
        assert of_cut == of_whole
    trials = [[(t.number, t.params, t.values, t.state) for t in _study(run).get_trials()] for run in (whole, cut)]
    assert trials[0] == trials[1]
    finished = {p.name: p.read_bytes() for p in (whole / "shortlist").glob("*.safetensors")}
    assert finished == {p.name: p.read_bytes() for p in (cut / "shortlist").glob("*.safetensors")}
    assert any(name.endswith(".longer.safetensors") for name in finished)
    repeated = [r["id"] for r in lines(cut / "measurements.jsonl") if r["phase"] == "calibration"]
    assert len(repeated) == len(set(repeated)) == len(calibration)


def _study(run: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(run / "study.journal")))
    return optuna.load_study(study_name="search", storage=storage)


def test_a_finished_run_is_not_searched_again(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.safetensors")}
    num_measurements = len(lines(whole / "measurements.jsonl"))
    [export] = (whole / "export").iterdir()
    (export / "notes.txt").write_text("dear to somebody")
    done = command(*words(whole))
    assert done.returncode == 0, done.stderr
    assert f"{export.name} held what no export wrote; it is in " in done.stdout.replace("\n", " ")
    assert (export.with_name(f"{export.name}.kept") / "notes.txt").read_text() == "dear to somebody"
    assert not (export / "notes.txt").exists()
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*.safetensors")}
    assert len(lines(whole / "measurements.jsonl")) == num_measurements


def test_another_run_is_refused_and_nothing_changes(whole):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}
    for change, message in {
        "space.depth=[1,2]": "was begun with space signature",
        "seed=5": "was begun with seed 0, this run has 5",
        "budget_ms=3": "was begun with budget_ms 5.0, this run has 3.0",
    }.items():
        done = command(*words(whole), change)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert before == {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}


def covered_up(config) -> None:
    """A library that cleans up after Ctrl-C, and fails."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise FileNotFoundError("study.journal.lock") from None


def test_an_interrupt_that_a_library_covers_up_is_still_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(search, "JOB", "tests.test_resume.covered_up")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli.main(["search", "experiment=smoke", f"run={tmp_path / 'run'}"]) == cli.STOPPED
    assert capsys.readouterr().err.strip() == "Stopped."  # there was no run yet that could go on
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", cli.STOPS)
@pytest.mark.parametrize(("before", "code", "said"), [(signal.SIG_DFL, cli.STOPPED, "Stopped."), (signal.SIG_IGN, 0, "")])
def test_a_scheduler_and_a_closed_terminal_stop_as_ctrl_c_does(monkeypatch, capsys, number, before, code, said):
    monkeypatch.setattr("experiments.pareto.main", lambda _: signal.raise_signal(number) or 0)
    others = {stop: signal.getsignal(stop) for stop in cli.STOPS}
    signal.signal(number, before)
    try:
        assert cli.main(["pareto"]) == code
    finally:
        for stop, handler in others.items():
            signal.signal(stop, handler)
    assert capsys.readouterr().err.strip() == said
