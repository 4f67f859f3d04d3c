"""What the system refuses to write names the file, leaves no half of it, and loses nothing that was kept."""

import errno
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from experiments import bench, cli
from experiments.benchmarks import supernet
from experiments.calibrate import _write
from experiments.calibration import CHUNK
from experiments.checkpoints import write_checkpoint
from experiments.journal import open_study
from experiments.measured import Timed, write
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory, replacing
from experiments.space import draw
from hardware.timing import Exported
from nas.export import export_onnx
from nas.search import search
from nas.searchers.tpe import Tpe
from nas.types import Measurement, Prediction
from tests.support.known_law import SPACE, evaluate
from tests.support.made_up_run import make_candidates, make_results
from tests.support.tiny_search import FAMILY, WORKLOAD
from tests.test_calibration import calibrator  # noqa: F401

LIMIT = 4096  # bytes of a file; a write past them fails as one does on a disk without room


TIMES = np.linspace(1.0, 2.0, LIMIT)


@contextmanager
def no_room():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_weights(run):
    with run.replacing("weights") as path:
        save_file({"a": torch.zeros(LIMIT)}, path)


def write_samples(run, name):
    measurement = Measurement(FAMILY.space.smallest(), "d", WORKLOAD, (tuple(TIMES),), ((1.0,),), 1.0, {})
    write(run / name, [Timed("a", Exported(measurement.arch, run / "a.onnx", {}), measurement)])


def write_predictions(run, name):
    prediction = Prediction(TIMES, TIMES, TIMES, TIMES)
    _write("rows.csv", str(run / name), [{"row": row} for row in range(LIMIT)], prediction, "ms", Reporter())


def write_figures(run, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supernet, "run", lambda *_: {str(number): number for number in range(LIMIT)})
        bench.main(["supernet", f"out={run / name}"])


WRITERS = {
    "value.json": lambda run: run.write_json("value.json", list(range(LIMIT))),
    "weights": save_weights,
    "state.ckpt": lambda run: write_checkpoint(run, "state.ckpt", {"a": torch.zeros(LIMIT)}),
    "samples.json": lambda run: write_samples(run, "samples.json"),
    "samples.csv": lambda run: write_samples(run, "samples.csv"),
    "predictions.csv": lambda run: write_predictions(run, "predictions.csv"),
    "picture.svg": lambda run: draw(run / "picture.svg", "a", "b", FAMILY, WORKLOAD),
    "figures.json": lambda run: write_figures(run, "figures.json"),
    "model.onnx": lambda run: export_onnx(nn.Linear(64, 64), {"input": torch.zeros(1, 64)}, run / "model.onnx"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_named_and_what_was_there_stays(tmp_path, name):
    run = RunDirectory(tmp_path)
    (run / name).write_text("of before")
    with no_room(), pytest.raises(OSError, match="File too large") as caught:
        WRITERS[name](run)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(run / name))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "of before")]


def test_the_table_of_a_finished_run_is_shown_where_nothing_can_be_written(tmp_path, capsys):
    run, results = RunDirectory(tmp_path), make_results()
    run.write_json("run.json", {})
    run.write_json("results.json", results.to_json())
    for candidate in make_candidates(num=3):
        run.append("candidates.jsonl", candidate.to_json())
    before = (run / "results.json").read_bytes()
    with no_room():
        assert cli.main(["pareto", f"run={tmp_path}"]) == 2
    said = capsys.readouterr()
    assert results.verdict.sentence in " ".join(said.out.split())
    assert "Written" not in said.out
    assert said.err == f"paretoformer: {run / 'pareto.csv'}: File too large\n"
    assert (run / "results.json").read_bytes() == before


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path):
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "file")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for target in (link, pipe):
        with replacing(target) as path:
            path.write_text("content")
    assert (os.read(reader, 99), (tmp_path / "file").read_text()) == (b"content", "content")
    os.close(reader)
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "pipe"]


def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    run = RunDirectory(tmp_path)
    run.append("lines.jsonl", {"a": "x" * (LIMIT // 2)})
    before = (run / "lines.jsonl").read_bytes()
    with no_room(), pytest.raises(OSError, match="No space left") as caught:
        run.append("lines.jsonl", {"b": "x" * LIMIT})  # half of it fits
    assert caught.value.filename == str(run / "lines.jsonl")
    assert (run / "lines.jsonl").read_bytes() == before


def test_a_study_goes_on_where_there_is_room_again(tmp_path):
    run = RunDirectory(tmp_path)
    searcher = Tpe(
        SPACE, seed=0, population=4, objectives=("error", "latency_ms"), limits={"latency_ms": 5.0}, storage=open_study(run)
    )
    with no_room(), pytest.raises(OSError, match="File too large") as caught:
        search(searcher, evaluate, num_evaluations=50)
    assert caught.value.filename == str(run / "study.journal")
    open_study(run)
    assert (run / "study.journal").read_bytes().endswith(b"\n")


def test_a_store_that_cannot_be_written_is_said_before_anything_is_measured(calibrator, tmp_path):  # noqa: F811
    (tmp_path / "store").write_text("a file")
    with pytest.raises(OSError, match="measurements cannot be kept: File exists") as caught:
        calibrator._measure([calibrator.family.space.sample(np.random.default_rng(0))], {}, phase="calibration")
    assert caught.value.__notes__ == ["store=DIR names another place."]


def test_a_store_that_fills_up_costs_the_run_no_measurement(calibrator, monkeypatch):  # noqa: F811
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(calibrator.store), "append", full)
    with pytest.raises(OSError, match="No space left"):
        calibrator.calibrate(None, seed=0)
    assert len(calibrator.run.read_lines("measurements.jsonl")) == CHUNK


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("name", "where"), [("f.json", "(f.json)"), (None, "TMPDIR names another place)")])
def test_a_full_disk_is_a_sentence(monkeypatch, capsys, number, name, where):
    def main(_):
        error = OSError(number, os.strerror(number), name)
        error.add_note("The same command with run=r goes on where it was.")
        raise error

    monkeypatch.setattr("experiments.pareto.main", main)
    assert cli.main(["pareto"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("paretoformer: no space left on the disk (")
    assert line.endswith(f"{where}; what was written is whole. The same command with run=r goes on where it was.")
