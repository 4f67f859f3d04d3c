"""Predictors for measured tables: what they recover, what they bear, and that their bounds hold for what is picked."""

import csv
import json
from functools import partial

import numpy as np
import pytest

from experiments import bench, calibrate
from experiments.benchmarks import latency
from experiments.composing import stand_in_family
from experiments.config import composed
from hardware.tables import load_table
from latency_models import ensemble, physical
from latency_models.drift import neighbours, no_signal, sessions
from latency_models.ensemble import Ensemble
from latency_models.intervals import Bounded, conformal_quantile, interval, pick, splits
from latency_models.onboarding import NewDevice, OtherDevices
from latency_models.physical import PhysicalRegressor
from latency_models.quality import Quality
from latency_models.stacking import mixture
from latency_models.table import TablePredictor
from nas.robust import mad_scale
from nas.tables import RecordedTable, Source
from nas.types import Interval
from search_spaces import hat

PRICES = np.array([5.0, 0.3, 0.0, 0.02])


def costs_and_times(num: int, *, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (num, 2)).astype(float)
    costs = np.column_stack([np.ones(num), sizes[:, 0], sizes[:, 1], 16 * sizes[:, 0] * sizes[:, 1]])
    return costs, costs @ PRICES * np.exp(noise * rng.standard_normal(num))


def table(costs: np.ndarray, times: np.ndarray) -> RecordedTable:
    features = tuple(f"cost{i}" for i in range(costs.shape[1]))
    source = Source("", "", "", "", "made up", "")
    return RecordedTable(
        "made_up", "none", "cpu", "none", "fp32", "ms", features, costs, times, ("",) * len(times), {}, {}, source,
        np.zeros(len(times), dtype=bool),
    )  # fmt: skip


def test_prices_are_found():
    costs, times = costs_and_times(200, noise=0.0)
    np.testing.assert_allclose(PhysicalRegressor(ridge=0.0).fit(costs, times).prices_, PRICES, atol=1e-6)


def test_a_slow_session_does_not_move_the_prices(monkeypatch):
    costs, times = costs_and_times(60)
    disturbed = times.copy()
    disturbed[:12] *= 1.4
    errors = {}
    for way, rounds in {"robust": physical.ROUNDS, "least squares": 1}.items():
        monkeypatch.setattr(physical, "ROUNDS", rounds)
        errors[way] = np.mean(np.abs(PhysicalRegressor().fit(costs, disturbed).predict(costs) / times - 1))
    assert errors["robust"] < 0.01 < 0.03 < errors["least squares"]


def test_known_prices_help_where_there_are_few_measurements():
    costs, times = costs_and_times(300, noise=0.1)
    truth, few = costs @ PRICES, slice(0, 5)
    known = [2.0 * PRICES, np.array([1.0, 1.0, 1.0, 0.0])]
    alone, drawn = (
        np.mean(np.abs(PhysicalRegressor(known=prices, pull=1.0).fit(costs[few], times[few]).predict(costs) / truth - 1))
        for prices in ((), known)
    )
    assert drawn < 0.7 * alone


@pytest.mark.parametrize(
    ("costs", "times", "message"),
    [([[1.0], [-1.0]], [1.0, 1.0], "costs: one is negative"), ([[1.0], [1.0]], [1.0, 0.0], "times: one is not positive")],
)
def test_what_has_no_price_is_refused(costs, times, message):
    with pytest.raises(ValueError, match=message):
        PhysicalRegressor().fit(np.array(costs), np.array(times))


def test_a_mixture_finds_its_parts():
    rng = np.random.default_rng(0)
    logs = rng.standard_normal((40, 3))
    target = 0.3 * logs[:, 0] + 0.7 * logs[:, 2] + 1.5
    target[:3] += 2.0  # bears networks that run badly
    weights, shift = mixture(logs, target, shift=True)
    np.testing.assert_allclose(weights, [0.3, 0.0, 0.7], atol=1e-6)
    assert shift == pytest.approx(1.5)


def test_the_ensemble_gives_the_best_member_the_weight(monkeypatch):
    costs, times = costs_and_times(60)
    wrong = partial(PhysicalRegressor, known=[np.array([1.0, 0, 0, 0])], pull=1e6)
    monkeypatch.setattr(ensemble, "MEMBERS", {"prices": PhysicalRegressor, "wrong": wrong})
    model = Ensemble()
    assert set(model.fit(costs, times).weights_) == {"prices"}
    assert np.mean(np.abs(model.predict(costs) / times - 1)) < 0.02
    assert np.mean(np.abs(model.unseen_ / times - 1)) < 0.03


def test_conformal_quantile_is_the_rank_that_covers():
    assert conformal_quantile(np.arange(1.0, 20.0), 0.9) == 18.0
    assert conformal_quantile(np.arange(1.0, 5.0), 0.99) == 4.0


@pytest.mark.parametrize(("num", "folds"), [(23, 5), (3, 10)])
def test_each_measurement_is_held_out_once(num, folds):
    pairs = list(splits(num, folds=folds))
    assert len(pairs) == min(num, folds)
    assert sorted(np.concatenate([held_out for _, held_out in pairs])) == list(range(num))
    for kept, held_out in pairs:
        assert sorted([*kept, *held_out]) == list(range(num))
        assert kept.tolist() == sorted(kept)


def test_bounds_are_on_both_sides_of_the_prediction():
    ratios = np.arange(1.0, 20.0) / 100
    assert interval(ratios, 0.9) == Interval(pytest.approx(np.std(ratios)), 0.02, 1.0)
    assert interval(100 * ratios, 0.9) == Interval(pytest.approx(100 * np.std(ratios)), 1.0, 18.0)


def test_each_bound_holds_for_the_share_that_it_was_asked_for():
    costs, times = costs_and_times(2000, noise=0.05)
    model = Bounded(PhysicalRegressor(), coverage=0.9).fit(costs[:300], times[:300])
    prediction = model.predict(costs[300:])
    assert np.mean(times[300:] <= prediction.upper_ms) == pytest.approx(0.9, abs=0.04)
    assert np.mean(times[300:] >= prediction.lower_ms) == pytest.approx(0.9, abs=0.04)
    assert np.all(prediction.lower_ms <= prediction.mean_ms)


def test_predictions_are_judged_beside_a_constant():
    measured, predicted = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.05, 2.4, 4.0, 7.0])
    found = Quality.of(measured, predicted, covered=measured <= predicted, seen=[2.0, 4.0, 6.0])
    assert found.mape_percent == pytest.approx(100 * np.mean([0.05, 0.2, 0.0, 0.125]))
    assert (found.spearman, found.within_10_percent, found.coverage_percent) == (pytest.approx(1.0), 50.0, 75.0)
    assert found.constant_mape_percent == pytest.approx(100 * np.mean([3.0, 1.0, 0.0, 0.5]))


@pytest.mark.parametrize("predicted", [[1.0, 2.0], [2.0, 2.0, 2.0]])
def test_few_or_equal_predictions_have_no_ranks(predicted):
    measured = np.arange(1.0, 1 + len(predicted))
    assert np.isnan(Quality.of(measured, np.array(predicted), covered=measured > 0, seen=measured).spearman)


def share_over(bound, times, capacity, pool):
    """Of the picks for 300 budgets, each from a pool of its own."""
    rng, over = np.random.default_rng(0), []
    for budget in np.geomspace(*np.quantile(times, (0.1, 0.9)), 300):
        rows = rng.choice(len(times), pool, replace=False)
        picked = pick(bound[rows], capacity[rows], budget)
        if picked is not None:
            over.append(times[rows[picked]] > budget)
    return np.mean(over)


@pytest.mark.parametrize("pool", [20, 500])
def test_the_bound_holds_for_picks(pool):
    """The mean as a bound is broken by a large share of picks: the larger the pool, the nearer they are to the budget."""
    costs, times = costs_and_times(1200, noise=0.05)
    capacity = costs[:, 3]
    model = Bounded(PhysicalRegressor(), coverage=0.9).fit(costs[:200], times[:200], capacity=capacity[:200], pool=pool)
    prediction = model.predict(costs[200:])
    shares = [share_over(bound, times[200:], capacity[200:], pool) for bound in (prediction.upper_ms, prediction.mean_ms)]
    assert shares[0] <= 0.1 < shares[1]


def test_the_bound_knows_that_picks_are_those_that_are_underestimated():
    """A predictor that does not see what capacity costs errs most for what a large pool offers."""
    rng = np.random.default_rng(0)
    seen, unseen = rng.uniform(1, 8, 1500), rng.uniform(0.8, 1.2, 1500)
    costs, capacity = np.column_stack([np.ones(1500), seen]), seen * unseen
    times = seen * unseen * np.exp(0.02 * rng.standard_normal(1500))
    few = slice(0, 200)
    factors = {}
    for pool in (1, 20, 1000):
        model = Bounded(PhysicalRegressor(), coverage=0.9).fit(costs[few], times[few], capacity=capacity[few], pool=pool)
        factors[pool] = model.interval_.upper
        assert share_over(model.predict(costs[200:]).upper_ms, times[200:], capacity[200:], pool) <= 0.1
    assert factors[1] < factors[20] < factors[1000]


def test_the_scale_of_normal_values_is_their_standard_deviation_whatever_a_few_others_are():
    x = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    assert mad_scale(x) == pytest.approx(2.0, rel=0.03)
    x[:100] = 1e9
    assert mad_scale(x) == pytest.approx(2.0, rel=0.06)
    assert mad_scale([5.0, 5.0, 5.0, 9.0]) == 0.0


def test_sessions_are_seen_in_the_order_of_rows():
    costs, times = costs_and_times(400)
    times[100:200] *= 1.3
    times[300] *= 2.0
    found = sessions(times, costs @ PRICES)
    assert np.mean(found.sound[105:195]) == 0.0
    assert not found.sound[300]
    assert np.mean(found.sound[210:290]) > 0.95
    assert found.share_shifted == pytest.approx(0.25, abs=0.02)


def test_the_rows_around_a_row_tell_the_state_of_the_device():
    """As a sentinel beside it does: the row's own time says nothing."""
    costs, times = costs_and_times(400)
    times[100:200] *= 1.3
    times[300] *= 2.0
    levels = neighbours(times, costs @ PRICES)
    np.testing.assert_allclose(levels[115:185], np.log(1.3), atol=0.01)
    assert levels[300] == pytest.approx(0.0, abs=0.01)


def test_a_new_device_is_a_mixture_of_others_or_has_prices_of_its_own():
    costs, times = costs_and_times(310, noise=0.03)
    few, rest = slice(0, 10), slice(10, None)
    known = [np.array([9.0, 0.1, 0.1, 0.03]), np.array([1.0, 0.5, 0.0, 0.01])]

    def error(model, device_ms):
        return np.mean(np.abs(model.fit(costs[few], device_ms[few]).predict(costs[rest]) / device_ms[rest] - 1))

    for prices, is_alike in ((0.5 * known[0] + 0.5 * known[1], True), (np.array([0.1, 0.0, 3.0, 0.0]), False)):
        device_ms = costs @ prices * times / (costs @ PRICES)
        model = NewDevice(known)
        assert error(model, device_ms) <= 1.001 * error(OtherDevices(known), device_ms)
        assert isinstance(model.chosen_, OtherDevices) == is_alike
    with pytest.raises(ValueError, match="times: 2 measurements are too few to choose by"):
        NewDevice(known).fit(costs[:2], times[:2])


@pytest.mark.parametrize("num", [10, 12, 17, 60])
def test_a_signal_is_seen_in_few_rows_too_and_chance_is_none(num):
    rng = np.random.default_rng(0)
    seen, seemed = 0, 0
    for _ in range(100):
        times = np.exp(rng.normal(size=num))
        seen += no_signal(times, times * np.exp(0.1 * rng.normal(size=num))) is None
        seemed += no_signal(times, rng.permutation(times)) is None
    assert seen >= 95
    assert seemed == 0


def test_equal_times_have_no_signal():
    assert "half of all times or more are the same" in no_signal(np.full(20, 3.0), np.full(20, 3.0))
    assert "rank correlation is 0.00" in no_signal(np.arange(1.0, 21.0), np.full(20, 3.0))


def test_drift_is_taken_out_of_a_table():
    costs, times = costs_and_times(200)
    slow = times.copy()
    slow[60:100] *= 1.4
    steady, drifting = (TablePredictor().fit(table(costs, values)) for values in (times, slow))
    assert not steady.drift_removed_
    assert drifting.drift_removed_
    np.testing.assert_allclose(drifting.predict(costs).mean_ms, steady.predict(costs).mean_ms, rtol=0.02)
    assert drifting.interval_.upper < 1.1 < 1.3 < np.max(slow / drifting.model_.unseen_)
    assert drifting.quality_.mape_percent < 2 < drifting.recorded_quality_.mape_percent


def test_rows_in_an_order_of_their_own_are_no_sessions():
    costs, times = costs_and_times(200)
    order = np.argsort(times)
    bent = np.where(times > np.quantile(times, 0.8), 1.2 * times, times)
    assert not TablePredictor().fit(table(costs[order], bent[order])).drift_removed_


def test_a_table_of_sessions_unlike_each_other_is_refused():
    costs, times = costs_and_times(200)
    times[:100] *= 1.8
    with pytest.raises(
        ValueError, match=r"made_up: \d+% of the rows.* more than 5 % off the usual level, allowed are 50%.*Pin the"
    ):
        TablePredictor().fit(table(costs, times))


def test_shuffled_times_have_no_signal():
    costs, times = costs_and_times(64)
    shuffled = np.random.default_rng(1).permutation(times)
    assert no_signal(times, Bounded(PhysicalRegressor()).unseen(costs, times)) is None
    with pytest.raises(ValueError, match=r"made_up: there is no signal.* no search can start on it"):
        TablePredictor().fit(table(costs, shuffled))


def test_what_validates_itself_is_not_validated_again(monkeypatch):
    """An ensemble in folds of folds took ten times as long to say the same."""
    costs, times = costs_and_times(24, noise=0.1)
    fits = []

    class Counted(PhysicalRegressor):
        def fit(self, costs, times):
            fits.append(len(times))
            return super().fit(costs, times)

    monkeypatch.setattr(ensemble, "MEMBERS", {"prices": Counted, "again": Counted})
    model = Bounded(Ensemble(folds=4)).fit(costs, times)
    assert sorted(fits) == [18] * 8 + [24] * len(model.fitted_.fitted_)
    assert np.array_equal(model.unseen_, model.fitted_.unseen_)


def test_blocks_of_rows_are_predicted_as_one(monkeypatch):
    costs, times = costs_and_times(40)
    model = ensemble.gaussian_process().fit(costs, times)
    whole = model.predict(costs)
    monkeypatch.setattr(ensemble, "BLOCK", 7)
    assert model.predict(costs) == pytest.approx(whole, rel=1e-9)


def test_calibrate_fits_a_csv_and_predicts_new_rows(tmp_path, capsys):
    costs, times = costs_and_times(60)
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "latency_us"], *np.column_stack([costs[:, 1:3], 1e3 * times]).tolist()])
    (tmp_path / "new.csv").write_text("a,b\n1,1\n8,8\n")
    words = ["device=recorded", f"device.table={tmp_path}/mine.csv", "device.features=a,b", "device.target=latency_us"]
    assert calibrate.main([*words, "device.unit=us", "--predict", f"{tmp_path}/new.csv"]) == 0
    assert "rank correlation" in capsys.readouterr().out
    with (tmp_path / "new.predicted.csv").open(newline="") as file:
        small, large = [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]
    truth = [PRICES @ [1, 1, 1, 16], PRICES @ [1, 8, 8, 1024]]
    assert [small["mean_ms"], large["mean_ms"]] == pytest.approx(truth, rel=0.25)
    assert small["upper_ms"] > small["mean_ms"] > small["std_ms"] > 0
    with pytest.raises(ValueError, match=r"device\.unit=… is missing"):
        calibrate.main(words)
    with pytest.raises(ValueError, match=r"device\.table: 'pi' is neither a name"):
        calibrate.main(["device=recorded", "device.table=pi"])


def test_calibrate_fits_a_table_for_the_networks_of_a_space(recorded, tmp_path, capsys):
    words = ["device=recorded", "device.table=jetson_nano_cpu", f"data={recorded}", "experiment=smoke", f"run={tmp_path / 'run'}"]
    space = stand_in_family(composed("experiment=smoke"), tokens=32).space
    archs = [space.smallest(), space.largest()]
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "arch"], *([a.id, json.dumps(a.to_json())] for a in archs)])
    assert calibrate.main([*words, "--predict", f"{tmp_path}/new.csv"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The worst of 60" in said
    assert "the upper bound is" in said
    with (tmp_path / "new.predicted.csv").open(newline="") as file:
        small, large = csv.DictReader(file)
    assert small["id"] == archs[0].id
    assert float(small["mean_ms"]) < float(large["mean_ms"]) < float(large["upper_ms"])
    with pytest.raises(ValueError, match="nothing can be measured on a recorded table"):
        calibrate.main([*words, "minutes=3"])
    with pytest.raises(ValueError, match="its networks are those of space=hat"):
        calibrate.main([*words[:1], "device.table=hat_xeon", *words[2:4], f"run={tmp_path / 'other'}"])


def test_networks_to_predict_are_read_with_what_is_wrong_with_them(tmp_path):
    space, path = hat.hat_space(), tmp_path / "new.csv"
    for text, complaint in {
        "a,b\n1,2\n": "has no rows with a column arch",
        "arch\n": "has no rows with a column arch",
        "arch\n[1]\n": "line 2 of .* is no network of the space hat",
        'arch\n"{""depth"": 3}"\n': "line 2 of .* depth: is not a choice of the space hat",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            calibrate.read_networks(str(path), space)
    with pytest.raises(ValueError, match="cannot be read"):
        calibrate.read_networks(str(tmp_path / "nowhere.csv"), space)


def test_a_table_is_calibrated_for_hats_space_if_it_holds_its_networks(recorded, capsys):
    assert calibrate.main(["device=recorded", "device.table=hat_gtx1080_energy", f"data={recorded}", "space=hat"]) == 0
    assert "GTX 1080" in capsys.readouterr().out
    with pytest.raises(ValueError, match="space: jetson_nano_cpu does not hold networks of the space hat"):
        calibrate.main(["device=recorded", "device.table=jetson_nano_cpu", f"data={recorded}", "space=hat"])


def test_hat_tables_are_predicted_from_32_measurements(recorded):
    pi = load_table("hat_raspberrypi4", recorded)
    assert pi.features == hat.FEATURES
    mape, rho = latency.judged(PhysicalRegressor, hat.costs(pi.rows), pi.values, 32, 3)
    assert mape < 4.2
    assert rho > 0.95


def test_bench_latency_ends_with_its_figures(recorded, capsys):
    assert bench.main(["latency", "preset=tiny", f"data={recorded}"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = {row.key for row in latency.ROWS if not row.key.startswith("local_")}
    assert wanted <= set(figures)
    assert figures["shuffled_refused_percent"] == 100.0
