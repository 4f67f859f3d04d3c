"""Searches of other packages, where they are installed."""

import numpy as np
import pytest

from experiments.benchmarks.peers import PACKAGES, installed
from nas.pareto import hypervolume
from nas.protocols import ExhaustedError
from nas.search import search
from nas.space import Choice, Condition, SearchSpace
from nas.types import Candidate, Provenance

SPACE = SearchSpace(
    "small",
    (
        Choice("width", (8, 16, 32, 64, 128)),
        Choice("depth", (1, 2)),
        Choice("kind", ("full", "none"), (Condition("depth", (2,)),)),
        Choice("ffn", (8, 16, 32, 64, 128)),
    ),
)
OBJECTIVES = ("cost", "error")


def evaluate(arch):
    size = arch["width"] * arch["depth"] + arch["ffn"] + (arch["kind"] == "full" if "kind" in arch else 0)
    values = {"cost": float(size), "error": 1000.0 / (arch["width"] + 2 * arch["ffn"])}
    return Candidate(arch, values, dict.fromkeys(OBJECTIVES, Provenance.PREDICTED))


@pytest.fixture(params=PACKAGES)
def peer(request):
    package, make = PACKAGES[request.param]
    if request.param not in installed():
        pytest.skip(f"{package} is not installed: pip install 'paretoformer[peers]'")
    return make


def found(make, *, seed, num=40):
    searcher = make(SPACE, objectives=OBJECTIVES, seed=seed, population=8)
    return search(searcher, evaluate, num_evaluations=num).candidates


def test_it_searches_the_space_and_the_same_seed_finds_the_same(peer):
    candidates = found(peer, seed=1)
    assert 30 <= len(candidates) <= 40
    for candidate in candidates:
        SPACE.validate(candidate.arch)
    assert [c.arch.id for c in candidates] == [c.arch.id for c in found(peer, seed=1)]
    assert [c.arch.id for c in candidates] != [c.arch.id for c in found(peer, seed=2)]


def test_it_finds_more_than_its_first_population(peer):
    costs = np.array([[c.objectives[name] for name in OBJECTIVES] for c in found(peer, seed=3)])
    assert hypervolume(costs, (400.0, 50.0)) > hypervolume(costs[:8], (400.0, 50.0))


def test_what_fails_is_told_as_very_bad(peer):
    searcher = peer(SPACE, objectives=OBJECTIVES, seed=0, population=4)
    for _ in range(12):
        try:
            searcher.fail(searcher.ask(), "it does not fit")
        except ExhaustedError:
            break


def test_packages_that_are_missing_are_no_peers(monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.peers.find_spec", lambda name: None)
    assert installed() == {}
