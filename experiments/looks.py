"""Looks at a device that was calibrated a while ago: a few networks of the calibration are measured again, and if it has changed,
what was measured then is expressed in what it would take now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from experiments.formatting import format_seconds
from latency_models.ageing import Ageing
from nas.types import Measurement

LOOKED_AT = 6  # networks, from the fastest to the slowest that are known
AS_BEFORE = 0.02  # root mean square of log(now / then): quiet sessions of one machine differ by 0.8 to 1.6 %


@dataclass(frozen=True)
class Look:
    """What was measured again, and of which networks that speaks: `then` holds those that were measured before, by id, `now` some
    of them again. `minutes` have passed, and `where` names their surroundings, if these are chosen."""

    then: Mapping[str, Measurement]
    now: Mapping[str, Measurement]
    law: Ageing
    minutes: float
    where: str = ""

    @classmethod
    def of(cls, then: Mapping[str, Measurement], now: Mapping[str, Measurement], *, minutes: float, where: str = "") -> Self:
        return cls(then, now, Ageing.of(*(_times([kind[id_] for id_ in now]) for kind in (then, now))), minutes, where)

    @property
    def has_changed(self) -> bool:
        """Whether networks differ by more than a quiet device's do; where that is noise, it makes the bounds wider."""
        then_ms, now_ms = (_times([kind[id_] for id_ in self.now]) for kind in (self.then, self.now))
        return bool(np.sqrt(np.mean(np.log(now_ms / then_ms) ** 2)) > AS_BEFORE)

    def corrected(self) -> dict[str, Measurement]:
        """What is known of all of them now: measured again, or as the law has it."""
        factors = self.law.factors(_times(list(self.then.values())))
        aged = {m.arch.id: _scaled(m, factor) for m, factor in zip(self.then.values(), factors.tolist(), strict=True)}
        return {**aged, **self.now}

    def to_json(self) -> dict[str, Any]:
        times = _times(list(self.then.values()))
        fastest, slowest = (100 * (self.law.factors(np.array([end(times)]))[0] - 1) for end in (np.min, np.max))
        return {
            "measured": len(self.now),
            "minutes": round(self.minutes, 1),
            "where": self.where,
            "fastest_percent": float(fastest),
            "slowest_percent": float(slowest),
            "scatter_percent": 100 * self.law.scatter,
            "corrected": self.has_changed,
        }


def in_words(look: Mapping[str, Any]) -> str:
    """A sentence on the record of a look."""
    where = f" ({look['where']})" if look["where"] else ""
    since = f"the calibration of {format_seconds(60 * look['minutes'])} before{where}"
    if not look["corrected"]:
        return f"{look['measured']} networks were measured again and take what they took in {since}, but for noise."
    fastest, slowest = (_change(look[f"{end}_percent"]) for end in ("fastest", "slowest"))
    return (
        f"The device is not as it was in {since}: small networks take {fastest}, large ones {slowest} ({look['measured']} were "
        f"measured again and lie {look['scatter_percent']:.1f} % around that). Predictions are corrected, and their bounds wider."
    )


def _change(percent: float) -> str:
    return f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'}"


def _times(measurements: Sequence[Measurement]) -> np.ndarray:
    return np.array([m.latency_ms for m in measurements])


def _scaled(measurement: Measurement, factor: float) -> Measurement:
    return replace(measurement, samples_ms=tuple(tuple(factor * s for s in visit) for visit in measurement.samples_ms))
