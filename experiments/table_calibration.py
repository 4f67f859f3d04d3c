"""Calibrating on a device that is not at hand: from the well-known transformers in a table of measurements to our own spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.calibration import Calibration, quality
from experiments.progress import Reporter
from hardware.recorded import RecordedDevice
from latency_models.drift import no_signal
from nas.encoding import Encoding
from nas.protocols import Family, LatencyModel, Operator, OperatorLatencyModel
from nas.types import Workload
from search_spaces.named import match, operators

FEWEST_MATCHES = 8


@dataclass(frozen=True)
class TableCalibrator:
    """Fits a latency model to the well-known transformers in a table of measurements."""

    family: Family
    device: RecordedDevice
    workload: Workload
    report: Reporter

    def calibrate(self, model: LatencyModel) -> Calibration:
        """Every network of the table is judged by a fit that did not see it.

        Raises:
            ValueError: too few networks of known sizes, times that have nothing to do with them, or a model that needs networks
                of its own space.
        """
        table = self.device.table
        matches, num_others = match(table)
        if len(matches) < FEWEST_MATCHES:
            raise ValueError(
                f"device.table: {table.name} holds {len(matches)} transformers whose sizes are published, at least "
                f"{FEWEST_MATCHES} are needed to predict the networks of another space"
            )
        if not isinstance(model, OperatorLatencyModel):
            raise ValueError(f"latency_model: {type(model).__name__} cannot be fitted to other networks; latency_model=roofline")
        networks = [operators(m.model, m.workload) for m in matches]
        measured = table.values[[m.row for m in matches]]
        model.fit_operators(self.family, self.workload, networks, measured)
        unseen = model.unseen_ms()
        if why := no_signal(measured, unseen):
            raise ValueError(f"device.table: {table.name}: {why}; no search can start on it")
        self.report.say(
            f"{table.name}: fitted to {len(matches)} networks of published sizes; {num_others} other rows are not used"
        )
        self._say_how_far(networks)
        upper = unseen * model.upper_factor()
        return Calibration(
            model=model,
            measurements={},
            sentinel_reference_ms=None,
            quality=quality(measured, unseen, upper, measured.tolist()),
            held_out=[
                {"id": table.labels[m.row], "measured_ms": ms, "predicted_ms": p, "upper_ms": u}
                for m, ms, p, u in zip(matches, measured.tolist(), unseen.tolist(), upper.tolist(), strict=True)
            ],
        )

    def _say_how_far(self, networks: Sequence[Sequence[Operator]]) -> None:
        """Warns if the space lies outside what was measured."""
        space = self.family.space
        ours = self.family.operators(Encoding.of(space, [space.largest()]), self.workload)
        largest, smallest = sum(float(np.sum(o.flops)) for o in ours), min(sum(float(o.flops) for o in n) for n in networks)
        if largest < smallest:
            self.report.say(
                f"{self.device.table.name}: its smallest network has {smallest / largest:.0f} times the FLOPs of this space's "
                "largest: predictions are extrapolated, and their bound does not know how far"
            )
