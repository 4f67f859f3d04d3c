"""Handwritten digits, 8 x 8: the images that scikit-learn brings along. For tests and for a first look."""

from __future__ import annotations

import numpy as np

from experiments.tasks.arrays import ArrayClassification, divided

FRACTIONS = {"architecture": 0.15, "validation": 0.15, "test": 0.15}


class Digits(ArrayClassification):
    """1,797 images of 10 digits, grey values from 0 to 16; 55 % of each class are `train`, 15 % each of the others.

    Raises:
        ValueError: `tokens_per_example` under 1.
    """

    def __init__(self, *, tokens_per_example: int = 16) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        splits, labels = divided(data.images[:, None].astype(np.uint8), [str(digit) for digit in data.target], FRACTIONS, seed=0)
        super().__init__(
            "digits", splits=splits, labels=labels, tokens_per_example=tokens_per_example, values="grey values from 0 to 16"
        )
