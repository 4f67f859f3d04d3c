"""Several limits at once: what a cost promises, the search under two, the projection beside all architectures, resume."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.benchmarks.darts import invented_device
from latency_models.additive import AdditiveLatency
from latency_models.memory import MemoryCost, expected_memory, memory_of
from nas.compute import Compute
from nas.constraints import Constraint, Predicted, within_ms
from nas.darts import Darts
from nas.darts_config import DartsConfig
from nas.encoding import Encoding
from nas.projection import USED, BudgetError, discretise
from nas.relaxations import draws, relax
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.tiny_search import FAMILY, WORKLOAD, Task

SPACE = FAMILY.space
MEMORY = MemoryCost(FAMILY, WORKLOAD)


@functools.cache
def everything():
    """All architectures of the space."""
    names, picks = [c.name for c in SPACE], itertools.product(*(c.options for c in SPACE))
    return tuple(dict.fromkeys(SPACE.canonical(dict(zip(names, p, strict=True))) for p in picks))


@functools.cache
def device(per_width: float, per_head: float) -> AdditiveLatency:
    """A latency model of an invented device."""
    archs = everything()[:: len(everything()) // 50]
    heads = [sum(a.size(f"layer{n}.heads") for n in range(1, a.size("depth") + 1) if f"layer{n}.heads" in a) for a in archs]
    times = [0.1 + per_width * a.size("width") * a.size("depth") + per_head * h for a, h in zip(archs, heads, strict=True)]
    return AdditiveLatency().fit(
        FAMILY, [Measurement(a, "d", WORKLOAD, ((t,),), ((1.0,),), 1.0, {}) for a, t in zip(archs, times, strict=True)]
    )


def wide() -> AdditiveLatency:
    return device(0.01, 0.03)


def within_mib(limit: float) -> Constraint:
    return Constraint("budget_mib", "MiB", MEMORY, limit)


class Known:
    """A cost that is looked up."""

    def __init__(self, values) -> None:
        self.values = dict(zip(everything(), values, strict=True))

    def upper(self, archs) -> np.ndarray:
        return np.array([self.values[arch] for arch in archs])


def random_log_p(rng) -> np.ndarray:
    return np.log(np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in SPACE]))


# --- costs


@pytest.mark.parametrize("cost", [MEMORY, Predicted(device(0.01, 0.03))], ids=["memory", "latency"])
def test_a_decided_architecture_is_expected_to_cost_what_is_predicted(cost):
    archs = everything()[::97]
    for row, upper in zip(SPACE.encode(archs), cost.upper(archs), strict=True):
        values = torch.as_tensor(row).requires_grad_()
        expected = cost.expected_upper(Encoding(SPACE, values))
        assert expected.item() == pytest.approx(upper, rel=1e-12)
        (gradient,) = torch.autograd.grad(expected, values)
        assert torch.isfinite(gradient).all()
        assert (gradient > 0).any()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_the_memory_of_a_relaxed_architecture_is_the_mean_over_architectures(spread):
    """Weights exactly, peaks to the accuracy of the draws; the largest of expected activations would be far below."""
    logits = spread * torch.randn(SPACE.encoding_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encoding = relax(SPACE, logits)
    rows = SPACE.encode(everything())
    p = np.exp((rows * torch.log(encoding.values).numpy()).sum(axis=1))
    assert p.sum() == pytest.approx(1.0)
    weights, activations = np.array([(m.weights_mib, m.activations_mib) for m in memory_of(FAMILY, everything(), WORKLOAD)]).T
    expected_weights, largest = expected_memory(FAMILY, encoding, WORKLOAD)
    assert expected_weights.item() == pytest.approx(p @ weights)
    assert MEMORY.expected_upper(encoding).item() == pytest.approx(p @ MEMORY.upper(everything()), rel=0.02)
    assert largest.item() < 0.9 * (p @ activations)


def test_draws_have_the_probabilities_and_the_gradient_of_what_is_linear():
    values = relax(SPACE, torch.randn(SPACE.encoding_size, generator=torch.Generator().manual_seed(0))).values.requires_grad_()
    drawn = draws(Encoding(SPACE, values), 50).values
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), values, rtol=0, atol=0.0201)
    prices = torch.randn(SPACE.encoding_size)
    (gradient,) = torch.autograd.grad((drawn @ prices).mean(), values)
    torch.testing.assert_close(gradient, prices)


def test_a_limit_is_positive():
    with pytest.raises(ValueError, match=r"budget_mib: 0\.0 is not positive"):
        within_mib(0.0)


def grows(arch, limits) -> bool:
    """Whether a larger option fits, which costs more."""
    likely = {c.name: c.options[0] for c in SPACE} | arch.as_dict
    larger = []
    for choice in (c for c in SPACE if c.name in arch):
        index = choice.index(arch[choice.name])
        options = choice.options[index + 1 :] if choice.is_nested else choice.options[:index]
        larger += [SPACE.canonical({**likely, choice.name: option}) for option in options]
    [before], *_ = (c.cost.upper([arch]) for c in limits)
    uppers = [c.cost.upper(larger) for c in limits]
    fits = np.all([upper <= c.limit for upper, c in zip(uppers, limits, strict=True)], axis=0)
    return bool((fits & (uppers[0] > before)).any())


# --- projection


@pytest.mark.parametrize("second", ["memory", "another device"])
def test_the_projection_keeps_two_limits_and_fills_the_first_where_the_second_allows(second):
    ms = wide().predict(everything()).upper_ms
    other = MEMORY.upper(everything()) if second == "memory" else device(0.002, 0.1).predict(everything()).upper_ms
    costs, rng = (Known(ms), Known(other)), np.random.default_rng(0)
    beaten_by, missed, filled = [], 0, 0
    for number in range(16):
        log_p = random_log_p(rng)
        parts = {name: log_p[part] for name, part in SPACE.offsets.items()}
        most_ms = float(rng.uniform(*np.quantile(ms, (0.2, 1.0))))
        near = (ms <= most_ms) & (ms >= (0.6, USED)[number % 2] * most_ms)  # every other time networks that fill the first fit
        most = float(np.quantile(other[near], rng.uniform()))
        limits = [Constraint("first", "ms", costs[0], most_ms), Constraint("second", "any", costs[1], most)]
        arch = discretise(SPACE, log_p, limits)
        use = [c.cost.upper([arch])[0] / c.limit for c in limits]
        assert max(use) <= 1.0 + 1e-9
        uses = np.stack([ms / most_ms, other / most])
        fits = (uses <= 1.0 + 1e-9).all(axis=0)
        full = fits & (uses[0] >= USED)
        filled, missed = filled + full.any(), missed + (full.any() and use[0] < USED)
        if use[0] < USED:
            full = fits & (uses.max(axis=0) >= min(max(use), USED) - 1e-9)
        given_up = {a: sum(parts[n].max() - parts[n][SPACE.by_name[n].index(p)] for n, p in a.picks) for a in everything()}
        as_full = [a for a, is_full in zip(everything(), full, strict=True) if is_full and (a == arch or not grows(a, limits))]
        beaten_by.append(np.mean([given_up[a] < given_up[arch] - 1e-9 for a in as_full]))
    assert filled >= 5
    assert missed <= 0.25 * filled
    assert np.median(beaten_by) <= 0.1, "share of those that fill as much and are more probable"


def test_limits_that_nothing_meets_are_named():
    log_p, least = np.zeros(SPACE.encoding_size), MEMORY.upper(everything()).min()
    with pytest.raises(BudgetError, match=rf"^budget_mib: 0\.001 is below the least that was reached, {least:.4g} MiB"):
        discretise(SPACE, log_p, [within_ms(wide(), 0.5), within_mib(0.001)])
    with pytest.raises(BudgetError, match=r"^budget_ms: 0\.01 is .* ms \(upper bound\); budget_mib: 0\.001 is .* MiB"):
        discretise(SPACE, log_p, [within_ms(wide(), 0.01), within_mib(0.001)])


def test_limits_that_contradict_each_other_are_named():
    ms = wide().predict(everything()).upper_ms
    slower = Constraint("not_faster", "ms", Known(ms.min() + ms.max() - ms), 0.3)
    budget = Constraint("budget_ms", "ms", Known(ms), 0.3)
    with pytest.raises(
        BudgetError,
        match=r"budget_ms: 0\.3 and not_faster: 0\.3: networks meet each of them, and none that",
    ):
        discretise(SPACE, np.zeros(SPACE.encoding_size), [budget, slower])


# --- search


def darts(*limits: Constraint) -> Darts:
    torch.manual_seed(0)
    config = DartsConfig(steps=12, steps_more=6, logit_rate=0.3, remedy="none", relaxation="softmax")
    return Darts(FAMILY, FAMILY.supernet(), wide(), Task(), config, compute=Compute(), seed=0, limits=limits)


def expected_use(search: Darts, limit: Constraint) -> float:
    return limit.expected_use(Encoding(SPACE, search._encoding(search.config.temperature[1]).values.double())).item()


def test_a_search_lands_within_a_tight_memory_limit_too():
    free = darts()
    alone = free.propose(0.7, steps=12)
    tight = within_mib(0.6 * float(MEMORY.upper([alone.arch])[0]))
    search = darts(tight)
    pulls: list[list[float]] = []
    both = search.propose(0.7, steps=12, on_step=lambda step, loss: pulls.append(search.multipliers))
    assert both.upper_ms <= 0.7
    assert both.others == {"budget_mib": pytest.approx(MEMORY.upper([both.arch])[0])}
    assert both.others["budget_mib"] <= tight.limit
    assert max(both.upper_ms / 0.7, both.others["budget_mib"] / tight.limit) >= USED
    assert expected_use(search, tight) < 0.8 * expected_use(free, tight), "the logits know of the limit, not the projection alone"
    assert np.max(pulls, axis=0)[1] > 0
    assert replace(alone, others={}) == alone


def test_a_search_under_two_limits_goes_on_as_if_it_was_not_stopped():
    limit = within_mib(1.05 * float(MEMORY.upper([SPACE.smallest()])[0]))
    whole = darts(limit)
    first, second = whole.propose(0.7, steps=6), whole.propose(0.5, steps=5)
    cut, again = darts(limit), darts(limit)
    assert cut.propose(0.7, steps=6) == first
    state = cut.state_dict()
    assert len(state["multipliers"]) == 2
    assert state["multipliers"][1] > 0
    again.load_state_dict(state)
    assert again.propose(0.5, steps=5) == second
    assert again.multipliers == whole.multipliers


def test_networks_that_just_meet_the_limit_are_not_exchanged_for_ever():
    """One candidate alone is summed up in another order than it is among others."""

    class Rounded:
        def upper(self, archs) -> np.ndarray:
            return np.full(len(archs), np.nextafter(1.0, 2.0) if len(archs) == 1 else 1.0)

    for seed in range(5):
        log_p = random_log_p(np.random.default_rng(seed))
        found = discretise(SPACE, log_p, [Constraint("budget_ms", "ms", Rounded(), 1.0)])
        assert found == SPACE.canonical({c.name: c.options[int(np.argmax(log_p[SPACE.offsets[c.name]]))] for c in SPACE})


def test_a_budget_of_a_few_small_networks_is_filled_where_one_of_them_fills_it():
    """Which has other picks in layers that the first ones do not have, so that steps from these do not lead there."""
    sizes = {"width": (16, 32, 64), "depth": (1, 2), "heads": (1, 2), "ffn": (64, 128)}
    space, rng = encoder_space(**sizes, attention=("full", "none")), np.random.default_rng(0)
    family = EncoderFamily(space, vocab_size=100, num_classes=3, max_tokens=32, head_size=16)
    archs = space.architectures()
    model = invented_device(family, Workload(tokens=32))
    upper = model.predict(archs).upper_ms
    budgets = np.geomspace(1.05 * upper.min(), 3 * upper.min(), 40)
    there = [bool(((upper >= USED * budget) & (upper <= budget)).any()) for budget in budgets]
    assert 5 < sum(there) < 40
    known = dict(zip(archs, upper, strict=True))
    for budget, is_there in zip(budgets, there, strict=True):
        for _ in range(3):
            log_p = np.log(np.concatenate([rng.dirichlet(np.ones(len(c.options))) for c in space]))
            use = known[discretise(space, log_p, [within_ms(model, float(budget))])] / budget
            assert use <= 1
            assert use >= USED or not is_there, f"{use:.3f} of {budget:.4f}"


def test_energy_is_one_more_limit_of_a_search():
    """A model that was fitted to mJ, of a device where heads take much energy and little time."""
    energy = device(0.002, 0.1)
    free = darts()
    alone = free.propose(0.7, steps=12)
    within_mj = Constraint("budget_mj", "mJ", Predicted(energy), 0.5 * float(energy.predict([alone.arch]).upper_ms[0]))
    tight_mib = within_mib(0.9 * float(MEMORY.upper([alone.arch])[0]))
    search = darts(within_mj, tight_mib)
    pulls: list[list[float]] = []
    found = search.propose(0.7, steps=12, on_step=lambda step, loss: pulls.append(search.multipliers))
    assert found.upper_ms <= 0.7
    assert found.others["budget_mj"] == pytest.approx(energy.predict([found.arch]).upper_ms[0])
    assert found.others["budget_mj"] <= within_mj.limit
    assert found.others["budget_mib"] <= tight_mib.limit
    assert np.max(pulls, axis=0)[1] > 0
    assert expected_use(search, within_mj) < 0.8 * expected_use(free, within_mj), "the logits know of the limit"
    with pytest.raises(BudgetError, match=r"budget_mj: 0\.001 is below the least that was reached, 0\.\d+ mJ"):
        darts(replace(within_mj, limit=0.001)).propose(0.7, steps=1)
