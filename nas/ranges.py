"""Whether the numbers of a configuration are what they can be: NaN passes every comparison that asks for too little."""

from __future__ import annotations

import math


def check_finite(owner: object, *names: str) -> None:
    """Raises ValueError for the first of the attributes that is not a finite number."""
    for name in names:
        _finite(owner, name)


def check_positive(owner: object, *names: str) -> None:
    """Raises ValueError for the first of the attributes that is not a finite number above 0."""
    for name in names:
        if not _finite(owner, name) > 0:
            raise ValueError(f"{name}: {getattr(owner, name)} is not positive")


def check_not_negative(owner: object, *names: str) -> None:
    """Raises ValueError for the first of the attributes that is not a finite number of at least 0."""
    for name in names:
        if _finite(owner, name) < 0:
            raise ValueError(f"{name}: {getattr(owner, name)} is negative")


def check_whole(owner: object, *names: str) -> None:
    """Raises ValueError for the first of the attributes that is not a whole number above 0."""
    for name in names:
        if _finite(owner, name) != int(getattr(owner, name)):
            raise ValueError(f"{name}: {getattr(owner, name)} is not a whole number")
    check_positive(owner, *names)


def _finite(owner: object, name: str) -> float:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: {value!r} is not a finite number")
    return value
