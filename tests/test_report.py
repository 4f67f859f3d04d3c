"""The picture and the page of a finished run, from plain data."""

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from rich.console import Console

from experiments import plots
from experiments.report import (
    COLUMNS,
    arch_in_short,
    beaten_sentence,
    compare_at_equal_time,
    front_table,
    health_sentence,
    page,
    pareto_csv,
    search_sentences,
    summary,
    trivial_sentence,
    trust_sentence,
    write_report,
)
from experiments.results import (
    LedgerEntry,
    MemoryVerdict,
    Network,
    Parity,
    PredictorReport,
    Results,
    Verdict,
    format_ms,
    format_seconds,
    front,
    hypervolumes,
    pick,
    split_layers,
)
from nas.pareto import knee, non_dominated
from nas.space import Choice, Condition, SearchSpace
from nas.types import Candidate, Provenance, Workload

LAYERS = range(1, 7)
SPACE = SearchSpace(
    "encoder",
    (
        Choice("width", (32, 64, 96, 128)),
        Choice("depth", tuple(LAYERS)),
        *(
            choice
            for i in LAYERS
            for choice in (
                Choice(
                    f"layer{i}.attention", ("full", "window", "none"), (Condition("depth", tuple(d for d in LAYERS if d >= i)),)
                ),
                Choice(f"layer{i}.heads", (1, 2, 4), (Condition(f"layer{i}.attention", ("full", "window")),)),
                Choice(f"layer{i}.ffn", (64, 128, 256), (Condition("depth", tuple(LAYERS)[i - 1 :]),)),
            )
        ),
    ),
)
QUALITY = {
    "num_fit": 32, "num_held_out": 12, "mape_percent": 3.4, "spearman": 0.986, "within_10_percent": 91.7,
    "coverage_percent": 100.0, "constant_mape_percent": 45.2,
}  # fmt: skip
HELD_OUT = ("id", "measured_ms", "predicted_ms", "upper_ms")
INHERITED = {"error": Provenance.INHERITED, "latency_ms": Provenance.PREDICTED}


def cost_ms(arch):
    """A made-up latency with the shape of a real one."""
    layers = [i for i in LAYERS if i <= arch.size("depth")]
    attention = sum(0.05 + 0.03 * arch.size(f"layer{i}.heads") for i in layers if arch[f"layer{i}.attention"] != "none")
    return 0.08 + arch.size("width") / 128 * (attention + sum(arch.size(f"layer{i}.ffn") for i in layers) / 1100)


def make_network(arch, role, label, *, error, rng):
    time = cost_ms(arch) * (1 + 0.03 * rng.normal())
    return Network(
        id=arch.id, arch=arch.to_json(), role=role, label=label, error_percent=round(error, 3), predicted_ms=cost_ms(arch),
        predicted_upper_ms=1.08 * cost_ms(arch), measured_ms=time, measured_low_ms=0.99 * time, measured_high_ms=1.04 * time,
        num_parameters=arch.size("width") * 9000, train_seconds=12.5,
    )  # fmt: skip


def make_candidates(*, num=120, seed=0):
    rng = np.random.default_rng(seed)
    candidates = []
    for phase in ("search", "random"):
        for arch in (SPACE.sample(rng) for _ in range(num)):
            error = 7.5 + 6 / (0.3 + cost_ms(arch)) + 4 * rng.random() ** (2 if phase == "search" else 1)
            candidates.append(Candidate(arch, {"error": error, "latency_ms": cost_ms(arch)}, INHERITED, phase=phase))
    return candidates


def make_results(*, budget_ms=0.95, trivial=9.9, picked_ms=None, num=4, **changes):
    """A run as it ends; `picked_ms` is what the verdict measured, `num` how many networks each search trained."""
    rng = np.random.default_rng(7)
    by_time = sorted((SPACE.sample(rng) for _ in range(200)), key=cost_ms)
    within = [a for a in by_time if cost_ms(a) <= 0.9 * budget_ms]
    largest = SPACE.largest()
    networks = []
    for role, label, gain in (("search", "search", 0.9), ("random", "random search", 0.0)):
        step = max(1, len(within) // num)
        for arch in within[(role == "random") :: step][:num] if num > 1 else within[-1:] * (role == "search"):
            networks.append(make_network(arch, role, label, error=6.2 - gain + 1.9 / (0.25 + cost_ms(arch)), rng=rng))
    if num > 2:
        for label, depth in (("largest", 6), ("2 layers", 2), ("1 layer", 1)):
            arch = SPACE.canonical({**largest.as_dict, "depth": depth})
            networks.append(make_network(arch, "hand", label, error=6.1 + 1.8 / (0.25 + cost_ms(arch)), rng=rng))
    ours = [n for n in networks if n.role == "search"]
    picked = min((n for n in ours if n.measured_ms <= budget_ms), key=lambda n: n.error_percent)
    measured = picked_ms or picked.measured_ms
    held_out = [SPACE.sample(rng) for _ in range(12)]
    results = Results(
        title="languages on local_cpu",
        task="languages",
        device="local_cpu: Example CPU @ 2.10GHz, 1 thread, fp32",
        workload=Workload(batch=1, tokens=64),
        space="encoder",
        seed=0,
        networks=tuple(networks),
        picked_id=picked.id,
        interval="the quietest to the noisiest visit, drift removed",
        verdict=Verdict.of(
            asked_ms=budget_ms, asked_origin="user", predicted_ms=picked.predicted_ms,
            predicted_upper_ms=picked.predicted_upper_ms, measured_ms=measured, measured_low_ms=0.99 * measured,
            measured_high_ms=1.03 * measured,
        ),
        predictor=PredictorReport.of(
            QUALITY,
            [
                dict(zip(HELD_OUT, (a.id, cost_ms(a) * (1 + 0.03 * rng.normal()), cost_ms(a), 1.08 * cost_ms(a)), strict=True))
                for a in held_out
            ],
        ),
        trivial_baselines={"majority class": 96.4, "character 1-4-grams, logistic regression": trivial},
        test_error_percent=7.31,
        parity=Parity(num_examples=256, max_abs_difference=2.1e-6, equal_decisions=1.0, inputs="test split"),
        files=tuple(f"export/{picked.id}/{name}" for name in ("card.md", "labels.json", "model.onnx", "tokenizer.json")),
        hypervolumes=hypervolumes(networks, (budget_ms, 100.0)),
        error_means="wrong answers",
        hypervolume_reference=(budget_ms, 100.0),
        ledger=(
            LedgerEntry("calibration", 64.2, 61.0, 512.0, 0),
            LedgerEntry("trivial baselines", 8.1, 15.0, 800.0, 0),
            LedgerEntry("supernet", 121.9, 240.1, 1210.5, 1),
            LedgerEntry("Differentiable search", 95.0, 186.0, 1210.5, 1),
            LedgerEntry("Outer loop (nsga2)", 60.2, 118.0, 1210.5, 0),
            LedgerEntry("Random search, for comparison", 58.8, 117.0, 1210.5, 0),
            LedgerEntry("short-list", 210.4, 415.0, 1300.0, 11),
            LedgerEntry("measuring the short-list", 20.4, 20.0, 1300.0, 0),
        ),
        notes=("Networks were trained on 2 threads in bfloat16.", "Validation errors chose the network, so they flatter it."),
        command="paretoformer search task=languages budget_ms=0.95 run=runs/languages",
        versions={"python": "3.11.9", "torch": "2.13.0", "optuna": "5.0.0", "onnxruntime": "1.31.1"},
    )  # fmt: skip
    return dataclasses.replace(results, **changes)


def network(id_, role, ms, error, *, high=None):
    """A bare trained network."""
    return Network(id_, {"width": 32}, role, role, error, ms, ms, ms, high and 0.9 * ms, high, 1000, 1.0)


def printed(*lines):
    console = Console(width=100, file=io.StringIO())
    for line in lines:
        console.print(line)
    return console.file.getvalue()


class Page(HTMLParser):
    """What a page asks for, and what it says."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]

    def handle_data(self, data):
        self.words.append(data)


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
    assert "too few to rank" in Page(page(results, [])).text


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


def test_importing_results_is_light():
    code = "import sys, experiments.results; print([m for m in ('torch', 'matplotlib', 'hydra', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_predictor_report_takes_nan_for_no_rank():
    assert PredictorReport.of({**QUALITY, "spearman": float("nan")}, []).spearman is None


def test_verdict_kept():
    verdict = Verdict.of(asked_ms=2, asked_origin="user", predicted_ms=1.81, predicted_upper_ms=1.95, measured_ms=1.84)
    assert verdict.kept
    assert verdict.sentence == "Kept: asked 2.00 ms, predicted 1.81 ms (at most 1.95), measured 1.84 ms."


def test_verdict_broken():
    verdict = Verdict.of(asked_ms=2, asked_origin="user", predicted_ms=1.81, predicted_upper_ms=1.95, measured_ms=2.1)
    assert not verdict.kept
    assert verdict.sentence == "BROKEN: asked 2.00 ms, predicted 1.81 ms (at most 1.95), measured 2.10 ms, 5 % over the budget."


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


# --- choosing ----------------------------------------------------------------------------------------------------------------

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
        ("budget:1.1ms", "'budget:1.1ms' is below the fastest network: aa11 takes 1.00 ms (at most 1.20)"),
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


def test_an_id_that_begins_another_is_meant():
    assert pick((*FOUND, network("aa", "search", 1, 1)), "aa").id == "aa"


def test_knee_is_that_of_the_front():
    results = make_results(num=6)
    ours = front(results.networks)
    assert pick(results.networks, "knee") == ours[knee(np.array([[n.measured_ms, n.error_percent] for n in ours]))]


def test_hypervolumes_are_those_of_the_roles():
    areas = hypervolumes(FOUND, (5.0, 10.0))
    assert areas == {"search": pytest.approx(2 * 2 + 1 * 3), "hand": 0.0}


# --- words -------------------------------------------------------------------------------------------------------------------


def test_architecture_in_short():
    arch = {
        "width": 64, "depth": 3, "layer1.attention": "full", "layer1.heads": 4, "layer1.ffn": 256, "layer2.attention": "none",
        "layer2.ffn": 128, "layer3.attention": "none", "layer3.ffn": 128,
    }  # fmt: skip
    assert arch_in_short(arch) == "width 64, depth 3: full/4/256, 2 × none/–/128"
    assert arch_in_short({"width": 64}) == "width 64"


def test_equal_time_takes_the_best_that_is_as_fast():
    results = make_results()
    for c in compare_at_equal_time(results):
        as_fast = [n for n in results.of_role("search") if n.measured_ms <= c.other.measured_ms]
        if c.ours is None:
            assert not as_fast
        else:
            assert c.ours in as_fast
            assert c.points == min(n.error_percent for n in as_fast) - c.other.error_percent


def test_the_trivial_baseline_that_wins_is_said_so():
    assert "is better than every network here" in trivial_sentence(make_results(trivial=5.0))
    between = make_results(trivial=7.0)
    assert min(n.error_percent for n in between.networks) < 7.0 < between.picked.error_percent
    assert "is better than the network that ships" in trivial_sentence(between)
    assert "beats the best baseline" in trivial_sentence(make_results(trivial=9.9))
    assert "is level with" in trivial_sentence(make_results(trivial=make_results().picked.error_percent))
    assert "No baseline" in trivial_sentence(make_results(trivial_baselines={}))


def test_a_better_network_that_the_search_did_not_find_is_said_so():
    assert beaten_sentence(make_results()) == ""
    better = network("beef", "hand", 0.1, 1.0)
    results = make_results(networks=(*make_results().networks, better))
    assert "beef (hand) has 1.00 % validation error in 0.100 ms" in beaten_sentence(results)
    assert beaten_sentence(results) in Page(page(results, [])).text


@pytest.mark.parametrize(
    ("search", "random", "words"), [(2.0, 1.0, "100.00 % ahead"), (1.0, 2.0, "not worth its cost"), (1.0, 1.0, "are level")]
)
def test_hypervolumes_are_said_as_they_came_out(search, random, words):
    said = " ".join(search_sentences(make_results(hypervolumes={"search": search, "random": random})))
    assert words in said
    assert f"search {search:.5g}, random search {random:.5g}" in said


def test_a_useless_predictor_is_said_so():
    good = make_results().predictor
    assert "no better than a constant" not in trust_sentence(good)
    assert "no better than a constant" in trust_sentence(dataclasses.replace(good, mape_percent=50.0))


def test_summary_ends_with_the_facts(tmp_path):
    results = make_results(picked_ms=1.2, trivial=5.0)
    said = printed(*summary(results, "runs/x"))
    flat = " ".join(said.split())
    for words in (results.picked_id, results.verdict.sentence, trivial_sentence(results), "runs/x", "report.html", "export/"):
        assert words in flat


def test_a_collapse_of_the_differentiable_search_is_said_so():
    results = make_results(alarms=("For 0.950 ms it collapsed: all is skipped; it began again with the remedy 'perturbation'.",))
    said = "Differentiable search: For 0.950 ms it collapsed: all is skipped; it began again with the remedy 'perturbation'."
    assert said in " ".join(printed(*summary(results, "runs/x")).split())
    assert said in " ".join(Page(page(results, [])).text.replace("\u00a0", " ").split())


def test_the_guards_record_in_a_sentence():
    check = {"entropy": {"a": 1.0, "b": 0.5}, "skip_share": 0.5, "sharpness": 0.1, "gap": 0.02, "alarm": ""}
    checks = [check, {**check, "entropy": {"a": 0.0, "b": 0.5}, "skip_share": 0.9, "sharpness": 2.5, "alarm": "all is skipped"}]
    words = health_sentence(checks)
    for part in ("2 times", "0.75 at first and 0.25", "0.50 and 0.90", "0.1 and 2.5", "0.020 above", "tripped 1 times"):
        assert part in words
    assert health_sentence([]) == ""


def test_a_label_with_markup_is_printed_as_it_is():
    networks = make_results().networks
    hostile = dataclasses.replace(networks[-1], label="[red]x[/nope]")
    assert "[red]x[/nope]" in printed(front_table(make_results(networks=(*networks[:-1], hostile))))


# --- files -------------------------------------------------------------------------------------------------------------------


def test_csv_agrees_with_the_results():
    results = make_results()
    rows = list(csv.DictReader(io.StringIO(pareto_csv(results))))
    assert tuple(rows[0]) == COLUMNS
    assert {row["id"] for row in rows} == {n.id for n in results.networks}
    keep = non_dominated(np.array([[float(row["measured_ms"]), float(row["error_percent"])] for row in rows]))
    assert [row["on_front"] for row in rows] == ["true" if k else "false" for k in keep]
    assert [row["id"] for row in rows if row["picked"] == "true"] == [results.picked_id]
    by_id = {n.id: n for n in results.networks}
    for row in rows:
        n = by_id[row["id"]]
        assert SPACE.canonical(json.loads(row["arch"])).id == n.id
        assert row["error_provenance"] == "retrained"
        for name in ("error_percent", "predicted_ms", "predicted_upper_ms", "measured_ms", "measured_low_ms", "measured_high_ms"):
            assert float(row[name]) == getattr(n, name)


def test_csv_leaves_a_missing_interval_empty():
    results = make_results()
    bare = tuple(dataclasses.replace(n, measured_low_ms=None, measured_high_ms=None) for n in results.networks)
    rows = list(csv.DictReader(io.StringIO(pareto_csv(make_results(networks=bare)))))
    assert {row["measured_low_ms"] for row in rows} == {""}


def test_report_is_written_whole_and_again(tmp_path):
    results, candidates = make_results(), make_candidates()
    (tmp_path / "report.html").write_text("old")
    paths = write_report(results, candidates, tmp_path)
    assert [p.name for p in paths] == ["pareto.csv", "pareto.png", "results.json", "trust.json", "report.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    assert Results.from_json(json.loads((tmp_path / "results.json").read_text())) == results
    first = {p.name: p.read_bytes() for p in paths}
    write_report(Results.from_json(json.loads((tmp_path / "results.json").read_text())), candidates, tmp_path)
    assert {p.name: p.read_bytes() for p in paths} == first


def test_page_needs_nothing_else():
    html = page(make_results(), make_candidates(num=400))
    assert len(html.encode()) < 1.5e6
    seen = Page(html)
    assert seen.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in seen.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)
    assert not re.search(r"https?://|@import|url\(", html)


def test_page_says_what_matters():
    results = make_results()
    text = Page(page(results, make_candidates())).text
    assert results.verdict.sentence in text
    assert "by you" in text
    assert trivial_sentence(results) in text
    assert all(sentence in text for sentence in search_sentences(results))
    assert all(n.id in text for n in results.networks)
    assert all(file in text for file in results.files)
    assert all(words in text for words in (results.command, *results.notes, *results.versions.values(), "7.31 %"))
    assert "BROKEN" not in text


def test_page_shows_a_broken_verdict():
    html = page(make_results(picked_ms=1.2), make_candidates())
    assert '<section class="panel verdict broken"' in html
    text = Page(html).text
    assert "BROKEN: asked 0.950 ms" in text
    assert "Kept" not in text


def test_page_says_when_the_linear_baseline_wins():
    wins, loses = (Page(page(make_results(trivial=error), [])).text for error in (5.0, 9.9))
    assert "A baseline without a network is better than every network here" in wins
    assert "better than every network" not in loses


def test_hostile_words_stay_words():
    hostile = '<script>alert("x")</script>$\\frac{'
    networks = tuple(dataclasses.replace(n, label=hostile) for n in make_results().networks)
    changes = {"title": hostile, "device": hostile, "notes": (hostile,), "command": hostile, "interval": hostile}
    html = page(make_results(networks=networks, trivial_baselines={hostile: 9.0}, **changes), make_candidates())
    seen = Page(html)
    assert "script" not in seen.tags
    assert hostile in seen.text
    assert all(address.startswith("data:image/svg+xml;base64,") for address in seen.addresses)


# --- pictures ----------------------------------------------------------------------------------------------------------------


def artists(figure):
    """The drawn parts that carry a name, by that name."""
    named = {}
    for artist in figure.findobj(lambda a: a.get_gid()):
        named.setdefault(artist.get_gid(), []).append(artist)
    return named


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
@pytest.mark.parametrize("num", [1, 2, 4, 12])
def test_picture_has_content(num, width, tmp_path):
    results = make_results(num=num)
    path = tmp_path / "pareto.png"
    path.write_bytes(plots.png(plots.pareto_figure(results, make_candidates() if num > 1 else [], width=width)))
    pixels = imread(path)[..., :3]
    assert pixels.shape[1] == round(150 * width)
    assert 0.01 < np.mean(np.any(pixels < 0.9, axis=-1)) < 0.5


def test_picture_shows_every_network():
    results, candidates = make_results(), make_candidates()
    figure = plots.pareto_figure(results, candidates)
    drawn = artists(figure)
    for role in ("search", "random", "hand"):
        of_role = results.of_role(role)
        expected = sorted((n.measured_ms, n.error_percent) for n in of_role)
        assert sorted(map(tuple, drawn[role][0].get_xydata())) == expected
        assert sorted(drawn[f"predicted {role}"][0].get_xdata()) == sorted(n.predicted_ms for n in of_role)
        assert [list(bar.get_xdata()) for bar in drawn[f"interval {role}"]] == [
            [n.measured_low_ms, n.measured_high_ms] for n in of_role
        ]
    assert list(drawn["front"][0].get_xdata()) == [n.measured_ms for n in front(results.of_role("search"))]
    assert drawn["picked"][0].get_xydata().tolist() == [[results.picked.measured_ms, results.picked.error_percent]]
    assert set(drawn["budget"][0].get_xdata()) == {0.95}
    assert set(drawn["trivial"][0].get_ydata()) == {9.9}
    assert [label.get_text() for label in drawn["hand label"]] == [n.label for n in results.of_role("hand")]
    assert drawn["asked"][0].get_text() == "asked 0.950 ms"
    assert results.picked_id in drawn["ships"][0].get_text()


def test_dots_out_of_range_are_counted_and_networks_are_not_squashed():
    results, candidates = make_results(), make_candidates()
    far = Candidate(SPACE.largest(), {"error": 97.0, "latency_ms": 900.0}, INHERITED)
    figure = plots.pareto_figure(results, [*candidates, far])
    drawn, axes = artists(figure), figure.axes[0]
    shown = sum(len(drawn[f"scored {role}"][0].get_offsets()) for role in ("search", "random"))
    hidden = len(candidates) + 1 - shown
    assert hidden >= 1
    assert drawn["hidden"][0].get_text() == f"{hidden} of {len(candidates) + 1} scored architectures lie outside"
    bottom, top = axes.get_ylim()
    errors = [n.error_percent for n in results.networks]
    assert bottom < min(errors)
    assert max(errors) < top
    assert (max(errors) - min(errors)) > 0.45 * (top - bottom)
    assert axes.get_xlim()[1] < 10


def test_a_far_baseline_is_named_and_not_drawn():
    figure = plots.pareto_figure(make_results(trivial=60.0), [])
    drawn = artists(figure)
    assert "trivial" not in drawn
    assert drawn["trivial label"][0].get_text().endswith("60.00\u00a0%, above this picture")
    assert figure.axes[0].get_ylim()[1] < 30


def test_a_wide_range_is_logarithmic():
    near = make_results(num=1)
    assert plots.pareto_figure(near, []).axes[0].get_xscale() == "linear"
    assert plots.pareto_figure(make_results(), []).axes[0].get_xscale() == "log"


@pytest.mark.parametrize("trivial", [5.0, 9.9, 60.0])
@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_labels_are_inside_and_apart(width, trivial):
    figure = plots.pareto_figure(make_results(trivial=trivial), make_candidates(), width=width)
    figure.draw_without_rendering()
    frame = figure.axes[0].bbox.padded(2)
    boxes = []
    for name in ("asked", "ships", "hand label", "trivial label"):
        for label in artists(figure)[name]:
            box = Text.get_window_extent(label)
            assert frame.containsx(box.x0), name
            assert frame.containsx(box.x1), name
            assert frame.containsy(box.y0), name
            assert frame.containsy(box.y1), name
            assert not box.count_overlaps(boxes), name
            boxes.append(box)


def test_predictor_picture_marks_a_broken_bound():
    held_out = (("a", 1.0, 1.1, 1.2), ("b", 2.0, 1.5, 1.6), ("c", 30.0, 29.0, 31.0))
    figure = plots.predictor_figure(PredictorReport.of(QUALITY, [dict(zip(HELD_OUT, h, strict=True)) for h in held_out]))
    drawn = artists(figure)
    assert drawn["held out"][0].get_xydata().tolist() == [[1.0, 1.1], [2.0, 1.5], [30.0, 29.0]]
    assert drawn["exceeded"][0].get_xydata().tolist() == [[2.0, 1.6]]
    assert figure.axes[0].get_xscale() == "log"
    assert plots.png(figure)


@pytest.mark.parametrize("arch", [{"width": 32}, {"width": 32, "layer1.kind": "gated"}])
def test_architecture_picture_takes_any_space(arch):
    bare = Network("ab", arch, "search", "search", 1.0, 1.0, 1.0, 1.0, None, None, 1000, 1.0)
    assert plots.png(plots.architecture_figure(bare, [bare]))


def test_architecture_picture_shows_the_layers():
    results = make_results()
    _, layers = split_layers(results.picked.arch)
    words = [text.get_text() for text in plots.architecture_figure(results.picked, results.networks).axes[0].texts]
    for layer in layers:
        assert all(str(option) in words for option in layer.values())


def test_ledger_picture_has_a_bar_a_phase():
    figure = plots.ledger_figure(make_results().ledger)
    assert len(figure.axes[0].patches) == 8
    assert plots.png(plots.ledger_figure([LedgerEntry("calibration", 0.0, 0.0, 1.0, 0)]))


def test_a_script_without_glyphs_does_not_stop_a_report():
    assert page(make_results(title="语言 on local_cpu"), [])


def test_pictures_are_the_same_bytes_again():
    first, second = (plots.svg(plots.pareto_figure(make_results(), make_candidates())) for _ in range(2))
    assert first == second


# --- more objectives than two


def with_memory(**changes):
    """Memory as a third objective: the slowest network of all needs the least, the others ever more."""
    results = make_results(**changes)
    by_time = sorted(results.networks, key=lambda n: -n.latency_ms)
    mib = {n.id: 1.0 + i for i, n in enumerate(by_time)}
    networks = tuple(replace(n, predicted={"memory_mib": mib[n.id] - 0.25}, measured={"memory_mib": mib[n.id]}) for n in by_time)
    memory = MemoryVerdict.of(asked_mib=40.0, predicted_mib=11.0, predicted_upper_mib=12.5, measured_mib=11.25)
    return replace(results, networks=networks, objectives=("error", "latency_ms", "memory_mib"), memory=memory)


def test_the_front_is_over_all_objectives():
    results = with_memory()
    slowest = max(results.networks, key=lambda n: n.latency_ms)
    assert slowest in results.front
    assert slowest not in front(results.networks) or slowest.error_percent == min(n.error_percent for n in results.networks)
    costs = np.array([[n.latency_ms, n.error_percent, n.measured["memory_mib"]] for n in results.networks])
    assert {n.id for n in results.front} == {n.id for n, keep in zip(results.networks, non_dominated(costs), strict=True) if keep}
    rows = list(csv.DictReader(io.StringIO(pareto_csv(results))))
    assert {row["id"] for row in rows if row["on_front"] == "true"} == {n.id for n in results.front}
    for row in rows:
        assert float(row["measured_memory_mib"]) == float(row["predicted_memory_mib"]) + 0.25


def test_the_picture_rings_who_is_on_the_front_by_memory_alone():
    results = with_memory()
    alone = [n for n in results.front if n not in front(results.networks)]
    assert alone
    figure = plots.pareto_figure(results, make_candidates())
    [ring] = [line for line in figure.axes[0].lines if line.get_gid() == "front in more"]
    assert sorted(ring.get_xdata()) == sorted(n.latency_ms for n in alone)
    assert "on the front for its memory" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_page_and_the_terminal_name_the_memory():
    results = with_memory()
    html = page(results, make_candidates())
    for words in ("Memory kept: asked 40", "memory (MiB)", "all of\nlatency, error and memory", "predicted"):
        assert words.replace("\n", " ") in " ".join(html.replace("\u00a0", " ").split())
    console = Console(width=160, record=True, file=io.StringIO())
    for line in summary(results, "run"):
        console.print(line)
    said = console.export_text()
    assert "MiB" in said
    assert "Memory kept: asked 40 MiB, predicted 11 MiB (at most 12.5), measured 11.25 MiB." in said
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert again == results


@pytest.mark.parametrize(("measured", "words"), [(44.0, "BROKEN"), (None, "PREDICTED, NOT MEASURED")])
def test_a_memory_that_is_not_kept_is_said(measured, words):
    memory = MemoryVerdict.of(asked_mib=40.0, predicted_mib=39.0, predicted_upper_mib=40.0, measured_mib=measured)
    assert words in memory.sentence
    results = replace(with_memory(), memory=memory)
    assert results.kept is (None if measured is None else False)
    assert memory.sentence in page(results, []).replace("\u00a0", " ")


def test_results_of_earlier_versions_load():
    record = json.loads(json.dumps(make_results().to_json()))
    for name in ("objectives", "memory", "num_validation", "refined"):
        del record[name]
    for network in record["networks"]:
        del network["predicted"], network["measured"]
    results = Results.from_json(record)
    assert results.front == front(results.networks)
    assert "Memory" not in page(results, [])
