"""Whether what ships keeps what was asked, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from experiments.formatting import format_figure, format_ms
from experiments.objectives import OBJECTIVES
from nas.types import Measurement

USER = "user"  # whose a budget is that was asked for


def origin_in_words(origin: str) -> str:
    """Where a budget comes from, as people read it."""
    return "asked by you" if origin == USER else f"derived: {origin}"


@dataclass(frozen=True)
class Verdict:
    """Asked, predicted and measured latency of what ships; nothing is kept or broken that was not measured (None).

    Where the device is a model of one, what it computed stands for measured times, and is `estimated`. Make it with `Verdict.of`.
    """

    asked_ms: float
    asked_origin: str
    predicted_ms: float
    predicted_upper_ms: float
    measured_ms: float | None
    measured_low_ms: float | None
    measured_high_ms: float | None
    kept: bool | None
    sentence: str
    estimated: bool = False

    @classmethod
    def of(
        cls, *, asked_ms: float, asked_origin: str, predicted_ms: float, predicted_upper_ms: float,
        measured_ms: float | None = None, measured_low_ms: float | None = None, measured_high_ms: float | None = None,
        unmeasured: str | None = None, estimated: bool = False,
    ) -> Verdict:  # fmt: skip
        """Judges by the measured time and says so in a sentence.

        Args:
            asked_origin: `USER`, or where the budget comes from in words ("half of the largest network").
            unmeasured: why there is no measured time.
            estimated: whether the measured times were computed.
        """
        if measured_ms is None:
            asked, predicted, upper = (format_ms(value) for value in (asked_ms, predicted_ms, predicted_upper_ms))
            why = f" ({unmeasured})" if unmeasured else ""
            said = _asked(asked, asked_origin)
            sentence = f"PREDICTED, NOT MEASURED{why}: {said}, predicted {predicted} ms (at most {upper})."
            return cls(asked_ms, asked_origin, predicted_ms, predicted_upper_ms, None, None, None, None, sentence)
        kept = measured_ms <= asked_ms
        digits = _digits(asked_ms, measured_ms)
        asked, measured = (format_ms(value, digits=digits) for value in (asked_ms, measured_ms))
        predicted, upper = format_ms(predicted_ms), format_ms(predicted_upper_ms)
        how, by = ("estimated", ", as estimated") if estimated else ("measured", "")
        words = f"{_asked(asked, asked_origin)}, predicted {predicted} ms (at most {upper}), {how} {measured} ms"
        over = 100 * (measured_ms / asked_ms - 1)
        sentence = f"Kept{by}: {words}." if kept else f"BROKEN{by}: {words}, {over:.2g} % over the budget."
        if measured_ms > predicted_upper_ms:
            upper = format_ms(predicted_upper_ms, digits=_digits(predicted_upper_ms, measured_ms))
            sentence += f" {how.capitalize()} above what was predicted (at most {upper} ms)."
        return cls(
            asked_ms,
            asked_origin,
            predicted_ms,
            predicted_upper_ms,
            measured_ms,
            measured_low_ms,
            measured_high_ms,
            kept,
            sentence,
            estimated,
        )

    @property
    def how(self) -> str:
        """Where the times of trained networks come from, in a word."""
        return "estimated" if self.estimated else "measured"

    @property
    def asked_words(self) -> str:
        """The budget and whose it is, for a picture."""
        return budget_words(self.asked_ms, self.asked_origin)


def budget_words(asked: float, origin: str, unit: str = "ms") -> str:
    """A budget and whose it is, in short."""
    return f"asked {format_ms(asked)} {unit}" if origin == USER else f"budget {format_ms(asked)} {unit} (derived)"


def _asked(asked: str, origin: str) -> str:
    return f"asked {asked} ms" if origin == USER else f"budget {asked} ms ({origin_in_words(origin)})"


def _digits(one_ms: float, other_ms: float) -> int:
    """Three, or as many more as it takes to see that two times differ."""
    digits = 3
    while digits < 9 and one_ms != other_ms and format_ms(one_ms, digits=digits) == format_ms(other_ms, digits=digits):
        digits += 1
    return digits


@dataclass(frozen=True)
class LimitVerdict:
    """Asked, predicted and measured memory or energy of what ships, in MiB or mJ; make it with `LimitVerdict.of`."""

    asked: float
    predicted: float
    predicted_upper: float
    measured: float | None
    kept: bool | None
    sentence: str

    @classmethod
    def of(
        cls, name: str, *, asked: float, predicted: float, predicted_upper: float, measured: float | None = None,
        unmeasured: str | None = None,
    ) -> Self:  # fmt: skip
        """Judges by what was measured and says so in a sentence; `name` is the objective's, `unmeasured` why nothing was."""
        what, unit = OBJECTIVES[name].words.capitalize(), OBJECTIVES[name].unit
        words = f"asked {format_figure(asked)} {unit}, predicted {format_figure(predicted)} {unit}"
        words += f" (at most {format_figure(predicted_upper)})"
        if measured is None:
            why = f" ({unmeasured})" if unmeasured else ""
            return cls(asked, predicted, predicted_upper, None, None, f"{what} PREDICTED, NOT MEASURED{why}: {words}.")
        kept = measured <= asked
        over = 100 * (measured / asked - 1)
        words += f", measured {format_figure(measured)} {unit}"
        sentence = f"{what} kept: {words}." if kept else f"{what} BROKEN: {words}, {over:.2g} % over the budget."
        return cls(asked, predicted, predicted_upper, measured, kept, sentence)


def facts_of(measurement: Measurement | None) -> dict[str, Any]:
    """What `Verdict.of` takes of a measurement."""
    return {**times_of(measurement), "estimated": measurement is not None and bool(measurement.environment.get("estimated"))}


def times_of(measurement: Measurement | None) -> dict[str, float | None]:
    """Measured time and its interval, as verdicts and networks name them; of none None."""
    if measurement is None:
        return dict.fromkeys(("measured_ms", "measured_low_ms", "measured_high_ms"))
    visits = measurement.visits_ms
    latency = measurement.latency_ms
    return {
        "measured_ms": latency,
        "measured_low_ms": min(latency, float(visits.min())),
        "measured_high_ms": max(latency, float(visits.max())),
    }
