"""Milliseconds, durations, parameters, tables and figures as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.protocols import Family

DIGITS = 4  # significant ones of every figure of a benchmark


def format_ms(value: float | None, *, digits: int = 3) -> str:
    """Milliseconds with so many significant digits and no exponent: 0.0123, 1.84, 12.3, 1234; a dash for what nobody knows."""
    if value is None:
        return "–"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_figure(value: float) -> str:
    """Four significant digits, or all before the point, and no more than are needed: 0.3, 12.35, 14573."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """A duration as one says it: 4.2 s, 3 min 5 s, 2 h 7 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def format_count(count: int) -> str:
    """A number of parameters in three digits: 264,876 is 265 k, 12,345,678 is 12.3 M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:
            return f"{f'{count / size:#.3g}'.rstrip('.')} {unit}"
    return str(count)


def position_of(family: Family) -> str:
    """What a workload of the family counts: tokens of a text, or what a family of other inputs says."""
    return str(getattr(family, "position", "token"))


def params_in_words(params: Mapping[str, float]) -> str:
    """Parameters by their names: learning rate 0.002, weight decay 0.01."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in params.items())


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of columns, two spaces between them."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def rounded(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures with so many significant digits; one that could not be computed is null."""
    return {name: _round(value) for name, value in figures.items()}


def _round(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
