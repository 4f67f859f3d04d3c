"""A device that is lost after calibration, or was never there: the search goes on with the predictor and says so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.build import build, make_device
from experiments.conclude import conclude
from experiments.config import composed
from experiments.progress import Reporter
from experiments.table_calibration import TableCalibrator
from hardware.recorded import RecordedDevice
from latency_models.additive import AdditiveLatency
from nas.protocols import DeviceError
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.named import match, operators
from tests.support.boards import PYTHON, SSH, executable
from tests.support.commands import command


class Losable:
    """This machine's CPU, until it is lost."""

    def __init__(self, device) -> None:
        self.device, self.lost = device, False
        self.name, self.fingerprint = device.name, device.fingerprint

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.device.environment

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        if self.lost:
            raise DeviceError("local_cpu: no answer from the board")
        return self.device.run(onnx_path, inputs)


@pytest.fixture
def pipeline(tmp_path):
    words = ["experiment=smoke", f"run={tmp_path / 'run'}", f"store={tmp_path / 'store'}", "torch_threads=1", "budget_ms=100"]
    pipeline = build(composed(*words), report=Reporter())
    pipeline.device = Losable(pipeline.device)
    return pipeline


def test_the_search_goes_on_and_measures_when_the_device_is_back(pipeline, capsys):
    pipeline.claim()
    pipeline.calibrate()
    pipeline.device.lost = True
    results = conclude(pipeline, pipeline.search(), command="again", report=Reporter())
    said = capsys.readouterr().out
    assert "no answer from the board; the search goes on with predicted latencies" in " ".join(said.split())
    assert results.verdict.kept is None
    assert results.verdict.measured_ms is None
    assert results.verdict.sentence.startswith("PREDICTED, NOT MEASURED (local_cpu: no answer from the board): asked 100")
    assert all(n.measured_ms is None and n.safe_ms == n.predicted_upper_ms for n in results.networks)
    card = (pipeline.run / f"export/{results.picked_id}/card.md").read_text()
    assert "NOT MEASURED; predicted" in card
    assert "not known to be within it" in card
    assert "PREDICTED, NOT MEASURED" in (pipeline.run / "report.html").read_text()
    trained = {path.name: path.stat().st_mtime_ns for path in (pipeline.run / "shortlist").iterdir()}

    pipeline.device.lost = False
    results = conclude(pipeline, pipeline.search(), command="again", report=Reporter())
    assert results.verdict.kept is True
    assert all(n.measured_ms is not None for n in results.networks)
    assert trained == {path.name: path.stat().st_mtime_ns for path in (pipeline.run / "shortlist").iterdir()}


def test_a_device_that_is_lost_between_short_list_and_verdict_leaves_the_measurements(pipeline, monkeypatch):
    outcome = pipeline.search()
    verdict = f"verdict {outcome.choice.arch.id}"
    lines = [json.loads(line) for line in (pipeline.run / "measurements.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["phase"] != verdict]
    (pipeline.run / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    pipeline.device.lost = True
    outcome = pipeline.search()
    assert outcome.choice.unmeasured == "local_cpu: no answer from the board"
    assert outcome.choice.measurement is None
    assert set(outcome.measurements) == {f.arch.id for f in outcome.finalists}


def test_a_board_that_does_not_answer_is_known_beside_the_store(tmp_path):
    """So that a run can begin and go on without it."""
    ssh = [f"device.ssh={executable(tmp_path / 'ssh', SSH.format(log=tmp_path / 'log', before=''))}", f"device.python='{PYTHON}'"]
    where = [f"device.folder={tmp_path / 'board'}", f"store={tmp_path / 'store'}", "device.retries=0"]

    def made(*more):
        device = make_device(composed("device=ssh", "device.host=board", *ssh, *where, *more))
        return device, device.fingerprint

    first, fingerprint = made()
    assert first.absent == ""
    executable(tmp_path / "ssh", "#!/bin/sh\necho 'ssh: No route to host' >&2; exit 255")
    later, same = made()
    assert same == fingerprint
    assert later.absent == "board over ssh: the connection failed: ssh: No route to host (tried 1 times)"
    with pytest.raises(DeviceError, match="No route to host"):
        made(f"store={tmp_path / 'another'}")


def test_a_search_for_a_recorded_device_predicts_and_says_so(recorded, tmp_path):
    words = ["experiment=smoke", "device=recorded", "device.table=aws_c6i", f"device.data={recorded}", "torch_threads=1"]
    done = command("search", *words, f"run={tmp_path / 'run'}", f"store={tmp_path / 'store'}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "fitted to 31 networks of published sizes" in said
    assert "times the FLOPs of this space's largest: predictions are extrapolated" in said
    assert "PREDICTED, NOT MEASURED" in said
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["verdict"]["kept"] is None
    assert results["predictor"]["num_held_out"] == 31
    assert results["predictor"]["mape_percent"] < 15
    assert not (tmp_path / "run/measurements.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["device.table=nowhere"], "'nowhere' is not one of the"),
        (["device.table=hat_gtx1080_energy"], "holds energies, and networks of this space are searched by times; space=hat"),
        (["device.table=hat_raspberrypi4"], "holds 0 transformers whose sizes are published, at least 8"),
        (["device.table=aws_c6i", "latency_model.pooled=false"], "latency_model=roofline"),
    ],
)
def test_a_table_that_cannot_be_searched_is_refused(recorded, tmp_path, words, complaint):
    done = command("search", "experiment=smoke", "device=recorded", f"device.data={recorded}", f"run={tmp_path / 'run'}", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "run/supernet.safetensors").exists()


def test_a_roofline_of_other_networks_ranks_ours_by_size(recorded):
    table = RecordedDevice("jetson_nano_cpu", str(recorded)).table
    matches = match(table)
    family = EncoderFamily(encoder_space(width=(128, 256, 512), depth=(2, 4)), 1000, 4)
    networks = [operators(m.model, m.workload) for m in matches]
    measured = table.values[[m.row for m in matches]]
    model = AdditiveLatency(pooled=True).fit_operators(family, Workload(tokens=64), networks, measured)
    assert np.mean(np.abs(model.unseen_ms() / measured - 1)) < 0.05
    small, large = family.space.smallest(), family.space.largest()
    prediction = model.predict([small, large])
    assert 0 < prediction.mean_ms[0] < prediction.mean_ms[1] < prediction.upper_ms[1]


def test_a_table_says_how_many_networks_fell_back_to_the_cpu(recorded):
    family = EncoderFamily(encoder_space(width=(128, 256, 512), depth=(2, 4)), 1000, 4)

    def cautions(table):
        device = RecordedDevice(table, str(recorded))
        return TableCalibrator(family, device, Workload(tokens=64), Reporter()).calibrate(AdditiveLatency(pooled=True)).cautions

    [caution] = cautions("qualcomm_galaxy_s24_float_onnx")
    assert caution.startswith("9 of the 137 networks that were measured on ")
    assert "fell back to the CPU, 1 of the 12 that prices were fitted to" in caution
    assert cautions("jetson_nano_cpu") == ()
