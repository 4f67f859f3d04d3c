"""Dataclasses from the records that were written of them, and what no record may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")


def instance(cls: type[T], record: Mapping[str, Any]) -> T:
    """An instance of a dataclass from its fields. Raises ValueError for an unknown or a missing one without a default."""
    require_names(cls, record)
    return cls(**record)


def require_names(cls: Any, record: Mapping[str, Any]) -> None:
    """Raises ValueError for a field of the dataclass that is missing without a default, or for one that it does not have."""
    has_default = {f.name: f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls)}
    for name in sorted(set(has_default) ^ set(record)):
        if not has_default.get(name):
            raise ValueError(f"{cls.__name__}: {name!r} is {'missing' if name in has_default else 'unknown'}")


def require_finite(part: object, owner: str) -> None:
    """Raises ValueError, with the owner's name, for a number that is infinite or none."""
    for name, value in vars(part).items():
        numbers = value.values() if isinstance(value, Mapping) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}: {number} of {owner} is not finite")
