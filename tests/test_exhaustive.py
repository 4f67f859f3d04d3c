"""The table of trained encoders: that it is whole, that its recipe trains its networks again, and how it is made."""

import gzip
import hashlib
import json
import math
import shutil

import numpy as np
import pytest

from experiments import bench
from experiments.benchmarks import exhaustive, tabular
from experiments.benchmarks.exhaustive import FULL, NETWORKS, TINY
from experiments.benchmarks.trained_table import ABOUT, FOLDER, TABLE, TrainedTable
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from nas.supernet import evaluation_batches
from search_spaces.encoder import EncoderFamily

SEEDS_APART = 4.0  # standard deviations between trainings with different seeds


@pytest.fixture(scope="module")
def table():
    return TrainedTable.read()


@pytest.fixture(scope="module")
def tiny_task():
    return TINY.task()


def test_every_network_is_in_the_table_once_and_was_trained(table):
    space = table.recipe.search_space()
    assert len(table.archs) == len({arch.id for arch in table.archs}) == space.num_architectures() >= 2000
    assert table.recipe == FULL
    errors, repeated = table.columns["error_percent_0"], table.errors()
    assert np.all((errors > 0) & (errors < 100))
    assert repeated.shape == (table.recipe.repeated, table.recipe.seeds)
    wrong_answers = errors * table.about["data"]["num_validation"] / 100
    assert wrong_answers == pytest.approx(np.round(wrong_answers), abs=1e-3)
    measured = ~np.isnan(table.columns["measured_ms"])
    assert measured.sum() == table.recipe.calibration.num_fit + table.recipe.calibration.num_held_out
    assert np.all(table.columns["predicted_ms"] > 0)
    assert len(np.unique(errors)) > 200


def test_errors_differ_by_more_than_the_seed_does(table):
    figures = exhaustive.figures_of(table)
    assert figures["error_percent_std"] > 2 * figures["seed_std"]
    assert figures["kendall_tau_between_seeds"] > 0.5


def test_costs_are_those_of_the_networks(table):
    family = EncoderFamily(
        table.recipe.search_space(), table.recipe.vocab_size, len(table.recipe.languages), table.recipe.max_tokens,
        head_size=table.recipe.head_size,
    )  # fmt: skip
    for row in range(0, len(table.archs), 150):
        network = family.network(table.archs[row])
        assert table.columns["parameters"][row] == sum(p.numel() for p in network.parameters())
    smallest, largest = (table.archs.index(end) for end in (family.space.smallest(), family.space.largest()))
    assert table.columns["flops"][smallest] == table.columns["flops"].min()
    assert table.columns["flops"][largest] == table.columns["flops"].max()


def test_the_installed_files_are_what_writing_them_gives(table, tmp_path):
    size = table.write(tmp_path)
    again = TrainedTable.read(tmp_path)
    assert size < 300_000
    assert again.archs == table.archs
    assert all(np.array_equal(again.columns[name], table.columns[name], equal_nan=True) for name in table.columns)
    lines = gzip.decompress((tmp_path / TABLE).read_bytes())
    assert lines == gzip.decompress((FOLDER / TABLE).read_bytes())


def test_a_changed_table_is_refused(tmp_path):
    for name in (TABLE, ABOUT):
        shutil.copy(FOLDER / name, tmp_path)
    lines = gzip.decompress((tmp_path / TABLE).read_bytes()).splitlines(keepends=True)
    content = gzip.compress(b"".join([*lines[:-1], lines[-2]]))
    (tmp_path / TABLE).write_bytes(content)
    with pytest.raises(ValueError, match=r"encoders.csv.gz: its sha256 is \w+, encoders.json says \w+"):
        TrainedTable.read(tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()}))
    with pytest.raises(ValueError, match="are not the 2100 architectures of the space, each once"):
        TrainedTable.read(tmp_path)


def test_search_knows_the_best_front_of_trained_encoders(table):
    problem, rng = tabular.trained(table), np.random.default_rng(0)
    costs = np.array([problem.costs(arch) for arch in table.archs])
    assert problem.regret(costs) == pytest.approx(0.0, abs=1e-12)
    assert 0.0 < problem.regret(costs[rng.permutation(len(costs))[:50]]) < 0.5


@pytest.mark.slow
def test_the_recipe_trains_the_same_networks_again(table):
    """Sums in another order than on the machine that made the table drift apart as other seeds would, and no further."""
    task = table.recipe.task()
    assert task.fingerprint == table.about["data"]["fingerprint"]
    family = table.recipe.family(task)
    validation = list(evaluation_batches(task, "validation"))
    errors = table.columns["error_percent_0"]
    tolerance = SEEDS_APART * exhaustive.figures_of(table)["seed_std"]
    best, worst = int(np.argmin(errors)), int(np.argmax(errors))
    assert errors[worst] - errors[best] > 2 * tolerance, "one could be the other"
    for row in (best, worst):
        again = exhaustive.train(table.recipe.train, family, task, table.archs[row], validation, seed=0)
        assert again["error_percent"] == pytest.approx(errors[row], abs=tolerance)


class Stopping(Reporter):
    """Stops what it reports after so many steps, as a user does."""

    def __init__(self, after):
        super().__init__(quiet=True)
        self.after = after

    def _line_a_minute(self, title, total, done):
        def advance(finished, words):
            if finished == self.after:
                raise KeyboardInterrupt

        return advance


def test_it_goes_on_where_it_was_stopped(tiny_task, tmp_path):
    family = TINY.family(tiny_task)
    whole, stopped = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "stopped")
    expected = exhaustive.train_all(TINY, family, tiny_task, whole, Reporter(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        exhaustive.train_all(TINY, family, tiny_task, stopped, Stopping(after=7))
    before = (stopped / NETWORKS).read_bytes()
    with (stopped / NETWORKS).open("ab") as file:
        file.write(b'{"id": "cut o')
    found = exhaustive.train_all(TINY, family, tiny_task, stopped, Reporter(quiet=True))
    after = (stopped / NETWORKS).read_bytes()
    assert before.count(b"\n") == 7
    assert after.startswith(before)
    assert after.count(b"\n") == len(found) == len(exhaustive.trainings(TINY)) == 12 + 5
    errors = [{key: record["error_percent"] for key, record in records.items()} for records in (expected, found)]
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_exhaustive_ends_with_its_figures_and_a_table(capsys, tmp_path):
    assert bench.main(["exhaustive", "preset=tiny", f"directory={tmp_path}"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = TrainedTable.read(tmp_path)
    assert (figures["num_networks"], figures["num_trained"]) == (12, 17)
    assert figures["table_bytes"] == (tmp_path / TABLE).stat().st_size
    assert figures["error_percent_best"] == pytest.approx(table.columns["error_percent_0"].min(), rel=1e-3)
    assert all(math.isfinite(value) for value in table.columns["predicted_ms"])
    assert bench.main(["exhaustive", "preset=tiny", f"directory={tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    with pytest.raises(ValueError, match="was begun with recipe"):
        bench.main(["exhaustive", "preset=full", f"directory={tmp_path}"])
