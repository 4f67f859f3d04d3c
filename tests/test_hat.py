"""The space of HAT, searched in its tables of measurements: what a row says, what a budget buys, and what is refused."""

import csv
import json
from dataclasses import replace

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.build import make_places
from experiments.config import composed
from experiments.progress import Reporter
from experiments.run_directory import RunError
from experiments.settings import OuterSettings, Settings
from experiments.table_place import Place
from experiments.table_search import TableSearch
from hardware.recorded import RecordedDevice
from hardware.tables import load_table
from nas.projection import BudgetError
from nas.searchers.nsga2 import Nsga2
from search_spaces import hat
from tests.support.commands import ROOT, command

TABLES = ("hat_raspberrypi4", "hat_xeon", "hat_titanxp_wmt", "hat_titanxp_iwslt")
QUICK = OuterSettings(make_searcher=Nsga2, population=10, evaluations=30)


@pytest.fixture
def make(recorded, tmp_path):
    """A search in the Pi's table, with these settings."""

    def make(table="hat_raspberrypi4", also=(), **settings):
        device = RecordedDevice(table, str(recorded))
        settings = Settings(**{"outer": QUICK, **settings})
        further = [Place(RecordedDevice(other, str(recorded)), asked, name) for name, (other, asked) in dict(also).items()]
        return TableSearch(
            hat.hat_space(), device, settings=settings, directory=tmp_path / "run", report=Reporter(), also=further
        )

    return make


def test_a_row_holds_the_averages_of_the_layers_that_exist():
    space = hat.hat_space()
    picks = space.largest().as_dict | {"decoder.depth": 2, "decoder.width": 512, "encoder1.ffn": 1024, "decoder2.ffn": 1024}
    picks |= {"decoder1.attended": 1, "decoder2.heads": 4}
    kept = {n: p for n, p in picks.items() if not n.startswith(tuple(f"decoder{i}" for i in range(3, 7)))}
    row = hat.features([space.canonical(kept)])[0]
    np.testing.assert_allclose(row, [640, 6, (5 * 3072 + 1024) / 6, 8, 512, 2, 2048, 6, 8, 2])
    assert 14 < space.log10_size() < 15


def test_the_yaml_repeats_the_default():
    node = OmegaConf.load(ROOT / "conf/space/hat.yaml")
    assert hydra.utils.instantiate(node, _convert_="all") == hat.hat_space()


@pytest.mark.parametrize("name", TABLES)
def test_the_options_are_those_of_the_tables(recorded, name):
    """Decoders of one layer show the sizes themselves; the tables were sampled from two smaller sizes as well."""
    table, space = load_table(name, recorded), hat.hat_space()
    assert table.features == hat.FEATURES
    column = dict(zip(hat.FEATURES, table.rows.T, strict=True))
    single = column["decoder_layer_num"] == 1

    def options(choice):
        return set(space.by_name[choice].options)

    assert set(column["encoder_layer_num"]) == {hat.ENCODER_LAYERS}
    assert set(column["decoder_layer_num"]) == options("decoder.depth")
    assert set(column["encoder_embed_dim"]) == set(column["decoder_embed_dim"]) == options("decoder.width")
    assert set(column["decoder_arbitrary_ende_attn_avg"][single]) == options("decoder1.attended")
    assert set(column["decoder_ffn_embed_dim_avg"][single]) == options("decoder1.ffn") | {512}
    assert set(column["decoder_self_attention_heads_avg"][single]) == options("decoder1.heads") | {2}
    assert set(column["decoder_ende_attention_heads_avg"][single]) == options("decoder1.cross_heads") | {2}


def test_a_search_ends_with_its_files_and_both_verdicts(make, tmp_path, capsys):
    results = make(budget_ms=6000.0).search(command="paretoformer search space=hat")
    said = " ".join(capsys.readouterr().out.split())
    assert "PREDICTED, NOT MEASURED" in said
    assert "Kept: asked 6000 ms" in said or "BROKEN: asked 6000 ms" in said
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    assert (tmp_path / "run/pareto.png").stat().st_size > 10_000
    with (tmp_path / "run/pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {role: sum(row["role"] == role for row in rows) for role in ("search", "random")} == {"search": 30, "random": 30}
    [picked] = [row for row in rows if row["picked"] == "true"]
    within = [row for row in rows if row["role"] == "search" and float(row["predicted_upper_ms"]) <= 6000]
    assert int(picked["num_parameters"]) == max(int(row["num_parameters"]) for row in within) == results["num_parameters"]
    arch = hat.hat_space().canonical(json.loads(picked["arch"]))
    assert hat.num_parameters(hat.features([arch]))[0] == results["num_parameters"]
    known = results["held_out"]
    assert known["predicted_upper_ms"] <= 6000
    assert known["kept"] == (known["measured_ms"] <= 6000)
    assert results["predictor"]["mape_percent"] < 5


def test_the_same_seed_finds_the_same_and_the_directory_is_its_own(make):
    first = make(budget_ms=6000.0)
    first.claim()
    assert first.search(command="") == make(budget_ms=6000.0).search(command="")
    with pytest.raises(ValueError, match=r"was begun with budget_ms 6000\.0"):
        make(budget_ms=5000.0).claim()


def test_without_a_budget_it_is_half_of_the_largest_networks(make):
    results = make("hat_xeon", outer=replace(QUICK, baseline=False)).search(command="")
    assert results["verdict"]["asked_origin"] == "half of the largest network's latency"
    assert 200 < results["verdict"]["asked_ms"] < 260
    assert set(results["hypervolume_shares"]) == {"search"}


def test_a_table_of_energies_is_searched_in_mj(make, tmp_path, capsys):
    results = make("hat_gtx1080_energy", budget_mj=9000.0).search(command="")
    said = " ".join(capsys.readouterr().out.split())
    assert "Budget: 9000 mJ (asked by you); the largest network takes 1" in said
    assert "Energy PREDICTED, NOT MEASURED (nobody has run this network): asked 9000 mJ, predicted" in said
    assert "Energy kept: asked 9000 mJ" in said or "Energy BROKEN: asked 9000 mJ" in said
    assert " ms" not in said
    known = results["held_out"]
    assert known["predicted_upper_mj"] <= 9000
    assert known["kept"] == (known["measured_mj"] <= 9000)
    with (tmp_path / "run/pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    [picked] = [row for row in rows if row["picked"] == "true"]
    assert float(picked["predicted_mj"]) < float(picked["predicted_upper_mj"]) <= 9000
    assert results["predictor"]["mape_percent"] < 8
    with pytest.raises(BudgetError, match=r"^budget_mj: 100 is below the most frugal network of .* takes 6\d\d\d mJ"):
        make("hat_gtx1080_energy", budget_mj=100.0).search(command="")


def test_a_further_table_has_bounds_a_budget_and_verdicts_of_its_own(make, tmp_path, capsys):
    search = make("hat_titanxp_wmt", also={"gpu": ("hat_gtx1080_energy", 9000)}, budget_ms=250)
    search.claim()
    alone = make("hat_titanxp_wmt", budget_ms=250).search(command="")
    found = search.search(command="")
    assert search.objectives == ("latency_ms", "missing", "energy_mj_gpu")
    there = found["elsewhere"]["gpu"]
    assert there["verdict"]["predicted_upper_mj"] <= there["verdict"]["asked_mj"] == 9000
    assert there["verdict"]["kept"] is None
    assert there["held_out"]["measured_mj"] > 0
    assert there["predictor"]["num_held_out"] == 300
    assert found["verdict"]["predicted_upper_ms"] <= 250
    assert found["held_out"] == alone["held_out"], "each table is judged by its own rows"
    assert found["num_parameters"] < alone["num_parameters"]
    rows = list(csv.DictReader((tmp_path / "run" / "pareto.csv").read_text().splitlines()))
    assert all(float(r["predicted_upper_mj_gpu"]) <= 9000 for r in rows if r["on_front"] == "true")
    [picked] = [r for r in rows if r["picked"] == "true"]
    assert float(picked["predicted_mj_gpu"]) == pytest.approx(there["verdict"]["predicted_mj"], rel=1e-5)
    said = capsys.readouterr().out
    assert "On gpu: rows that the fit did not see are predicted to" in said
    assert "Energy PREDICTED, NOT MEASURED (nobody has run this network): asked 9000 mJ" in said.replace("\n", " ")
    with pytest.raises(RunError, match=r"also.gpu.budget_mj"):
        make("hat_titanxp_wmt", also={"gpu": ("hat_gtx1080_energy", 9001)}, budget_ms=250).claim()


def test_without_a_budget_a_further_table_is_an_objective(make):
    there = make("hat_titanxp_wmt", also={"pi": ("hat_raspberrypi4", None)}).search(command="")["elsewhere"]["pi"]
    assert set(there) == {"device", "unit", "predictor"}


def test_budgets_that_no_network_keeps_are_named(make):
    message = r"also.gpu.budget_mj: 100 is below the most frugal network of the space, .* mJ on recorded hat_gtx1080_energy"
    with pytest.raises(BudgetError, match=message):
        make(also={"gpu": ("hat_gtx1080_energy", 100)}).search(command="")
    fast, frugal = make(budget_ms=4400), make(also={"xp": ("hat_titanxp_wmt", 90)}, budget_ms=20000)
    assert all(one.search(command="")["picked_id"] for one in (fast, frugal))
    least = dict.fromkeys(("upper_ms", "upper_ms_xp"), 1.0)
    costs = lambda archs: {name: np.full(len(archs), 1.5) for name in least}  # noqa: E731
    with pytest.raises(BudgetError, match=r"none that was found keeps all; .* 1.5 of 1 \(upper_ms\) and 1.5 of 1"):
        frugal._within(least, costs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("device: local_cpu", r"also.gpu: device: .* has no measurements of the space hat; .* table=… one of hat_raspberrypi4"),
        ("TABLE, budget_ms: 3", "also.gpu: budget_ms: hat_gtx1080_energy holds energy_mj; give budget_mj"),
        ("TABLE, budget_mj: -1", "also.gpu.budget_mj: -1 is not positive"),
        ("TABLE, budget_mj: much", "also.gpu.budget_mj: 'much' is not a number"),
    ],
)
def test_what_is_no_further_table_is_refused(recorded, values, message):
    values = values.replace("TABLE", f"device: recorded, table: hat_gtx1080_energy, data: {recorded}")
    with pytest.raises(ValueError, match=message):
        make_places(composed("space=hat", f"also={{gpu: {{{values}}}}}"))


def test_the_directory_of_energies_knows_its_budget(make):
    make("hat_gtx1080_energy", budget_mj=9000.0).claim()
    with pytest.raises(ValueError, match=r"was begun with budget_mj 9000\.0"):
        make("hat_gtx1080_energy", budget_mj=8000.0).claim()


def test_what_a_table_does_not_know_is_no_objective(make):
    with pytest.raises(ValueError, match="weighs parameters against latency"):
        make(budget_mib=20.0)


def test_a_budget_that_no_network_meets_names_the_fastest(make):
    with pytest.raises(
        BudgetError, match=r"budget_ms: 200 is below the fastest network of the space, \w+ \(.*\), which takes 3\d\d\d ms"
    ):
        make(budget_ms=200.0).search(command="")


def test_shuffled_times_are_refused(make):
    job = make(budget_ms=6000.0)
    table = job.device.table
    job.device.table = replace(table, values=np.random.default_rng(0).permutation(table.values))
    with pytest.raises(ValueError, match="there is no signal"):
        job.search(command="")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["device=local_cpu"], "device: local_cpu has no measurements of the space hat; give device=recorded"),
        (["device=recorded", "device.table=jetson_nano_cpu"], "one of hat_raspberrypi4, hat_xeon, hat_titanxp_wmt"),
        (["device=recorded", "device.table=hat_gtx1080_energy", "budget_ms=9000"], "holds energy in mJ; give budget_mj=…"),
        (["device=recorded", "device.table=hat_xeon", "budget_mj=9000"], "budget_mj: 9000: hat_xeon holds latency in ms; give"),
    ],
)
def test_other_devices_are_refused(recorded, tmp_path, words, complaint):
    words = [*words, f"device.data={recorded}"] if "device=recorded" in words else words
    done = command("search", "space=hat", f"run={tmp_path / 'run'}", *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_space_without_networks_is_not_measured(tmp_path):
    done = command("calibrate", "device=local_cpu", "space=hat", f"run={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "space: hat has no networks that can be built" in done.stderr
