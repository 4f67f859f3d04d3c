"""The page, the tables and the sentences of a finished run, from plain data."""

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from experiments.conclude import lost_sentence
from experiments.networks import front
from experiments.plots.pareto import pareto_figure
from experiments.report import COLUMNS, page, pareto_csv, write_report
from experiments.results import Results, StageFigures, StageReport
from experiments.sentences import (
    beaten_sentence,
    compare_at_equal_time,
    few_sentence,
    health_sentence,
    search_sentences,
    trivial_sentence,
    trust_sentence,
)
from experiments.summary import front_table, summary, written
from experiments.trust import evidence, gained, hypervolumes_by_cost
from experiments.verdicts import LimitVerdict, Verdict
from nas.pareto import non_dominated
from tests.support.made_up_run import SPACE, make_candidates, make_results, network, with_memory


def printed(*lines):
    console = Console(width=100, file=io.StringIO())
    for line in lines:
        console.print(line)
    return console.file.getvalue()


def page_of(results, candidates):
    return page(results, candidates, evidence(results, candidates))


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


# --- words -------------------------------------------------------------------------------------------------------------------


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
    assert beaten_sentence(results) in Page(page_of(results, [])).text


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
    said = printed(*summary(results), *written(results, "runs/x"))
    flat = " ".join(said.split())
    for words in (results.picked_id, results.verdict.sentence, trivial_sentence(results), "runs/x", "report.html", "export/"):
        assert words in flat


def test_summary_ends_with_the_commands_to_go_on_with():
    results = make_results()
    results = dataclasses.replace(results, files=("export/aa11/model.onnx", "export/aa11/predict.py"))
    said = printed(*written(results, "runs/my run")).splitlines()
    assert said[-2:] == [
        "It answers by: python 'runs/my run/export/aa11/predict.py' --help",
        "Another by: paretoformer export 'run=runs/my run' pick=ID",
    ]


def test_a_collapse_of_the_differentiable_search_is_said_so():
    alarm = "For 0.950 ms it seemed to collapse: all is skipped; it began again with the remedy 'perturbation'."
    results = make_results(alarms=(alarm,))
    said = f"Differentiable search: {alarm}"
    assert said in " ".join(printed(*summary(results)).split())
    assert said in " ".join(Page(page_of(results, [])).text.replace("\u00a0", " ").split())


def test_a_file_that_is_worse_than_its_network_is_said_so():
    """A search does not lose its results for it, as an export would be refused."""
    facts = {"validation_error_percent": 12.0, "torch_validation_error_percent": 11.0}
    assert lost_sentence(facts) == ""
    lost = lost_sentence({**facts, "validation_error_percent": 90.0})
    assert "90.00 % validation error instead of 11.00 % in torch, where export allows 1 point" in lost
    results = make_results(lost=lost)
    assert lost in " ".join(printed(*summary(results)).split())
    assert lost in " ".join(Page(page_of(results, [])).text.replace("\u00a0", " ").split())
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


def test_the_guards_record_in_a_sentence():
    check = {"entropy": {"a": 1.0, "b": 0.5}, "skip_share": 0.5, "sharpness": 0.1, "gap": 0.02, "alarm": ""}
    checks = [check, {**check, "entropy": {"a": 0.0, "b": 0.5}, "skip_share": 0.9, "sharpness": 2.5, "alarm": "all is skipped"}]
    words = health_sentence(checks)
    for part in ("2 times", "0.75 at first and 0.25", "0.50 and 0.90", "0.1 and 2.5", "0.020 above", "tripped 1 times"):
        assert part in words
    assert "stand still" not in words
    assert health_sentence([check, {**check, "frozen": 3}]).endswith("the weights of 3 of its branches stand still in the end.")
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
    html = page_of(make_results(), make_candidates(num=400))
    assert len(html.encode()) < 1.5e6
    seen = Page(html)
    assert seen.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in seen.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)
    assert not re.search(r"https?://|@import|url\(", html)


def test_page_says_what_matters():
    results = make_results()
    text = Page(page_of(results, make_candidates())).text
    assert results.verdict.sentence in text
    assert "by you" in text
    assert trivial_sentence(results) in text
    assert all(sentence in text for sentence in search_sentences(results))
    assert all(n.id in text for n in results.networks)
    assert all(file in text for file in results.files)
    assert all(words in text for words in (results.command, *results.notes, *results.versions.values(), "7.31 %"))
    assert "BROKEN" not in text
    assert "Memory" not in text


def test_page_shows_what_each_evaluation_gained():
    results, candidates = make_results(), make_candidates()
    html = page_of(results, candidates)
    said = gained(hypervolumes_by_cost(results, candidates))
    assert re.search(r"the search reaches [01]\.\d{3} with 120 evaluations in .* s, random search reaches .*; the networks", said)
    assert said in Page(html).text
    assert "Hypervolume after each evaluation and after each second" in html
    assert "What each evaluation gained" not in page_of(results, [])


def test_page_of_a_run_that_knows_less():
    known = make_results()
    bare = tuple(dataclasses.replace(n, measured_low_ms=None, measured_high_ms=None) for n in known.networks)
    predictor = dataclasses.replace(known.predictor, spearman=None)
    html = page_of(make_results(networks=bare, predictor=predictor, notes=(), trivial_baselines={}), [])
    assert "too few to rank" in Page(html).text


def test_page_and_table_call_estimated_times_so():
    estimated = Verdict.of(
        asked_ms=0.95, asked_origin="user", predicted_ms=0.9, predicted_upper_ms=0.94, measured_ms=0.91, estimated=True
    )
    text = Page(page_of(make_results(verdict=estimated), make_candidates())).text
    assert "Kept, as estimated: asked 0.950 ms" in text
    assert "estimated ms" in text
    assert "estimated by a model of the device" in text
    assert "measured ms" not in text
    assert "estimated" in [c.header for c in front_table(make_results(verdict=estimated)).columns]


def test_page_shows_a_broken_verdict():
    html = page_of(make_results(picked_ms=1.2), make_candidates())
    assert '<section class="panel verdict broken"' in html
    text = Page(html).text
    assert "BROKEN: asked 0.950 ms" in text
    assert "Kept" not in text


def test_page_says_when_the_linear_baseline_wins():
    wins, loses = (Page(page_of(make_results(trivial=error), [])).text for error in (5.0, 9.9))
    assert "A baseline without a network is better than every network here" in wins
    assert "better than every network" not in loses


def test_hostile_words_stay_words():
    hostile = '<script>alert("x")</script>$\\frac{'
    networks = tuple(dataclasses.replace(n, label=hostile) for n in make_results().networks)
    changes = {"title": hostile, "device": hostile, "notes": (hostile,), "command": hostile, "interval": hostile}
    html = page_of(make_results(networks=networks, trivial_baselines={hostile: 9.0}, **changes), make_candidates())
    seen = Page(html)
    assert "script" not in seen.tags
    assert hostile in seen.text
    assert all(address.startswith("data:image/svg+xml;base64,") for address in seen.addresses)


def test_a_script_without_glyphs_does_not_stop_a_report():
    assert page_of(make_results(title="语言 on local_cpu"), [])


# --- more objectives than two


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


def test_the_page_and_the_terminal_name_the_memory():
    results = with_memory()
    html = page_of(results, make_candidates())
    for words in ("Memory kept: asked 40", "memory (MiB)", "all of\nlatency, error and memory", "predicted"):
        assert words.replace("\n", " ") in " ".join(html.replace("\u00a0", " ").split())
    console = Console(width=160, record=True, file=io.StringIO())
    for line in summary(results):
        console.print(line)
    said = console.export_text()
    assert "MiB" in said
    assert "Memory kept: asked 40 MiB, predicted 11 MiB (at most 12.5), measured 11.25 MiB." in said
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert again == results


@pytest.mark.parametrize("with_more", [False, True])
def test_the_table_fits_a_terminal_of_80_columns(with_more):
    """A network is a line, and no number or mark is cut, however long; a name that is too long ends in an ellipsis."""
    made = with_memory() if with_more else make_results()
    long = {"largest": "MiniLM-L12-H384-uncased", "2 layers": "2 layers"}
    networks = tuple(
        dataclasses.replace(n, label=long.get(n.label, n.label), num_parameters=12_345_678, measured_ms=n.measured_ms / 100)
        for n in made.networks
    )
    results = dataclasses.replace(made, networks=networks, title="movie_snippets on openvino")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(front_table(results))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "movie_snippets on openvino: trained networks"
    assert "errors are wrong answers" in lines[-1]
    for n in results.listed:
        [line] = [line for line in lines if n.id in line]
        assert f" {n.error_percent:.2f} " in line
        assert " 12.3 M" in line
        assert line.endswith("ships") == (n.id == results.picked_id)
    assert any(" 2 layers " in line for line in lines)
    assert any("…" in line for line in lines)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_table_makes_room_for_further_devices(num_devices):
    """Their names stand in lines, and predictions give way: no column of who found a network is lost, and no mark is cut."""
    names = [f"latency_ms_{device}" for device in ("raspberry_pi4", "jetson_orin_nano")][:num_devices]
    networks = tuple(dataclasses.replace(n, predicted=dict.fromkeys(names, 123.4)) for n in make_results().networks)
    results = make_results(networks=networks)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(front_table(results))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    for n in results.listed:
        [line] = [line for line in lines if n.id in line]
        by = line.split()[1]
        assert n.label.startswith(by.rstrip("…")) if n.role == "hand" else by == n.role
        assert line.count(" 123") == num_devices
        assert line.endswith("front, ships") == (n.id == results.picked_id)
    heads = " ".join(lines[:6])
    assert all(part in heads for name in names for part in name.removeprefix("latency_ms_").split("_"))
    assert ("upper" in heads) == (num_devices == 1)
    assert " ".join(lines[-2:]).endswith("upper and predicted are in pareto.csv") == (num_devices == 2)


@pytest.mark.parametrize(("name", "word"), [("memory_mib", "Memory"), ("energy_mj", "Energy")])
@pytest.mark.parametrize(("measured", "words"), [(39.0, "kept"), (44.0, "BROKEN"), (None, "PREDICTED, NOT MEASURED (lost)")])
def test_a_budget_beside_latency_is_judged_and_said(name, word, measured, words):
    verdict = LimitVerdict.of(name, asked=40.0, predicted=38.0, predicted_upper=40.0, measured=measured, unmeasured="lost")
    unit = name.rpartition("_")[2].replace("mj", "mJ").replace("mib", "MiB")
    said = f"{word} {words}: asked 40 {unit}, predicted 38 {unit} (at most 40)"
    assert verdict.sentence.startswith(said + (f", measured {measured:.0f} {unit}" if measured else "."))
    networks = tuple(dataclasses.replace(n, predicted={name: 38.0}) for n in make_results().networks)
    results = dataclasses.replace(make_results(), networks=networks, beside={name: verdict})
    assert results.kept is (None if measured is None else measured <= 40.0)
    assert verdict.sentence in page_of(results, []).replace("\u00a0", " ")
    assert verdict.sentence in " ".join(printed(*summary(results)).split())
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert again.beside == results.beside


def test_a_memory_as_earlier_runs_wrote_it_is_read():
    record = json.loads(json.dumps(with_memory().to_json()))
    verdict = record.pop("beside")["memory_mib"]
    figures = ("asked", "predicted", "predicted_upper", "measured")
    record["memory"] = {f"{name}_mib" if name in figures else name: value for name, value in verdict.items()}
    assert Results.from_json(record) == with_memory()
    assert Results.from_json({**record, "memory": None}).beside == {}


def test_what_a_table_does_not_tell_is_said_beside_the_verdict():
    caution = "9 of the 137 networks that were measured on a phone had layers that fell back to the CPU"
    results = dataclasses.replace(make_results(), cautions=(caution,))
    assert caution in " ".join(printed(*summary(results)).split())
    assert caution in page_of(results, [])
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


def test_few_examples_are_said_to_be_few():
    few, enough = (make_results(ties={"num_test": num, "groups": [["a"]], "test_error_percent": {}}) for num in (40, 100))
    said = "Errors are rough: the test split has only 40 examples, one of which is 2.5 % of it."
    assert few_sentence(few) == said
    assert few_sentence(enough) == few_sentence(make_results()) == ""
    assert said in " ".join(printed(*summary(few)).split())


def test_what_ships_is_what_the_kept_stages_made_of_the_picked_network():
    results = make_results()
    before = StageFigures(error_percent=results.picked.error_percent, latency_ms=0.5, file_bytes=8, num_parameters=4)
    after = dataclasses.replace(before, error_percent=3.0, latency_ms=0.4)
    stages = tuple(StageReport(n, n == "longer", "", before, after, facts={}, identity=n) for n in ("longer", "prune"))
    assert results.shipped == results.picked
    verdict = dataclasses.replace(results.verdict, measured_ms=0.39, measured_low_ms=0.38, measured_high_ms=0.4)
    longer = dataclasses.replace(results, stages=stages, verdict=verdict)
    assert (longer.shipped.error_percent, longer.shipped.measured_ms, longer.shipped.id) == (3.0, 0.39, results.picked_id)
    said = " ".join(printed(*summary(longer)).split())
    assert f"after longer ({before.error_percent:.2f} % before): validation error 3.00 %" in said
    assert f"{results.picked_id} search 3.00 0.390 " in said
    caption = f"{results.picked_id} as it ships, after its stages; all others as they were trained"
    assert caption in said
    assert caption not in " ".join(printed(*summary(results)).split())
    drawn = {line.get_gid(): line.get_xydata().tolist() for line in pareto_figure(longer, []).axes[0].lines}
    assert drawn["picked"] == drawn["shipped"] == [[0.39, 3.0]]
