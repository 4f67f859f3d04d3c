"""The additive latency model, on times that are made from a known law and on its contract."""

import hydra
import numpy as np
import pytest
import torch

from experiments.config import composed
from latency_models.additive import AdditiveLatency
from latency_models.hat_mlp import hat_mlp
from latency_models.regressor import RegressorLatency
from nas.encoding import Encoding
from nas.protocols import DifferentiableLatencyModel
from nas.types import Measurement, Workload
from tests.support.invented import FAMILY, WORKLOAD, law, measurements


def test_it_recovers_an_additive_law():
    model = AdditiveLatency(ridge=1e-8).fit(FAMILY, measurements(60, noise=0.0))
    unseen = [FAMILY.space.sample(np.random.default_rng(seed)) for seed in range(100, 200)]
    np.testing.assert_allclose(model.predict(unseen).mean_ms, [law(a) for a in unseen], rtol=0.02)


def test_the_upper_bound_covers_what_it_says():
    """Over 30 draws of fitting and new networks, the 90 % bound holds for 85 to 95 % of the new ones."""
    covered = []
    for seed in range(30):
        model = AdditiveLatency(coverage=0.9).fit(FAMILY, measurements(40, noise=0.05, seed=seed))
        fresh = measurements(100, noise=0.05, seed=1000 + seed)
        upper = model.predict([m.arch for m in fresh]).upper_ms
        covered.append(np.mean([m.latency_ms for m in fresh] <= upper))
    assert 0.85 <= np.mean(covered) <= 0.95


def test_expected_latency_of_one_hot_probabilities_is_the_prediction():
    model = AdditiveLatency().fit(FAMILY, measurements(40, noise=0.02))
    for seed in range(10):
        arch = FAMILY.space.sample(np.random.default_rng(seed))
        encoding = Encoding(FAMILY.space, torch.as_tensor(FAMILY.space.encode([arch])[0]))
        assert model.expected_ms(encoding).item() == pytest.approx(model.predict([arch]).mean_ms[0], rel=1e-9)


def test_expected_latency_is_the_mean_over_sampled_architectures():
    """The features are multilinear, so expecting sizes first gives the expected latency."""
    model = AdditiveLatency().fit(FAMILY, measurements(40, noise=0.02))
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in FAMILY.space])
    drawn = []
    for _ in range(4000):
        picks = {c.name: c.options[rng.choice(len(c.options), p=values[FAMILY.space.offsets[c.name]])] for c in FAMILY.space}
        drawn.append(FAMILY.space.canonical(picks))
    expected = model.expected_ms(Encoding(FAMILY.space, torch.as_tensor(values))).item()
    assert expected == pytest.approx(model.predict(drawn).mean_ms.mean(), rel=0.02)


def test_expected_latency_has_a_gradient_in_every_choice():
    model = AdditiveLatency().fit(FAMILY, measurements(40, noise=0.02))
    values = torch.cat([torch.full((len(c.options),), 1 / len(c.options), dtype=torch.float64) for c in FAMILY.space])
    values.requires_grad_()
    model.expected_ms(Encoding(FAMILY.space, values)).backward()
    for choice in FAMILY.space:
        assert torch.any(values.grad[FAMILY.space.offsets[choice.name]] != 0), choice.name


def test_prices_are_not_negative_and_predictions_repeat():
    model = AdditiveLatency().fit(FAMILY, measurements(20, noise=0.3))
    assert np.all(model.prices_ >= 0)
    archs = [FAMILY.space.sample(np.random.default_rng(seed)) for seed in range(5)]
    first, second = model.predict(archs), model.predict(archs)
    np.testing.assert_array_equal(first.mean_ms, second.mean_ms)
    assert np.all(first.upper_ms >= first.mean_ms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coverage": 1.5}, "coverage: 1.5 is not between 0 and 1"),
        ({"ridge": -1.0}, r"ridge: -1.0 is negative"),
        ({"folds": 1}, "folds: 1 is not at least 2"),
    ],
)
def test_bad_hyper_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdditiveLatency(**arguments)


def test_bad_data():
    some = measurements(10, noise=0.0)
    with pytest.raises(ValueError, match="measurements: 7 are too few"):
        AdditiveLatency().fit(FAMILY, some[:7])
    other = Measurement(some[0].arch, "invented", Workload(tokens=32), ((1.0,),), ((1.0,),), 1.0, {})
    with pytest.raises(ValueError, match="of 2 workloads"):
        AdditiveLatency().fit(FAMILY, [*some, other])


@pytest.mark.parametrize("sample", [0.0, -1.0, float("nan"), float("inf")])
def test_a_measurement_refuses_impossible_times(sample):
    with pytest.raises(ValueError, match="is not positive and finite"):
        Measurement(FAMILY.space.smallest(), "d", WORKLOAD, ((1.0, sample),), ((1.0,),), 1.0, {})


REGRESSORS = ("ensemble", "gaussian_process", "gradient_boosting", "hat_mlp")


@pytest.mark.parametrize("name", REGRESSORS)
def test_any_regressor_is_a_latency_model(name):
    """It predicts what it has not seen better than a constant, keeps its bound, and the search can follow it."""
    node = composed(f"latency_model={name}", "run=unused").latency_model
    model = hydra.utils.instantiate(node, _convert_="all").fit(FAMILY, measurements(40, noise=0.02))
    assert isinstance(model, DifferentiableLatencyModel)
    fresh = measurements(60, noise=0.02, seed=7)
    prediction, measured = model.predict([m.arch for m in fresh]), np.array([m.latency_ms for m in fresh])
    error = np.mean(np.abs(prediction.mean_ms / measured - 1))
    assert error < 0.5 * np.mean(np.abs(np.median(measured) / measured - 1))
    assert np.mean(measured <= prediction.upper_ms) >= 0.7
    np.testing.assert_allclose(prediction.upper_ms, prediction.mean_ms * model.upper_factor())


def test_too_few_networks_for_a_regressor_are_named():
    with pytest.raises(ValueError, match=r"latency_model\.regressor: 10 networks, .*; measure more \(calibration\.num_fit\), or"):
        RegressorLatency(hat_mlp()).fit(FAMILY, measurements(10, noise=0.0))


def test_trivial_baselines_are_worse_than_prices():
    fresh = measurements(60, noise=0.02, seed=7)
    measured = np.array([m.latency_ms for m in fresh])

    def error(**options) -> float:
        model = AdditiveLatency(**options).fit(FAMILY, measurements(40, noise=0.02))
        return float(np.mean(np.abs(model.predict([m.arch for m in fresh]).mean_ms / measured - 1)))

    pooled = [error(pooled=True, costs=costs) for costs in (("count", "flops", "bytes"), ("flops",), ("parameters",))]
    assert error() < pooled[0] < pooled[1] < pooled[2]
