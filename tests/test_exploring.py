"""A search with memory as objective and budget, that measures on the way: through the command, and step by step."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from experiments import scoring
from experiments.budgets import Budget
from experiments.calibration import CALIBRATION, LATER
from experiments.costing import Costing, measured_energy
from experiments.progress import Reporter
from experiments.proposing import Proposer
from experiments.run_directory import CANDIDATES, RunDirectory
from experiments.scoring import Scoring
from hardware.arena import activations_mib
from latency_models.memory import memory_of
from nas.compute import Compute
from nas.costs import parameters_of
from nas.protocols import DeviceError, ExhaustedError
from nas.searchers import random
from nas.types import Candidate, Provenance
from tests.support.commands import command
from tests.support.exploring import explorer, law_ms, lines, measurement, scored, splits_read

BUDGET_MIB = 0.3


@pytest.fixture(scope="module")
def searched(finished, tmp_path_factory):
    """Continues the calibration of another run, so that nothing but three networks is measured for it."""
    run = tmp_path_factory.mktemp("memory") / "run"
    words = [
        "experiment=smoke",
        f"run={run}",
        f"store={finished.parent / 'store'}",
        "torch_threads=1",
        f"budget_mib={BUDGET_MIB}",
    ]
    words += [
        "objectives=[error,latency_ms,memory_mib]",
        "searcher=regularised_evolution",
        "searcher.measure=2",
        "searcher.evaluations=12",
    ]
    done = command("search", *words, "budget_ms=100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Memory kept: asked 0.3 MiB" in done.stdout or "Memory BROKEN: asked 0.3 MiB" in done.stdout
    return run


def test_memory_is_an_objective_and_a_budget(searched):
    results = json.loads((searched / "results.json").read_text())
    networks = {n["id"]: n for n in results["networks"]}
    most = {c["id"]: c["objectives"]["upper_mib"] for c in lines(searched / "candidates.jsonl")}
    for id_, n in networks.items():
        assert 0.85 * n["predicted"]["memory_mib"] < n["measured"]["memory_mib"] <= most[id_]
    assert networks[results["picked_id"]]["measured"]["memory_mib"] <= BUDGET_MIB
    assert results["beside"]["memory_mib"]["kept"] is True
    for candidate in lines(searched / "candidates.jsonl"):
        assert candidate["objectives"]["upper_mib"] > candidate["objectives"]["memory_mib"]
        if candidate["phase"] == "random":
            assert candidate["objectives"]["upper_mib"] <= BUDGET_MIB
    proposals = json.loads((searched / "proposals.json").read_text())
    assert proposals
    assert all(0 < proposal["others"]["budget_mib"] <= BUDGET_MIB for proposal in proposals)
    assert all(proposal["budget_ms"] < 100 for proposal in proposals), "no further than the slowest network"
    with (searched / "pareto.csv").open() as file:
        assert all(float(row["measured_memory_mib"]) > 0 for row in csv.DictReader(file))


def test_what_is_measured_on_the_way_is_known_and_said(searched):
    trust = json.loads((searched / "trust.json").read_text())
    refined = trust["measured_during_the_search"]
    measured = refined["measured"]
    assert 1 <= measured <= 2
    assert np.isfinite(refined["mape_percent_before"])
    assert f"Measured half way through, near the front: {measured}" in (searched / "report.html").read_text()
    assert {p for p in trust["hypervolume"] if p in ("search", "random", "hand")} == {"search", "random", "hand"}
    known = [r["id"] for r in lines(searched / "measurements.jsonl") if r["phase"] in (CALIBRATION, LATER)]
    assert len(known) == len(set(known)) == 13 + measured
    again = command("search", *(searched / ".hydra/overrides.yaml").read_text().replace("- ", "").split())
    assert again.returncode == 0, again.stderr
    assert json.loads((searched / "trust.json").read_text())["measured_during_the_search"]["joined"] == refined["joined"]
    assert len([r for r in lines(searched / "measurements.jsonl") if r["phase"] in (CALIBRATION, LATER)]) == len(known)


# --- parts


class Twice:
    """Measures that the widest networks take twice what everybody thought."""

    def __init__(self, pipeline) -> None:
        self.pipeline, self.asked = pipeline, []

    def more(self, archs, calibration):
        self.asked = list(archs)
        times = law_ms(self.pipeline, archs, factor=2.0)
        return {a.id: measurement(a, t, energy_mj=[1.0]) for a, t in zip(archs, times, strict=True)}


class Lost:
    def more(self, archs, calibration):
        raise DeviceError("simulated: no answer")


class Slowed:
    """Finds that all takes a quarter more than it took."""

    def look(self, calibration, *, before):
        slower = {id_: measurement(m.arch, 1.25 * m.latency_ms) for id_, m in calibration.measurements.items()}
        calibration.measurements.update(slower)
        return before == "the answer"


def test_candidates_are_not_scored_on_the_split_that_chooses(pipeline, calibrated, monkeypatch):
    read, one = splits_read(monkeypatch, pipeline.task), explorer(pipeline, calibrated)
    one._evaluation("search")(pipeline.family.space.smallest())
    one._by_hand()
    assert read == {"architecture"}


def test_nothing_is_scored_twice_and_each_phase_books_what_it_takes(pipeline, calibrated, tmp_path, monkeypatch):
    one = replace(explorer(pipeline, calibrated), run=RunDirectory(tmp_path))
    arch, other = pipeline.family.space.smallest(), pipeline.family.space.largest()
    asked = []

    def score(family, supernet, arch, *rest):
        asked.append(arch)
        return 50.0 + len(asked)

    monkeypatch.setattr(scoring, "inherited_error", score)
    first = replace(one._evaluation("search")(arch), seconds=7.0)
    one.run.append("candidates.jsonl", first.to_json())
    one.run.append("candidates.jsonl", replace(first, arch=other, phase="rung 0.1").to_json())
    evaluate = one._evaluation("random")
    found = [evaluate(a) for a in (arch, other, arch)]
    assert asked == [arch, other], "what a rung scored is another error"
    assert [c.objectives["error"] for c in found] == [51.0, 52.0, 51.0]
    assert found[0].seconds == 7.0
    assert max(c.seconds for c in found[1:]) < 7.0


def test_measurements_that_contradict_the_model_change_it(pipeline, calibrated):
    candidates, device = scored(pipeline, calibrated), Twice(pipeline)
    one = explorer(pipeline, calibrated)
    before = calibrated.model.predict([c.arch for c in candidates]).mean_ms
    refined = one.refine(candidates, device)
    assert refined["measured"] == len(device.asked) == 4
    assert len(set(device.asked)) == 4
    measured = law_ms(pipeline, device.asked, factor=2.0)
    after = calibrated.model.predict(device.asked).mean_ms
    old = [c.objectives["latency_ms"] for a in device.asked for c in candidates if c.arch == a]
    assert np.mean(np.abs(after / measured - 1)) < np.mean(np.abs(np.array(old) / measured - 1))
    assert refined["mape_percent_before"] == pytest.approx(100 * np.mean(np.abs(np.array(old) / measured - 1)))
    now = calibrated.model.predict([c.arch for c in candidates]).mean_ms
    assert refined["mean_change_percent"] == pytest.approx(100 * np.mean(np.abs(now / before - 1)))


def test_what_answers_is_priced_as_the_device_is_then(pipeline, calibrated, tmp_path, monkeypatch):
    one = replace(
        explorer(pipeline, calibrated), run=RunDirectory(tmp_path),
        settings=replace(pipeline.settings, outer=replace(pipeline.settings.outer, evaluations=3, measure=0, baseline=False)),
    )  # fmt: skip
    monkeypatch.setattr(Scoring, "__call__", lambda self, arch: (50.0, 0.1))
    found = one.explore([], Slowed()).by_phase["search"]
    told = {record["id"]: record["objectives"]["upper_ms"] for record in one.run.read_lines(CANDIDATES)}
    assert [c.objectives["upper_ms"] for c in found] == pytest.approx([1.25 * told[c.arch.id] for c in found], rel=1e-3)


def test_measurements_on_the_way_change_what_is_known_of_energy(pipeline, calibrated):
    settings = replace(pipeline.settings, budget_mj=5.0)
    costing = Costing.of(settings, pipeline.family, pipeline.workload, calibrated)
    archs = [c.arch for c in scored(pipeline, calibrated)]
    before = costing.columns(archs)["energy_mj"]
    candidates = [
        Candidate(a, {"error": 50.0, **costs}, dict.fromkeys(("error", *costs), Provenance.PREDICTED), "search")
        for a, costs in zip(archs, costing(archs), strict=True)
    ]
    replace(explorer(pipeline, calibrated), costing=costing).refine(candidates, Twice(pipeline))
    assert not np.array_equal(costing.columns(archs)["energy_mj"], before)
    doubled = [replace(m, environment={"energy_mj": [6 * m.latency_ms]}) for m in list(calibrated.measurements.values())[:12]]
    costing.fit(replace(calibrated, measurements={m.arch.id: m for m in doubled}))
    assert costing.columns(archs)["energy_mj"] == pytest.approx(2 * before, rel=0.01)


def test_a_device_that_is_lost_changes_nothing(pipeline, calibrated):
    candidates = scored(pipeline, calibrated)
    before = calibrated.model.predict([c.arch for c in candidates]).mean_ms
    refined = explorer(pipeline, calibrated).refine(candidates, Lost())
    assert refined == {"measured": 0, "lost": "simulated: no answer"}
    assert np.array_equal(before, calibrated.model.predict([c.arch for c in candidates]).mean_ms)


def test_costs_are_those_of_their_units(pipeline, calibrated):
    settings = replace(pipeline.settings, objectives=("error", "latency_ms", "parameters", "energy_mj"), budget_mib=9.0)
    costing = Costing.of(settings, pipeline.family, pipeline.workload, calibrated)
    archs = [pipeline.family.space.smallest(), pipeline.family.space.largest()]
    for arch, costs in zip(archs, costing(archs), strict=True):
        assert costs["parameters"] * 1e6 == sum(p.numel() for p in pipeline.family.network(arch).parameters())
        assert costs["energy_mj"] == pytest.approx(3 * costs["latency_ms"], rel=0.05)
        assert costs["memory_mib"] == memory_of(pipeline.family, [arch], pipeline.workload)[0].peak_mib
        assert list(costs) == ["latency_ms", "upper_ms", "memory_mib", "upper_mib", "parameters", "energy_mj", "upper_mj"]
    with pytest.raises(ValueError, match="without its energy; store=FOLDER"):
        measured_energy(measurement(archs[0], 1.0))


def test_the_arena_is_measured_of_the_file_that_ships(searched):
    results = json.loads((searched / "results.json").read_text())
    [path] = (searched / f"export/{results['picked_id']}").glob("model.onnx")
    inputs = dict.fromkeys(("token_ids", "attention_mask"), np.ones((1, 32), dtype=np.int64))
    network = next(n for n in results["networks"] if n["id"] == results["picked_id"])
    assert 0 < activations_mib(path, inputs) < network["measured"]["memory_mib"]


def test_random_search_keeps_the_limits_too_and_ends_where_nothing_does(pipeline, calibrated, tmp_path, monkeypatch):
    upper = calibrated.model.predict([c.arch for c in scored(pipeline, calibrated)]).upper_ms
    settings = replace(pipeline.settings, outer=replace(pipeline.settings.outer, make_searcher=random.Random))
    one = replace(explorer(pipeline, calibrated), settings=settings, run=RunDirectory(tmp_path))
    searcher = replace(one, budget=Budget(float(np.median(upper)), "user"))._strategy([])
    assert calibrated.model.predict([searcher.ask() for _ in range(8)]).upper_ms.max() <= np.median(upper)
    nothing = replace(one, budget=Budget(1e-9, "user"))._strategy([])
    monkeypatch.setattr(random, "MOST_BLOCKS", 2)
    with pytest.raises(ExhaustedError, match="has no more architectures to draw"):
        nothing.ask()


def test_without_proposals_nothing_is_searched_differentiably(pipeline, calibrated, tmp_path):
    settings = replace(pipeline.settings, outer=replace(pipeline.settings.outer, proposals=0))
    proposer = Proposer(
        pipeline.family, pipeline.task, pipeline.workload, calibrated.model, Compute(), settings, RunDirectory(tmp_path),
        Reporter(quiet=True),
    )  # fmt: skip
    assert proposer.propose(pipeline.family.supernet(), proposer.budgets(2.0, 1.0)) == []
    assert not list(tmp_path.iterdir())


def test_who_takes_parameters_for_accuracy_scores_those_with_the_most(pipeline, calibrated):
    limit = float(calibrated.model.predict([pipeline.family.space.largest()]).mean_ms[0]) / 2
    one = replace(explorer(pipeline, calibrated), budget=Budget(limit, "user"))
    searcher = one._by_parameters()
    asked = [searcher.ask() for _ in range(6)]
    others = [c.arch for c in scored(pipeline, calibrated)]
    (counts, ms, upper), (their_counts, their_ms, their_upper) = (
        (parameters_of(pipeline.family, archs, pipeline.workload), found.mean_ms, found.upper_ms)
        for archs, found in ((archs, calibrated.model.predict(archs)) for archs in (asked, others))
    )
    assert len(set(asked)) == 6
    assert (upper <= limit).all()
    assert counts[0] == counts.max() >= their_counts[their_upper <= limit].max()
    assert ((their_counts[:, None] > counts) & (their_ms[:, None] <= ms)).mean() < 0.01
    again = replace(explorer(pipeline, calibrated), budget=Budget(limit, "user"))._by_parameters()
    assert [again.ask() for _ in range(6)] == asked


def test_parameter_count_alone_is_in_the_evidence(finished):
    phases = [record["phase"] for record in lines(finished / "candidates.jsonl")]
    trust = json.loads((finished / "trust.json").read_text())
    curve = trust["hypervolume"]["parameters"]
    assert len(curve["after_evaluations"]) == phases.count("parameters") == phases.count("random") > 0
    assert "parameter count alone" in (finished / "report.html").read_text()
