"""Fronts, hypervolume and knee, against brute force and Monte Carlo."""

import numpy as np
import pytest

from nas.pareto import fittest, hypervolume, knee, non_dominated, ranks
from nas.space import Architecture
from nas.types import Candidate, Provenance, SearchResult


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_non_dominated_agrees_with_the_definition(seed, objectives):
    costs = np.random.default_rng(seed).integers(0, 6, size=(30, objectives)).astype(float)
    kept = non_dominated(costs)
    for i, point in enumerate(costs):
        dominated = np.any(np.all(costs <= point, axis=1) & np.any(costs < point, axis=1))
        assert not (kept[i] and dominated)
    front = {tuple(p) for p in costs[kept]}
    assert len(front) == kept.sum(), "of identical points one stays"
    assert front == {tuple(p) for p in costs if not np.any(np.all(costs <= p, axis=1) & np.any(costs < p, axis=1))}


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_agrees_with_monte_carlo(objectives):
    rng = np.random.default_rng(0)
    costs = rng.random((12, objectives))
    samples = rng.random((200_000, objectives)) * 1.2
    dominated = np.any([np.all(point <= samples, axis=1) for point in costs], axis=0)
    assert hypervolume(costs, (1.2,) * objectives) == pytest.approx(dominated.mean() * 1.2**objectives, abs=0.01)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_ranks_are_fronts_that_are_taken_off_one_by_one(objectives):
    costs = np.random.default_rng(objectives).integers(0, 5, size=(40, objectives)).astype(float)
    rank = ranks(costs)
    left = {tuple(point) for point in costs}
    for front in range(rank.max() + 1):
        rest = np.array(sorted(left))
        peeled = {tuple(point) for point in rest[non_dominated(rest)]}
        assert peeled == {tuple(point) for point in costs[rank == front]}
        left -= peeled
    assert not left
    assert ranks(np.zeros((0, 2))).tolist() == []


def test_hypervolume_of_simple_cases():
    assert hypervolume(np.array([[1.0, 1.0]]), (3.0, 2.0)) == 2.0
    assert hypervolume(np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 3.0]]), (3.0, 2.0)) == 2.0
    assert hypervolume(np.zeros((0, 2)), (1.0, 1.0)) == 0.0
    assert hypervolume(np.array([[5.0, 0.0]]), (3.0, 2.0)) == 0.0


def test_knee_is_the_corner():
    assert knee(np.array([[0, 10], [1, 2], [10, 0]])) == 1
    assert knee(np.array([[3, 3]])) == 0
    with pytest.raises(ValueError, match="empty"):
        knee(np.zeros((0, 2)))


def candidate(error: float, latency: float, name: int) -> Candidate:
    objectives = {"error": error, "latency_ms": latency}
    return Candidate(Architecture((("width", name),)), objectives, dict.fromkeys(objectives, Provenance.MEASURED))


def test_front_ascends_in_the_first_objective():
    result = SearchResult((candidate(1, 9, 1), candidate(5, 1, 2), candidate(5, 5, 3)))
    assert [c.objectives["latency_ms"] for c in result.front("latency_ms", "error")] == [1, 9]
    assert SearchResult(()).front("error") == ()


def test_a_candidate_says_where_its_numbers_come_from():
    with pytest.raises(ValueError, match=r"error: nan of .* is not finite"):
        candidate(float("nan"), 1, 1)
    with pytest.raises(ValueError, match=r"latency_ms: of .* has no provenance"):
        Candidate(Architecture(()), {"latency_ms": 1.0}, {})


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("num", [1, 7, 25, 40, 99])
def test_the_fittest_come_front_by_front_and_spread(objectives, num):
    costs = np.random.default_rng(num).integers(0, 9, size=(40, objectives)).astype(float)
    rank, reference = ranks(costs), np.full(objectives, 10.0)
    chosen = fittest(costs, num, reference=reference, first=1)
    assert len(chosen) == len(set(chosen)) == min(num, 40)
    last = rank[chosen].max()
    assert set(np.flatnonzero(rank < last)) <= set(chosen), "a front begins when the one before is in"
    front, of_last = np.flatnonzero(rank == last), [i for i in chosen if rank[i] == last]
    assert costs[of_last[0], 1] == costs[front, 1].min()
    for number in range(1, len(of_last)):
        volumes = {i: hypervolume(costs[[*of_last[:number], i]], reference) for i in front if i not in of_last[:number]}
        assert volumes[of_last[number]] == pytest.approx(max(volumes.values()))


def test_of_nobody_nobody_is_fittest():
    assert fittest(np.empty((0, 2)), 3, reference=(1.0, 1.0), first=0) == []
