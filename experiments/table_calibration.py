"""Calibrating on a device that is not at hand: from the well-known transformers, or blocks of transformers, in a table of
measurements to our own spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.calibration import Calibration, quality
from experiments.progress import Reporter
from hardware.recorded import RecordedDevice
from hardware.tables import TABLES, is_there, load_table
from latency_models.drift import no_signal
from nas.encoding import Encoding
from nas.protocols import Family, LatencyModel, Operator, OperatorLatencyModel
from nas.space import Architecture
from nas.types import Workload
from search_spaces import blocks, hat
from search_spaces.named import match, operators

FEWEST_MATCHES = 8
MOST_BLOCKS = 600  # random ones of the thousands in a table, which determine the few prices


@dataclass(frozen=True)
class TableCalibrator:
    """Fits a latency model to the transformers, or blocks of transformers, in a table of measurements."""

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
        rows, networks = self._blocks() if blocks.are_in(table) else self._networks()
        if not isinstance(model, OperatorLatencyModel):
            raise ValueError(f"latency_model: {type(model).__name__} cannot be fitted to other networks; latency_model=roofline")
        measured = table.values[rows]
        model.fit_operators(self.family, self.workload, networks, measured)
        unseen = model.unseen_ms()
        if why := no_signal(measured, unseen):
            raise ValueError(f"device.table: {table.name}: {why}; no search can start on it")
        upper = unseen * model.upper_factor()
        judged = quality(measured, unseen, upper, measured.tolist())
        what = "blocks" if blocks.are_in(table) else "networks of published sizes"
        self.report.say(
            f"{table.name}: fitted to {len(rows)} {what}; {len(table) - len(rows)} other rows are not used. Those that a fit did "
            f"not see are predicted to {judged['mape_percent']:.1f} % (rank correlation {judged['spearman']:.3f})"
        )
        self._say_how_far(networks)
        cautions = self._fallbacks(rows)
        for words in cautions:
            self.report.say(words)
        return Calibration(
            model=model,
            measurements={},
            sentinel_reference_ms=None,
            quality=judged,
            held_out=[
                {"id": table.labels[row], "measured_ms": ms, "predicted_ms": p, "upper_ms": u}
                for row, ms, p, u in zip(rows, measured.tolist(), unseen.tolist(), upper.tolist(), strict=True)
            ],
            cautions=cautions,
        )

    def _fallbacks(self, rows: Sequence[int]) -> tuple[str, ...]:
        """How many networks ran in part on the CPU of a device that is none, if any did, in all and of the fitted rows."""
        table = self.device.table
        on_cpu = np.asarray(table.extra.get("layers_cpu", np.zeros(len(table))), dtype=float) > 0
        if table.kind == "cpu" or not on_cpu.any():
            return ()
        where = f"{table.device} ({table.runtime}, {table.precision})"
        return (
            f"{on_cpu.sum()} of the {len(table)} networks that were measured on {where} had layers that fell back to the CPU, "
            f"{on_cpu[rows].sum()} of the {len(rows)} that prices were fitted to. Whether the network that ships has such layers "
            f"was not tried; if so, it takes longer than predicted.",
        )

    def _networks(self) -> tuple[list[int], list[list[Operator]]]:
        """The rows of well-known transformers, and their operators."""
        table = self.device.table
        matches = match(table)
        if len(matches) < FEWEST_MATCHES:
            raise ValueError(
                f"device.table: {table.name} holds {len(matches)} transformers whose sizes are published, at least "
                f"{FEWEST_MATCHES} are needed to predict the networks of another space{self._others()}"
            )
        return [m.row for m in matches], [operators(m.model, m.workload) for m in matches]

    def _others(self) -> str:
        """Tables of the same device that hold enough, or what else this one is for."""
        if self.device.table.features == hat.FEATURES:
            return "; its networks are those of space=hat"
        own = TABLES.get(self.device.table.name)
        names = [
            name for name, recorded in TABLES.items() if own and recorded.device == own.device and name != self.device.table.name
        ]
        folder = self.device.folder
        known = [name for name in names if is_there(name, folder) and len(match(load_table(name, folder))) >= FEWEST_MATCHES]
        return f"; tables of the same device that hold enough: {', '.join(known)}" if known else ""

    def _blocks(self) -> tuple[list[int], list[list[Operator]]]:
        """Rows of a table of single blocks, none larger than a network of the space, and their operators."""
        if self.workload.mode == "decode":
            raise ValueError(
                f"device.table: {self.device.table.name} holds blocks that read all tokens at once; what one more token costs "
                "beside a kept past they do not tell, so workload mode decode cannot be predicted from them"
            )
        most = _flops(self._operators(self.family.space.largest()))
        found = [(row, block) for row, block in blocks.match(self.device.table) if _flops(block) <= most]
        if len(found) < FEWEST_MATCHES:
            raise ValueError(
                f"device.table: {self.device.table.name} holds {len(found)} blocks with no more FLOPs than this space's largest "
                f"network, at least {FEWEST_MATCHES} are needed to predict it"
            )
        chosen = np.random.default_rng(0).permutation(len(found))[:MOST_BLOCKS]
        return [found[i][0] for i in chosen], [found[i][1] for i in chosen]

    def _operators(self, arch: Architecture) -> list[Operator]:
        return self.family.operators(Encoding.of(self.family.space, [arch]), self.workload)

    def _say_how_far(self, networks: Sequence[Sequence[Operator]]) -> None:
        """Warns if the space lies outside what was measured."""
        name, space = self.device.table.name, self.family.space
        kinds = {o.kind for o in self._operators(space.largest())}
        if unknown := sorted(kinds - {o.kind for n in networks for o in n}):
            self.report.say(
                f"{name}: has none of {', '.join(unknown)}; they are predicted by their FLOPs and bytes at the others' prices"
            )
        least = min(_flops(network) for network in networks)
        for which, arch in (("largest", space.largest()), ("smallest", space.smallest())):
            times = least / _flops(self._operators(arch))
            if times > 1:
                self.report.say(
                    f"{name}: the least that was measured has {times:.1f} times the FLOPs of this space's {which}: predictions "
                    "are extrapolated, and their bound does not know how far"
                )
                break


def _flops(network: Sequence[Operator]) -> float:
    return sum(float(np.sum(operator.flops)) for operator in network)
