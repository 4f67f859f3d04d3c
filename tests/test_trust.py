"""The evidence of a run: each figure against a case whose answer is known, and what is said when it cannot be known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from experiments.formatting import format_seconds
from experiments.looks import in_words
from experiments.results import Results
from experiments.sentences import tied_sentence
from experiments.ties import ties
from experiments.trust import at_equal_seconds, evidence, predictor_on_picked, rank_correlation, sentences, tau_with_interval
from nas.pareto import hypervolume
from nas.types import Candidate, Provenance
from tests.support.made_up_run import SPACE, make_candidates, make_results


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_kendalls(seed):
    pairs = np.random.default_rng(seed).integers(0, 6, size=(12, 2)).astype(float)
    known = tau_with_interval(pairs, seed=seed)
    assert known["tau"] == pytest.approx(kendalltau(*pairs.T).statistic)
    assert -1 <= known["low"] <= known["tau"] <= known["high"] <= 1


def test_the_interval_of_tau_covers_the_truth():
    """Bivariate normal with correlation 0.7: tau is 2/pi asin(0.7) (Greiner's relation)."""
    truth, rng = 2 / np.pi * np.arcsin(0.7), np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        x, noise = rng.normal(size=(2, 20))
        known = tau_with_interval(np.stack([x, 0.7 * x + np.sqrt(1 - 0.49) * noise], axis=1), seed=seed)
        covered += known["low"] <= truth <= known["high"]
    assert covered >= 0.85 * 40


def test_equal_errors_have_no_ranking():
    assert tau_with_interval(np.ones((5, 2)), seed=0) == {"tau": None, "low": None, "high": None}


def with_inherited(results, errors):
    archs = [SPACE.canonical(n.arch) for n in results.networks]
    objectives = [{"error": error, "latency_ms": n.predicted_ms} for error, n in zip(errors, results.networks, strict=True)]
    provenance = {"error": Provenance.INHERITED, "latency_ms": Provenance.PREDICTED}
    return [Candidate(arch, o, provenance, phase="search", seconds=0.5) for arch, o in zip(archs, objectives, strict=True)]


def test_a_supernet_that_ranks_as_training_does_and_one_that_is_upside_down():
    results = make_results()
    errors = np.array([n.error_percent for n in results.networks])
    for sign in (1, -1):
        ranking = rank_correlation(results, with_inherited(results, 50 + sign * errors))
        assert {part: figures["tau"] for part, figures in ranking.items()} == pytest.approx(dict.fromkeys(ranking, sign))
    said = " ".join(sentences(evidence(results, with_inherited(results, 50 - errors)), results))
    assert "The ranking is not shown to mean anything" in said
    few = rank_correlation(results, with_inherited(results, errors)[:3])
    assert few is None
    assert "Too few networks" in " ".join(sentences(evidence(results, []), results))


def at_a_rung(candidates, errors, phase="rung 0.1"):
    provenance = {"error": Provenance.TUNED, "latency_ms": Provenance.PREDICTED}
    return [
        replace(c, objectives={**c.objectives, "error": error}, provenance=provenance, phase=phase)
        for c, error in zip(candidates, errors, strict=True)
    ]


def test_a_rung_that_ranks_as_training_does_where_inherited_weights_do_not():
    results = make_results()
    errors = np.array([n.error_percent for n in results.networks])
    inherited = with_inherited(results, 50 - errors)
    candidates = [*inherited, *at_a_rung(inherited[2:], 20 + errors[2:]), *at_a_rung(inherited[:3], errors[:3], "rung 0.25")]
    trust = evidence(results, candidates)
    first, second = trust["rungs"]
    assert (first["share"], second["share"]) == (0.1, 0.25)
    taus = {name: figures["tau"] for name, figures in first.items() if name != "share"}
    assert taus == pytest.approx({"inherited_with_rung": -1, "inherited_with_retrained": -1, "rung_with_retrained": 1})
    assert first["rung_with_retrained"]["num"] == len(errors) - 2
    assert set(second.values()) == {0.25, None}, "three are too few"
    assert trust["rank_correlation"]["all"]["tau"] == pytest.approx(-1), "a rung's errors are not inherited ones"
    said = " ".join(sentences(trust, results))
    assert f"A rung at 10 % of the training scored {len(errors) - 2} networks" in said
    assert "its own 1.00 (1.00 to 1.00)" in said
    assert "at 25 %" not in said


def test_picked_networks_that_take_longer_than_predicted():
    results = make_results()
    networks = [replace(n, measured_ms=1.25 * n.predicted_ms, measured_high_ms=None) for n in results.networks]
    known = predictor_on_picked(networks)
    assert known["mape_percent"] == pytest.approx(20)
    assert known["median_excess_percent"] == pytest.approx(25)
    assert known["over_bound"] == known["num"] == len(networks)
    assert known["coverage_percent"] == 0
    first, *others = results.networks
    slower = [replace(first, measured_ms=1.25 * first.predicted_upper_ms, measured_high_ms=None), *others]
    assert predictor_on_picked(slower)["coverage_percent"] == pytest.approx(100 * (1 - 1 / len(slower)))
    assert predictor_on_picked([replace(n, measured_ms=None) for n in networks]) is None


def test_a_look_at_a_device_that_has_changed_is_said():
    look = {
        "measured": 6, "minutes": 28.0, "where": "", "fastest_percent": 11.0, "slowest_percent": -7.0, "scatter_percent": 1.3,
        "corrected": True,
    }  # fmt: skip
    results = make_results(looks=(look,))
    trust = evidence(results, [])
    assert trust["looks_at_the_device"] == (look,)
    said = " ".join(sentences(trust, results))
    assert "is not as it was in the calibration of 28 min 0 s before: small networks take 11.0 % more, large" in said
    assert "large ones 7.0 % less (6 were measured again and lie 1.3 % around that)" in said
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results
    noise = {**look, "corrected": False, "where": "threads 2"}
    assert in_words(noise).endswith("in the calibration of 28 min 0 s before (threads 2), but for noise.")


def test_hypervolume_grows_with_evaluations():
    results, candidates = make_results(), make_candidates(num=20)
    curves = evidence(results, candidates)["hypervolume"]
    for phase in ("search", "random"):
        curve = curves[phase]["after_evaluations"]
        assert len(curve) == len(curves[phase]["seconds"]) == 20
        assert curve == sorted(curve)
        costs = np.array([[c.objectives["latency_ms"], c.objectives["error"]] for c in candidates if c.phase == phase])
        assert curve[-1] == hypervolume(costs, results.hypervolume_reference)


def test_the_seconds_of_the_search_begin_with_those_of_the_proposals():
    """They took 95 s, less than random search did or more."""
    for each in (10.0, 0.5, 50.0):
        results, candidates = make_results(), [replace(c, seconds=each) for c in make_candidates(num=20)]
        curves = evidence(results, candidates)["hypervolume"]
        assert curves["search"]["seconds"] == pytest.approx([95 + each * i for i in range(1, 21)])
        assert curves["random"]["seconds"] == pytest.approx([each * i for i in range(1, 21)])
        end, ours, theirs = at_equal_seconds(curves)
        assert end == pytest.approx(20 * each)
        assert theirs == curves["random"]["after_evaluations"][-1]
        num = int((end - 95) / each)
        assert ours == (curves["search"]["after_evaluations"][num - 1] if num > 0 else 0.0)
        assert f"After equal time, {format_seconds(end)} with" in " ".join(sentences(evidence(results, candidates), results))


def wrong(rng, *shares, num):
    """Errors in percent by example of networks that are wrong independently of each other."""
    return {f"n{i}": 100.0 * (rng.random(num) < share) for i, share in enumerate(shares)}


def test_what_cannot_be_told_apart_is_tied():
    rng = np.random.default_rng(0)
    known = ties(wrong(rng, 0.2, 0.10, 0.205, 0.105, num=2000), seed=0)
    assert [set(group) for group in known["groups"]] == [{"n1", "n3"}, {"n0", "n2"}]
    assert known["num_test"] == 2000
    assert known["test_error_percent"]["n0"] == pytest.approx(20, abs=3)
    assert known == ties(wrong(np.random.default_rng(0), 0.2, 0.10, 0.205, 0.105, num=2000), seed=0)


def test_pairs_tell_apart_what_two_intervals_cannot():
    """One network is wrong where the other is, and on 8 more of 1,000 examples: 10 and 10.8 %."""
    errors = np.zeros((2, 1000))
    errors[0, :100] = errors[1, :108] = 100.0
    assert ties({"better": errors[0], "worse": errors[1]}, seed=0)["groups"] == [["better"], ["worse"]]
    elsewhere = np.roll(errors[1], 500)
    assert ties({"better": errors[0], "worse": elsewhere}, seed=0)["groups"] == [["better", "worse"]]


def test_chance_seldom_tells_equal_networks_apart():
    rng = np.random.default_rng(0)
    apart = [len(ties(wrong(rng, 0.1, 0.1, num=500), seed=seed)["groups"]) == 2 for seed in range(100)]
    assert np.mean(apart) < 0.1


def test_what_ties_say():
    results = make_results()
    ids = [n.id for n in results.networks]
    tied = replace(results, ties={"method": "", "num_test": 500, "test_error_percent": {}, "groups": [ids[:3], ids[3:]]})
    assert tied.tied_for_best == tuple(ids[:3])
    assert f"{ids[0]} is the most accurate; {ids[1]}, {ids[2]} cannot be told apart" in " ".join(
        sentences(evidence(tied, []), tied)
    )
    fastest, ships, slowest = sorted(results.networks, key=lambda n: n.latency_ms)[:3]
    groups = [[n.id for n in (fastest, ships, slowest)], []]
    said = tied_sentence(replace(tied, picked_id=ships.id, ties={**tied.ties, "groups": groups}))
    assert said.startswith(f"The test split cannot tell {fastest.id} ({fastest.label}) from the best either")
    assert f"takes {fastest.latency_ms / ships.latency_ms:.2f} of the time: pick={fastest.id}" in said
    assert tied_sentence(replace(tied, picked_id=fastest.id, ties={**tied.ties, "groups": groups})) == ""
    assert tied_sentence(replace(tied, picked_id=ids[-1])) == ""
    alone = replace(tied, ties={**tied.ties, "groups": [[i] for i in ids]})
    assert alone.tied_for_best == ()
    assert "all others are worse beyond chance" in " ".join(sentences(evidence(alone, []), alone))
    assert not any("test split" in said for said in sentences(evidence(results, []), results))
