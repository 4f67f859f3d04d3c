"""How often the largest network that is predicted to fit takes longer than its budget, and what safety costs.

Each budget's pick is from a pool of random networks that were not measured, as a search would have it, and its recorded time
says whether the budget is kept. The cost is the capacity that is given up against the largest network of the pool whose recorded
time fits.

Times are taken as they were recorded; or those of sound rows alone; or as recorded with the state of the device known: by how
much it was slower than usual, as a sentinel shows that is timed beside every network (here the rows around a row, without it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.benchmarks.splits import random_splits
from latency_models.drift import SHIFT, neighbours, sessions
from latency_models.intervals import Bounded, pick
from latency_models.physical import PhysicalRegressor
from nas.tables import RecordedTable
from search_spaces import hat

NUM_FITTED = 200
COVERAGE = 0.95
POOL = 100
POOLS = (50, 200, 1000)
FACTORS = np.geomspace(1.0, 2.0, 100)


@dataclass(frozen=True)
class Rows:
    """Networks with their recorded times; `slowness` is the factor on its usual times that is known of the device, else 1."""

    costs: np.ndarray
    times: np.ndarray
    capacity: np.ndarray
    slowness: np.ndarray

    def of(self, rows: np.ndarray) -> Rows:
        return Rows(self.costs[rows], self.times[rows], self.capacity[rows], self.slowness[rows])


def of_budgets(tables: Mapping[str, RecordedTable], *, splits: int, budgets: int) -> dict[str, float]:
    """Of each table and, without a table's name in the key, of the worst."""
    figures: dict[str, float] = {}
    for name, table in tables.items():
        for key, value in _of_table(table, splits, budgets):
            figures[f"budget_{key}_{name}_percent"] = value
            figures[f"budget_{key}_percent"] = max(figures.get(f"budget_{key}_percent", 0.0), value)
    return figures


def _of_table(table: RecordedTable, splits: int, budgets: int) -> Iterator[tuple[str, float]]:
    costs, times, capacity = hat.costs(table.rows), table.values, hat.num_parameters(table.rows)
    usual = PhysicalRegressor().fit(costs, times).predict(costs)
    recorded = Rows(costs, times, capacity, np.ones(len(times)))
    ways = {
        "": recorded,
        "_sound": recorded.of(np.flatnonzero(sessions(times, usual).sound)),
        "_known_state": Rows(costs, times, capacity, np.exp(neighbours(times, usual))),
    }
    for words, rows in ways.items():
        found = np.mean([_judged(rows, budgets, seed, POOL) for seed in range(splits)], axis=0)
        for key, value in zip((f"violation{words}", f"cost{words}", f"violation{words}_of_mean"), found, strict=True):
            yield key, float(value)
    for pool in POOLS:
        yield f"violation_pool_{pool}", _violation([recorded] * splits, budgets, pool)
        yield f"violation_pool_{pool}_dealt", _violation([_dealt(recorded, usual, seed) for seed in range(splits)], budgets, pool)
    yield "cost_of_oracle", float(np.mean([_oracle(recorded, usual, budgets, seed) for seed in range(splits)]))
    yield "slow_rows", 100 * float(np.mean(sessions(times, usual).levels > SHIFT))


def _violation(of_seed: Sequence[Rows], budgets: int, pool: int) -> float:
    return float(np.mean([_judged(rows, budgets, seed, pool)[0] for seed, rows in enumerate(of_seed)]))


def _judged(rows: Rows, budgets: int, seed: int, pool: int) -> tuple[float, float, float]:
    """Picks over their budget and the median cost with the upper bound; picks over their budget with the mean. In percent."""
    [(train, test)] = random_splits(len(rows.times), NUM_FITTED, 1, first=seed)
    fitted, others = rows.of(train), rows.of(test)
    model = Bounded(PhysicalRegressor(), coverage=COVERAGE)
    model.fit(fitted.costs, fitted.times / fitted.slowness, capacity=fitted.capacity, pool=pool)
    prediction, searches = model.predict(others.costs), _searches(others, budgets, seed, pool)
    violation, cost = _picked(prediction.upper_ms * others.slowness, others, searches)
    return violation, cost, _picked(prediction.mean_ms * others.slowness, others, searches)[0]


def _searches(rows: Rows, budgets: int, seed: int, pool: int) -> list[tuple[float, np.ndarray]]:
    """Budgets, each with the rows that a search compares."""
    rng, num = np.random.default_rng(seed), len(rows.times)
    limits = np.geomspace(*np.quantile(rows.times, (0.05, 0.95)), budgets)  # type: ignore[call-overload]
    return [(float(limit), rng.choice(num, min(pool, num), replace=False)) for limit in limits]


def _picked(bound: np.ndarray, rows: Rows, searches: Sequence[tuple[float, np.ndarray]]) -> tuple[float, float]:
    """Share of picks over their budget, and median share of the capacity that is given up, in percent."""
    over, given_up = [], []
    for budget, pool in searches:
        picked, best = (pick(of[pool], rows.capacity[pool], budget) for of in (bound, rows.times))
        if picked is not None:
            over.append(rows.times[pool[picked]] > budget)
            if best is not None:
                given_up.append(1 - rows.capacity[pool[picked]] / rows.capacity[pool[best]])
    return 100 * float(np.mean(over)), 100 * float(np.median(given_up))


def _dealt(rows: Rows, usual: np.ndarray, seed: int) -> Rows:
    """The same law of disturbances, but other rows have them: of a large pool few rows can be the pick, whatever the budget."""
    return replace(rows, times=usual * np.random.default_rng(seed).permutation(rows.times / usual))


def _oracle(rows: Rows, usual: np.ndarray, budgets: int, seed: int) -> float:
    """The cost of the tightest multiple of the prediction that keeps its promise on the very rows that it is judged on, with
    prices from all rows: what no bound can fall below that does not know which rows were disturbed."""
    [(_, test)] = random_splits(len(rows.times), NUM_FITTED, 1, first=seed)
    others, known = rows.of(test), usual[test]
    searches = _searches(others, budgets, seed, POOL)
    found = (_picked(factor * known, others, searches) for factor in FACTORS)
    return next(cost for violation, cost in found if violation <= 100 * (1 - COVERAGE))
