"""The differentiable search: relaxation, budget and projection, resume."""

import math

import numpy as np
import pytest
import torch

from latency_models.additive import AdditiveLatency
from nas import guards
from nas.compute import Compute
from nas.darts import Darts, DartsConfig, Proposal
from nas.projection import BudgetError, discretise
from nas.protocols import Batch
from nas.relaxations import relax
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.test_latency import FAMILY as BIG
from tests.test_latency import measurements

FAMILY = EncoderFamily(
    encoder_space(width=(8, 16), depth=(1, 2, 3), heads=(1, 2), ffn=(8, 16)),
    vocab_size=40,
    num_classes=4,
    max_tokens=12,
    head_size=4,
)
WORKLOAD = Workload(tokens=12)


class Task:
    """Whether a token of the class occurs: learnable in a few steps."""

    def batches(self, split, *, tokens_per_batch, seed):
        rng = np.random.default_rng([seed, len(split)])
        for _ in range(4):
            targets = torch.as_tensor(rng.integers(4, size=16))
            ids = torch.as_tensor(rng.integers(4, 40, size=(16, 12)))
            ids[:, 3] = targets
            yield Batch((ids, torch.ones_like(ids)), targets)

    @staticmethod
    def loss(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)


@pytest.fixture(scope="module")
def latency():
    archs = list({a.id: a for a in (FAMILY.space.sample(np.random.default_rng(s)) for s in range(60))}.values())
    times = [0.1 + 0.1 * a.size("depth") + 0.01 * a.size("width") * a.size("depth") for a in archs]
    return AdditiveLatency().fit(
        FAMILY, [Measurement(a, "d", WORKLOAD, ((t,),), ((1.0,),), 1.0, {}) for a, t in zip(archs, times, strict=True)]
    )


def darts(latency, seed: int = 0) -> Darts:
    torch.manual_seed(0)
    config = DartsConfig(steps=12, steps_more=6, logit_rate=0.3)
    return Darts(FAMILY, FAMILY.supernet(), latency, Task(), config, compute=Compute(), seed=seed)


def test_relaxation_is_one_distribution_for_each_choice():
    logits = torch.randn(FAMILY.space.encoding_size)
    encoding = relax(FAMILY.space, logits, temperature=0.5)
    for choice in FAMILY.space:
        part = encoding.probabilities(choice.name)
        assert part.sum().item() == pytest.approx(1.0)
        torch.testing.assert_close(part, torch.softmax(logits[FAMILY.space.offsets[choice.name]] / 0.5, dim=0))


def test_entropy_is_one_when_undecided_and_zero_when_decided():
    uniform = np.concatenate([np.full(len(c.options), 1 / len(c.options)) for c in FAMILY.space])
    assert guards.mean(guards.entropies(FAMILY.space, uniform)) == pytest.approx(1.0)
    decided = np.concatenate([np.eye(len(c.options))[0] for c in FAMILY.space])
    assert guards.mean(guards.entropies(FAMILY.space, decided)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_out_is_within_the_budget_and_uses_it(seed):
    """Random probabilities and budgets over a space of 10^9: the upper bound is within, and no single larger size would be."""
    model = AdditiveLatency().fit(BIG, measurements(60, noise=0.05))
    rng = np.random.default_rng(seed)
    probabilities = np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in BIG.space])
    ends = model.predict([BIG.space.smallest(), BIG.space.largest()])
    budget = float(math.exp(rng.uniform(*np.log([ends.upper_ms[0] * 1.05, ends.upper_ms[1]]))))
    arch = discretise(BIG.space, np.log(probabilities), model, budget)
    upper = model.predict([arch]).upper_ms[0]
    assert upper <= budget
    for choice in BIG.space:
        if choice.name in arch and choice.is_nested:
            for larger in choice.options[choice.index(arch[choice.name]) + 1 :]:
                picks = BIG.space.complete(arch, np.random.default_rng(0)) | {choice.name: larger}
                grown = model.predict([BIG.space.canonical(picks)]).upper_ms[0]
                assert grown > budget or grown <= upper or choice.name == "depth"


def test_a_budget_that_nothing_meets_is_named(latency):
    uniform = np.concatenate([np.full(len(c.options), 1 / len(c.options)) for c in FAMILY.space])
    with pytest.raises(BudgetError, match=r"budget_ms: 0.01 is below the fastest network reached, 0\.\d+ ms"):
        discretise(FAMILY.space, np.log(uniform), latency, 0.01)


def test_a_smaller_budget_gives_a_faster_network(latency):
    search = darts(latency)
    wide = search.propose(0.9, steps=12)
    narrow = search.propose(0.4, steps=12)
    assert wide.upper_ms <= 0.9
    assert narrow.upper_ms <= 0.4
    assert narrow.predicted_ms < wide.predicted_ms
    assert narrow.relaxed_ms < wide.relaxed_ms


def test_proposals_survive_json(latency):
    proposal = darts(latency).propose(0.8, steps=2)
    assert Proposal.from_json(FAMILY.space, proposal.to_json()) == proposal


def test_it_leaves_the_supernet_alone(latency):
    torch.manual_seed(0)
    supernet = FAMILY.supernet()
    before = {n: p.clone() for n, p in supernet.named_parameters()}
    Darts(FAMILY, supernet, latency, Task(), DartsConfig(steps=2), compute=Compute(), seed=0).propose(0.8, steps=2)
    for name, parameter in supernet.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


def test_a_search_that_goes_on_equals_one_that_was_not_stopped(latency):
    whole = darts(latency)
    first, second = whole.propose(0.9, steps=6), whole.propose(0.5, steps=5)
    cut = darts(latency)
    assert cut.propose(0.9, steps=6) == first
    state = cut.state_dict()
    again = darts(latency)
    again.load_state_dict(state)
    assert again.propose(0.5, steps=5) == second
    torch.testing.assert_close(again.logits, whole.logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": 0}, "steps: 0 is not positive"), ({"temperature": (1.0, 0.0)}, "is not a pair of positive numbers")],
)
def test_bad_configs(arguments, message):
    with pytest.raises(ValueError, match=message):
        DartsConfig(**arguments)
