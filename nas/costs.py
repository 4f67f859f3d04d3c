"""What architectures cost by their operators alone, before there is a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.encoding import Encoding
from nas.protocols import Family
from nas.space import Architecture
from nas.types import Workload


def flops_of(family: Family, archs: Sequence[Architecture], workload: Workload) -> np.ndarray:
    """FLOPs of one call that encodes the workload's sequences, [N]."""
    operators = family.operators(Encoding.of(family.space, archs), workload.encoded)
    flops: np.ndarray = np.sum([np.broadcast_to(operator.flops, len(archs)) for operator in operators], axis=0)
    return flops


def parameters_of(family: Family, archs: Sequence[Architecture], workload: Workload) -> np.ndarray:
    """Weights of each network, [N]."""
    operators = family.operators(Encoding.of(family.space, archs), workload)
    parameters: np.ndarray = np.zeros(len(archs)) + sum(operator.parameters for operator in operators)
    return parameters
