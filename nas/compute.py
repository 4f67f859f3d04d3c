"""The fastest correct way to train on the machine at hand, found by a short trial.

On a CPU with bfloat16 matrix units, autocast with attention written out is more than twice as fast as float32 with the fused
attention, whose backward pass is slow there; on other machines it is not. So the few candidates are tried on a real batch.

`torch.compile` is not one of them. Forward and backward of the largest network of the default space (2,048 tokens, PyTorch 2.13,
one thread of a busy x86 machine) take 1.06 to 1.13 times as long compiled in float32, the faster precision there, after 63 s of
compiling; in bfloat16 0.84 to 0.86 times as long, 0.04 s less a step, after 219 s and, for texts of another length, 159 s more.
700 steps of a supernet would win 28 s of these back, and train a network of other shapes in each step, to be compiled anew.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nas.attention import Backend
from nas.protocols import Batch, Family, Task

AUTO = "auto"  # what the trial is to choose
WAYS: Sequence[tuple[str, Backend]] = (
    ("float32", "matmul"), ("float32", "fused"), ("bfloat16", "matmul"), ("bfloat16", "fused"),
)  # fmt: skip
LOSS_TOLERANCE = 0.02  # relative difference to float32 within which a faster path counts as correct
STEPS = 6  # of each trial


@dataclass(frozen=True)
class Compute:
    """Where and how networks are trained: torch device, autocast type (None: float32) and attention backend."""

    device: str = "cpu"
    precision: str = "float32"
    backend: Backend = "matmul"

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: {self.precision!r} is not one of ('float32', 'bfloat16')")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}, attention by {self.backend}"


@dataclass(frozen=True)
class Trial:
    """One candidate: seconds of its fastest step, its loss, and whether that agrees with float32."""

    compute: Compute
    seconds: float
    loss: float
    correct: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose_compute(
    family: Family, task: Task, batch: Batch, *, device: str = "cpu", precision: str = AUTO, backend: str = AUTO
) -> tuple[Compute, list[Trial]]:
    """Trains the largest network for a few steps in each candidate way; returns the fastest correct one and all trials.

    `precision` and `backend` may be given; what is given is not weighed by its time, and if both are, nothing is tried.

    Raises:
        ValueError: no way of the given precision agrees with float32.
    """
    if device != "cpu":
        return Compute(device, "bfloat16" if precision == AUTO else precision, _backend(backend, "fused")), []
    if AUTO not in (precision, backend):
        return Compute(device, precision, _backend(backend, "fused")), []
    networks = []
    for path in WAYS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            networks.append((Compute(device, *path), family.network(family.space.largest(), backend=path[1])))
    seconds, losses = [float("inf")] * len(networks), [0.0] * len(networks)
    for _ in range(STEPS):  # in turn, so that a busy moment does not meet one of them alone
        for i, (compute, network) in enumerate(networks):
            network.zero_grad()
            start = time.perf_counter()
            with compute.autocast():
                loss = task.loss(network(*batch.inputs), batch.targets)
            loss.backward()
            seconds[i], losses[i] = min(seconds[i], time.perf_counter() - start), float(loss.detach())
    trials = [
        Trial(compute, s, loss, correct=abs(loss - losses[0]) <= LOSS_TOLERANCE * abs(losses[0]))
        for (compute, _), s, loss in zip(networks, seconds, losses, strict=True)
    ]
    allowed = [t for t in trials if precision in (AUTO, t.compute.precision) and backend in (AUTO, t.compute.backend)]
    correct = [t for t in allowed if t.correct]
    if not correct:
        raise ValueError(f"precision: {precision}: losses differ by more than {LOSS_TOLERANCE:.0%} from those of float32")
    return min(correct, key=lambda t: t.seconds).compute, trials


def _backend(name: str, default: Backend) -> Backend:
    return next((backend for _, backend in WAYS if backend == name), default)
