"""Rungs between inherited weights and the short-list: who enters, who goes on, what it costs, and that nothing is done twice."""

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from experiments.budgets import Budget
from experiments.finishing import Finisher
from experiments.halving import Halving
from experiments.outcome import Climbed, Explored
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings, Settings
from nas.supernet import state_of
from nas.training import TrainConfig, TrainingError
from nas.types import Candidate, Provenance
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.exploring import splits_read
from tests.support.stages import finisher_of, stopped_and_done

SPACE = encoder_space()
NOTHING = nn.Identity()  # in place of a supernet that is not looked at


class Trainer:
    """Trains networks to errors that are known; may be killed before one of them."""

    def __init__(self, errors, *, kill_at=None) -> None:
        self.errors, self.kill_at, self.trained = errors, kill_at, []

    def error_after(self, arch, supernet, *, share):
        if len(self.trained) == self.kill_at:
            raise KeyboardInterrupt
        self.trained.append((arch.id, share))
        return self.errors[arch.id] + share


def scored(archs, phase, *, errors, ms):
    provenance = {"error": Provenance.INHERITED, **dict.fromkeys(("latency_ms", "upper_ms"), Provenance.PREDICTED)}
    return tuple(
        Candidate(a, {"error": errors[a.id], "latency_ms": ms[a.id], "upper_ms": 1.1 * ms[a.id]}, provenance, phase, 0.1)
        for a in archs
    )


@pytest.fixture
def archs():
    rng = np.random.default_rng(0)
    return list({a.id: a for a in (SPACE.sample(rng) for _ in range(60))}.values())[:40]


@pytest.fixture
def explored(archs):
    """Two searches that share a third of what they found; a faster network has a higher inherited error, more or less."""
    rng = np.random.default_rng(1)
    ms = {a.id: float(t) for a, t in zip(archs, rng.uniform(0.1, 1.2, len(archs)), strict=True)}
    errors = {a.id: 30 / (0.3 + ms[a.id]) + float(noise) for a, noise in zip(archs, rng.normal(0, 5, len(archs)), strict=True)}
    parts = {"search": archs[:24], "random": archs[16:], "hand": archs[:2]}
    return Explored({phase: scored(part, phase, errors=errors, ms=ms) for phase, part in parts.items()})


@pytest.fixture
def trained_errors(archs):
    return {a.id: float(e) for a, e in zip(archs, np.random.default_rng(2).uniform(5, 60, len(archs)), strict=True)}


def halving(folder, trainer, *, rungs, shortlist=3, objectives=("error", "latency_ms")):
    settings = Settings(finish=FinishSettings(shortlist=shortlist, rungs=rungs), objectives=objectives)
    trainer.run = RunDirectory(folder)
    return Halving(cast(Any, trainer), Budget(1.0, "user"), settings, Reporter(quiet=True))


def lines(folder):
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def test_each_rung_keeps_the_better_half_of_both_searches(tmp_path, explored, trained_errors):
    trainer = Trainer(trained_errors)
    one = halving(tmp_path, trainer, rungs=[0.1, 0.3])
    climbed = one.climb(explored, NOTHING)
    assert set(climbed.shortlists) == {"search", "random"}
    assert [len(list_) for list_ in climbed.shortlists.values()] == [3, 3]
    within = {role: [c for c in explored.by_phase[role] if c.objectives["upper_ms"] <= 1.0] for role in climbed.shortlists}
    entering = {role: {c.arch.id for c in one.best(found, 12)} for role, found in within.items()}
    assert {id_ for id_, share in trainer.trained if share == 0.1} == set.union(*entering.values())
    for role in within:
        at_first = [c for c in climbed.scored if c.phase == "rung 0.1" and c.arch.id in entering[role]]
        second = {c.arch.id for c in one.best(at_first, 6)}
        at_second = [c for c in climbed.scored if c.phase == "rung 0.3" and c.arch.id in second]
        assert len(at_second) == 6
        assert [c.arch for c in climbed.shortlists[role]] == [c.arch for c in one.best(at_second, 3)]
    for c in climbed.scored:
        assert c.objectives["error"] == pytest.approx(trained_errors[c.arch.id] + float(c.phase.split()[1]))
        assert c.provenance["error"] == Provenance.TUNED
        assert c.provenance["latency_ms"] == Provenance.PREDICTED


def test_what_is_bad_at_a_rung_goes_whatever_it_inherited(tmp_path, archs):
    """All are as fast; the inherited errors have the ranking upside down."""
    inherited = {a.id: float(i) for i, a in enumerate(archs)}
    explored = Explored({"search": scored(archs, "search", errors=inherited, ms={a.id: 0.5 for a in archs})})
    one = halving(tmp_path, Trainer({id_: 50 - error for id_, error in inherited.items()}), rungs=[0.2], shortlist=4)
    [shortlist, none] = one.climb(explored, NOTHING).shortlists.values()
    assert {c.arch.id for c in shortlist} == {a.id for a in archs[4:8]}
    assert none == []


def test_a_network_of_both_searches_is_trained_once(tmp_path, explored, trained_errors):
    trainer = Trainer(trained_errors)
    climbed = halving(tmp_path, trainer, rungs=[0.1], shortlist=9).climb(explored, NOTHING)
    shared = [{c.arch.id for c in explored.by_phase[role]} for role in ("search", "random")]
    assert any(id_ in shared[0] & shared[1] for id_, _ in trainer.trained), "there is such a network"
    assert len(trainer.trained) == len(set(trainer.trained)) == len(climbed.scored) == len(lines(tmp_path))
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["rungs"]["networks_trained"] == len(trainer.trained)


@pytest.mark.parametrize("kill_at", [0, 5, 22])
def test_what_was_scored_before_a_kill_is_not_trained_again(tmp_path, explored, trained_errors, kill_at):
    whole = halving(tmp_path / "whole", Trainer(trained_errors), rungs=[0.1, 0.3]).climb(explored, NOTHING)
    killed, again = Trainer(trained_errors, kill_at=kill_at), Trainer(trained_errors)
    with pytest.raises(KeyboardInterrupt):
        halving(tmp_path / "cut", killed, rungs=[0.1, 0.3]).climb(explored, NOTHING)
    climbed = halving(tmp_path / "cut", again, rungs=[0.1, 0.3]).climb(explored, NOTHING)
    assert not set(killed.trained) & set(again.trained)
    what = [[(c.arch.id, c.phase, dict(c.objectives)) for c in each.scored] for each in (whole, climbed)]
    assert what[0] == what[1]
    ids = [{role: [c.arch.id for c in found] for role, found in each.shortlists.items()} for each in (whole, climbed)]
    assert ids[0] == ids[1]


def test_without_rungs_the_inherited_errors_choose_and_nothing_is_trained(tmp_path, explored):
    trainer = Trainer({})
    one = halving(tmp_path, trainer, rungs=[])
    climbed = one.climb(explored, NOTHING)
    assert not trainer.trained
    assert climbed.scored == ()
    assert not (tmp_path / "candidates.jsonl").exists()
    for role, found in climbed.shortlists.items():
        assert all(c.phase == role and c.objectives["upper_ms"] <= 1.0 for c in found)
        assert [c.objectives["latency_ms"] for c in found] == sorted(c.objectives["latency_ms"] for c in found)


def test_a_short_list_spreads_over_all_objectives(tmp_path, archs):
    corner = {"error": (1, 9, 9), "latency_ms": (9, 1, 9), "memory_mib": (9, 9, 1)}
    front = [
        Candidate(
            arch, {n: float(v[i % 3]) / 10 + 0.01 * i for n, v in corner.items()}, dict.fromkeys(corner, Provenance.PREDICTED)
        )
        for i, arch in enumerate(archs[:9])
    ]
    chosen = halving(tmp_path, Trainer({}), rungs=[], objectives=tuple(corner)).best(front, 3)
    assert {archs.index(c.arch) % 3 for c in chosen} == {0, 1, 2}


@pytest.mark.parametrize("after", [2, 7])
def test_a_training_of_a_rung_goes_on_after_a_kill(tmp_path, monkeypatch, after):
    """To the same weights: the second network of the rung is killed, or the first."""
    family = EncoderFamily(encoder_space(width=(16, 32), depth=(1,), ffn=(16, 32)), 20, 3, max_tokens=8, head_size=8)
    ends, supernet, weights = [family.space.smallest(), family.space.largest()], family.supernet(), list[dict]()
    monkeypatch.setattr(Finisher, "_error_percent", lambda self, network, split: weights.append(state_of(network)) or 50.0)
    values = {a.id: 0.5 for a in ends}
    explored = Explored({"search": scored(ends, "search", errors=values, ms=values)})

    def job(name):
        train = TrainConfig(steps=10, tokens_per_batch=64)
        finisher = finisher_of(family, tmp_path / name, train=train, most_steps=10, rungs=(0.5,), shortlist=1)
        return Halving(finisher, Budget(1.0, "user"), Settings(finish=finisher.settings), Reporter(quiet=True))

    whole, stopped = job("whole"), job("stopped")
    climbed = whole.climb(explored, supernet)
    again = list[Climbed]()
    stopped_and_done(lambda: again.append(stopped.climb(explored, supernet)), monkeypatch, after=after, steps=10)
    assert len(weights) == 4
    for first, second in zip(weights[:2], weights[2:], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    chosen = [[c.arch for found in one.shortlists.values() for c in found] for one in (climbed, *again)]
    assert chosen[0] == chosen[1]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_training_that_diverges_leaves_nothing_to_go_on_with(tmp_path, monkeypatch):
    family = EncoderFamily(encoder_space(width=(16,), depth=(1,), ffn=(16,)), 20, 3, max_tokens=8, head_size=8)
    finisher = finisher_of(family, tmp_path)
    monkeypatch.setattr(Finisher, "_error_percent", lambda *_: (_ for _ in ()).throw(TrainingError("the loss is nan")))
    with pytest.raises(TrainingError, match="the loss is nan"):
        finisher.error_after(family.space.largest(), family.supernet(), share=1.0)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_rung_trains_a_share_of_the_steps_and_leaves_no_file(tmp_path, monkeypatch):
    family = EncoderFamily(encoder_space(width=(16, 32), depth=(1,), ffn=(16, 32)), 20, 3, max_tokens=8, head_size=8)
    finisher = finisher_of(family, tmp_path)
    arch, supernet = family.space.smallest(), family.supernet()
    before = {name: weight.clone() for name, weight in supernet.state_dict().items()}
    read = splits_read(monkeypatch, finisher.task)
    errors = [finisher.error_after(arch, supernet, share=0.5) for _ in range(2)]
    assert read == {"train", "architecture"}, "the split that chooses is not looked at"
    assert errors[0] == errors[1]
    assert 0 <= errors[0] <= 100
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert all(bool((before[name] == weight).all()) for name, weight in supernet.state_dict().items())
