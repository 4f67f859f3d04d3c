"""How ONNX Runtime runs a file on this machine: the fastest way to open it, who runs which operator, and the memory it takes.

Run as a program (`python -m hardware.placement FILE …`) it opens a file in a fresh process, answers once and prints the memory.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from hardware.environment import num_cores
from hardware.operators import Ran
from hardware.visit import Visit, wall

CPU = "CPUExecutionProvider"
ELSEWHERE = ("AzureExecutionProvider", "QNNExecutionProvider")  # a network answers, or what `hardware.qnn` opens, maybe emulated
LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
STATUS = Path("/proc/self/status")
WORTH = 0.95  # another way is taken if it needs less than this share of the time
PROFILED = 9  # answers whose profile is read
VISIT = Visit(warmup_seconds=0.05, visit_seconds=0.02, min_samples=3, max_samples=200)


@dataclass(frozen=True, order=True)
class Placement:
    """How a file is opened: execution provider (what it does not take runs on the CPU), threads, graph optimisation level."""

    provider: str = CPU
    threads: int = 1
    graph_optimization: str = "all"

    def open(self, path: Path, *, profile: Path | None = None) -> onnxruntime.InferenceSession:
        """Raises ValueError where ONNX Runtime takes another provider instead, which it does without a word."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[self.graph_optimization])
        options.log_severity_level = 4  # errors are raised as well
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        session = onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys((self.provider, CPU))))
        if session.get_providers()[0] != self.provider:
            raise ValueError(f"{self.provider} cannot be loaded")
        return session


class PlacedFile(NamedTuple):
    """A placement, of the file that ships or of another one."""

    placement: Placement
    file: str = ""


@dataclass(frozen=True)
class Tried:
    """What a placement gave beside the first one: its time in ms (the quietest visit's lower quartile), and whether its answers
    are the same; or why it cannot be. Of another file of the same network, what sets it apart."""

    placement: Placement
    latency_ms: float | None
    equal: bool
    refused: str = ""
    file: str = ""

    def to_json(self) -> dict[str, Any]:
        facts = {"latency_ms": self.latency_ms, "equal": self.equal, "refused": self.refused}
        return {**asdict(self.placement), **facts, **({"file": self.file} if self.file else {})}


def offered() -> tuple[str, ...]:
    """The execution providers of the installed ONNX Runtime that compute on this machine."""
    return tuple(p for p in onnxruntime.get_available_providers() if p not in ELSEWHERE)


def candidates(own: Placement) -> list[Placement]:
    """`own` first; then 1, 2, 4, … threads up to the cores of this machine and the levels of graph optimisation; and each other
    provider that is installed."""
    threads = [2**power for power in range(num_cores().bit_length()) if 2**power <= num_cores()]
    ways = [Placement(own.provider, t, level) for t in threads for level in ("all", "extended", "basic")]
    others = [p for p in offered() if p != own.provider]
    return list(dict.fromkeys([own, *ways, *(Placement(p, own.threads) for p in others)]))


def tune(
    path: Path, inputs: Mapping[str, np.ndarray], own: Placement, *, tolerance: float, rounds: int = 3, seconds: float = 4.0,
    others: Mapping[str, Path] = MappingProxyType({}),
) -> tuple[Placement, list[Tried]]:  # fmt: skip
    """The fastest placement with equal answers, and all that were tried, visited in turn; `own` unless another is clearly faster.

    Answers are equal if no output differs by more than the tolerance and every largest logit is at the same place.

    Args:
        seconds: no round begins after so long, but for the first.
        others: the same network in other files, by what sets them apart; they are tried like `own`, and never the fastest.

    Raises:
        ValueError: the file answers with numbers that are not finite.
    """
    paths, feed = {"": path, **others}, dict(inputs)
    first, ways = PlacedFile(own), [*map(PlacedFile, candidates(own)), *(PlacedFile(own, file) for file in others)]
    times: dict[PlacedFile, list[float]] = {way: [] for way in ways}
    answers: dict[PlacedFile, list[np.ndarray]] = {}
    refused: dict[PlacedFile, str] = {}
    start = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - start > seconds:
            break
        for way in ways:
            if way not in refused:
                try:
                    answers[way], visit_ms = _visit(paths[way.file], feed, way.placement)
                    times[way].append(visit_ms)
                except Exception as error:  # ONNX Runtime's own have no base class of their own
                    if way == first:
                        raise
                    refused[way] = str(error).splitlines()[0]
    trials = [
        Tried(
            way.placement,
            min(times[way], default=None),
            is_equal(answers.get(way), answers[first], tolerance),
            refused.get(way, ""),
            way.file,
        )
        for way in ways
    ]
    able = [(min(times[way]), way.placement) for way, trial in zip(ways, trials, strict=True) if trial.equal and not way.file]
    if not able:
        raise ValueError(f"{path.name}: {own.provider} answers with numbers that are not finite (NaN or infinity)")
    first_ms, (best_ms, best) = min(times[first]), min(able)
    return (best if best_ms < WORTH * first_ms else own), trials


def _visit(path: Path, feed: dict[str, np.ndarray], way: Placement) -> tuple[list[np.ndarray], float]:
    """Answers, and the lower quartile of the times in ms."""
    session = way.open(path)
    times = VISIT.times(wall(lambda: session.run(None, feed)))
    return session.run(None, feed), float(np.percentile(np.asarray(times), 25))


def is_equal(answer: Sequence[np.ndarray] | None, expected: Sequence[np.ndarray], tolerance: float) -> bool:
    """Whether there is an answer, all of it finite, near enough and with every largest logit at the same place."""
    if answer is None or not all(np.isfinite(x).all() for x in (*answer, *expected)):
        return False
    near = all(np.abs(a - b).max(initial=0) <= tolerance for a, b in zip(answer, expected, strict=True))
    return near and bool(np.array_equal(answer[0].argmax(-1), expected[0].argmax(-1)))


def operators(path: Path, inputs: Mapping[str, np.ndarray], placement: Placement) -> list[dict[str, Any]]:
    """What ran, from ONNX Runtime's profile: `operator`, `provider` that took it, `count`, and `percent` of the operators' time
    in the quieter half of a few answers (the first one, or one that was interrupted, says nothing of the others).

    A fallback is an operator whose provider is not the placement's.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = placement.open(path, profile=Path(folder) / "profile")
        for _ in range(PROFILED):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    ran = [e for e in ran if e["args"]["op_name"] != "If"]  # its time is that of what it ran
    quiet = quieter(ran, answers=PROFILED)
    found = Ran()
    for event in itertools.chain(*quiet):
        found.add(event["args"]["op_name"], event["args"]["provider"], event["dur"])
    return found.table(runs=len(quiet))


def quieter(events: Sequence[Mapping[str, Any]], *, answers: int) -> list[Sequence[Mapping[str, Any]]]:
    """The events of each of so many answers, equally many in turn: of the half, rounded up, that took the least time."""
    each = len(events) // answers
    calls = [events[each * number : each * (number + 1)] for number in range(answers)]
    return sorted(calls, key=lambda call: sum(event["dur"] for event in call))[: (answers + 1) // 2]


def peak_memory(path: Path, inputs: Mapping[str, np.ndarray], placement: Placement) -> dict[str, float] | None:
    """Of a fresh process that opens the file and answers, in MiB: `process_mib` at its peak, and `network_mib`, what of that came
    with the file. None where the system does not say (it is Linux that does) or the process ends badly."""
    return in_fresh_process("hardware.placement", path, inputs, json.dumps(asdict(placement)))


def in_fresh_process(module: str, path: Path, inputs: Mapping[str, np.ndarray], word: str) -> dict[str, float] | None:
    """What a module that is run as a program says of the memory of a file in its last line; see `peak_memory`."""
    if not STATUS.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", **dict(inputs))  # type: ignore[arg-type]
        done = subprocess.run(
            [sys.executable, "-m", module, str(path.resolve()), str(Path(folder) / "inputs.npz"), word],
            cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    memory: dict[str, float] | None = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    return memory


def resident_mib(field: str) -> float:
    """VmRSS, resident now, or VmHWM, its peak."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return float(line.split()[1]) / 1024


def _main(path: str, inputs_path: str, placement: str) -> str:
    inputs = dict(np.load(inputs_path))
    before_mib = resident_mib("VmRSS")
    Placement(**json.loads(placement)).open(Path(path)).run(None, inputs)
    peak_mib = resident_mib("VmHWM")
    return json.dumps({"process_mib": round(peak_mib, 2), "network_mib": round(max(0.0, peak_mib - before_mib), 2)})


if __name__ == "__main__":
    sys.stdout.write(_main(*sys.argv[1:]))
