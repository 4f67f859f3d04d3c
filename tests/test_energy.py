"""A search with a budget of energy, on a made-up device that meters it: kept on the way, by what ships, and judged in the end."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.budgets import Budget
from experiments.build import build
from experiments.conclude import conclude
from experiments.config import composed
from experiments.costing import Costing, check_device
from experiments.outcome import Finalist
from experiments.progress import Reporter
from experiments.selecting import Selection
from experiments.settings import Settings
from hardware import environment
from hardware.surroundings import Surrounded
from nas.projection import BudgetError

KIB = 1024


class Metered:
    """Takes a millisecond and a microsecond a KiB of the file, and 2 mJ and a hundredth a KiB; notes nothing, runs nothing."""

    name, measures_energy = "metered", True

    def __init__(self) -> None:
        self.size = 0.0

    @property
    def environment(self) -> Mapping[str, Any]:
        return {"cpu": "made up", "runtime": "1.0", "threads": 1}

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        self.size = onnx_path.stat().st_size / KIB
        return (1.0 + 0.001 * self.size,) * 20

    def energy_mj(self) -> float:
        return 2.0 + 0.01 * self.size


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A search of these words on the metered device; all have one store."""
    folder = tmp_path_factory.mktemp("energy")

    def make(*words, run):
        here = [f"run={folder / run}", f"store={folder / 'store'}", "torch_threads=1", "budget_ms=100"]
        here += ["searcher.evaluations=6", "finish.most_steps=5"]
        made = build(composed("experiment=smoke", *here), report=Reporter())
        made.device = Metered()
        made.settings = replace(made.settings, **dict(words))
        return made

    return make


@pytest.fixture(scope="module")
def ends(make):
    """Energy of the space's smallest network at most, and of its largest."""
    pipeline = make(("objectives", ("error", "latency_ms", "energy_mj")), run="ends")
    calibration = pipeline.calibrate()
    costing = Costing.of(pipeline.settings, pipeline.family, pipeline.workload, calibration)
    space = pipeline.family.space
    found = costing.columns([space.smallest(), space.largest()])
    return float(found["upper_mj"][0]), float(found["energy_mj"][1])


@pytest.fixture(scope="module")
def searched(make, ends):
    """A third of the way from the smallest network to the largest."""
    budget_mj = ends[0] + (ends[1] - ends[0]) / 3
    pipeline = make(("budget_mj", budget_mj), run="searched")
    outcome = pipeline.search()
    return pipeline, outcome, conclude(pipeline, outcome, command="search", report=Reporter()), budget_mj


def test_a_budget_of_energy_is_kept_from_the_proposals_to_what_ships(searched):
    pipeline, outcome, results, budget_mj = searched
    assert outcome.proposals
    assert all(0 < p.others["budget_mj"] <= budget_mj for p in outcome.proposals)
    assert max(c.objectives["upper_mj"] for c in outcome.explored.by_phase["random"]) <= budget_mj
    assert max(c.objectives["upper_mj"] for c in outcome.candidates) > budget_mj, "some networks would not keep it"
    verdict = results.beside["energy_mj"]
    assert verdict.kept is True
    assert results.kept is True
    assert verdict.asked == budget_mj >= verdict.measured
    assert verdict.measured == pytest.approx(
        2.0 + 0.01 * (pipeline.run / f"export/{results.picked_id}/model.onnx").stat().st_size / KIB
    )
    assert verdict.predicted == pytest.approx(verdict.measured, rel=0.1)
    over = [n for n in results.networks if n.measured["energy_mj"] > budget_mj]
    assert over, "the short-list's largest is over"
    assert min(n.error_percent for n in results.networks) < 100


def test_the_verdict_stands_in_terminal_page_and_results(searched, capsys):
    pipeline, outcome, results, _ = searched
    sentence = results.beside["energy_mj"].sentence
    assert sentence.startswith("Energy kept: asked ")
    assert sentence in (pipeline.run / "report.html").read_text().replace("\u00a0", " ")
    assert json.loads((pipeline.run / "results.json").read_text())["beside"]["energy_mj"]["sentence"] == sentence
    assert json.loads((pipeline.run / "run.json").read_text())["budget_mj"] == results.beside["energy_mj"].asked
    conclude(pipeline, outcome, command="search", report=Reporter())
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_what_ships_is_chosen_by_measured_energy(searched):
    """With the most accurate network measured at twice its energy, another ships; where all are over, the fastest."""
    pipeline, outcome, results, budget_mj = searched
    selection = Selection(
        outcome.finisher, outcome.calibration, outcome.costing, outcome.budget, None, None, pipeline.settings,  # type: ignore[arg-type]
        Reporter(quiet=True),
    )  # fmt: skip
    finalists = [Finalist(f.arch, f.role, f.label) for f in outcome.finalists]

    def metered(measurement, factor):
        known = measurement.environment
        return replace(measurement, environment={**known, "energy_mj": [factor * mj for mj in known["energy_mj"]]})

    def chosen(factors):
        measurements = {id_: metered(m, factors.get(id_, 1.0)) for id_, m in outcome.measurements.items()}
        return selection.choose(finalists, measurements, {}, lost="not asked again").arch.id

    assert chosen({}) == results.picked_id
    other = chosen({results.picked_id: 100.0})
    assert other != results.picked_id
    assert next(n for n in results.networks if n.id == other).measured["energy_mj"] <= budget_mj


def test_a_budget_of_energy_that_no_network_keeps_names_the_least(make, ends):
    with pytest.raises(BudgetError, match=r"^budget_mj: 2\.001 is below what any network of the space needs; ") as refused:
        make(("budget_mj", 2.001), run="below").search()
    needs, largest = re.search(r"needs the least, .* mJ \(at most (.*)\); the largest needs (.*) mJ", str(refused.value)).groups()
    assert 2.001 < float(needs) <= ends[0]
    assert float(largest) == pytest.approx(ends[1], rel=1e-3)


def test_a_device_meters_in_all_its_surroundings():
    check_device(Settings(budget_mj=3.0), Surrounded(lambda picks: Metered(), [{"threads": 1}, {"threads": 2}]))


def test_limits_are_named_by_what_asks_for_them():
    budget = Budget(5.0, "user", {"memory_mib": 3.0, "energy_mj": 2.0}, {"two": 1.0})
    assert budget.limits == {"upper_ms": 5.0, "upper_mib": 3.0, "upper_mj": 2.0, "upper_ms_two": 1.0}
    assert budget.names == ["budget_ms", "budget_mib", "budget_mj", "also.two.budget_ms"]
