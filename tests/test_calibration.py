"""Calibrating on: where the model is least certain, until the bound is narrow or the time is over, and from where it stopped."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.calibration import CHUNK, MEASUREMENTS, Calibrator
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from experiments.settings import CalibrationSettings
from experiments.timed_networks import design
from hardware.store import MeasurementStore
from hardware.timing import Exported
from latency_models.additive import AdditiveLatency
from latency_models.onboarded import OnboardedLatency
from nas.protocols import DeviceError
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.simulated import Heard, SimulatedDevice


class Exporting:
    """Networks that need no file: their simulated times grow with their sizes, in a way that prices alone cannot follow."""

    def __init__(self, times_ms):
        self.times_ms = times_ms

    def __call__(self, archs, folder):
        for arch in archs:
            sizes = [arch.size(name) for name in ("width", "depth")]
            self.times_ms[arch.id] = 0.01 * sizes[0] ** 1.3 * sizes[1] ** 0.8
        return [Exported(arch, Path(f"{arch.id}.onnx"), {}) for arch in archs]

    def shuffled(self, archs, rng):
        for arch in archs:
            self.times_ms[arch.id] = float(np.exp(rng.normal()))
        return [Exported(arch, Path(f"{arch.id}.onnx"), {}) for arch in archs]


@pytest.fixture
def calibrator(tmp_path, monkeypatch):
    times_ms: dict[str, float] = {}
    monkeypatch.setattr(Calibrator, "_export", staticmethod(Exporting(times_ms)))
    family = EncoderFamily(encoder_space(), vocab_size=50, num_classes=5)
    settings = CalibrationSettings(num_fit=10, num_held_out=2, rounds=2)
    return Calibrator(
        family, SimulatedDevice(times_ms), Workload(tokens=64), settings, RunDirectory(tmp_path / "run"),
        MeasurementStore(tmp_path / "store"), Reporter(quiet=True),
    )  # fmt: skip


def test_it_measures_where_the_model_is_least_certain(calibrator):
    model = AdditiveLatency()
    calibration = calibrator.calibrate(model, seed=0)
    before = set(calibrator.device.times_ms)
    num_known = calibrator.refine(model, calibration, minutes=1e-9, margin_percent=0.0, seed=0)
    assert num_known == len(calibration.measurements)
    archs = [m.arch for m in calibration.measurements.values()]
    uncertain = model.disagreement(archs).mean()
    calibrator.refine(model, calibration, minutes=0.005, margin_percent=0.0, seed=0)
    fresh = [id_ for id_ in calibrator.device.times_ms if id_ not in before]
    assert len(fresh) >= CHUNK
    assert len(fresh) % CHUNK == 0
    assert model.disagreement(archs).mean() < uncertain


def test_it_stops_when_the_bound_is_narrow_and_goes_on_with_what_is_known(calibrator):
    model = AdditiveLatency()
    calibration = calibrator.calibrate(model, seed=0)
    assert calibrator.refine(model, calibration, minutes=1, margin_percent=1000.0, seed=0) == 12
    known = calibrator.refine(model, calibration, minutes=0.005, margin_percent=0.0, seed=0)
    assert known > 12
    visits = len(calibrator.device.visited)
    assert calibrator.refine(AdditiveLatency(), calibration, minutes=1, margin_percent=1000.0, seed=0) == known
    assert len(calibrator.device.visited) == visits


def test_what_was_measured_before_is_known_to_a_later_run(calibrator, tmp_path):
    model = AdditiveLatency()
    calibration = calibrator.calibrate(model, seed=0)
    calibrator.refine(model, calibration, minutes=0.005, margin_percent=0.0, seed=0)
    known = calibrator.calibrate(AdditiveLatency(), seed=0)
    assert known.quality["num_fit"] > calibration.quality["num_fit"]
    later = replace(calibrator, run=RunDirectory(tmp_path / "later"), device=SimulatedDevice(calibrator.device.times_ms))
    found = later.calibrate(AdditiveLatency(), seed=0)
    assert set(found.measurements) == set(known.measurements)
    assert found.quality == pytest.approx(known.quality, nan_ok=True)
    assert [h["id"] for h in found.held_out] == [h["id"] for h in calibration.held_out]


def test_what_a_search_measures_on_the_way_does_not_change_what_it_began_with(calibrator):
    calibration = calibrator.calibrate(AdditiveLatency(), seed=0)
    further = [calibrator.family.space.sample(np.random.default_rng(7)) for _ in range(2)]
    assert set(calibrator.more(further, calibration)) == {arch.id for arch in further}
    again = calibrator.calibrate(AdditiveLatency(), seed=0)
    assert again.quality == pytest.approx(calibration.quality, nan_ok=True, abs=0)


def test_times_without_a_signal_are_refused(calibrator, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Exporting, "__call__", lambda self, archs, folder: self.shuffled(archs, rng))
    calibrator = replace(calibrator, settings=CalibrationSettings(num_fit=20, num_held_out=4, rounds=2))
    with pytest.raises(ValueError, match=r"calibration: there is no signal.* no search can start on it.*store=DIR"):
        calibrator.calibrate(AdditiveLatency(), seed=0)


def test_a_new_device_is_met_with_ten_networks_and_what_others_took(calibrator, tmp_path):
    """A device whose times are three times those of a known one: its own ten say less than the known one's prices."""
    calibrator = replace(calibrator, settings=CalibrationSettings(num_fit=30, num_held_out=8, rounds=2))
    calibrator.calibrate(AdditiveLatency(), seed=0)
    [file] = (tmp_path / "store").glob("*.jsonl")
    errors = {}
    for name, model in {"alone": AdditiveLatency(), "onboarded": OnboardedLatency(known=[str(file)])}.items():
        new = SimulatedDevice(calibrator.device.times_ms, slowdown=lambda visit: 3.0, cpu="another")
        on_new = replace(
            calibrator, device=new, run=RunDirectory(tmp_path / name), store=MeasurementStore(tmp_path / f"{name}-store"),
            settings=CalibrationSettings(num_fit=10, num_held_out=20, rounds=2),
        )  # fmt: skip
        errors[name] = on_new.calibrate(model, seed=1).quality["mape_percent"]
    assert errors["onboarded"] < errors["alone"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("garbage\n", "is no file of measurements of this space"),
        ("", "holds no measurement"),
    ],
)
def test_what_is_known_of_other_devices_is_checked(calibrator, tmp_path, content, words):
    file = tmp_path / "other.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"latency_model.known: .*other.jsonl {words}"):
        calibrator.calibrate(OnboardedLatency(known=[str(file)]), seed=0)
    with pytest.raises(ValueError, match=r"latency_model\.known: names no file"):
        calibrator.calibrate(OnboardedLatency(), seed=0)


@pytest.mark.parametrize(("rounds", "phases"), [(4, {"calibration": 6}), (3, {"calibration, cut short": 6}), (0, {})])
def test_a_group_in_which_the_device_is_lost_is_kept(rounds, phases, calibrator, monkeypatch):
    """As measurements if its rounds tell noise from disturbance; if not, as raw times that nothing is fitted to."""
    device, run = calibrator.device, calibrator.device.run

    def until_lost(path, inputs):
        if len(device.visited) > rounds * 2 * CHUNK + 1:
            raise DeviceError("board: No route to host")
        return run(path, inputs)

    monkeypatch.setattr(device, "run", until_lost)
    calibrator = replace(calibrator, settings=CalibrationSettings(num_fit=10, num_held_out=2, rounds=6))
    with pytest.raises(DeviceError, match="No route to host"):
        calibrator.calibrate(AdditiveLatency(), seed=0)
    records = calibrator.run.read_lines(MEASUREMENTS)
    assert dict(Counter(record["phase"] for record in records)) == phases
    assert all(len(record["samples_ms"]) == rounds for record in records)
    stored = [line for path in calibrator.store.folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(stored) == phases.get("calibration", 0)
    monkeypatch.setattr(device, "run", run)
    assert len(calibrator.calibrate(AdditiveLatency(), seed=0).measurements) == 12


def test_measurements_that_are_all_stored_do_for_a_board_that_does_not_answer(calibrator, tmp_path):
    calibrator.calibrate(AdditiveLatency(), seed=0)
    device = SimulatedDevice({})
    device.absent = "board: No route to host"
    heard = Heard()
    later = replace(calibrator, device=device, run=RunDirectory(tmp_path / "later"), report=heard)
    assert len(later.calibrate(AdditiveLatency(), seed=0).measurements) == 12
    assert any("lost; whether its speed has changed cannot be told, and its stored measurements" in line for line in heard.lines)
    assert heard.lines[-1].startswith("board: No route to host: THE BOARD DOES NOT ANSWER; it is known from before")
    more = replace(later, run=RunDirectory(tmp_path / "more"), settings=CalibrationSettings(num_fit=11, num_held_out=2, rounds=2))
    with pytest.raises(DeviceError, match="lost"):
        more.calibrate(AdditiveLatency(), seed=0)
    assert not more.run.has(MEASUREMENTS)


def test_a_model_without_uncertainty_is_refused(calibrator):
    calibration = calibrator.calibrate(AdditiveLatency(), seed=0)
    with pytest.raises(ValueError, match="latency_model: object does not say where it is uncertain"):
        calibrator.refine(object(), calibration, minutes=1, margin_percent=1.0, seed=0)


def test_held_out_networks_are_measured_among_the_others(calibrator):
    """Where the machine changes half way, the held-out networks must not all be on the far side of it."""
    calibrator = replace(calibrator, settings=CalibrationSettings(num_fit=24, num_held_out=12, rounds=1))
    _, held_out = design(calibrator.family, calibrator.workload, calibrator.settings, seed=0)
    calibration = calibrator.calibrate(AdditiveLatency(), seed=0)
    measured = [record["arch"] for record in calibrator.run.read_lines(MEASUREMENTS)]
    assert len(measured) == len(calibration.measurements) == 36
    in_first_half = sum(arch.to_json() in measured[:18] for arch in held_out)
    assert 3 <= in_first_half <= 9
