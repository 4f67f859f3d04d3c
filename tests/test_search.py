"""The outer loop: contracts of every searcher, resume in the middle of a trial, and that it finds a known front."""

import math
import multiprocessing
import os

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from nas.pareto import hypervolume
from nas.search import SAMPLERS, ExhaustedError, OptunaSearcher, RandomSearcher, search
from nas.space import Architecture
from nas.types import Candidate, Provenance, SearchResult
from search_spaces.encoder import encoder_space

SPACE = encoder_space(width=(8, 16, 24, 32), depth=(1, 2, 3), heads=(1, 2, 4), ffn=(8, 16, 32))


def evaluate(arch: Architecture) -> Candidate:
    """A law with a true conflict: capacity costs time, and pays off less and less."""
    layers = range(1, arch.size("depth") + 1)
    size = arch.size("width") * sum(
        arch.size(f"layer{i}.ffn") + 8 * (arch.size(f"layer{i}.heads") if f"layer{i}.heads" in arch else 0) for i in layers
    )
    attends = sum(arch[f"layer{i}.attention"] != "none" for i in layers)
    objectives = {"error": 100 / (1 + 0.01 * size) + 5 / (1 + attends), "latency_ms": 0.01 * size + 0.2 * attends}
    return Candidate(arch, objectives, dict.fromkeys(objectives, Provenance.PREDICTED))


def make(sampler: str, storage=None, **arguments) -> OptunaSearcher:
    return OptunaSearcher(
        SPACE, objectives=("error", "latency_ms"), sampler=sampler, seed=3, storage=storage, population=10, **arguments
    )


def journal(path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_contract(sampler):
    proposal = SPACE.sample(np.random.default_rng(9))
    unasked = SPACE.sample(np.random.default_rng(10))
    searcher = make(sampler, initial=[proposal])
    first = searcher.ask()
    assert first == proposal, "it begins with what it was given"
    searcher.tell(evaluate(first))
    searcher.tell(evaluate(unasked))
    second = searcher.ask()
    SPACE.validate(second)
    searcher.fail(second, "lost")
    states = [t.state.name for t in searcher.study.get_trials()]
    assert states == ["COMPLETE", "COMPLETE", "FAIL"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_architecture_is_evaluated_twice(sampler):
    evaluated = []

    def counting(arch: Architecture) -> Candidate:
        evaluated.append(arch.id)
        return evaluate(arch)

    result = search(make(sampler), counting, num_evaluations=40)
    assert len(evaluated) == len(set(evaluated)) == len(result.candidates) == 40


def test_a_space_that_is_exhausted_ends_the_search():
    tiny = encoder_space(width=(8,), depth=(1,), heads=(1,), ffn=(8, 16), attention=("full", "none"))
    searcher = OptunaSearcher(tiny, objectives=("error", "latency_ms"), sampler="nsga2", seed=0, population=4)
    result = search(searcher, evaluate, num_evaluations=100)
    assert len(result.candidates) == tiny.num_architectures() == 4
    random = RandomSearcher(tiny, seed=0)
    assert len(search(random, evaluate, num_evaluations=100).candidates) == 4
    with pytest.raises(ExhaustedError, match="no more architectures to draw after 4"):
        random.ask()


@pytest.mark.parametrize(("sampler", "evaluations"), [("nsga2", 300), ("tpe", 120)])
def test_it_beats_random_search_on_a_known_law(sampler, evaluations):
    """Over 3 seeds, in the default space, started from nothing."""
    space, capacity = encoder_space(), math.log(6 * 128 * (256 + 32))

    def law(arch: Architecture) -> Candidate:
        score = evaluate(arch).objectives["latency_ms"]
        windows = sum(arch[f"layer{i}.attention"] == "window" for i in range(1, arch.size("depth") + 1))
        objectives = {"error": capacity - math.log(score) + 0.5 * windows, "latency_ms": math.log(score)}
        return Candidate(arch, objectives, dict.fromkeys(objectives, Provenance.PREDICTED))

    def volume(result: SearchResult) -> float:
        return hypervolume(
            np.array([[c.objectives["latency_ms"], c.objectives["error"]] for c in result.candidates]), (8.0, 12.0)
        )

    ours, random = [], []
    for seed in range(3):
        searcher = OptunaSearcher(space, objectives=("error", "latency_ms"), sampler=sampler, seed=seed, population=30)
        ours.append(volume(search(searcher, law, num_evaluations=evaluations)))
        random.append(volume(search(RandomSearcher(space, seed=seed), law, num_evaluations=evaluations)))
    assert np.mean(ours) > np.mean(random)


def test_the_constraint_reaches_the_study():
    searcher = make("nsga2", constraint=("latency_ms", 5.0))
    search(searcher, evaluate, num_evaluations=20)
    for trial in searcher.study.get_trials():
        assert trial.constraints["latency_ms"] == pytest.approx(trial.values[1] - 5.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_was_stopped_goes_on_as_if_it_was_not(sampler, tmp_path):
    """A process dies inside an evaluation, with its trial asked for and unanswered."""
    initial = [SPACE.sample(np.random.default_rng(s)) for s in (1, 2, 3)]
    whole = search(make(sampler, journal(tmp_path / "whole"), initial=initial), evaluate, num_evaluations=30)

    for kill_at in (2, 15):
        path = tmp_path / f"cut {kill_at}"
        process = multiprocessing.get_context("fork").Process(target=_search_and_die, args=(sampler, path, initial, kill_at))
        process.start()
        process.join()
        assert process.exitcode == 9
        searcher = make(sampler, journal(path), initial=initial)
        known = [evaluate(c.arch) for c in whole.candidates[:kill_at]]
        rest = search(searcher, evaluate, num_evaluations=30, known=known)
        assert [c.arch.id for c in rest.candidates] == [c.arch.id for c in whole.candidates]
        values = [t.values for t in searcher.study.get_trials()]
        assert values == [t.values for t in make(sampler, journal(tmp_path / "whole")).study.get_trials()]


def _search_and_die(sampler, path, initial, kill_at) -> None:
    count = 0

    def dying(arch: Architecture) -> Candidate:
        nonlocal count
        if count == kill_at:
            os._exit(9)
        count += 1
        return evaluate(arch)

    search(make(sampler, journal(path), initial=initial), dying, num_evaluations=30)


def test_a_study_of_another_space_is_refused(tmp_path):
    make("nsga2", journal(tmp_path / "study"))
    with pytest.raises(ValueError, match="holds a search of the space 'encoder' with other choices"):
        OptunaSearcher(
            encoder_space(), objectives=("error", "latency_ms"), sampler="nsga2", seed=0, storage=journal(tmp_path / "study")
        )


def test_an_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="sampler: 'cmaes' is not one of"):
        make("cmaes")


def test_a_failed_evaluation_is_kept_and_not_repeated():
    bad = SPACE.sample(np.random.default_rng(1))

    def failing(arch: Architecture) -> Candidate:
        if arch == bad:
            raise ValueError("no such luck")
        return evaluate(arch)

    result = search(make("random", initial=[bad]), failing, num_evaluations=5)
    assert result.failures == ((bad, "no such luck"),)
    assert len(result.candidates) == 4


def test_random_search_goes_on_where_it_was():
    whole = search(RandomSearcher(SPACE, seed=1), evaluate, num_evaluations=20)
    again = RandomSearcher(SPACE, seed=1)
    for known in whole.candidates[:12]:
        again.tell(known)
    assert again.ask() == whole.candidates[12].arch
