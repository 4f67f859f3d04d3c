"""What a file that may stop early does with real inputs (see `nas.finish.exits`), by the file's own decisions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from experiments.formatting import format_ms
from hardware.quality import uncertainty
from hardware.timing import Exported
from nas.finish.exits import Exits, deciding
from nas.finish.skips import Skips
from nas.finish.stage import NothingToDoError
from nas.formats import open_session
from nas.protocols import Batch, Task
from nas.supernet import evaluation_batches
from nas.types import Measurement, Workload

Feed = dict[str, np.ndarray]


class ExitFile:
    """A file that may stop early.

    Args:
        feed: a batch's inputs as the file takes them.
    """

    def __init__(self, path: Path, task: Task, workload: Workload, feed: Callable[[Batch], Feed]) -> None:
        self.session = open_session(deciding(onnx.load(path)).SerializeToString())
        self.task, self.workload, self.feed = task, workload, feed

    def rate(self) -> float:
        """Share of the validation split, in batches of the workload's size, that stops early."""
        sure = np.concatenate([self._sure(self.feed(batch)) for batch in evaluation_batches(self.task, "validation")])
        size = self.workload.batch
        return float(np.resize(sure, (max(1, len(sure) // size), size)).all(axis=1).mean())

    def inputs(self, *, stops: bool) -> Feed:
        """Examples of the split "architecture" that it stops at, or goes on at: as many as the workload has, one several times if
        they are too few, sequences cut or padded to the workload's tokens. Raises NothingToDoError if there is none."""
        found: list[Feed] = []
        for batch in evaluation_batches(self.task, "architecture"):
            feed = {name: self._fitted(value) for name, value in self.feed(batch).items()}
            rows = self._sure(feed) == stops
            found.append({name: value[rows] for name, value in feed.items()})
            if sum(len(next(iter(feed.values()))) for feed in found) >= self.workload.batch:
                break
        together = {name: np.concatenate([feed[name] for feed in found]) for name in found[0]}
        if not len(next(iter(together.values()))):
            words = "stops early" if stops else "goes on to the last layer"
            raise NothingToDoError(f"no input of the workload's size {words}, so its time is not known")
        return {name: value[np.arange(self.workload.batch) % len(value)] for name, value in together.items()}

    def _sure(self, feed: Feed) -> np.ndarray:
        sure: np.ndarray = self.session.run(None, feed)[0][:, 0]
        return sure

    def _fitted(self, value: np.ndarray) -> np.ndarray:
        if value.ndim != 2:  # no sequence
            return value
        tokens = self.workload.tokens
        return np.pad(value, ((0, 0), (0, max(0, tokens - value.shape[1]))))[:, :tokens]


@dataclass(frozen=True)
class Way:
    """Through a file, that a share of all inputs takes, and an input that takes it."""

    share: float
    exported: Exported


@dataclass(frozen=True)
class TimedWays:
    """A file's latency, in expectation over its ways; the last is the slowest."""

    shares: Sequence[float]
    measurements: Sequence[Measurement]

    @property
    def expected_ms(self) -> float:
        return sum(share * m.latency_ms for share, m in zip(self.shares, self.measurements, strict=True))

    @property
    def slowest_ms(self) -> float:
        return max(m.latency_ms for m in self.measurements)

    def uncertainty(self, *, beside: TimedWays) -> float:
        """Relative standard error of the ratio of the expected latencies, at most: as if all ways erred alike."""
        ways = zip(self.shares, self.measurements, itertools.cycle(beside.measurements), strict=False)
        return sum(share * m.latency_ms * uncertainty(m, beside=other) for share, m, other in ways) / self.expected_ms


def exit_facts(network: Exits | Skips, timed: TimedWays) -> dict[str, Any]:
    """Where the network stops or what it skips, how often, and what each way takes."""
    first, last = timed.measurements
    where = {"skips": [network.after + 1, network.until]} if isinstance(network, Skips) else {"exit_after": int(*network.heads)}
    return {
        **where,
        "layers": len(network.layers),
        "threshold": network.threshold.item(),
        "exit_rate": timed.shares[0],
        "exit_ms": first.latency_ms,
        "full_ms": last.latency_ms,
        "expected_ms": timed.expected_ms,
    }


def told(facts: Mapping[str, Any]) -> str:
    """The facts in words."""
    begin, *end = facts["skips"] if "skips" in facts else [facts["exit_after"]]
    done = f"skip the layers {begin} to {end[0]}" if end else f"stop after layer {begin}"
    return (
        f"expected {format_ms(facts['expected_ms'])} ms: {100 * facts['exit_rate']:.1f} % of the validation split {done} "
        f"of {facts['layers']} (probability above {facts['threshold']:.4f}) in "
        f"{format_ms(facts['exit_ms'])} ms, the others take {format_ms(facts['full_ms'])} ms"
    )
