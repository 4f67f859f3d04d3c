"""Several devices in one study: predicted for every candidate, kept by what is proposed and chosen, measured in the end."""

import json
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.also import networks_alone
from experiments.budgets import Budget
from experiments.build import also, build, make_settings
from experiments.calibration import Calibration, Calibrator
from experiments.config import composed
from experiments.costing import Costing
from experiments.objectives import objective
from experiments.progress import Reporter
from experiments.results import Results
from nas.constraints import within_ms
from nas.projection import BudgetError, discretise
from nas.surroundings import everywhere
from tests.support.commands import command
from tests.support.exploring import explorer, lines, measurement, scored

BUDGET_MS = 0.5  # which all keep, however wide the bound of so brief a calibration is


@pytest.fixture(scope="module")
def searched(finished, tmp_path_factory):
    """The first device is known from another run; the second is the same CPU with two threads."""
    run = tmp_path_factory.mktemp("also") / "run"
    words = ["experiment=smoke", f"run={run}", f"store={finished.parent / 'store'}", "torch_threads=1", "searcher.evaluations=12"]
    words += [f"also={{two: {{device: local_cpu, threads: 2, budget_ms: {BUDGET_MS}}}}}", "budget_ms=100"]
    words += ["objectives=[error,latency_ms,latency_ms_two]"]
    done = command("search", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "On two: Kept: asked 0.500 ms" in done.stdout or "On two: BROKEN: asked 0.500 ms" in done.stdout
    return run, words


def test_a_further_device_is_an_objective_with_a_budget(searched):
    run, _ = searched
    candidates = lines(run / "candidates.jsonl")
    assert {"latency_ms", "upper_ms", "latency_ms_two", "upper_ms_two"} <= set(candidates[0]["objectives"])
    ratios = [c["objectives"]["latency_ms_two"] / c["objectives"]["latency_ms"] for c in candidates]
    assert np.ptp(ratios) > 0, "a model of its own"
    drawn = [c["objectives"]["upper_ms_two"] for c in candidates if c["phase"] in ("random", "parameters")]
    assert 0 < max(drawn) <= BUDGET_MS
    proposals = json.loads((run / "proposals.json").read_text())
    assert all(0 < proposal["others"]["latency_ms_two"] <= BUDGET_MS for proposal in proposals)
    measured = lines(run / "also" / "two" / "measurements.jsonl")
    assert {m["environment"]["threads"] for m in measured} == {2}
    moments = json.loads((run / "also" / "two" / "looks.json").read_text())
    assert moments.keys() == json.loads((run / "looks.json").read_text()).keys() == {"calibration", "the answer"}


def test_its_budget_is_kept_by_what_is_scored(pipeline, calibrated):
    model = calibrated.model
    upper = model.predict([c.arch for c in scored(pipeline, calibrated)]).upper_ms
    limit = float(np.median(upper))
    one = explorer(pipeline, calibrated)
    costing = Costing.of(pipeline.settings, pipeline.family, pipeline.workload, calibrated, also={"two": model})
    one = replace(one, costing=costing, budget=Budget(100.0, "user", also_ms={"two": limit}))
    for searcher in (one._random(), one._by_parameters()):
        asked = [searcher.ask() for _ in range(5)]
        assert model.predict(asked).upper_ms.max() <= limit
    [constraint] = costing.limits(one.budget)
    rng = np.random.default_rng(0)
    log_p = np.log(np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in pipeline.family.space]))
    for budgets in ([within_ms(model, 100.0), constraint], [within_ms(model, limit / 2), constraint]):
        [most] = model.predict([discretise(pipeline.family.space, log_p, budgets)]).upper_ms
        assert most <= min(budget.limit for budget in budgets)


def test_what_ships_is_measured_on_it(searched):
    run, _ = searched
    results = Results.from_json(json.loads((run / "results.json").read_text()))
    verdict = results.elsewhere["two"]
    picked = results.picked.predicted["latency_ms_two"]
    assert verdict.asked_ms == BUDGET_MS
    assert verdict.predicted_ms == pytest.approx(picked)
    assert verdict.predicted_upper_ms <= BUDGET_MS
    [record] = [m for m in lines(run / "measurements.jsonl") if m["phase"].startswith("two: ")]
    assert record["environment"]["threads"] == 2
    assert verdict.kept == (verdict.measured_ms <= BUDGET_MS)
    assert results.kept == (verdict.kept and results.verdict.kept)
    network = json.loads((run / "export" / results.picked_id / "contract.json").read_text())["networks"][0]
    there = network["also"]["two"]
    assert there["max_abs_difference"] < 1e-4
    assert there["num_decisions"] >= network["parity"]["num_examples"]
    assert there["validation_error_percent"] == network["validation_error_percent"]
    assert there["test"]["error_percent"] == network["test"]["error_percent"]
    assert any(note.startswith("On two: local_cpu (onnxruntime") and "decides 100.00 % of" in note for note in results.notes)
    assert "| the further device two | local_cpu (" in (run / "export" / results.picked_id / "card.md").read_text()
    assert f"On two: {verdict.sentence[:20]}" in (run / "report.html").read_text().replace("\u00a0", " ")


def test_a_finished_run_is_shown_and_goes_on_without_measuring_again(searched):
    run, words = searched
    before = (run / "also" / "two" / "measurements.jsonl").read_text(), (run / "measurements.jsonl").read_text()
    shown = command("pareto", f"run={run}")
    assert "On two:" in shown.stdout, shown.stderr
    again = command("search", *words)
    assert again.returncode == 0, again.stderr
    assert ((run / "also" / "two" / "measurements.jsonl").read_text(), (run / "measurements.jsonl").read_text()) == before


def test_a_table_predicts_and_a_budget_below_its_fastest_is_named(recorded, finished, tmp_path):
    words = ["experiment=smoke", f"store={finished.parent / 'store'}", "torch_threads=1", "searcher.evaluations=6"]
    table = f"device: recorded, table: jetson_nano_cpu, data: {recorded}"
    done = command("search", *words, f"also={{jetson: {{{table}, budget_ms: 60}}}}", f"run={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "On jetson: PREDICTED, NOT MEASURED (recorded jetson_nano_cpu is a table): asked 60.0 ms" in done.stdout
    refused = command("search", *words, f"also={{jetson: {{{table}, budget_ms: 0.001}}}}", f"run={tmp_path / 'other'}")
    assert refused.returncode != 0
    assert "also.jetson.budget_ms: 0.001 is below the fastest network of the space, " in refused.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{two: 3}", r"also.two: 3 is not like \{device: recorded"),
        ("{Two: {device: local_cpu}}", r"also.Two: .* is not like"),
        ("{two: {threads: 2}}", r"also.two: .* is not like"),
        ("{two: {device: local_cpux}}", r"also.two: .*there is no 'local_cpux'; near it: local_cpu"),
        ("{two: {device: local_cpu, threadss: 2}}", r"also.two: .*device.threadss"),
        ("{two: {device: recorded}}", r"also.two: device.table: has no value"),
        ("{two: {device: local_cpu, budget_ms: -1}}", r"also.two.budget_ms: -1 is not positive"),
        ("{two: {device: local_cpu, budget_mj: 3}}", "also.two.budget_mj: energy on further devices is known of the tables of"),
        ("{two: {device: local_cpu, budget_ms: fast}}", r"also.two.budget_ms: 'fast' is not a number"),
        ("{two: {device: local_cpu, budget_ms: .inf}}", r"also.two.budget_ms: '\.inf' is not a number"),
        ("{two: {device: local_cpu, budget_ms: inf}}", r"also.two.budget_ms: inf is no limit; null stands for none"),
    ],
)
def test_what_is_no_device_is_refused_before_any_work(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(composed("experiment=smoke", f"also={values}", f"run={tmp_path / 'run'}"), report=Reporter(quiet=True))
    assert not (tmp_path / "run").exists()


def test_surroundings_are_those_of_the_first_device(tmp_path, monkeypatch):
    words = ["experiment=smoke", "also={two: {device: local_cpu, budget_ms: 9}}", "surroundings.threads=[1,2]"]
    pipeline = build(composed(*words, f"run={tmp_path / 'run'}"), report=Reporter(quiet=True))
    [two], like = pipeline.also, pipeline.calibrator()
    own = two.calibrator(like)
    assert "device.threads" not in own.family.space.by_name
    assert own.family.signature == networks_alone(own.family).signature != like.family.signature

    def calibrated(self, model, *, seed):
        archs = [self.family.space.sample(np.random.default_rng(i)) for i in range(20)]
        known = {a.id: measurement(a, 0.01 * a.size("width") * a.size("depth")) for a in archs}
        return Calibration(model.fit(self.family, list(known.values())), known, 1.0, {}, [])

    monkeypatch.setattr(Calibrator, "calibrate", calibrated)
    found = two.calibrate(like, seed=0)
    archs = everywhere(like.family.space, [like.family.space.largest()])
    assert len(set(found.model.predict(archs).mean_ms)) == 1 < len(archs)
    with pytest.raises(BudgetError, match=r"also.two.budget_ms: 0.01 is below the fastest network of the space, "):
        replace(two, budget_ms=0.01).calibrate(like, seed=0)


def test_an_objective_without_its_device_is_refused():
    with pytest.raises(ValueError, match="objectives: 'latency_ms_board' is not one of"):
        make_settings(composed("objectives=[error,latency_ms_board]"))


def test_runs_of_before_had_no_further_devices():
    assert also(OmegaConf.create({})) == {}
    assert objective("latency_ms_board").header == "latency on board (ms)"
