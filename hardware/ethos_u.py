"""Arm's Ethos-U microNPUs as their compiler sees them: Vela's *estimate* of a network in static int8, never a measurement.

    .tflite in fp32 -> static int8 (ai-edge-quantizer, `static_wi8_ai8`) -> Vela -> cycles, memory, operators left to the CPU

Vela adds up what the NPU and its memories need. An operator that the NPU does not have runs on the microcontroller beside it:
its time is *not in the total*, so an estimate says how many there are. The fp32 file was compared with the network when it was
written (`nas.export`). Weights are stored compressed, so an estimate of random weights is not quite that of trained ones.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import math
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hardware import environment
from hardware.local import check_option, in_order, optional, refusals
from nas.protocols import DeviceError

EXTRA = "ethos-u"
ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)


@dataclass(frozen=True)
class Estimate:
    """What Vela says of one network; nothing here was measured.

    `flash_kib` and `dram_kib` are what the NPU reads there; `file_kib` is the compiled file, with the tables that the CPU reads.
    `num_passes` is of the compiled network, `cpu_operators` counts those of them that the CPU runs, by kind.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    clock_mhz: float
    cycles: int
    latency_ms: float
    sram_kib: float
    dram_kib: float
    flash_kib: float
    file_kib: float
    num_passes: int
    cpu_operators: Mapping[str, int] = field(hash=False)

    @property
    def num_on_cpu(self) -> int:
        return sum(self.cpu_operators.values())

    def __str__(self) -> str:
        left = ", ".join(f"{count} {kind}" for kind, count in self.cpu_operators.items())
        on_cpu = f"without {self.num_on_cpu} of {self.num_passes} operators, which run on the CPU: {left}"
        return (
            f"estimated {self.latency_ms:.3f} ms ({self.cycles} cycles at {self.clock_mhz:g} MHz) on {self.accelerator}, "
            f"{self.system_config}, {self.memory_mode}: SRAM {self.sram_kib:.0f} KiB, DRAM {self.dram_kib:.0f} KiB, "
            f"flash {self.flash_kib:.0f} KiB, file {self.file_kib:.0f} KiB; {on_cpu if left else 'all on the NPU'}"
        )


class EthosU:
    """Estimates a network's time on one microNPU.

    Args:
        accelerator: which NPU, with its multiply-adds a cycle.
        system_config, memory_mode: of Vela's `vela.ini`: clock, memories, what lies where; `internal-default` is Vela's choice.
        timeout_seconds: for one compilation.

    Raises:
        ValueError: an unknown accelerator, an empty name or a time that is not positive.
    """

    name = "ethos_u"
    format = "tflite"

    def __init__(
        self,
        *,
        accelerator: str = "ethos-u55-128",
        system_config: str = "internal-default",
        memory_mode: str = "internal-default",
        timeout_seconds: float = 120.0,
    ) -> None:
        self.accelerator = check_option("accelerator", accelerator, ACCELERATORS)
        for option, value in (("system_config", system_config), ("memory_mode", memory_mode)):
            if not re.fullmatch(r"[A-Za-z][\w-]*", value):
                raise ValueError(f"{option}: {value!r} is not a name of a configuration of Vela's")
        if not 0 < timeout_seconds <= 3600:
            raise ValueError(f"timeout_seconds: {timeout_seconds} is not above 0 and at most 3600")
        self.system_config, self.memory_mode, self.timeout_seconds = system_config, memory_mode, timeout_seconds
        self._known: dict[str, Estimate] = {}

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """What an estimate depends on. Raises DeviceError without Vela or the quantiser."""
        optional("ethosu.vela", extra=EXTRA)
        optional("ai_edge_quantizer", extra=EXTRA)
        return {
            "estimated": True,
            "vela": version("ethos-u-vela"),
            "quantizer": version("ai-edge-quantizer"),
            "precision": "int8",
            "accelerator": self.accelerator,
            "system_config": self.system_config,
            "memory_mode": self.memory_mode,
        }

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def run(self, path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """The one estimated time in ms: a compiler says the same every time.

        Raises:
            DeviceError: as `estimate`.
        """
        return (self.estimate(path, inputs).latency_ms,)

    def estimate(self, path: Path, inputs: Mapping[str, np.ndarray]) -> Estimate:
        """What Vela says of a .tflite file in fp32, whose activations are scaled to what they are with these inputs.

        Raises:
            DeviceError: something is not installed, there is no such file, the file or the inputs are refused, or nothing of the
                network runs on the NPU.
        """
        assert self.environment, "says what is missing"
        with refusals(path, "Vela"):
            key = hashlib.sha256(path.read_bytes())
            for name, value in inputs.items():
                key.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
            if key.hexdigest() not in self._known:
                with tempfile.TemporaryDirectory(prefix="paretoformer-") as folder:
                    quantized = Path(folder) / "network.tflite"
                    quantize_static(path, inputs, quantized)
                    self._known[key.hexdigest()] = self._compile(quantized)
            return self._known[key.hexdigest()]

    def estimated(self, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The same as JSON, from which `Estimate` can be made again. Raises DeviceError as `estimate`."""
        return asdict(self.estimate(path, inputs))

    def _compile(self, path: Path) -> Estimate:
        """Vela's estimate of a quantised file; beside the file it leaves what it wrote."""
        command = [
            sys.executable, "-m", "ethosu.vela", "--accelerator-config", self.accelerator, "--system-config", self.system_config,
            "--memory-mode", self.memory_mode, "--verbose-performance", "--output-dir", str(path.parent), str(path),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"Vela took longer than timeout_seconds, {self.timeout_seconds}") from error
        if done.returncode != 0:
            said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise DeviceError(f"Vela refuses the network: {' '.join(said[-3:]) or f'exit status {done.returncode}'}")
        return read_estimate(path.parent, self.accelerator)


def quantize_static(path: Path, inputs: Mapping[str, np.ndarray], target: Path) -> None:
    """Writes a .tflite file with int8 weights and activations, scaled to the range that each activation has with these inputs.

    Raises:
        ValueError: other names or shapes than the file's.
        DeviceError: the quantiser is not installed.
    """
    litert = optional("ai_edge_litert.interpreter", extra=EXTRA)
    quantizer, recipe = (optional(f"ai_edge_quantizer.{part}", extra=EXTRA) for part in ("quantizer", "recipe"))
    interpreter = litert.Interpreter(str(path), num_threads=1)
    [signature] = interpreter.get_signature_list()
    details = interpreter.get_signature_runner().get_input_details()
    sample = {}
    for value, (name, detail) in zip(in_order(inputs, list(details)), details.items(), strict=True):
        if value.shape != tuple(detail["shape"]):
            raise ValueError(f"{name}: has shape {value.shape}, the file takes {tuple(detail['shape'])}")
        sample[name] = value.astype(detail["dtype"], casting="same_kind")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # bars of progress, and that it keeps all tensors
        warnings.simplefilter("ignore")
        work = quantizer.Quantizer(str(path), quantization_recipe=recipe.static_wi8_ai8())
        ranges = work.calibrate({signature: [sample]}, num_threads=1)
        work.quantize(ranges, serialize_to_path=str(target), enable_progress_report=False)


def read_estimate(folder: Path, accelerator: str) -> Estimate:
    """The estimate that Vela wrote into a folder as a summary, a table of passes and the compiled network.

    Raises:
        DeviceError: these files are not there or not what Vela 5 writes, or the NPU has nothing to do.
    """
    try:
        [summary_path], [passes_path], [compiled] = (list(folder.glob(f"*{end}")) for end in _WRITTEN)
        with summary_path.open(newline="") as summary_file, passes_path.open(newline="") as passes_file:
            [summary], passes = csv.DictReader(summary_file), list(csv.DictReader(passes_file))
        estimate = Estimate(
            accelerator=accelerator,
            system_config=summary["system_config"],
            memory_mode=summary["memory_mode"],
            clock_mhz=float(summary["core_clock"]) / 1e6,
            cycles=int(float(summary["cycles_total"])),
            latency_ms=1e3 * float(summary["inference_time"]),
            sram_kib=float(summary["sram_memory_used"]),
            dram_kib=float(summary["dram_memory_used"]),
            flash_kib=float(summary["on_chip_flash_memory_used"]) + float(summary["off_chip_flash_memory_used"]),
            file_kib=compiled.stat().st_size / 2**10,
            num_passes=len(passes),
            cpu_operators=dict(Counter(row["Original Operator"] for row in passes if row["Target"] == "CPU").most_common()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"Vela wrote something else than its summary and table of passes: {error!r}") from error
    if not (math.isfinite(estimate.latency_ms) and estimate.latency_ms > 0 and estimate.cycles > 0):
        raise DeviceError(f"nothing of the network runs on {accelerator}: {estimate}")
    return estimate


_WRITTEN = ("_summary_*.csv", "_per-layer.csv", "_vela.tflite")
