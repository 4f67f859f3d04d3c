"""How good a measuring session was: outliers, noise, drift and other load; whether to fit a latency model to it, and advice.

    noise   the standard error of `latency_ms`, of the median network: what leaving out single rounds would change (jackknife)
    drift   how much the machine's quiet speed changed, by the sentinel. `latency_ms` takes it out, but as one factor for all
            networks, and networks do not slow down alike

On a shared virtual machine with 2 cores, the noise of 61 sessions of 6 rounds was 0.3 to 0.6 % in the middle and at most 1.2 %,
with little else running as well as beside one to six other programs that computed all the time or in bursts. Repeated sessions
differed by as much; drift was at most 1.7 %, and mean wall times differed by 7 to 60 %. So a noise of 2 % is worth a word, and
one of 10 % is more than a shared machine explains: a network cannot be told from one that is a tenth slower. A quiet speed that
changes by a tenth is a clock that does; one that halves is a machine that is throttled.

Nothing is dropped for any of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardware.load import Load
from hardware.timing import states
from nas.robust import MODIFIED, OUTLIER_SCORE, mad
from nas.types import Measurement

LEAST_SPEEDUP = 1.02  # what is closer to 1 is not worth a word
LEAST_ROUNDS = 4  # that tell a noisy session from a disturbed visit
NOISY, TOO_NOISY = 0.02, 0.1  # from which noise on a session is worth a word, and from which it is not fitted to; 0.01 is 1 %
DRIFTED, TOO_DRIFTED = 0.1, 1.0  # the same of drift


@dataclass(frozen=True)
class Session:
    """What is known of a session: noise of its median network, drift, share of outliers; 0.01 is 1 %.

    The noise of fewer than `LEAST_ROUNDS` rounds is NaN and not judged.
    """

    noise: float
    drift: float
    outliers: float
    loads: tuple[Load, ...]
    governors: tuple[str, ...]

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> Session:
        enough = min(len(m.samples_ms) for m in measurements) >= LEAST_ROUNDS
        flags = np.concatenate([np.concatenate(outlier_flags(m)) for m in measurements])
        moments = [state for m in measurements for state in states(m.environment)]
        loads: dict[tuple[str, int | None], Load] = {}
        for load in (Load(**record) for state in moments for record in state.get("other_load", [])):
            loads[load.name, load.pid] = max(load, loads.get((load.name, load.pid), load), key=lambda load: load.cores)
        return cls(
            noise=float(np.median([uncertainty(m) for m in measurements])) if enough else math.nan,
            drift=drift(measurements),
            outliers=float(flags.mean()),
            loads=tuple(sorted(loads.values(), key=lambda load: -load.cores)),
            governors=tuple(sorted({str(s["governor"]) for s in moments if s.get("governor")})),
        )

    @property
    def is_too_disturbed(self) -> bool:
        return self.noise > TOO_NOISY or self.drift > TOO_DRIFTED

    def check(self) -> None:
        """Raises ValueError, with advice, if the session is too noisy or has drifted too far to be fitted to."""
        if self.is_too_disturbed:
            raise ValueError(f"measurements: too disturbed to fit a latency model to: {self.advice()}")

    def advice(self) -> str:
        """What is worth a word, and what to do about it; empty for a good session."""
        troubles = self.troubles()
        return f"{troubles}: {', '.join(self._remedies())}" if troubles else ""

    def troubles(self) -> str:
        """What is worth a word; empty for a good session."""
        words = []
        if self.noise > NOISY:
            words.append(f"latencies are uncertain by {self.noise:.1%} ({NOISY:.0%} would be well)")
        if self.drift > DRIFTED:
            words.append(f"the quiet speed of the machine changed by {self.drift:.0%} ({DRIFTED:.0%} would be well)")
        return ", and ".join(words)

    def _remedies(self) -> list[str]:
        remedies = [f"close {load}" for load in self.loads[:3]]
        if slow := [governor for governor in self.governors if governor != "performance"]:
            remedies.append(f"set the CPU governor to performance (it is {' and '.join(slow)})")
        if self.drift > DRIFTED:
            remedies.append("let the machine cool down")
        return [*remedies, "pin the process to cores of its own (taskset)", "or measure in more rounds"]


def outliers(samples: Sequence[float] | np.ndarray) -> np.ndarray:
    """Which samples have a modified Z-score, 0.6745 (x - median) / MAD, beyond `OUTLIER_SCORE`: bool [N].

    Where more than half of the samples are equal, so that the MAD is 0, the mean absolute deviation takes its place, with the
    factor that makes the score of normal samples the same, sqrt(2 / pi).
    """
    deviation = np.asarray(samples, dtype=float) - np.median(samples)
    typical, mean = mad(samples), float(np.mean(np.abs(deviation)))
    if mean == 0:
        return np.zeros(len(deviation), dtype=bool)
    scores = MODIFIED * deviation / typical if typical > 0 else math.sqrt(2 / math.pi) * deviation / mean
    flags: np.ndarray = np.abs(scores) > OUTLIER_SCORE
    return flags


def outlier_flags(measurement: Measurement) -> tuple[tuple[bool, ...], ...]:
    """The outliers among all samples of a network, the drift of each visit removed: as `samples_ms`, a tuple a visit."""
    even = [np.asarray(visit) / drift for visit, drift in zip(measurement.samples_ms, measurement.drift, strict=True)]
    ends = np.cumsum([len(visit) for visit in even])[:-1]
    return tuple(tuple(part.tolist()) for part in np.split(outliers(np.concatenate(even)), ends))


def drift(measurements: Sequence[Measurement]) -> float:
    """The sentinel's slowest quiet time over its fastest, less 1: 0.1 is 10 %.

    Its quiet times are the reference, which latencies are expressed in, and the quietest visits of the first and of the second
    half of the rounds of networks that were measured together.
    """
    together: dict[str, list[np.ndarray]] = {}
    for m in measurements:
        together.setdefault(str(m.environment.get("time")), []).append(m.drift)
    quiet = [1.0]
    for group in together.values():
        halves = zip(*(np.array_split(d, 2) for d in group), strict=True)
        quiet += [float(half.min()) for half in map(np.concatenate, halves) if len(half)]
    return max(quiet) / min(quiet) - 1.0


def margin(error_of_ratio: float) -> float:
    """How many times as fast is clearly faster: by three standard errors of the ratio, and by 2 %."""
    return max(LEAST_SPEEDUP, 1 + 3 * error_of_ratio)


def uncertainty(measurement: Measurement, *, beside: Measurement | None = None) -> float:
    """Relative standard error of `latency_ms`, or of its ratio to that of a network which was visited in the same rounds.

    The jackknife over rounds (Efron, 1982). Disturbed rounds do not count as long as two are quiet. 0.01 is 1 %; NaN of a single
    round.
    """
    num_rounds = len(measurement.samples_ms)
    if num_rounds < 2:
        return math.nan
    left_out = _log_latencies(measurement)
    if beside is not None:
        left_out = left_out - _log_latencies(beside)
    return float(np.sqrt((num_rounds - 1) * np.var(left_out)))


def _log_latencies(measurement: Measurement) -> np.ndarray:
    """Logarithm of `latency_ms` as it would be without one of the rounds: [R]."""
    kept = ~np.eye(len(measurement.samples_ms), dtype=bool)
    drift = measurement.drift
    wall = measurement.visits_ms * drift
    quietest = (np.where(kept, values, np.inf).min(axis=1) for values in (wall, drift))
    result: np.ndarray = np.subtract(*map(np.log, quietest))
    return result
