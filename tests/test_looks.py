"""A device that has changed since it was calibrated: a few networks tell, and what is known of the others is corrected."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from experiments.calibration import LOOKS, MEASUREMENTS, Calibrator
from experiments.costing import Costing
from experiments.looks import LOOKED_AT, in_words
from experiments.run_directory import RunDirectory
from experiments.settings import CalibrationSettings
from hardware.store import MeasurementStore
from hardware.timing import Exported
from latency_models.additive import AdditiveLatency
from latency_models.ageing import Ageing
from latency_models.intervals import interval, widened
from latency_models.physical import PhysicalRegressor
from latency_models.regressor import RegressorLatency
from latency_models.surroundings import PerSurroundings
from nas.protocols import DoubtfulLatencyModel
from nas.surroundings import surrounded
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.exploring import explorer
from tests.support.invented import FAMILY, measurements
from tests.support.simulated import Heard, SimulatedDevice

SETTINGS = CalibrationSettings(num_fit=12, num_held_out=6, rounds=2)


def takes_ms(arch) -> float:
    return 0.1 + 0.004 * arch.size("width") * arch.size("depth")


class Aged(SimulatedDevice):
    """Invented: takes so many times as long, and what takes long then more so, or less."""

    times, slope = 1.1, 0.0

    def factor(self, time_ms):
        return self.times * time_ms**self.slope

    def run(self, onnx_path, inputs):
        return tuple(s * self.factor(self.times_ms[onnx_path.stem]) for s in super().run(onnx_path, inputs))


@pytest.fixture
def calibrator(tmp_path, monkeypatch):
    """One whose store is half an hour old, for a new run."""
    times_ms: dict[str, float] = {}

    def export(archs, folder):
        times_ms.update({arch.id: takes_ms(arch) for arch in archs})
        return [Exported(arch, Path(f"{arch.id}.onnx"), {}) for arch in archs]

    monkeypatch.setattr(Calibrator, "_export", staticmethod(export))
    family = EncoderFamily(encoder_space(), vocab_size=50, num_classes=5)
    store = MeasurementStore(tmp_path / "store")
    calibrator = Calibrator(
        family, SimulatedDevice(times_ms), Workload(tokens=64), SETTINGS, RunDirectory(tmp_path / "first"), store, Heard()
    )
    calibrator.calibrate(AdditiveLatency(), seed=0)
    [file] = store.folder.glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        now = datetime.fromisoformat(record["environment"]["time"])
        record["environment"]["time"] = (now - timedelta(minutes=30)).isoformat()
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return replace(calibrator, device=Aged(times_ms), run=RunDirectory(tmp_path / "second"))


def off_percent(calibration, slope) -> np.ndarray:
    """What is known of networks against what they take now, beside the sentinel of 1/n of the time then."""
    sentinel_ms = calibration.sentinel_reference_ms
    known = list(calibration.measurements.values())
    now_ms = np.array([takes_ms(m.arch) * (takes_ms(m.arch) / sentinel_ms) ** slope for m in known])
    return 100 * (np.array([m.latency_ms for m in known]) / now_ms - 1)


def test_what_is_known_of_a_device_that_has_changed_is_corrected(calibrator):
    calibrator.device.slope = -0.08
    model, untold = AdditiveLatency(), AdditiveLatency()
    calibration = calibrator.calibrate(model, seed=0)
    assert np.abs(off_percent(calibration, -0.08)).max() < 1
    never = replace(SETTINGS, recheck_minutes=None)
    stale = replace(calibrator, settings=never, run=RunDirectory(calibrator.run.path.parent / "third")).calibrate(untold, seed=0)
    assert np.abs(off_percent(stale, -0.08)).max() > 5
    archs = [m.arch for m in stale.measurements.values()]
    now_ms = np.array([m.latency_ms for m in calibration.measurements.values()])
    assert np.mean(now_ms <= untold.predict(archs).upper_ms) < 0.8
    assert np.mean(now_ms <= model.predict(archs).upper_ms) >= 0.9
    [said] = [line for line in calibrator.report.lines if "is not as it was" in line]
    assert said == f"measurements: {in_words(calibration.looks[0].to_json())}"
    assert "the calibration of 30 min 0 s before: small networks take" in said
    assert calibration.measured_ms == {}
    assert len(stale.measured_ms) == 18


def test_what_was_found_is_read_by_a_run_that_goes_on(calibrator):
    calibrator.device.slope = -0.08
    found, again = (calibrator.calibrate(AdditiveLatency(), seed=0) for _ in range(2))
    visits = len(calibrator.device.visited)
    known = replace(calibrator, device=SimulatedDevice({})).calibrate(AdditiveLatency(), seed=0)
    archs = [m.arch for m in found.measurements.values()]
    for other in (again, known):
        assert other.model.predict(archs).upper_ms.tolist() == found.model.predict(archs).upper_ms.tolist()
        assert [look.to_json() for look in other.looks] == [look.to_json() for look in found.looks]
    assert len(calibrator.device.visited) == visits
    assert [h["measured_ms"] for h in found.held_out] == [takes for h in known.held_out if (takes := h["measured_ms"])]
    phases = [json.loads(line)["phase"] for line in (calibrator.run / MEASUREMENTS).read_text().splitlines()]
    assert phases.count("look before calibration") == LOOKED_AT
    [file] = calibrator.store.folder.glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 18  # what is kept stays a calibration of one time


def test_a_device_as_it_was_changes_nothing(calibrator):
    """But for one factor, which the sentinel takes out."""
    model = AdditiveLatency()
    calibration = calibrator.calibrate(model, seed=0)
    [look] = calibration.looks
    assert not look.has_changed
    assert "take what they took in the calibration" in in_words(look.to_json())
    assert len(calibration.measured_ms) == 18
    never = replace(
        calibrator, settings=replace(SETTINGS, recheck_minutes=None), run=RunDirectory(calibrator.run.path.parent / "x")
    )
    archs = [m.arch for m in calibration.measurements.values()]
    untold = never.calibrate(AdditiveLatency(), seed=0).model
    assert model.predict(archs).upper_ms.tolist() == untold.predict(archs).upper_ms.tolist()


def test_a_device_that_is_disturbed_widens_the_bounds(calibrator, monkeypatch):
    """Noise of its own in each network: means stay, what is promised of them does not."""
    before = AdditiveLatency()
    replace(calibrator, run=RunDirectory(calibrator.run.path.parent / "x")).calibrate(before, seed=0)
    rng, noise = np.random.default_rng(0), {}
    monkeypatch.setattr(Aged, "factor", lambda self, time_ms: noise.setdefault(time_ms, 1.1 * float(np.exp(0.06 * rng.normal()))))
    model = AdditiveLatency()
    calibration = calibrator.calibrate(model, seed=0)
    assert calibration.looks[0].has_changed
    assert 0.02 < calibration.doubt < 0.15
    assert np.log(model.upper_factor()) > 1.2 * calibration.doubt > np.log(before.upper_factor())


def test_a_fresh_calibration_is_not_looked_at_until_it_is_old(calibrator, tmp_path):
    fresh = replace(calibrator, store=MeasurementStore(tmp_path / "empty"))
    fresh.device.times = 1.0
    calibration = fresh.calibrate(AdditiveLatency(), seed=0)
    visits = len(fresh.device.visited)
    assert not fresh.look(calibration, before="the answer")
    fresh.run.write_json(LOOKS, {"calibration": "2020-01-01T00:00:00+00:00", "the answer": "2020-01-01T00:00:00+00:00"})
    assert not fresh.look(calibration, before="the answer")
    assert len(fresh.device.visited) == visits
    fresh.device.slope = 0.1
    later = (datetime.fromisoformat(next(iter(calibration.measurements.values())).environment["time"])) + timedelta(minutes=12)
    fresh.run.write_json(LOOKS, {"the answer": later.isoformat()})
    assert fresh.look(calibration, before="the answer")
    assert np.abs(off_percent(calibration, 0.1)).max() < 1


def test_a_further_device_is_looked_at_before_the_answer(calibrator, pipeline, calibrated):
    fresh = replace(calibrator, settings=replace(SETTINGS, recheck_minutes=None), place="on two")
    found = fresh.calibrate(AdditiveLatency(), seed=0)
    archs = [m.arch for m in found.measurements.values()]
    before_ms, first_ms = found.model.predict(archs).mean_ms, calibrated.model.predict([pipeline.family.space.largest()]).mean_ms
    costing = Costing.of(pipeline.settings, pipeline.family, pipeline.workload, calibrated, also={"two": found.model})
    one = replace(explorer(pipeline, calibrated), costing=costing)
    calibrator.device.slope = -0.08
    one._look(pipeline.calibrator(), {"two": (replace(fresh, settings=SETTINGS), found)})
    now_ms = costing.also["two"].predict(archs).mean_ms
    assert np.abs(now_ms / before_ms - 1).max() > 0.05
    assert np.abs(off_percent(found, -0.08)).max() < 1
    assert costing.latency.predict([pipeline.family.space.largest()]).mean_ms == first_ms
    [look] = found.looks
    assert "before (on two): small networks take" in in_words(look.to_json())
    assert "calibration of two" in json.loads((pipeline.run / "ledger.json").read_text())


def test_a_device_that_is_lost_leaves_everything_as_it_was(calibrator, monkeypatch):
    run, visits = Aged.run, []

    def lost(self, onnx_path, inputs):
        visits.append(onnx_path)
        if len(visits) > 8:  # after the sentinel's own
            onnx_path = Path("gone.onnx")
        return run(self, onnx_path, inputs)

    monkeypatch.setattr(Aged, "run", lost)
    calibration = calibrator.calibrate(AdditiveLatency(), seed=0)
    assert calibration.looks == []
    assert any("whether its speed has changed cannot be told" in line for line in calibrator.report.lines)


def test_each_surrounding_has_a_law_of_its_own(calibrator, tmp_path):
    space = surrounded(calibrator.family.space, {"threads": [1, 2]})
    family = EncoderFamily(space, vocab_size=50, num_classes=5)
    own = replace(calibrator, family=family, store=MeasurementStore(tmp_path / "own"))
    calibration = own.calibrate(PerSurroundings(AdditiveLatency()), seed=0)
    own.run.write_json(LOOKS, {"the answer": "2100-01-01T00:00:00+00:00"})
    own.device.slope = 0.1
    assert own.look(calibration, before="the answer")
    assert [look.where for look in calibration.looks] == ["threads 1", "threads 2"]


def test_the_law_is_exact_without_noise():
    then = np.geomspace(0.1, 2.0, 6)
    law = Ageing.of(then, 1.2 * then**1.1)
    assert law.factors(np.array([0.5])) == pytest.approx(1.2 * 0.5**0.1)
    assert law.scatter == pytest.approx(0, abs=1e-9)
    noise = np.random.default_rng(0).normal(scale=0.03, size=(2000, 6))
    scatter = [Ageing.of(then, 1.2 * then * np.exp(row)).scatter for row in noise]
    assert np.sqrt(np.mean(np.square(scatter))) == pytest.approx(0.03, rel=0.03)
    with pytest.raises(ValueError, match="3 networks are fewer than 4"):
        Ageing.of(then[:3], then[:3])


def test_minutes_are_checked():
    with pytest.raises(ValueError, match=r"recheck_minutes: -1 is not at least 0; null stands for never"):
        CalibrationSettings(recheck_minutes=-1)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_a_widened_bound_holds_for_what_is_off_by_a_further_error(coverage):
    rng = np.random.default_rng(0)
    known = interval(np.exp(rng.normal(scale=0.03, size=20000)), coverage)
    wide = widened(known, 0.05, coverage)
    now = np.exp(rng.normal(scale=0.03, size=20000) + rng.normal(scale=0.05, size=20000))
    assert np.mean(now <= wide.upper) == pytest.approx(coverage, abs=0.01)
    assert np.mean(now >= wide.lower) == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("wrapped", [lambda model: model, PerSurroundings])
@pytest.mark.parametrize("model", [AdditiveLatency(), RegressorLatency(PhysicalRegressor())])
def test_doubt_lasts_until_the_next_fit(model, wrapped):
    known = measurements(20, noise=0.02)
    fitted = wrapped(model).fit(FAMILY, known)
    assert isinstance(fitted, DoubtfulLatencyModel)
    before, archs = fitted.upper_factor(), [m.arch for m in known]
    fitted.doubt(0.1)
    assert fitted.upper_factor() > before
    assert fitted.predict(archs).upper_ms == pytest.approx(fitted.predict(archs).mean_ms * fitted.upper_factor())
    assert fitted.fit(FAMILY, known).upper_factor() == before
