"""Fewer bits: training under rounding, then ONNX Runtime's quantisers, and blocks that stay as they are where that costs much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from nas.finish.fake_quant import rounding
from nas.finish.precision import CALIBRATIONS, KINDS, check
from nas.finish.teaching import Lesson, School
from nas.training import TrainConfig


@dataclass(frozen=True)
class Quantise:
    """Int8 weights and activations, or another kind of `nas.finish.precision`.

    Args:
        aware: whether the network first learns under int8's rounding (quantisation-aware training).
        calibration: of the kind static: minmax, entropy or percentile.
        calibration_examples: of "train", for the kind static.
        mixed: where the whole network in fewer bits loses too much, quantise only the blocks with the least error added for each
            ms saved, as many as the limit allows.

    Raises:
        ValueError: a value that is not allowed.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=150, learning_rate=5e-4))
    lesson: Lesson = field(default_factory=lambda: Lesson(beta=(1.0, 1.0), gamma=(0.1, 0.1), teacher="itself"))
    kind: str = "dynamic"
    aware: bool = True
    calibration: str = "minmax"
    calibration_examples: int = 256
    mixed: bool = True

    def __post_init__(self) -> None:
        check("kind", self.kind, KINDS)
        check("calibration", self.calibration, tuple(CALIBRATIONS))
        if self.aware and self.kind not in ("dynamic", "static"):
            raise ValueError(f"aware: training rounds as int8 does, and the kind is {self.kind!r}; allowed is aware=false")
        if self.calibration_examples < 1:
            raise ValueError(f"calibration_examples: {self.calibration_examples} is not at least 1")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        if self.aware:
            with rounding(network) as state:
                school.teach(network, self.train, self.lesson, quantisation_error=state.error)
        return network


def order(blocks: Sequence[str], added: Mapping[str, float], saved_ms: Mapping[str, float]) -> list[str]:
    """The blocks whose quantisation saves time, those that add the least error for each ms first."""
    paying = [block for block in blocks if saved_ms[block] > 0]
    return sorted(paying, key=lambda block: max(0.0, added[block]) / saved_ms[block])
