"""Which networks are timed to know a device, and their files.

They cover the space: the family's named ones first, then, from random candidates, always the one that lies farthest from those
chosen, in the logarithms of what each kind of operator costs. The held-out ones are uniformly random.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.settings import CalibrationSettings
from hardware.timing import Exported
from nas.encoding import Encoding
from nas.export import export_for, form_of
from nas.protocols import Device, Family
from nas.space import Architecture
from nas.surroundings import everywhere, network_of
from nas.types import Workload

POOL = 600  # random candidates that networks are chosen from


def design(
    family: Family, workload: Workload, settings: CalibrationSettings, *, seed: int
) -> tuple[list[Architecture], list[Architecture]]:
    """Which architectures to fit to, and which to hold out: each network in all surroundings.

    Raises:
        ValueError: the space has fewer networks.
    """
    num_fit, num_held_out = settings.num_fit, settings.num_held_out
    first = [family.space.smallest(), *family.hand_designed().values()]
    to_fit = covering_design(family, workload, num=num_fit, first=first, seed=seed)
    known = {network_of(arch).id for arch in to_fit}
    rng = np.random.default_rng([seed, 2])
    samples = (family.space.sample(rng) for _ in range(POOL))
    drawn = {network.id: arch for arch in samples if (network := network_of(arch)).id not in known}
    if len(to_fit) < num_fit or len(drawn) < num_held_out:
        size = family.space.num_architectures()
        raise ValueError(
            f"calibration: {num_fit} networks to fit and {num_held_out} to hold out are too many for the space "
            f"{family.space.name}, which has {size}"
        )
    space = family.space
    return everywhere(space, to_fit), everywhere(space, list(drawn.values())[:num_held_out])


def covering_design(
    family: Family, workload: Workload, *, num: int, first: Sequence[Architecture], seed: int
) -> list[Architecture]:
    """`num` architectures, those of `first` and then farthest points (Gonzalez, 1985) from a random pool."""
    rng = np.random.default_rng([seed, 1])
    pool = list({a.id: a for a in (*first, *(family.space.sample(rng) for _ in range(POOL)))}.values())
    operators = family.operators(Encoding.of(family.space, pool), workload)
    sums: dict[str, np.ndarray] = {}
    for operator in operators:
        sums[operator.kind] = sums.get(operator.kind, np.zeros(len(pool))) + operator.bytes + operator.flops
    features = np.log1p(np.stack([np.broadcast_to(column, len(pool)) for column in sums.values()], axis=1))
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
    chosen = list(range(min(num, len({a.id for a in first}))))
    distance = np.full(len(pool), np.inf)
    for index in chosen:
        distance = np.minimum(distance, np.linalg.norm(features - features[index], axis=1))
    while len(chosen) < min(num, len(pool)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return [pool[i] for i in chosen]


def sentinel_of(family: Family) -> Architecture:
    """The network that is timed beside all others: the last hand-designed one, which is small and looks like the rest, in the
    first of its surroundings."""
    return everywhere(family.space, list(family.hand_designed().values())[-1:])[0]


def export_for_timing(
    family: Family, archs: Sequence[Architecture], workload: Workload, folder: Path, *, device: Device
) -> list[Exported]:
    """Networks with random weights, exported for the device as the ones that ship are: times do not depend on the weights."""
    forms = ((arch, *form_of(family, family.network(arch, backend="blocks"), workload)) for arch in archs)
    return [
        Exported(arch, export_for(device, form, example, folder / arch.id), {n: value.numpy() for n, value in example.items()})
        for arch, form, example in forms
    ]
