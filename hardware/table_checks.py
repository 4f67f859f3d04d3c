"""What a reader of a recorded table should know before believing it. Everything is flagged and nothing is dropped.

Outliers are found with the modified Z-score (Iglewicz and Hoaglin, 1993), which stands on medians and so is not fooled by what it
looks for: of the residuals of a robust fit of log values on the features, and of the relative spread of a row's own samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from nas.robust import MODIFIED, NORMAL_SCALE, OUTLIER_SCORE, mad
from nas.tables import RecordedTable

HUBER = 1.345  # residuals beyond so many standard deviations count less
MOST_PAIRED = 16  # features up to which products of two are fitted too
CONTRADICTION = 1.1  # ratio of two times of the same features
TINY = 0.01  # of the median: what relative errors do not survive


def modified_z(x: np.ndarray) -> np.ndarray:
    """0.6745 (x - median) / MAD, [N]; zeros where more than half of the values are equal."""
    from_median, deviation = x - np.median(x), mad(x)
    return MODIFIED * from_median / deviation if deviation > 0 else np.zeros_like(from_median)


def find_outliers(rows: np.ndarray | None, values: np.ndarray, std: np.ndarray | None = None) -> np.ndarray:
    """Which values [N] do not follow from the features `rows` [N, F] as the others do, or have samples that scatter unusually."""
    found = np.zeros(len(values), dtype=bool)
    if rows is not None:
        found |= np.abs(modified_z(np.log(values) - robust_fit(rows, np.log(values)))) > OUTLIER_SCORE
    if std is not None:
        found |= modified_z(np.log(np.maximum(std, 1e-12) / values)) > OUTLIER_SCORE
    return found


def robust_fit(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Huber regression of a target [N] on the logarithms of features and, where rows are enough, their products; the fit, [N]."""
    design = np.ones((len(target), 1))
    logs = np.sign(rows) * np.log1p(np.abs(rows))
    spread = logs.std(axis=0) if logs.size else np.zeros(0)
    scaled = (logs - logs.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    if len(target) >= 3 * (1 + scaled.shape[1]):
        design = np.hstack([design, scaled])
    pairs = scaled.shape[1] * (scaled.shape[1] + 1) // 2
    if scaled.shape[1] <= MOST_PAIRED and len(target) >= 5 * (design.shape[1] + pairs):
        first, second = np.triu_indices(scaled.shape[1])
        design = np.hstack([design, scaled[:, first] * scaled[:, second]])
    weights = np.ones(len(target))
    fitted = np.full(len(target), np.median(target))
    for _ in range(12):
        weighted = design * weights[:, None]
        gram = weighted.T @ design + 1e-6 * len(target) * np.eye(design.shape[1])
        before, fitted = fitted, design @ np.linalg.solve(gram, weighted.T @ target)
        residuals = np.abs(target - fitted)
        scale = NORMAL_SCALE * float(np.median(residuals))
        if scale == 0 or np.max(np.abs(fitted - before)) < 0.01 * scale:
            break
        weights = np.minimum(1.0, HUBER * scale / np.maximum(residuals, 1e-12))
    return fitted


def cautions(table: RecordedTable) -> tuple[str, ...]:
    """What to know of a table, in sentences; empty if there is nothing."""
    found = []
    smallest = float(table.values.min())
    if len(table) > 1 and np.array_equal(table.values, np.round(table.values)):
        found.append(
            f"a clock of whole {table.unit}: a value may be off by 0.5, {50 / smallest:.2g} % of the smallest ({smallest:g})"
        )
    tiny = int(np.sum(table.values < TINY * np.median(table.values)))
    if tiny:
        found.append(
            f"{tiny} value{'s' * (tiny > 1)} under 1 % of the median, the smallest {smallest:.3g} {table.unit}: they dominate "
            "any relative error"
        )
    on_cpu = int(np.sum(np.asarray(table.extra.get("layers_cpu", 0.0), dtype=float) > 0))
    if on_cpu and table.kind != "cpu":
        found.append(f"{on_cpu} row{'s' * (on_cpu > 1)} with layers that fell back to the CPU (extra layers_cpu)")
    if clashes := contradictions(table.rows, table.values, table.labels):
        a, b = clashes[0]
        found.append(
            f"{len(clashes)} pair{'s' * (len(clashes) > 1)} of rows with equal features and different values, such as rows {a} "
            f"and {b}: {table.values[a]:.4g} and {table.values[b]:.4g} {table.unit}"
        )
    return tuple(found)


def contradictions(rows: np.ndarray, values: np.ndarray, labels: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of rows that say the same (features [N, F] and label) and measure different: each row beside the first of its like.

    Two values contradict if one is more than `CONTRADICTION` times the other.
    """
    first: dict[tuple[str, bytes], int] = {}
    found = []
    for row, (features, label) in enumerate(zip(np.ascontiguousarray(rows), labels, strict=True)):
        seen = first.setdefault((label, features.tobytes()), row)
        low, high = sorted((values[seen], values[row]))
        if high > CONTRADICTION * low:
            found.append((seen, row))
    return found


def same_device(tables: Mapping[str, RecordedTable], *, least: int = 5) -> list[tuple[str, str, int]]:
    """Pairs of tables whose values are identical on all rows that both have (at least so many), with their number.

    Such a pair is one measurement under two names: never put one in training and the other in the test.
    """
    columns = {name: _by_row(table) for name, table in tables.items()}
    found = []
    for a, b in combinations(tables, 2):
        shared = columns[a].keys() & columns[b].keys() if tables[a].unit == tables[b].unit else set()
        if len(shared) >= least and all(columns[a][row] == columns[b][row] for row in shared):
            found.append((a, b, len(shared)))
    return found


def _by_row(table: RecordedTable) -> dict[tuple[str, bytes], float]:
    rows = np.ascontiguousarray(table.rows)
    return {(label, row.tobytes()): float(value) for label, row, value in zip(table.labels, rows, table.values, strict=True)}
