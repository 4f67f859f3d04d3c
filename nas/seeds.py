"""One seed from several numbers, for generators that take a single one."""

from __future__ import annotations

import numpy as np


def seed_of(*numbers: int) -> int:
    """The same for the same numbers, and unrelated for others."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
