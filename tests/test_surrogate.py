"""Regression on architectures, and the evolution that asks by it."""

import numpy as np
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas.gaussian_process import GaussianProcesses, Views
from nas.pareto import hypervolume
from nas.protocols import Searcher
from nas.search import search
from nas.searchers.surrogate_evolution import BATCH, Known, SurrogateEvolution, _adding_most
from nas.searchers.tpe import Tpe
from nas.types import Candidate, Provenance
from search_spaces.encoder import encoder_space

SPACE = encoder_space()
OBJECTIVES = ("error", "latency_ms")


def sampled(num, *, seed=0):
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(num)]


def costs(arch):
    """An error that falls and a time that grows with the sizes of the layers."""
    layers = range(1, arch.size("depth") + 1)
    size = arch.size("width") * sum(arch.size(f"layer{i}.ffn") for i in layers)
    attends = sum(arch[f"layer{i}.attention"] != "none" for i in layers)
    return 100 / (1 + 1e-4 * size) + 20 / (1 + attends), 1e-4 * size + 0.2 * attends


def candidate(arch):
    return Candidate(arch, dict(zip(OBJECTIVES, costs(arch), strict=True)), dict.fromkeys(OBJECTIVES, Provenance.PREDICTED))


def complete(arch):
    return SPACE.complete(arch, np.random.default_rng(0)).values()


def make(**arguments):
    return SurrogateEvolution(SPACE, objectives=OBJECTIVES, **{"seed": 1, "population": 10, **arguments})


def fitted(archs, values):
    return GaussianProcesses(Views(SPACE), SPACE.encode(archs), values)


def test_it_learns_a_law_better_than_its_mean_and_more_from_more():
    unseen = sampled(200, seed=1)
    truth = np.array([costs(arch) for arch in unseen])
    errors = []
    for num in (20, 160):
        archs = sampled(num)
        values = np.array([costs(arch) for arch in archs])
        guesses = fitted(archs, values).means(SPACE.encode(unseen))
        errors.append(np.abs(guesses - truth).mean(axis=0))
        assert np.all(errors[-1] < np.abs(values.mean(axis=0) - truth).mean(axis=0))
    assert np.all(errors[1] < 0.6 * errors[0])


def test_means_do_not_depend_on_the_unit_or_on_what_else_is_learned():
    archs, unseen = sampled(40), SPACE.encode(sampled(20, seed=1))
    values = np.array([costs(arch) for arch in archs])
    both = fitted(archs, values).means(unseen)
    assert fitted(archs, values[:, 1:]).means(unseen) == pytest.approx(both[:, 1:])
    assert fitted(archs, 1e3 * values).means(unseen) == pytest.approx(1e3 * both)


def test_what_is_positive_stays_so_and_what_is_not_may_be_anything():
    archs, unseen = sampled(12), SPACE.encode(sampled(300, seed=1))
    steep = np.array([[10.0 ** (i % 6), i - 6.0] for i in range(12)])
    guesses = fitted(archs, steep).means(unseen)
    assert guesses[:, 0].min() > 0
    assert guesses[:, 1].min() < 0


def test_equal_values_and_a_single_trial_are_learned_too():
    archs = sampled(5)
    assert fitted(archs, np.full((5, 1), 7.0)).means(SPACE.encode(sampled(3, seed=1))) == pytest.approx(np.full((3, 1), 7.0))
    assert fitted(archs[:1], np.array([[3.0]])).means(SPACE.encode(archs)) == pytest.approx(np.full((5, 1), 3.0))


def test_layers_of_one_kind_count_alike_and_are_yet_told_apart():
    picks = SPACE.largest().as_dict
    one, other = (SPACE.canonical({**picks, f"layer{i}.ffn": 64}) for i in (1, 2))
    picked, counts = Views(SPACE).of(SPACE.encode([one, other]))
    assert np.array_equal(*counts)
    assert not np.array_equal(*picked)


def test_a_size_is_closer_to_its_neighbours_than_to_others():
    picks, choice = SPACE.largest().as_dict, SPACE.by_name["width"]
    picked, _ = Views(SPACE).of(SPACE.encode([SPACE.canonical({**picks, "width": size}) for size in choice.sizes]))
    from_first = np.linalg.norm(picked - picked[0], axis=1)
    assert np.all(np.diff(from_first) > 0)


def test_encodings_are_those_of_the_space():
    sampler = make()._sampler
    rng = np.random.default_rng(0)
    picks = rng.integers([len(choice.options) for choice in SPACE], size=(30, len(SPACE.choices)))
    archs = [SPACE.canonical({c.name: c.options[i] for c, i in zip(SPACE, row, strict=True)}) for row in picks.tolist()]
    assert np.array_equal(sampler._encoded(picks), SPACE.encode(archs))


def test_a_batch_is_the_one_that_adds_most():
    front = np.array([[1.0, 4.0], [4.0, 1.0]])
    points = np.array([[2.0, 2.0], [3.0, 3.0], [0.5, 4.0], [5.0, 5.0]])
    assert _adding_most(points, front, 2) == [0, 2]
    assert _adding_most(points, front, 4) == [0, 2, 1, 3], "then the best fronts"
    assert _adding_most(points[3:], front, 3) == [0]


def test_what_breaks_a_limit_comes_last():
    known = Known(
        np.zeros((4, 1), dtype=int), np.array([[1.0, 1], [2, 2], [3, 3], [0, 0]]), np.array([[-0.1], [0], [0.2], [0.1]])
    )
    assert known.best(3).tolist() == [0, 1, 3]
    assert known.within().costs.tolist() == [[1, 1], [2, 2]]
    assert known.values[:, 2].tolist() == pytest.approx([0.9, 1.0, 1.2, 1.1])


def test_proposals_keep_a_limit_that_most_architectures_break():
    limit = float(np.quantile([costs(arch)[1] for arch in sampled(200)], 0.2))
    searcher = make(limits={"latency_ms": limit}, population=15)
    found = []
    for _ in range(15 + 3 * BATCH):
        found.append(candidate(searcher.ask()))
        searcher.tell(found[-1])
    first, last = ([c.objectives["latency_ms"] <= limit for c in part] for part in (found[:15], found[-BATCH:]))
    assert sum(first) < 8
    assert sum(last) >= BATCH - 1
    assert len({c.arch.id for c in found}) == len(found)


def times(archs):
    return {"latency_ms": np.array([costs(arch)[1] for arch in archs])}


def test_a_limit_that_is_known_is_kept_from_the_first_trial_on():
    limit = float(np.quantile([costs(arch)[1] for arch in sampled(200)], 0.1))
    searcher = make(limits={"latency_ms": limit}, costs=times)
    found = search(searcher, candidate, num_evaluations=10 + 2 * BATCH).candidates
    assert all(c.objectives["latency_ms"] <= limit for c in found[:10])
    assert sum(c.objectives["latency_ms"] <= limit for c in found[10:]) == 2 * BATCH


def test_what_is_known_is_not_taken_from_the_model():
    told = [candidate(arch) for arch in sampled(12)]
    sampler = make(costs=times)._sampler
    picks = np.array([[choice.index(pick) for choice, pick in zip(SPACE, complete(c.arch), strict=True)] for c in told])
    met = Known(picks, np.full((12, 2), 7.0), np.empty((12, 0)))
    priced = sampler._priced(met)
    assert priced.costs[:, 0].tolist() == [7.0] * 12
    assert priced.costs[:, 1].tolist() == [c.objectives["latency_ms"] for c in told]


def test_a_limit_that_nothing_is_known_to_keep_ends_the_draws():
    searcher = make(limits={"latency_ms": 1e-9}, costs=times, population=2)
    SPACE.validate(searcher.ask())


@pytest.mark.parametrize("stop", [3, 10, 12, 15])
def test_a_study_that_is_continued_asks_for_the_same(tmp_path, stop):
    """Also in the midst of a batch, whose plan the new process makes again."""

    def asked(searcher, num):
        archs = []
        for _ in range(num):
            archs.append(searcher.ask())
            searcher.tell(candidate(archs[-1]))
        return archs

    through = asked(make(), 20)
    storages = (JournalStorage(JournalFileBackend(str(tmp_path / "study"))) for _ in range(2))
    first = asked(make(storage=next(storages)), stop)
    assert first + asked(make(storage=next(storages)), 20 - stop) == through


def test_failures_alone_are_answered_with_random_architectures():
    searcher = make(population=2)
    for _ in range(2 + BATCH):
        arch = searcher.ask()
        SPACE.validate(arch)
        searcher.fail(arch, "lost")


def test_it_finds_more_than_tpe_does_with_as_many_evaluations():
    """Medians over 3 seeds."""
    reference = costs(SPACE.smallest())[0], costs(SPACE.largest())[1]
    volumes: dict[type[Searcher], list[float]] = {SurrogateEvolution: [], Tpe: []}
    for make_searcher, of_seeds in volumes.items():
        for seed in range(3):
            searcher = make_searcher(SPACE, objectives=OBJECTIVES, seed=seed, population=10)
            found = search(searcher, candidate, num_evaluations=40).candidates
            of_seeds.append(hypervolume(np.array([[c.objectives[name] for name in OBJECTIVES] for c in found]), reference))
    assert np.median(volumes[SurrogateEvolution]) > np.median(volumes[Tpe])
