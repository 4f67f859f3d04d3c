"""Fronts, hypervolume, epsilon, attainment and knee, against cases by hand, brute force and Monte Carlo."""

import numpy as np
import pytest

from nas.pareto import attainment_surface, epsilon, fittest, hypervolume, knee, non_dominated, ranks
from nas.space import Architecture
from nas.types import Candidate, Provenance, pareto_front


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


def test_epsilon_of_simple_cases():
    """By hand: for each point of the reference the nearest of ours, by its worst objective; then the worst of these."""
    ours, reference = np.array([[1.0, 5.0], [4.0, 2.0]]), np.array([[0.5, 4.0], [4.0, 1.0]])
    assert epsilon(ours, reference) == 1.0, "(1, 5) is 1 behind (0.5, 4), (4, 2) is 1 behind (4, 1)"
    assert epsilon(reference, ours) == 0.0, "(4, 1) is as good as (4, 2), and no better in the first objective"
    assert epsilon(ours - 1.0, reference) == 0.0
    assert epsilon(np.array([[2.0, 2.0]]), np.array([[3.0, 5.0]])) == -1.0
    assert epsilon(np.zeros((0, 2)), reference) == np.inf
    with pytest.raises(ValueError, match="epsilon: there is no reference"):
        epsilon(ours, np.zeros((0, 2)))


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_front_less_epsilon_is_as_good_as_its_reference_and_no_less_is(objectives):
    ours, reference = np.random.default_rng(objectives).random((2, 12, objectives))
    least = epsilon(ours, reference)
    for less, enough in ((least + 1e-9, True), (least - 1e-9, False)):
        assert np.all(ours[:, None] - less <= reference[None], axis=2).any(axis=0).all() == enough


def attained(runs, points):
    """Share of the runs, [N], that found something as good as each point in all objectives: the empirical attainment function
    (Fonseca & Fleming, 1996; Grunert da Fonseca et al., 2001)."""
    return np.mean([np.all(run[:, None] <= points[None], axis=2).any(axis=0) for run in runs], axis=0)


RUNS = [np.array([[1.0, 6.0], [4.0, 2.0]]), np.array([[2.0, 3.0]]), np.array([[3.0, 5.0], [5.0, 1.0]])]


def test_attainment_of_three_runs():
    points = np.array([[1.0, 6.0], [2.0, 6.0], [4.0, 5.0], [0.5, 9.0], [4.0, 2.0]])
    assert attained(RUNS, points) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.0, 1 / 3])
    assert attainment_surface(RUNS, share=0.01).tolist() == [[1, 6], [2, 3], [4, 2], [5, 1]], "what any run found"
    assert attainment_surface(RUNS).tolist() == [[2, 6], [3, 5], [4, 3], [5, 2]], "what two of three attain"
    assert attainment_surface(RUNS, share=1.0).tolist() == [[3, 6], [4, 5], [5, 3]]
    assert attainment_surface([*RUNS, np.zeros((0, 2))], share=1.0).tolist() == [], "a run that found nothing attains nothing"
    with pytest.raises(ValueError, match=r"share: 0 is not in \(0, 1\]"):
        attainment_surface(RUNS, share=0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_the_surface_is_where_the_attainment_function_reaches_its_share(share):
    rng = np.random.default_rng(0)
    runs = [rng.integers(0, 9, size=(4, 2)).astype(float) for _ in range(5)]
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2)
    reached = grid[attained(runs, grid) >= share]
    assert attainment_surface(runs, share=share).tolist() == sorted(reached[non_dominated(reached)].tolist())


def candidate(error: float, latency: float, name: int) -> Candidate:
    objectives = {"error": error, "latency_ms": latency}
    return Candidate(Architecture((("width", name),)), objectives, dict.fromkeys(objectives, Provenance.MEASURED))


def test_front_ascends_in_the_first_objective():
    found = (candidate(1, 9, 1), candidate(5, 1, 2), candidate(5, 5, 3))
    assert [c.objectives["latency_ms"] for c in pareto_front(found, "latency_ms", "error")] == [1, 9]
    assert pareto_front((), "error") == ()


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
