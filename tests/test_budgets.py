from dataclasses import replace

import numpy as np
import pytest

from experiments.budgets import HALF, HALFWAY, Budget, End, Ends, fastest_within
from experiments.layers import arch_in_short
from experiments.progress import Reporter
from latency_models.memory import MemoryCost
from nas.constraints import Constraint
from nas.extremes import least
from nas.projection import BudgetError, discretise
from nas.surroundings import surrounded
from nas.types import Prediction, Workload
from search_spaces.encoder import EncoderFamily, encoder_space

SPACE = encoder_space(width=(16, 32), depth=(1, 2), heads=(1, 2), ffn=(16, 32), attention=("full", "none"), pool=(1, 2, 4))
SMALLEST, LARGEST = SPACE.smallest(), SPACE.largest()
SHARP = Ends(End(SMALLEST, 1.0, 1.2), End(LARGEST, 8.0, 9.0), End(LARGEST, 8.0, 9.0))
BLURRED = Ends(End(SMALLEST, 1.0, 6.0), End(LARGEST, 8.0, 40.0), End(LARGEST, 8.0, 40.0))
QUIET = Reporter(quiet=True)


@pytest.mark.parametrize("ends", [SHARP, BLURRED])
def test_what_is_asked_is_the_budget_if_the_fastest_network_is_sure_to_keep_it(ends):
    least_ms = ends.fastest.upper_ms
    budget = ends.budget(least_ms, QUIET)
    assert (budget.ms, budget.origin) == (least_ms, "user")
    named = rf"{SMALLEST.id} \(width 16, .*\), which takes 1 ms \(upper bound {least_ms:.4g} ms\)"
    with pytest.raises(BudgetError, match=rf"budget_ms: .*{named}; allowed is anything from there on, .* 8 ms"):
        ends.budget(0.99 * least_ms, QUIET)


def test_nobody_is_refused_who_asked_for_nothing():
    budget = SHARP.budget(None, QUIET)
    assert (budget.ms, budget.origin) == (4.0, HALF.format(cost="latency"))
    budget = BLURRED.budget(None, QUIET)
    assert (budget.ms, budget.origin) == (23.0, HALFWAY.format(least="fastest", cost="latency"))


def test_ends_of_energies_are_said_in_their_unit():
    ends = replace(SHARP, name="energy_mj")
    assert ends.budget(None, QUIET).origin == "half of the largest network's energy"
    with pytest.raises(BudgetError, match=r"budget_mj: 1 is below the most frugal network .* 1 mJ \(upper bound 1.2 mJ\)"):
        ends.budget(1.0, QUIET)


def test_a_budget_says_whose_it_is_and_whether_it_binds(capsys):
    SHARP.budget(None, Reporter())
    assert "4.00 ms (derived: half of the largest network's latency); the largest" in capsys.readouterr().out
    for asked_ms, binds in ((8.9, True), (9.0, False)):
        SHARP.budget(asked_ms, Reporter())
        said = capsys.readouterr().out
        assert f"{asked_ms:.2f} ms (asked by you)" in said
        assert ("excludes none" in said) is not binds


def test_a_space_of_one_network_has_a_budget_that_it_keeps():
    only = End(SMALLEST, 1.0, 3.0)
    assert Ends(only, only, only).budget(None, QUIET).ms == 3.0


# --- the fastest need not be the smallest

FAMILY = EncoderFamily(SPACE, 50, 3, max_tokens=32, head_size=8)
WORKLOAD = Workload(tokens=32)
EVERYWHERE = surrounded(SPACE, {"threads": (1, 2)})
ARCHS = EVERYWHERE.architectures()
MIB = MemoryCost(FAMILY, WORKLOAD).upper(SPACE.architectures())


def a_law(seed):
    """Milliseconds by parts that pull in different directions: threads and pools cost something and save more or less."""
    start, per_step, per_head, per_pool, per_thread, gain = np.random.default_rng(seed).uniform(0.01, 1.0, size=6)

    def upper_ms(archs):
        times = []
        for a in archs:
            layers = range(1, a.size("depth") + 1)
            heads = sum(a.size(f"layer{i}.heads") for i in layers if f"layer{i}.heads" in a)
            steps = sum(a.size(f"layer{i}.ffn") for i in layers) * a.size("width") / 100 / int(a["pool"])
            threads = a.size("device.threads") if "device.threads" in a else 1
            work = (per_step * steps + per_head * heads) / threads**gain
            times.append(start + work + per_pool * (int(a["pool"]) - 1) + per_thread * (threads - 1))
        return np.array(times)

    return upper_ms


@pytest.mark.parametrize("seed", range(8))
def test_the_least_is_that_of_all_architectures(seed):
    for sign in (1, -1):
        cost = a_law(seed)
        found = least(EVERYWHERE, lambda archs: sign * cost(archs))  # noqa: B023
        assert sign * cost([found])[0] == (sign * cost(ARCHS)).min()
        assert found == least(EVERYWHERE, lambda archs: sign * cost(archs))  # noqa: B023


def test_the_ends_are_predicted_and_measured_where_they_were():
    cost = a_law(1)
    upper = cost(SPACE.architectures())

    def predict(archs):
        return Prediction(cost(archs) / 2, cost(archs), cost(archs), cost(archs))

    ends = Ends.of(SPACE, predict, {LARGEST.id: 7.0})
    assert ends.fastest.upper_ms == upper.min() < cost([SMALLEST])[0]
    assert (ends.fastest.ms, ends.slowest.upper_ms, ends.largest.ms) == (upper.min() / 2, upper.max(), 7.0)
    message = rf"{ends.fastest.arch.id} \({arch_in_short(ends.fastest.arch.as_dict)}\), which takes {ends.fastest.ms:.4g} ms"
    with pytest.raises(BudgetError, match=message):
        ends.budget(0.99 * upper.min(), QUIET)


def costing(archs):
    return [
        {"upper_ms": float(ms), "upper_mib": float(mib)}
        for ms, mib in zip(a_law(1)(archs), MemoryCost(FAMILY, WORKLOAD).upper(archs), strict=True)
    ]


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_fastest_keeps_all_limits(share):
    ms, mib = a_law(1)(SPACE.architectures()), float(np.quantile(MIB, share))
    budget = Budget(float(ms.max()), "user", {"memory_mib": mib})
    assert fastest_within(budget, SPACE, costing) == ms[mib >= MIB].min()
    with pytest.raises(BudgetError, match=r"^budget_ms: \d.* and budget_mib: \d.*: networks keep each of them, and none that"):
        fastest_within(
            replace(budget, ms=0.99 * float(ms[MIB.min() == MIB].min()), beside={"memory_mib": float(MIB.min())}), SPACE, costing
        )


def test_proposals_reach_the_fastest_where_the_smallest_is_slower():
    """The cost that single changes of a pick lead down and that a smallest network does not keep."""

    class Law:
        def upper(self, archs):
            return a_law(1)(archs)

    fastest_ms = float(a_law(1)(SPACE.architectures()).min())
    for seed in range(5):
        log_p = np.random.default_rng(seed).normal(size=SPACE.encoding_size)
        arch = discretise(SPACE, log_p, [Constraint("budget_ms", "ms", Law(), fastest_ms)])
        assert a_law(1)([arch])[0] <= fastest_ms * (1 + 1e-9)
