"""The way back from an encoding: an oracle for `SearchSpace.encode`."""

import numpy as np

from nas.space import Architecture, SearchSpace


def decoded(space: SearchSpace, row: np.ndarray) -> Architecture:
    """The architecture with the most probable option of each choice."""
    return space.canonical({c.name: c.options[int(np.argmax(row[space.offsets[c.name]]))] for c in space.choices})
