"""The outer loop: contracts of every searcher, resume in the middle of a trial, and that it finds a known front."""

import math
import multiprocessing
import os
from pathlib import Path

import hydra
import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from experiments.config import composed
from nas.pareto import hypervolume
from nas.protocols import ExhaustedError, PlanningSearcher, Searcher
from nas.search import search
from nas.searchers.nsga2 import Nsga2
from nas.searchers.random import Random
from nas.searchers.study import StudySearcher
from nas.searchers.tpe import Tpe
from nas.space import Architecture
from nas.types import Candidate, Provenance, SearchResult
from search_spaces.encoder import encoder_space
from tests.support.known_law import SPACE, evaluate

CONF = Path(__file__).parent.parent / "conf" / "searcher"
STRATEGIES = {
    name: hydra.utils.instantiate(composed(f"searcher={name}", "run=unused").searcher, _convert_="all").make_searcher
    for name in sorted(path.stem for path in CONF.glob("*.yaml"))
}
ENDLESS = sorted(set(STRATEGIES) - {"proposals"})  # that one asks for what it was given alone
QUICK = sorted(set(ENDLESS) - {"gp"})  # that one takes a second a trial


def make(name: str, storage=None, **arguments) -> Searcher:
    arguments = {"seed": 3, "population": 10, "initial": [], "limits": {}, **arguments}
    return STRATEGIES[name](SPACE, objectives=("error", "latency_ms"), storage=storage, **arguments)


def journal(path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


@pytest.mark.parametrize("name", ENDLESS)
def test_contract(name):
    proposal = SPACE.sample(np.random.default_rng(9))
    unasked = SPACE.sample(np.random.default_rng(10))
    searcher = make(name, initial=[proposal], limits={"latency_ms": 5.0}, population=4)
    assert isinstance(searcher, Searcher)
    first = searcher.ask()
    assert first == proposal, "it begins with what it was given"
    searcher.tell(evaluate(first))
    searcher.tell(evaluate(unasked))
    second = searcher.ask()
    SPACE.validate(second)
    searcher.fail(second, "lost")
    for _ in range(6):
        arch = searcher.ask()
        SPACE.validate(arch)
        searcher.tell(evaluate(arch))
    if isinstance(searcher, StudySearcher):
        states = [t.state.name for t in searcher.study.get_trials()]
        assert states == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 6]


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("objectives", [("error", "latency_ms"), ("error", "latency_ms", "windows")])
def test_no_architecture_is_evaluated_twice(name, objectives):
    evaluated = []

    def counting(arch: Architecture) -> Candidate:
        evaluated.append(arch.id)
        scored = evaluate(arch)
        windows = float(sum(pick == "window" for _, pick in arch.picks))
        return Candidate(arch, {**scored.objectives, "windows": windows}, {**scored.provenance, "windows": Provenance.PREDICTED})

    searcher = STRATEGIES[name](SPACE, objectives=objectives, seed=3, initial=[], limits={"latency_ms": 5.0}, population=10)
    result = search(searcher, counting, num_evaluations=40)
    assert len(evaluated) == len(set(evaluated)) == len(result.candidates) == 40


class OneByOne:
    """A searcher that nobody may ask twice before it was told."""

    def __init__(self, searcher: Searcher) -> None:
        self.ask, self.tell, self.fail = searcher.ask, searcher.tell, searcher.fail


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_is_asked_for_at_once_is_what_is_asked_for_one_by_one(name, tmp_path):
    """Also where an evaluation fails; nothing that was asked for is begun with twice, and the study is the same."""
    initial, begun, sizes = [SPACE.sample(np.random.default_rng(s)) for s in (1, 2, 3)], [], []

    def failing(arch: Architecture) -> Candidate:
        if int(arch.id, 16) % 7 == 0:
            raise ValueError("no such luck")
        return evaluate(arch)

    def ahead(archs) -> None:
        sizes.append(len(archs))
        begun.extend(archs)

    one, other = (make(name, journal(tmp_path / kind), initial=initial, limits={"latency_ms": 6.0}) for kind in "ab")
    num = 12 if name == "gp" else 40
    singly = search(OneByOne(one), failing, num_evaluations=num)
    at_once = search(other, failing, num_evaluations=num, ahead=ahead)
    assert at_once == singly
    assert len(begun) == len(set(begun)) == len(singly.candidates) + len(singly.failures)
    assert sizes[0] == {"proposals": 3, "random": num, "surrogate_evolution": 10}.get(name, 10)
    assert not isinstance(OneByOne(one), PlanningSearcher)
    if isinstance(one, StudySearcher):
        trials = [
            [(t.state, t.values, t.params) for t in searcher.study.get_trials() if t.state.is_finished()]
            for searcher in (one, other)
        ]
        assert trials[0] == trials[1]


def test_a_space_that_is_exhausted_ends_the_search():
    tiny = encoder_space(width=(8,), depth=(1,), heads=(1,), ffn=(8, 16), attention=("full", "none"))
    for name in QUICK:
        searcher = STRATEGIES[name](tiny, objectives=("error", "latency_ms"), seed=0, population=4)
        result = search(searcher, evaluate, num_evaluations=100, max_repeats=30)
        assert len(result.candidates) == tiny.num_architectures() == 4
    for name in ("random", "regularised_evolution"):
        searcher = STRATEGIES[name](tiny, objectives=("error", "latency_ms"), seed=0)
        for candidate in result.candidates:
            searcher.tell(candidate)
        with pytest.raises(ExhaustedError, match=r"no more architectures to (draw|find) after 4"):
            searcher.ask()


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("nsga2", 300), ("nsga3", 300), ("tpe", 80), ("surrogate_evolution", 80), ("regularised_evolution", 300)],
)
def test_it_beats_random_search_on_a_known_law(name, evaluations):
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
        searcher = STRATEGIES[name](space, objectives=("error", "latency_ms"), seed=seed, population=30)
        ours.append(volume(search(searcher, law, num_evaluations=evaluations)))
        random.append(volume(search(Random(space, seed=seed), law, num_evaluations=evaluations)))
    assert np.mean(ours) > np.mean(random)


def test_proposals_alone_are_scored_and_nothing_else():
    proposals = [SPACE.sample(np.random.default_rng(s)) for s in (1, 2, 3)]
    searcher = make("proposals", initial=proposals)
    assert isinstance(searcher, Searcher)
    assert [c.arch for c in search(searcher, evaluate, num_evaluations=30).candidates] == proposals
    with pytest.raises(ExhaustedError, match="no more proposals"):
        searcher.ask()
    with pytest.raises(ValueError, match="proposals: there are none to score"):
        make("proposals")


def test_the_constraint_reaches_the_study():
    searcher = make("nsga2", limits={"latency_ms": 5.0, "error": 80.0})
    search(searcher, evaluate, num_evaluations=20)
    for trial in searcher.study.get_trials():
        error, latency_ms = trial.values
        assert trial.constraints == pytest.approx({"latency_ms": latency_ms / 5 - 1, "error": error / 80 - 1})


@pytest.mark.parametrize("name", QUICK)
def test_limits_draw_a_search_within_them(name):
    """More of the second half keeps a tight limit than of the random ones at the beginning."""
    result = search(make(name, limits={"latency_ms": 6.0}, population=20), evaluate, num_evaluations=100)
    kept = np.array([c.objectives["latency_ms"] <= 6.0 for c in result.candidates])
    if name != "random":
        assert kept[50:].mean() > kept[:20].mean() + 0.1


@pytest.mark.parametrize("name", QUICK)
def test_a_search_that_was_stopped_goes_on_as_if_it_was_not(name, tmp_path):
    """A process dies inside an evaluation, with its trial asked for and unanswered."""
    initial = [SPACE.sample(np.random.default_rng(s)) for s in (1, 2, 3)]
    whole = search(make(name, journal(tmp_path / "whole"), initial=initial), evaluate, num_evaluations=30)

    for kill_at in (2, 15):
        path = tmp_path / f"cut {kill_at}"
        process = multiprocessing.get_context("fork").Process(target=_search_and_die, args=(name, path, initial, kill_at))
        process.start()
        process.join()
        assert process.exitcode == 9
        searcher = make(name, journal(path), initial=initial)
        known = [evaluate(c.arch) for c in whole.candidates[:kill_at]]
        rest = search(searcher, evaluate, num_evaluations=30, known=known)
        assert [c.arch.id for c in rest.candidates] == [c.arch.id for c in whole.candidates]
        if isinstance(searcher, StudySearcher):
            held = [journal(path) for path in (tmp_path / "whole", path)]
            one, other = (optuna.load_study(study_name="search", storage=storage).get_trials() for storage in held)
            assert [(t.values, t.params) for t in one] == [(t.values, t.params) for t in other]


def _search_and_die(name, path, initial, kill_at) -> None:
    count = 0

    def dying(arch: Architecture) -> Candidate:
        nonlocal count
        if count == kill_at:
            os._exit(9)
        count += 1
        return evaluate(arch)

    search(make(name, journal(path), initial=initial), dying, num_evaluations=30)


def test_a_long_search_is_not_ended_by_what_it_knows(tmp_path):
    """A strategy that keeps nothing is told everything anew."""
    whole = search(make("random"), evaluate, num_evaluations=60, max_repeats=20)
    again = search(make("random"), evaluate, num_evaluations=62, known=whole.candidates, max_repeats=20)
    assert len(again.candidates) == 62


def test_what_an_untold_trial_was_is_asked_again(tmp_path):
    searcher = make("nsga2", journal(tmp_path / "study"))
    asked = searcher.ask()
    assert make("nsga2", journal(tmp_path / "study")).ask() == asked


def test_a_study_of_another_space_is_refused(tmp_path):
    make("nsga2", journal(tmp_path / "study"))
    with pytest.raises(ValueError, match="holds a search of the space 'encoder' with other choices"):
        Nsga2(encoder_space(), objectives=("error", "latency_ms"), seed=0, storage=journal(tmp_path / "study"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"objectives": ("latency_ms", "error")},
            r"for the objectives \['error', 'latency_ms'\], this one is for \['latency_ms', ",
        ),
        ({"limits": {"latency_ms": 5.5}}, r"within \{'latency_ms': 5\.0\}, this one is within \{'latency_ms': 5\.5\}"),
        ({"limits": {}}, r"within \{'latency_ms': 5\.0\}, this one is within \{\}"),
    ],
)
def test_a_study_of_something_else_is_refused_and_nothing_is_written(tmp_path, changed, message):
    path = tmp_path / "study"
    meant = {"objectives": ("error", "latency_ms"), "limits": {"latency_ms": 5.0}, "seed": 0, "population": 4}
    search(Nsga2(SPACE, storage=journal(path), **meant), evaluate, num_evaluations=3)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        Nsga2(SPACE, storage=journal(path), **{**meant, **changed})
    assert path.read_bytes() == before
    again = Nsga2(SPACE, storage=journal(path), **{**meant, "limits": {"latency_ms": 5.0 * (1 + 1e-9)}})
    assert len(again.study.get_trials()) == 3


def test_what_no_strategy_can_use_is_refused():
    with pytest.raises(ValueError, match="population: 1 is not at least 2"):
        make("tpe", population=1)
    with pytest.raises(ValueError, match="limits: 0 of latency_ms is not positive"):
        Tpe(SPACE, objectives=("error",), seed=0, limits={"latency_ms": 0})
    with pytest.raises(ValueError, match="tournament: 2 is not in"):
        make("regularised_evolution", tournament=2)


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
    whole = search(Random(SPACE, seed=1), evaluate, num_evaluations=20)
    again = Random(SPACE, seed=1)
    for known in whole.candidates[:12]:
        again.tell(known)
    assert again.ask() == whole.candidates[12].arch
