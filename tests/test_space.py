"""Choices, architectures and spaces."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from nas.encoding import Encoding, prefix_membership
from nas.space import Architecture, Choice, Condition, SearchSpace
from search_spaces.encoder import encoder_space
from tests.support.decoding import decoded

SPACE = encoder_space(width=(8, 16), depth=(1, 2, 3), heads=(1, 2), ffn=(8, 16))
DEEP = Condition("depth", (2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "has no options"),
        ((1, 1), "repeat"),
        ((2, 1), "positive and ascending"),
        ((0, 1), "positive and ascending"),
        ((1, "a"), "all integers or all strings"),
        ((True, 2), "all integers or all strings"),
    ],
)
def test_a_choice_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Choice("depth", options)


def test_a_space_refuses_unknown_requirements():
    with pytest.raises(ValueError, match="requires depth, which does not stand before it"):
        SearchSpace("s", (Choice("heads", (1, 2), (DEEP,)),))
    with pytest.raises(ValueError, match=r"depth: 2 is not one of \(1,\)"):
        SearchSpace("s", (Choice("depth", (1,)), Choice("heads", (1, 2), (DEEP,))))
    with pytest.raises(ValueError, match="the choice depth stands twice"):
        SearchSpace("s", (Choice("depth", (1,)), Choice("depth", (1,))))


def test_picks_of_absent_choices_make_no_difference():
    picks = SPACE.largest().as_dict
    shallow = SPACE.canonical({**picks, "depth": 1})
    assert shallow == SPACE.canonical({**picks, "depth": 1, "layer2.ffn": 8})
    assert "layer2.ffn" not in shallow
    assert shallow.id != SPACE.largest().id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 9}, r"depth: 9 is not one of \(1, 2, 3\)"),
        ({"layer1.attention": "cross"}, "layer1.attention: 'cross' is not one of"),
        ({"deph": 1}, "deph: is not a choice of the space encoder"),
    ],
)
def test_bad_picks_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SPACE.canonical({**SPACE.largest().as_dict, **change})


def test_a_missing_pick_is_named():
    with pytest.raises(ValueError, match="width: has no pick"):
        SPACE.canonical({"depth": 1})


def test_the_id_is_the_same_in_another_process():
    code = (
        "from search_spaces.encoder import encoder_space;"
        "print(encoder_space(width=(8, 16), depth=(1, 2, 3), heads=(1, 2), ffn=(8, 16)).largest().id)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == SPACE.largest().id


def test_size_counts_every_architecture_once():
    small = encoder_space(width=(8, 16), depth=(1, 2), heads=(1, 2), ffn=(8,))
    everything = itertools.product(*(c.options for c in small))
    ids = {small.canonical(dict(zip(small.by_name, picks, strict=True))).id for picks in everything}
    assert small.num_architectures() == len(ids)
    assert sorted(arch.id for arch in small.architectures()) == sorted(ids)
    for arch in small.architectures():
        small.validate(arch)
    assert small.log10_size() == pytest.approx(math.log10(len(ids)))


def test_the_default_space_is_large():
    assert encoder_space().log10_size() >= 9


@pytest.mark.parametrize("seed", range(20))
def test_round_trips(seed):
    rng = np.random.default_rng(seed)
    arch = SPACE.sample(rng)
    assert decoded(SPACE, SPACE.encode([arch])[0]) == arch
    again = SPACE.canonical(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert again.id == arch.id
    SPACE.validate(arch)


@pytest.mark.parametrize("seed", range(20))
def test_mutation_stays_in_the_space(seed):
    rng = np.random.default_rng(seed)
    one = SPACE.sample(rng)
    mutant = SPACE.mutate(one, rng, probability=0.1)
    SPACE.validate(mutant)
    assert mutant != one


def test_validate_refuses_what_is_not_canonical():
    picks = SPACE.largest().as_dict | {"depth": 1}
    with pytest.raises(ValueError, match="absent choices"):
        SPACE.validate(Architecture(tuple(picks.items())))


def test_mixing_padded_prefixes_is_one_mask():
    """The identity behind the supernet: sum_k p_k pad(W[:s_k]) x = m * (W x)."""
    rng = np.random.default_rng(0)
    choice, weight, x = Choice("ffn", (2, 3, 5)), rng.normal(size=(5, 4)), rng.normal(size=4)
    p = rng.dirichlet(np.ones(3))
    padded = sum(pk * np.concatenate([weight[:s] @ x, np.zeros(5 - s)]) for pk, s in zip(p, (2, 3, 5), strict=True))
    np.testing.assert_allclose((p @ prefix_membership(choice)) * (weight @ x), padded, rtol=1e-12)


@pytest.mark.parametrize("name", ["depth", "layer3.heads", "layer3.attention", "layer2.ffn"])
def test_expectations_agree_with_sampling(name):
    """Expected size and probability of existence, against 20,000 architectures drawn from the same probabilities."""
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in SPACE])
    encoding = Encoding(SPACE, values)
    drawn = []
    for _ in range(20_000):
        picks = {c.name: c.options[rng.choice(len(c.options), p=values[SPACE.offsets[c.name]])] for c in SPACE}
        drawn.append(SPACE.canonical(picks))
    existing = [a for a in drawn if name in a]
    assert float(encoding.exists(name)) == pytest.approx(len(existing) / len(drawn), abs=0.02)
    if SPACE.by_name[name].is_nested:
        assert float(encoding.expected(name)) == pytest.approx(np.mean([a.size(name) for a in existing]), rel=0.03)
    assert float(encoding.at_least("depth", 2)) == pytest.approx(np.mean([a.size("depth") >= 2 for a in drawn]), abs=0.02)
