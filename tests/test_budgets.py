import pytest

from experiments.budgets import HALF, HALFWAY, Ends
from experiments.progress import Reporter
from nas.projection import BudgetError

SHARP = Ends(smallest_ms=1.0, smallest_upper_ms=1.2, largest_ms=8.0, largest_upper_ms=9.0)
BLURRED = Ends(smallest_ms=1.0, smallest_upper_ms=6.0, largest_ms=8.0, largest_upper_ms=40.0)
QUIET = Reporter(quiet=True)


@pytest.mark.parametrize("ends", [SHARP, BLURRED])
def test_what_is_asked_is_the_budget_if_the_fastest_network_is_sure_to_keep_it(ends):
    least = ends.smallest_upper_ms
    budget = ends.budget(least, QUIET, mib=3.0)
    assert (budget.ms, budget.origin, budget.mib) == (least, "user", 3.0)
    with pytest.raises(
        BudgetError, match=rf"budget_ms: .* \(upper bound {least:.4g} ms\); allowed is anything from there on, .* 8 ms"
    ):
        ends.budget(0.99 * least, QUIET)


def test_nobody_is_refused_who_asked_for_nothing():
    budget = SHARP.budget(None, QUIET)
    assert (budget.ms, budget.origin) == (4.0, HALF)
    budget = BLURRED.budget(None, QUIET)
    assert (budget.ms, budget.origin) == (23.0, HALFWAY)


def test_a_space_of_one_network_has_a_budget_that_it_keeps():
    only = Ends(smallest_ms=1.0, smallest_upper_ms=3.0, largest_ms=1.0, largest_upper_ms=3.0)
    assert only.budget(None, QUIET).ms == 3.0
