"""From relaxed to discrete: the most probable architecture that all limits allow and that uses the first of them.

The log-probabilities of the options are the values of a knapsack, the upper bounds of the costs are its weights, and the
predictors themselves are the judges of every candidate: nothing is assumed of how a cost comes about. A greedy descent brings the
most probable picks within the limits, a greedy ascent spends what is left, and exchanges of one or two picks win back
log-probability, or fill a budget that single steps cannot fill. What is given up is counted over all choices, absent ones too: of
two networks of other depth the deeper one does not pay for having more picks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.constraints import Constraint
from nas.extremes import least
from nas.space import Architecture, Option, SearchSpace

USED = 0.93  # share of a limit that a proposal is to use at least
SLACK = 1e-9  # sums of another order differ in the last digits
DRAWN = 512  # architectures that are tried where steps lead nowhere
TRIED = 64  # exchanges that look best and are judged by the predictors, at a time


class BudgetError(ValueError):
    """No architecture of the space meets the budgets; names the one that none meets, and what comes nearest to it."""


@dataclass(frozen=True)
class Moves:
    """Changes of one pick: choices and options, the log-probability that each gives up, [N], and the loads after it, [N, K]."""

    changes: list[tuple[str, Option]]
    costs: np.ndarray
    loads: np.ndarray


def discretise(space: SearchSpace, log_p_E: np.ndarray, constraints: Sequence[Constraint]) -> Architecture:
    """The most probable architecture within all limits whose upper bound lies in [0.93, 1] of the first, as far as local changes
    find it.

    Where the others do not allow that, it lies in that range of any of them; where the space has nothing there the result is
    below it, never above a limit.

    Raises:
        BudgetError: every network that was tried is over a limit, also the one that takes the least (`nas.extremes`).
    """
    found = _Projection(space, log_p_E, constraints, num_filled=1)
    found.run()
    if not found.is_full(found.now):
        if found.draw():
            found.run()
        else:
            again = _Projection(space, log_p_E, constraints, num_filled=len(constraints))
            if len(constraints) == 1:
                again.shrink()
            again.run()
            found = max(again, found, key=lambda projection: projection.use)
    return space.canonical(found.picks)


class _Projection:
    """Loads are upper bounds in the unit of the first: each times the first limit over its own, [..., K] for K limits.

    Args:
        num_filled: so many of the limits, the first ones, count as used up.
    """

    def __init__(
        self, space: SearchSpace, log_p_E: np.ndarray, constraints: Sequence[Constraint], *, num_filled: int
    ) -> None:  # fmt: skip
        self.space, self.log_p, self.constraints, self.num_filled = space, log_p_E, constraints, num_filled
        self.limit = constraints[0].limit
        self.scale = np.array([self.limit / c.limit for c in constraints])
        self.least = math.inf  # load in the first that was seen
        self.likely = {c.name: c.options[int(np.argmax(log_p_E[space.offsets[c.name]]))] for c in space}
        self.picks = self.likely
        self.now = self._loads([self.picks])[0]

    def run(self) -> None:
        while self._over(self.now).any():
            self._descend()
        while (not self.is_full(self.now) and self._ascend()) or self._exchange():
            pass
        while self._ascend():
            pass

    def draw(self) -> bool:
        """Begins again at the most probable of many draws that use up a limit that counts; whether there was one.

        Where two limits are nearly met, no one or two changes may lead to another width.
        """
        rng, columns = np.random.default_rng(0), []
        for choice in self.space:
            log_p = self.log_p[self.space.offsets[choice.name]]
            p = np.exp((log_p - log_p.max()) / 2)  # flatter, for more than the most probable ones
            columns.append([choice.options[index] for index in rng.choice(len(p), size=DRAWN, p=p / p.sum())])
        names = list(self.space.by_name)
        archs = [self.space.canonical(dict(zip(names, picks, strict=True))) for picks in zip(*columns, strict=True)]
        drawn = [{**self.likely, **arch.as_dict} for arch in dict.fromkeys(archs)]
        full = [picks for picks, is_full in zip(drawn, self.is_full(self._loads(drawn)), strict=True) if is_full]
        if full:
            self._take(max(full, key=self._total_log_p))
        return bool(full)

    def shrink(self) -> None:
        """Begins again at the smallest network."""
        self._take({c.name: c.options[0] if c.is_nested else c.options[-1] for c in self.space})

    @property
    def use(self) -> float:
        """Of the limit that counts and is used most, in the unit of the first."""
        return float(self._level(self.now))

    def _total_log_p(self, picks: Mapping[str, Option]) -> float:
        parts = self.space.offsets
        return float(sum(self.log_p[parts[c.name].start + c.index(picks[c.name])] for c in self.space))

    def is_full(self, loads: np.ndarray) -> np.ndarray:
        """Whether all limits are kept, and one that counts is used up."""
        return np.asarray((self._level(loads) >= USED * self.limit) & self._fits(loads))

    def _level(self, loads: np.ndarray) -> np.ndarray:
        return np.asarray(loads[..., : self.num_filled].max(axis=-1))

    def _fits(self, loads: np.ndarray) -> np.ndarray:
        return np.asarray(~self._over(loads).any(axis=-1))

    def _over(self, loads: np.ndarray) -> np.ndarray:
        return np.asarray(loads > self.limit * (1 + SLACK))

    def _descend(self) -> None:
        """The change that gives up the least log-probability for what it saves of limits that are exceeded, and exceeds no other;
        if there is none, all of the smallest network, or of the one that takes the least."""
        moves = self._moves()
        saved = (self.now - moves.loads)[:, self._over(self.now)].sum(axis=1)
        helps = (saved > SLACK) & (moves.loads <= np.maximum(self.now, self.limit)).all(axis=1)
        if helps.any():
            prices = np.maximum(moves.costs, 1e-6) / np.maximum(saved, SLACK)
            self._make(moves, int(np.argmin(np.where(helps, prices, np.inf))))
            return
        self.shrink()
        if self._over(self.now).any():
            self._take(least(self.space, lambda archs: self._loads([a.as_dict for a in archs]).max(axis=-1)).as_dict)
        if self._over(self.now).any():
            raise BudgetError(self._complaint())

    def _complaint(self) -> str:
        """The limits that nothing meets alone, or that all together are too much."""
        if len(self.constraints) == 1:
            [c] = self.constraints
            return f"{c.name}: {c.limit:.4g} is below the least that was reached, {self.least:.4g} {c.unit} (upper bound)"
        alone = [message for c in self.constraints if (message := _unmet(self.space, self.log_p, c))]
        limits = " and ".join(f"{c.name}: {c.limit:.4g}" for c in self.constraints)
        return "; ".join(alone) or f"{limits}: networks meet each of them, and none that was reached meets all"

    def _ascend(self) -> bool:
        """Spends what is left on the larger option that gives up the least log-probability; whether there was one."""
        moves = self._moves(grow=True)
        fits = self._fits(moves.loads) & (self._level(moves.loads) > self._level(self.now) + SLACK)
        if not fits.any():
            return False
        self._make(moves, int(np.argmin(np.where(fits, moves.costs, np.inf))))
        return True

    def _exchange(self) -> bool:
        """One or two changes that leave a limit used up and win log-probability, or that lead towards it; whether there were any.

        Where one is used up, the effects of two changes are taken to add up, and the predictors judge the pairs that then look
        best; below it, where single steps have ended, they judge all of them.
        """
        moves = self._moves()
        pairs = np.array([
            (i, j) for i, j in itertools.combinations_with_replacement(range(len(moves.changes)), 2)
            if i == j or moves.changes[i][0] != moves.changes[j][0]
        ])  # fmt: skip
        both = pairs[:, 0] != pairs[:, 1]
        costs = moves.costs[pairs[:, 0]] + both * moves.costs[pairs[:, 1]]
        order = np.argsort(costs, kind="stable")
        if self.is_full(self.now):
            loads = moves.loads[pairs[:, 0]] + both[:, None] * (moves.loads[pairs[:, 1]] - self.now)
            order = order[(self.is_full(loads) & (costs < -SLACK))[order]][:TRIED]
        tried = [dict(moves.changes[k] for k in pairs[o]) for o in order]
        loads = self._loads([{**self.picks, **changes} for changes in tried])
        good = np.flatnonzero(self.is_full(loads))
        if not len(good) and not self.is_full(self.now):
            level = self._level(loads)
            nearer = np.where(self._fits(loads) & (level > self._level(self.now) + SLACK), level, 0.0)
            good = np.flatnonzero(nearer == nearer.max(initial=SLACK))
        if not len(good):
            return False
        self._take(tried[good[0]], loads[good[0]])
        return True

    def _make(self, moves: Moves, index: int) -> None:
        self._take(dict([moves.changes[index]]), moves.loads[index])

    def _take(self, changes: Mapping[str, Option], loads: np.ndarray | None = None) -> None:
        """The loads are those that a step was chosen for: others, of one candidate alone, may differ in the last digits, and two
        networks that just meet a limit would be exchanged for ever."""
        self.picks = {**self.picks, **changes}
        self.now = self._loads([self.picks])[0] if loads is None else loads

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
        loads = self._loads([{**self.picks, name: option} for name, option in changes])
        return Moves(changes, np.array(costs), loads)

    def _loads(self, candidates: Sequence[Mapping[str, Option]]) -> np.ndarray:
        if not candidates:
            return np.empty((0, len(self.constraints)))
        archs = [self.space.canonical(picks) for picks in candidates]
        loads: np.ndarray = np.stack([c.cost.upper(archs) for c in self.constraints], axis=-1) * self.scale
        self.least = min(self.least, loads[:, 0].min())
        return loads


def _unmet(space: SearchSpace, log_p_E: np.ndarray, constraint: Constraint) -> str:
    """What is wrong with a limit alone, or nothing."""
    try:
        discretise(space, log_p_E, [constraint])
    except BudgetError as error:
        return str(error)
    return ""
