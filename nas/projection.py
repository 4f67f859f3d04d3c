"""From relaxed to discrete: the most probable architecture that a budget allows and that uses it.

The log-probabilities of the options are the values of a knapsack, the predictor's upper bound is its weight, and the predictor
itself is the judge of every candidate: nothing is assumed of how a latency comes about. A greedy descent brings the most probable
picks within the budget, a greedy ascent spends what is left, and exchanges of one or two picks win back log-probability, or fill
a budget that single steps cannot fill. What is given up is counted over all choices, absent ones too: of two networks of other
depth the deeper one does not pay for having more picks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.protocols import LatencyModel
from nas.space import Architecture, Option, SearchSpace

USED = 0.93  # share of a budget that a proposal is to use at least
SLACK = 1e-9  # sums of another order differ in the last digits
TRIED = 64  # exchanges that look best and are judged by the predictor, at a time


class BudgetError(ValueError):
    """No architecture of the space meets the budget; names the fastest and its time."""


@dataclass(frozen=True)
class Moves:
    """Changes of one pick: the choice and the option, the log-probability that each gives up, and the upper bound after it."""

    changes: list[tuple[str, Option]]
    costs: np.ndarray
    upper_ms: np.ndarray


def discretise(space: SearchSpace, log_p_E: np.ndarray, latency_model: LatencyModel, budget_ms: float) -> Architecture:
    """The most probable architecture whose upper bound lies in [0.93, 1] of the budget, as far as local changes find it.

    Where the space has nothing in that range the result is below it, never above the budget.

    Raises:
        BudgetError: even the fastest neighbour of every step is over the budget.
    """
    return _Projection(space, log_p_E, latency_model, budget_ms).run()


class _Projection:
    def __init__(self, space: SearchSpace, log_p_E: np.ndarray, latency_model: LatencyModel, budget_ms: float) -> None:
        self.space, self.log_p, self.model, self.budget_ms = space, log_p_E, latency_model, budget_ms
        self.picks = {c.name: c.options[int(np.argmax(log_p_E[space.offsets[c.name]]))] for c in space}
        self.now_ms = self._upper_ms([self.picks])[0]

    def run(self) -> Architecture:
        while self.now_ms > self.budget_ms * (1 + SLACK):
            self._descend()
        while (not self._in_range(self.now_ms) and self._ascend()) or self._exchange():
            pass
        while self._ascend():
            pass
        return self.space.canonical(self.picks)

    def _descend(self) -> None:
        """The change that gives up the least log-probability for each millisecond saved."""
        moves = self._moves()
        faster = moves.upper_ms < self.now_ms - SLACK
        if not faster.any():
            raise BudgetError(
                f"budget_ms: {self.budget_ms:.4g} is below the fastest network reached, {self.now_ms:.4g} ms (upper bound)"
            )
        prices = np.maximum(moves.costs, 1e-6) / np.maximum(self.now_ms - moves.upper_ms, SLACK)
        self._take(dict([moves.changes[int(np.argmin(np.where(faster, prices, np.inf)))]]))

    def _ascend(self) -> bool:
        """Spends what is left on the larger option that gives up the least log-probability; whether there was one."""
        moves = self._moves(grow=True)
        fits = (moves.upper_ms <= self.budget_ms) & (moves.upper_ms > self.now_ms + SLACK)
        if not fits.any():
            return False
        self._take(dict([moves.changes[int(np.argmin(np.where(fits, moves.costs, np.inf)))]]))
        return True

    def _exchange(self) -> bool:
        """One or two changes that stay in the range and win log-probability, or that lead towards it; whether there were any.

        In the range, the effects of two changes are taken to add up, and the predictor judges the pairs that then look best;
        below it, where single steps have ended, it judges all of them.
        """
        moves = self._moves()
        pairs = np.array([
            (i, j) for i, j in itertools.combinations_with_replacement(range(len(moves.changes)), 2)
            if i == j or moves.changes[i][0] != moves.changes[j][0]
        ])  # fmt: skip
        both = pairs[:, 0] != pairs[:, 1]
        costs = moves.costs[pairs[:, 0]] + both * moves.costs[pairs[:, 1]]
        order = np.argsort(costs, kind="stable")
        if self._in_range(self.now_ms):
            upper_ms = moves.upper_ms[pairs[:, 0]] + both * (moves.upper_ms[pairs[:, 1]] - self.now_ms)
            order = order[(self._in_range(upper_ms) & (costs < -SLACK))[order]][:TRIED]
        tried = [dict(moves.changes[k] for k in pairs[o]) for o in order]
        upper_ms = self._upper_ms([{**self.picks, **changes} for changes in tried])
        good = np.flatnonzero(self._in_range(upper_ms))
        if not len(good) and not self._in_range(self.now_ms):
            nearer = np.where((upper_ms <= self.budget_ms) & (upper_ms > self.now_ms + SLACK), upper_ms, 0.0)
            good = np.flatnonzero(nearer == nearer.max(initial=SLACK))
        if not len(good):
            return False
        self._take(tried[good[0]])
        return True

    def _in_range(self, upper_ms: np.ndarray | float) -> np.ndarray:
        return np.logical_and(upper_ms >= USED * self.budget_ms, upper_ms <= self.budget_ms)

    def _take(self, changes: Mapping[str, Option]) -> None:
        self.picks = {**self.picks, **changes}
        self.now_ms = self._upper_ms([self.picks])[0]

    def _moves(self, *, grow: bool = False) -> Moves:
        """All other options of the present choices, or the larger ones: a size, attention where there was none."""
        changes, costs = [], []
        present = self.space.canonical(self.picks)
        for choice in (c for c in self.space if c.name in present):
            start, now = self.space.offsets[choice.name].start, choice.index(self.picks[choice.name])
            for index, option in enumerate(choice.options):
                larger = index > now if choice.is_nested else index < now  # kinds stand from the most to the least capable
                if index != now and (larger or not grow):
                    changes.append((choice.name, option))
                    costs.append(self.log_p[start + now] - self.log_p[start + index])
        upper_ms = self._upper_ms([{**self.picks, name: option} for name, option in changes])
        return Moves(changes, np.array(costs), upper_ms)

    def _upper_ms(self, candidates: Sequence[Mapping[str, Option]]) -> np.ndarray:
        if not candidates:
            return np.empty(0)
        return np.asarray(self.model.predict([self.space.canonical(picks) for picks in candidates]).upper_ms)
