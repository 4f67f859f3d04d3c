"""What a training step of the supernet costs, relative to one step of the plain largest network.

A step is forward and backward with fresh gradients, on one thread. What comes after the gradients (clipping, the optimiser's
step) is left out on both sides, and so are n-grams, which both would look up alike. The steps that are compared run in turn,
round by round, and a figure is the median of the ratios within a round: what disturbs the machine for longer than a round
cancels.

Peak memory is what one step holds at most in tensors, weights included. The allocations and releases of torch's CPU allocator
are recorded by its profiler and replayed in order. That counts bytes and not pages, so it is the same in every run; scratch
memory inside the matrix library is not seen.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from experiments.progress import Advance, Reporter
from hardware.local_torch import num_threads
from latency_models.additive import AdditiveLatency
from nas.compute import Compute, choose_compute
from nas.encoding import Encoding
from nas.protocols import Batch, Family, Task
from nas.relaxations import relax
from nas.supernet import fixed, sandwich, sandwich_step
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space

VOCAB_SIZE, NUM_CLASSES, MAX_TOKENS = 8_000, 76, 64  # those of the task `languages`


@dataclass
class Words:
    """What the benchmark takes."""

    preset: str = "quick"  # quick or full (tiny shows only that it runs)
    out: str | None = None  # a file for the figures


@dataclass(frozen=True)
class Preset:
    """Rounds, sequences in the large and in the small batch, and tokens of each sequence."""

    rounds: int
    batch: int = 32
    small_batch: int = 4
    tokens: int = 64


PRESETS = {
    "tiny": Preset(rounds=2, batch=2, small_batch=1, tokens=8),
    "quick": Preset(rounds=8),
    "full": Preset(rounds=40),
}


@dataclass(frozen=True)
class Row:
    """A figure of the table: its key, what it is, the ratio to stay under, and what is known of other engines."""

    key: str
    what: str
    target: float | None = None
    others: str = ""


ROWS = (
    Row("relaxed_step_ratio", "relaxed step: weights and logits in one pass", 1.20, "separate operations 1.80"),
    Row("relaxed_step_ratio_256", "the same with the small batch", 1.40, "padding and adding 2.43"),
    Row("darts_iteration_ratio", "DARTS iteration, first order", 2.2, "NNI 3.4, separate operations 4.0; second order 7.7"),
    Row("latency_term_ratio", "… and its latency term"),
    Row("sandwich_step_ratio", "sandwich: largest, smallest, 2 random", 2.1, "whittle 2.7"),
    Row("sandwich_step_ratio_1_random", "sandwich: largest, smallest, 1 random"),
    Row("peak_memory_ratio", "peak memory of the relaxed step", 1.10, "separate operations 1.73, whittle's sandwich 1.17"),
)
KEYS = {
    "relaxed": "relaxed_step_ratio",
    "darts": "darts_iteration_ratio",
    "latency term": "latency_term_ratio",
    "sandwich, 2": "sandwich_step_ratio",
    "sandwich, 1": "sandwich_step_ratio_1_random",
}


class OnlyLoss:
    """The part of a task that a step needs."""

    loss = staticmethod(F.cross_entropy)


TASK = cast(Task, OnlyLoss())
WRITTEN_OUT = Compute("cpu", "float32", "matmul")


def run(words: Words, report: Reporter) -> dict[str, float]:
    """Ratios of CPU time by plain keys, of wall time with `_wall`; with `_chosen`, both sides run as `choose_compute` picks."""
    preset = PRESETS[words.preset]
    family = default_family()
    large, small = (random_batch(size, preset.tokens) for size in (preset.batch, preset.small_batch))
    figures: dict[str, float] = {"tokens_per_step": large.num_tokens, "tokens_per_small_step": small.num_tokens}
    with num_threads(1):
        chosen, _ = choose_compute(family, TASK, large)
        for compute in dict.fromkeys((WRITTEN_OUT, chosen)):
            steps, small_steps = Steps(family, large, compute), Steps(family, small, compute)
            with report.phase(f"{large.num_tokens} tokens, {compute}", preset.rounds) as advance:
                times = steps.ratios(preset.rounds, advance, only=tuple(KEYS))
            with report.phase(f"{small.num_tokens} tokens, {compute}", preset.rounds) as advance:
                of_small = small_steps.ratios(preset.rounds, advance, only=("relaxed",))
            times["relaxed_step_ratio_256"] = of_small["relaxed_step_ratio"]
            found = {name: cpu for name, (cpu, _) in times.items()} | {f"{name}_wall": wall for name, (_, wall) in times.items()}
            found["peak_memory_ratio"] = steps.peak_memory_ratio()
            for suffix in [""] * (compute == WRITTEN_OUT) + ["_chosen"] * (compute == chosen):
                figures |= {name + suffix: value for name, value in found.items()}
    _show(figures, chosen, report)
    return figures


def default_family() -> Family:
    return EncoderFamily(encoder_space(), VOCAB_SIZE, NUM_CLASSES, MAX_TOKENS)


def random_batch(size: int, tokens: int) -> Batch:
    """Random texts without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB_SIZE, (size, tokens), generator=generator)
    return Batch((ids, torch.ones_like(ids)), torch.randint(NUM_CLASSES, (size,), generator=generator))


class Steps:
    """The steps that are compared, over one batch; each makes gradients anew and changes no weight."""

    def __init__(self, family: Family, batch: Batch, compute: Compute) -> None:
        self.family, self.batch, self.compute = family, batch, compute
        torch.manual_seed(0)
        self.network = family.network(family.space.largest(), backend=compute.backend)
        self.supernet = family.supernet()
        self.logits = nn.Parameter(torch.zeros(family.space.encoding_size))
        self.latency_model = some_latency_model(family)
        self.rng = np.random.default_rng(0)

    def ratios(self, rounds: int, advance: Advance, *, only: Sequence[str]) -> dict[str, tuple[float, float]]:
        """CPU and wall time of each step of `KEYS` relative to the plain one's in the same round: medians over the rounds."""
        steps: dict[str, Callable[[], None]] = {
            "plain": self.plain,
            "relaxed": self.relaxed,
            "darts": self.darts,
            "latency term": self.latency_term,
            "sandwich, 2": lambda: self.sandwich(2),
            "sandwich, 1": lambda: self.sandwich(1),
        }
        steps = {name: steps[name] for name in ("plain", *only)}
        for step in steps.values():
            step()
        seconds = np.empty((rounds, len(steps), 2))
        for number in range(rounds):
            for column, step in enumerate(steps.values()):
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                seconds[number, column] = time.process_time() - cpu, time.perf_counter() - wall
            advance(number + 1, "")
        medians = np.median(seconds / seconds[:, :1], axis=0)[1:]
        return {KEYS[name]: (float(cpu), float(wall)) for name, (cpu, wall) in zip(only, medians, strict=True)}

    def plain(self) -> None:
        self.network.zero_grad()
        with self.compute.autocast():
            loss = F.cross_entropy(self.network(*self.batch.inputs), self.batch.targets)
        loss.backward()

    def relaxed(self) -> None:
        """Gradients of the weights and of the logits in one pass; every choice is relaxed, the width too."""
        self.supernet.zero_grad()
        self.logits.grad = None
        self._relaxed_loss(self.logits).backward()

    def darts(self) -> None:
        """One pass for the weights and one for the logits, as in `nas.darts`; without the latency term, which engines lack."""
        self.supernet.zero_grad()
        self._relaxed_loss(self.logits.detach()).backward()
        self.logit_pass()

    def logit_pass(self) -> None:
        torch.autograd.grad(self._relaxed_loss(self.logits, fixed(self.supernet)), [self.logits])

    def latency_term(self) -> None:
        """What `nas.darts` adds to the pass of the logits."""
        encoding = Encoding(self.family.space, relax(self.family.space, self.logits).values.double())
        torch.autograd.grad(self.latency_model.expected_ms(encoding), [self.logits])

    def sandwich(self, num_random: int) -> None:
        self.supernet.zero_grad()
        archs = sandwich(self.family.space, self.rng, num_random=num_random)
        sandwich_step(self.family, self.supernet, archs, self.batch, TASK, self.compute, distillation=0.5)

    def _relaxed_loss(self, logits: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        with self.compute.autocast():
            masks = {"masks": self.family.masks(relax(self.family.space, logits))}
            outputs = functional_call(self.supernet, dict(weights or {}), self.batch.inputs, masks)
            return F.cross_entropy(outputs, self.batch.targets)

    def peak_memory_ratio(self) -> float:
        """Of the relaxed step to the plain one."""
        peaks = []
        for step, held in (
            (self.relaxed, [*self.supernet.parameters(), self.logits]),
            (self.plain, list(self.network.parameters())),
        ):
            step()
            for tensor in held:
                tensor.grad = None
            peaks.append(sum(t.nbytes for t in held) + peak_bytes(step))
        return peaks[0] / peaks[1]


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that a step's own allocations of tensors come to at any moment."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: float(event["ts"]))
    return max(accumulate(int(event["args"]["Bytes"]) for event in memory))


def some_latency_model(family: Family) -> AdditiveLatency:
    """Fitted to made-up times: what its evaluation costs does not depend on them."""
    rng = np.random.default_rng(0)
    archs = [family.space.sample(rng) for _ in range(16)]
    times = [float(a.size("width") * a.size("depth")) for a in archs]
    return AdditiveLatency().fit(
        family, [Measurement(a, "none", Workload(), ((t,),), ((1.0,),), 1.0, {}) for a, t in zip(archs, times, strict=True)]
    )


def _show(figures: dict[str, float], chosen: Compute, report: Reporter) -> None:
    table = Table(
        title="One step relative to one of the plain largest network, CPU time on one thread (wall time)", box=SIMPLE_HEAD
    )
    computes = [f"{compute.precision}, {compute.backend}" for compute in (WRITTEN_OUT, chosen)]
    for heading in ("step", computes[0], f"chosen: {computes[1]}", "target", "other engines*"):
        table.add_column(heading)
    for row in ROWS:
        target = f"≤ {row.target:.2f}" if row.target else ""
        table.add_row(row.what, *(_cell(figures, row, suffix) for suffix in ("", "_chosen")), target, row.others)
    report.console.print(table)
    report.say(
        f"{figures['tokens_per_step']:.0f} tokens a step, {figures['tokens_per_small_step']:.0f} with the small batch; without "
        "the optimiser's step on either side. * float32, 4 layers of width 128, measured on a machine of this kind."
    )


def _cell(figures: dict[str, float], row: Row, suffix: str) -> str:
    value, wall = figures[row.key + suffix], figures.get(f"{row.key}_wall{suffix}")
    words = [f"{value:.3f}", f"({wall:.3f})" if wall is not None else "", "missed" if row.target and value > row.target else ""]
    return " ".join(word for word in words if word)
