"""A device that is new, met with ten measurements and what is known of the same networks on other devices.

`known` are files of a store of measurements (`paretoformer calibrate` says where it keeps its own), each of one device, of
networks of the same space and workload. Each gives prices, and `latency_models.onboarding.NewDevice` chooses between their
mixture and prices of the new device's own that are drawn towards it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from latency_models.additive import AdditiveLatency
from latency_models.onboarding import NewDevice
from nas.protocols import Family
from nas.types import Measurement, Workload


class OnboardedLatency(AdditiveLatency):
    """Prices of operators, fitted to few measurements of one device beside many of others. Arguments as of `AdditiveLatency`.

    Args:
        known: files of measurements, each of another device.

    Raises:
        ValueError: a coverage outside (0, 1), or fewer than 2 folds.
    """

    def __init__(self, *, known: Sequence[str] = (), coverage: float = 0.9, folds: int = 10) -> None:
        super().__init__(coverage=coverage, folds=folds)
        self.known = tuple(known)

    def fit(self, family: Family, measurements: Sequence[Measurement]) -> Self:
        """Raises ValueError: no file is named, one cannot be read or holds fewer than 8 measurements of these networks in this
        workload, or there are fewer than 8 measurements of this device."""
        if not self.known:
            raise ValueError("latency_model.known: names no file; it wants measurements of these networks on other devices")
        workload = measurements[0].workload
        self.known_prices_ = [
            AdditiveLatency(ridge=self.ridge).fit(family, _read(Path(name), family, workload)).prices_ for name in self.known
        ]
        return super().fit(family, measurements)

    def _fitted(self, features: np.ndarray, measured: np.ndarray) -> NewDevice:
        return NewDevice(self.known_prices_).fit(features, measured)


def _read(path: Path, family: Family, workload: Workload) -> list[Measurement]:
    """The last measurement of each network."""
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["signature"] == family.signature and Workload(**record["workload"]) == workload:
                measurement = Measurement.from_json(family.space, record)
                found[measurement.arch.id] = measurement
    except OSError as error:
        raise ValueError(f"latency_model.known: {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"latency_model.known: {path} is no file of measurements of this space: {error}") from error
    if not found:
        raise ValueError(f"latency_model.known: {path} holds no measurement of these networks with {workload.words}")
    return list(found.values())
