"""How examples are divided: by class, with equal examples on one side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from nas.protocols import SPLITS

SPLIT_OF_TENTH = ("train",) * 7 + SPLITS[1:]  # by the last digit of a number that an example has
LARGEST_FRACTION = 0.3  # three of these leave something to train on


def checked(**fractions: float) -> dict[str, float]:
    """Fractions by split. Raises ValueError for one that is not more than 0 and at most 0.3."""
    for split, fraction in fractions.items():
        if not 0 < fraction <= LARGEST_FRACTION:
            raise ValueError(f"{split}_fraction: {fraction} is not more than 0 and at most {LARGEST_FRACTION}")
    return fractions


def stratified(
    keys: Sequence[Hashable], labels: Sequence[str], fractions: Mapping[str, float], *, seed: int, what: str
) -> list[str]:
    """The split of each example, by class and by distinct key; a key that has several labels counts for the first.

    The fractions are of each class, rounded down but never to nothing; the rest is `train`.

    Args:
        what: the keys' name in an error.

    Raises:
        ValueError: a class with fewer distinct keys than splits.
    """
    label_of: dict[Hashable, str] = {}
    for key, label in zip(keys, labels, strict=True):
        label_of.setdefault(key, label)
    keys_of: dict[str, list[Hashable]] = {label: [] for label in sorted(set(labels))}
    for key, label in label_of.items():
        keys_of[label].append(key)
    split_of: dict[Hashable, str] = {}
    rng = np.random.default_rng(seed)
    fewest = len(fractions) + 1
    for label, distinct in keys_of.items():
        if len(distinct) < fewest:
            raise ValueError(
                f"label: class {label!r} has {len(distinct)} distinct {what}, fewer than {fewest}, one for each split"
            )
        names = [split for split, fraction in fractions.items() for _ in range(max(1, int(fraction * len(distinct))))]
        names += ["train"] * (len(distinct) - len(names))
        split_of.update(zip(distinct, rng.permutation(names).tolist(), strict=True))
    return [split_of[key] for key in keys]
