"""How networks are trained is chosen once on a machine: the same seed finds the same, bit for bit."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import compute
from experiments.budgets import Budget
from experiments.build import build, make_settings
from experiments.calibration import Calibration
from experiments.config import composed
from experiments.costing import Costing
from experiments.exploring import Explorer
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.proposing import Proposer
from experiments.run_directory import RunDirectory
from hardware.store import MeasurementStore
from latency_models.additive import AdditiveLatency
from nas import compute as ways
from nas.compute import Compute, choose_compute
from tests.support.exploring import law_ms, measurement

QUIET = Reporter(quiet=True)
BRIEF = ("init.train.steps=3", "darts.steps=2", "darts.steps_more=1", "searcher.evaluations=4", "searcher.proposals=2")


def clock(monkeypatch, *seconds):
    """Each way takes its seconds, whatever it does."""
    times = itertools.chain.from_iterable((0.0, s) for s in itertools.cycle(seconds))
    monkeypatch.setattr(ways, "time", SimpleNamespace(perf_counter=lambda: next(times)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return build(composed("experiment=smoke", "torch_threads=1", f"run={folder / 'run'}", *BRIEF), report=QUIET)


@pytest.fixture
def pipeline(base):
    def made(folder, *, store, **settings):
        return Pipeline(
            task=base.task, family=base.family, device=base.device, latency_model=AdditiveLatency(),
            settings=replace(base.settings, **settings), directory=folder, store=MeasurementStore(store), report=QUIET,
        )  # fmt: skip

    return made


def searched(one):
    """Proposals, and candidates without the seconds that they took, of a search whose device is a law."""
    torch.set_num_threads(1)
    archs = list(dict.fromkeys(one.family.space.sample(np.random.default_rng(i)) for i in range(12)))
    known = {a.id: measurement(a, t) for a, t in zip(archs, law_ms(one, archs), strict=True)}
    model = AdditiveLatency().fit(one.family, list(known.values()))
    calibration = Calibration(model, known, 1.0, {}, [])
    [most, budget_ms] = (float(model.predict([one.family.space.largest()]).upper_ms[0]) * share for share in (1.0, 0.5))
    chosen = one.compute()
    supernet = one.supernet(chosen)
    proposer = Proposer(one.family, one.task, one.workload, model, chosen, one.settings, one.run, QUIET)
    proposals = proposer.propose(supernet, [most, budget_ms])
    costing = Costing.of(one.settings, one.family, one.workload, calibration)
    Explorer(
        one.family, one.task, supernet, chosen, calibration, costing, Budget(budget_ms, "user"), one.settings, one.run, QUIET
    ).explore([p.arch for p in proposals], one.calibrator())
    candidates = [{**c, "seconds": 0} for c in map(json.loads, (one.run / "candidates.jsonl").read_text().splitlines())]
    return chosen, (one.run / "proposals.json").read_text(), candidates


def test_two_directories_on_one_store_find_the_same_bit_for_bit(tmp_path, monkeypatch, pipeline):
    """Though another way to train would be the fastest the second time."""
    with monkeypatch.context() as patched:
        clock(patched, 1, 2, 3, 4)
        first = pipeline(tmp_path / "first", store=tmp_path / "store").compute()
    assert first == Compute("cpu", "float32", "matmul")
    with monkeypatch.context() as patched:
        clock(patched, 4, 3, 2, 1)
        assert pipeline(tmp_path / "else", store=tmp_path / "elsewhere").compute() == Compute("cpu", "bfloat16", "fused")
        assert pipeline(tmp_path / "other", store=tmp_path / "store").compute() == first
    both = [searched(pipeline(tmp_path / name, store=tmp_path / "store")) for name in ("first", "second")]
    assert both[0] == both[1]
    assert {c["phase"] for c in both[0][2]} == {"search", "random", "parameters", "hand"}


def test_what_it_depends_on_is_tried_anew_and_damage_is_named(tmp_path, monkeypatch, pipeline):
    words = {"store": tmp_path / "store"}
    pipeline(tmp_path / "a", **words).compute()
    monkeypatch.setattr(compute, "cpu_model", lambda: "another CPU")
    pipeline(tmp_path / "b", **words).compute()
    files = sorted((tmp_path / "store").glob("training-*.json"))
    assert {json.loads(f.read_text())["of"]["cpu"] for f in files} > {"another CPU"}
    for file in files:
        file.write_text("{}")
    with pytest.raises(ValueError, match=r"training-\w+\.json: is damaged .*; delete it to try the ways to train again"):
        pipeline(tmp_path / "c", **words).compute()


def test_two_runs_that_begin_together_try_once(tmp_path, monkeypatch, base):
    both = threading.Barrier(2)

    def slowly(*_, **__):
        with suppress(threading.BrokenBarrierError):  # the other one waits elsewhere
            both.wait(timeout=0.3)
        return {"chosen": asdict(Compute("cpu", "float32", "matmul")), "trials": [next(number)]}

    number = itertools.count()
    monkeypatch.setattr(compute, "tried", slowly)
    how = {"tokens_per_batch": 8, "device": "cpu", "precision": "auto", "backend": "auto"}
    store = RunDirectory(tmp_path)  # which may be a run's own directory
    with store.lock(), ThreadPoolExecutor() as pool:
        runs = [pool.submit(compute.tried_once, store.path, base.family, base.task, **how) for _ in range(2)]
        assert [run.result()["trials"] for run in runs] == [[0], [0]]


def test_a_way_that_is_given_is_taken(tmp_path, monkeypatch, pipeline):
    clock(monkeypatch, 1, 2, 3, 4)
    given = {"train_precision": "bfloat16", "store": tmp_path / "store"}
    assert pipeline(tmp_path / "a", train_attention="fused", **given).compute() == Compute("cpu", "bfloat16", "fused")
    one = pipeline(tmp_path / "b", **given)
    assert one.compute() == Compute("cpu", "bfloat16", "matmul")
    assert choose_compute(one.family, one.task, None, device="cuda", precision="float32")[0] == Compute(
        "cuda", "float32", "fused"
    )
    with pytest.raises(ValueError, match=r"train_precision: 'half' is not one of \('auto', 'float32', 'bfloat16'\)"):
        make_settings(composed("train_precision=half"))
    with pytest.raises(ValueError, match=r"train_attention: 'blocks' is not one of \('auto', 'matmul', 'fused'\)"):
        make_settings(composed("train_attention=blocks"))
