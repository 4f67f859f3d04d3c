"""What a run concluded, as data: its JSON, its verdicts and numbers in words, and the networks that rules name."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.budgets import HALF
from experiments.formatting import format_count, format_ms, format_seconds
from experiments.layers import arch_in_short, split_layers
from experiments.networks import front, hypervolumes, pick
from experiments.results import PredictorReport, Results
from experiments.verdicts import Verdict
from nas.pareto import knee
from tests.support.made_up_run import QUALITY, make_results, network

# --- results -----------------------------------------------------------------------------------------------------------------


def test_results_survive_json():
    results = make_results()
    assert Results.from_json(json.loads(json.dumps(results.to_json(), allow_nan=False))) == results


def test_results_of_an_earlier_release_are_read():
    record = make_results().to_json()
    del record["alarms"]
    assert Results.from_json(record) == make_results()


def test_results_without_intervals_and_rank_survive_json():
    bare = tuple(dataclasses.replace(n, measured_low_ms=None, measured_high_ms=None) for n in make_results().networks)
    predictor = dataclasses.replace(make_results().predictor, spearman=None)
    results = make_results(networks=bare, predictor=predictor, notes=(), trivial_baselines={})
    assert Results.from_json(json.loads(json.dumps(results.to_json(), allow_nan=False))) == results


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.pop("verdict"), "Results: 'verdict' is missing"),
        (lambda r: r.update(colour="red"), "Results: 'colour' is unknown"),
        (lambda r: r["networks"][0].pop("label"), "Network: 'label' is missing"),
        (lambda r: r.update(picked_id="nobody"), "picked_id: 'nobody' is not one of"),
        (lambda r: r["networks"].append(r["networks"][0]), "stands twice"),
        (lambda r: r["networks"][0].update(role="luck"), "role: 'luck' of"),
        (lambda r: r["networks"][0].update(measured_ms=-1.0), "measured_ms: -1.0 of"),
        (lambda r: r["networks"][0].update(error_percent=float("nan")), "error_percent: nan of"),
        (lambda r: r["trivial_baselines"].update(luck=float("inf")), "trivial_baselines: inf of results"),
    ],
)
def test_broken_results_are_refused(change, complaint):
    record = json.loads(json.dumps(make_results().to_json()))
    change(record)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Results.from_json(record)


def test_results_of_earlier_versions_load():
    record = json.loads(json.dumps(make_results().to_json()))
    for name in ("objectives", "beside", "ties", "refined"):
        del record[name]
    record["num_validation"] = 500
    for known in record["networks"]:
        del known["predicted"], known["measured"]
    results = Results.from_json(record)
    assert results.front == front(results.networks)


def test_importing_results_is_light():
    code = "import sys, experiments.results; print([m for m in ('torch', 'matplotlib', 'hydra', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_predictor_report_takes_nan_for_no_rank():
    assert PredictorReport.of({**QUALITY, "spearman": float("nan")}, []).spearman is None


# --- verdicts and words


def test_verdict_kept():
    verdict = Verdict.of(asked_ms=2, asked_origin="user", predicted_ms=1.81, predicted_upper_ms=1.95, measured_ms=1.84)
    assert verdict.kept
    assert verdict.sentence == "Kept: asked 2.00 ms, predicted 1.81 ms (at most 1.95), measured 1.84 ms."


def test_verdict_broken():
    verdict = Verdict.of(asked_ms=2, asked_origin="user", predicted_ms=1.81, predicted_upper_ms=1.95, measured_ms=2.1)
    assert not verdict.kept
    said = "BROKEN: asked 2.00 ms, predicted 1.81 ms (at most 1.95), measured 2.10 ms, 5 % over the budget."
    assert verdict.sentence == f"{said} Measured above what was predicted (at most 1.95 ms)."


def test_a_kept_verdict_says_that_the_prediction_did_not_hold():
    facts = {"asked_ms": 2, "asked_origin": "user", "predicted_ms": 1.81, "predicted_upper_ms": 1.851}
    above = Verdict.of(**facts, measured_ms=1.852)
    assert above.kept
    assert above.sentence.endswith("measured 1.85 ms. Measured above what was predicted (at most 1.851 ms).")
    assert "above" not in Verdict.of(**facts, measured_ms=1.85).sentence


def test_a_budget_that_nobody_gave_is_not_called_asked():
    facts = {"asked_ms": 2, "asked_origin": HALF.format(cost="latency"), "predicted_ms": 1.81, "predicted_upper_ms": 1.95}
    words = "budget 2.00 ms (derived: half of the largest network's latency), predicted 1.81 ms"
    for verdict in (Verdict.of(**facts), Verdict.of(**facts, measured_ms=1.9)):
        assert words in verdict.sentence
        assert "asked" not in verdict.sentence
        assert verdict.asked_words == "budget 2.00 ms (derived)"


def test_a_verdict_says_that_its_times_are_estimated():
    facts = {"asked_ms": 2.0, "asked_origin": "user", "predicted_ms": 1.81, "predicted_upper_ms": 1.95, "estimated": True}
    kept, broken = (Verdict.of(**facts, measured_ms=ms) for ms in (1.84, 2.1))
    assert kept.sentence == "Kept, as estimated: asked 2.00 ms, predicted 1.81 ms (at most 1.95), estimated 1.84 ms."
    assert broken.sentence.startswith("BROKEN, as estimated: asked 2.00 ms")
    assert "measured" not in kept.sentence + broken.sentence
    results = make_results(verdict=kept)
    record = json.loads(json.dumps(results.to_json()))
    assert record["verdict"]["estimated"] is True
    assert Results.from_json(record).verdict == kept
    del record["verdict"]["estimated"]  # a run of before
    assert Results.from_json(record).verdict.estimated is False


@pytest.mark.parametrize("measured", [2.0004, 1.9996])
def test_a_close_verdict_shows_the_difference(measured):
    verdict = Verdict.of(asked_ms=2, asked_origin="user", predicted_ms=1.81, predicted_upper_ms=1.95, measured_ms=measured)
    assert f"asked 2.0000 ms, predicted 1.81 ms (at most 1.95), measured {measured} ms" in verdict.sentence
    assert verdict.sentence.startswith("Kept" if measured < 2 else "BROKEN")


def test_a_budget_met_exactly_is_kept():
    verdict = Verdict.of(asked_ms=2, asked_origin="user", predicted_ms=1.8, predicted_upper_ms=1.9, measured_ms=2)
    assert verdict.kept


@pytest.mark.parametrize(
    ("value", "words"), [(0.01234, "0.0123"), (1.84, "1.84"), (12.34, "12.3"), (1234.5, "1234"), (0.0, "0.00")]
)
def test_milliseconds_in_words(value, words):
    assert format_ms(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(4.2, "4.2 s"), (9.97, "10 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7620, "2 h 7 min")]
)
def test_seconds_in_words(value, words):
    assert format_seconds(value) == words


def test_layers_are_split_in_their_order():
    whole, layers = split_layers({"width": 8, "layer10.ffn": 3, "layer2.ffn": 2, "layer2.heads": 1, "layers": "x"})
    assert whole == {"width": 8, "layers": "x"}
    assert layers == [{"ffn": 2, "heads": 1}, {"ffn": 3}]


def test_architecture_in_short():
    arch = {
        "width": 64, "depth": 3, "layer1.attention": "full", "layer1.heads": 4, "layer1.ffn": 256, "layer2.attention": "none",
        "layer2.ffn": 128, "layer3.attention": "none", "layer3.ffn": 128,
    }  # fmt: skip
    assert arch_in_short(arch) == "width 64, depth 3: full/4/256, 2 × none/–/128"
    assert arch_in_short({"width": 64}) == "width 64"


# --- choosing

FOUND = (
    network("aa11", "search", 1.0, 12.0, high=1.2),
    network("ab22", "search", 2.0, 8.0, high=2.2),
    network("cc33", "search", 4.0, 7.0, high=4.6),
    network("dd44", "search", 4.5, 7.5),
    network("ee55", "hand", 9.0, 6.9),
)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("best", "ee55"),
        ("knee", "ab22"),
        ("fastest_within:0%", "ee55"),
        ("fastest_within:1.2%", "ab22"),
        ("fastest_within: 0.9 %", "cc33"),
        ("fastest_within:50", "aa11"),
        ("budget:1.2ms", "aa11"),
        ("budget:4.5 ms", "dd44"),  # cc33 takes up to 4.6 ms; dd44 has no interval and counts as measured
        ("budget:4.6", "cc33"),
        ("budget:20", "ee55"),  # whoever found it
        ("ee55", "ee55"),
        ("ee", "ee55"),
        ("ab", "ab22"),
    ],
)
def test_pick(rule, chosen):
    assert pick(FOUND, rule).id == chosen


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("budget:1.1ms", "sure to keep: the fastest, aa11, takes 1.00 ms (at most 1.20)"),
        ("budget:soon", "'budget:soon' does not hold a number like budget:8ms"),
        ("budget:nanms", "does not hold a number like budget:8ms"),
        ("budget:8s", "does not hold a number like budget:8ms"),
        ("budget", "'budget' does not hold a number like budget:8ms"),
        ("fastest_within:-1%", "'fastest_within:-1%' does not hold a number like fastest_within:1.5%"),
        ("a", "'a' begins more than one id: aa11, ab22"),
        ("zz", "'zz' is not one of knee, best, fastest_within:1.5%, budget:8ms, nor an id: aa11, ab22, cc33, dd44, ee55"),
        ("", "'' is not one of knee"),
        ("best:2", "'best:2' is not one of knee"),
    ],
)
def test_pick_refuses(rule, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        pick(FOUND, rule)


def test_a_budget_that_is_too_small_names_the_fastest_and_the_surest():
    """The fastest by its measured time, though another network's interval ends earlier."""
    found = (network("quick", "search", 1.0, 9.0, high=1.9), network("sure", "search", 1.2, 8.0, high=1.3))
    with pytest.raises(
        ValueError, match=re.escape("the fastest, quick, takes 1.00 ms (at most 1.90); the lowest bound is 1.30 ms")
    ):
        pick(found, "budget:1.25ms")


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (999, "999"), (12_000, "12.0 k"), (264_876, "265 k"), (999_600, "1.00 M"), (12_345_678, "12.3 M")],
)
def test_counts_are_said_in_three_digits(count, words):
    assert format_count(count) == words


def test_an_id_that_begins_another_is_meant():
    assert pick((*FOUND, network("aa", "search", 1, 1)), "aa").id == "aa"


def test_knee_is_that_of_the_front():
    results = make_results(num=6)
    ours = front(results.networks)
    assert pick(results.networks, "knee") == ours[knee(np.array([[n.measured_ms, n.error_percent] for n in ours]))]


def test_hypervolumes_are_those_of_the_roles():
    areas = hypervolumes(FOUND, (5.0, 10.0))
    assert areas == {"search": pytest.approx(2 * 2 + 1 * 3), "hand": 0.0}
