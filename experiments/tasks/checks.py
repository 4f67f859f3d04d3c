"""What tasks refuse: sizes out of bounds, and splits that cannot be learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from nas.protocols import SPLITS


def check_splits(targets: Mapping[str, Sequence[int]], labels: Sequence[str]) -> None:
    """Refuses splits that cannot be learned from.

    Raises:
        ValueError: other splits than the four, an empty one, fewer than 2 classes, or a class that `train` lacks.
    """
    check_complete(targets)
    if len(labels) < 2:
        raise ValueError(f"labels: {tuple(labels)} are fewer than 2 classes")
    absent = sorted(set(range(len(labels))) - set(targets["train"]))
    if absent:
        raise ValueError(f"labels: class {labels[absent[0]]!r} has no examples in 'train'")


def check_complete(examples: Mapping[str, Sized]) -> None:
    """Raises ValueError for other splits than the four, or an empty one."""
    if set(examples) != set(SPLITS):
        raise ValueError(f"splits: {tuple(examples)} are not {SPLITS}")
    for split in SPLITS:
        if not len(examples[split]):
            raise ValueError(f"splits: {split!r} has no examples")


def check_at_least(smallest: int, **values: int) -> None:
    """Raises ValueError for a value that is not an integer, or under the smallest."""
    for name, value in values.items():
        if not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name}: {value!r} is not an integer of at least {smallest}")
