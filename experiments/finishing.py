"""From an architecture to a file whose accuracy and latency were measured: cut out, train, export, measure."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.calibration import MEASUREMENTS, export_for_timing, read_measurements, sentinel_of
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from hardware.timing import Exported, HasDeployment, measure
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import compare, export_for, export_onnx, form_of, format_of, open_session
from nas.protocols import Batch, Device, Family, GenerativeFamily, Task, TaskWithMetrics
from nas.space import Architecture
from nas.supernet import cut_out, error_percent, state_of
from nas.training import fine_tune, shrink_and_perturb
from nas.types import MODES, Measurement, Workload

EVALUATION_TOKENS = 8192  # tokens a batch where nothing is trained
FOLDER = "shortlist"


@dataclass(frozen=True)
class Finisher:
    """Trains, exports and scores stand-alone networks of one run; what is finished is read from its files."""

    family: Family
    task: Task
    device: Device
    workload: Workload
    compute: Compute
    settings: FinishSettings
    seed: int
    run: RunDirectory

    def is_finished(self, arch: Architecture) -> bool:
        return self.run.has(f"{FOLDER}/{arch.id}.json")

    def record(self, arch: Architecture) -> dict[str, Any]:
        """Facts of a finished network: validation error in percent, parameters, seconds, export report."""
        facts: dict[str, Any] = self.run.read_json(f"{FOLDER}/{arch.id}.json")
        return facts

    def steps(self, arch: Architecture) -> int:
        """Steps that cost as many FLOPs as `train.steps` of the largest network, at most `most_steps`."""
        encoding = Encoding.of(self.family.space, [self.family.space.largest(), arch])
        largest, own = sum(operator.flops + np.zeros(2) for operator in self.family.operators(encoding, self.workload.encoded))
        return min(self.settings.most_steps, int(self.settings.train.steps * largest / own))

    def finish(self, arch: Architecture, supernet: nn.Module) -> None:
        """Cuts out, trains, exports and scores on the validation split; writes `shortlist/<id>.{safetensors,onnx,json}`."""
        start = time.perf_counter()
        torch.manual_seed(self.seed)
        fresh = self.family.network(arch)
        network = cut_out(self.family, supernet, arch, self.compute)
        shrink_and_perturb(network, fresh, inherit=self.settings.inherit)
        config = dataclasses.replace(self.settings.train, steps=self.steps(arch))
        fine_tune(network, self.task, config, compute=self.compute, seed=self.seed)
        with self.run.replacing(f"{FOLDER}/{arch.id}.safetensors") as path:
            save_file(state_of(network), path)
        deployed = self.network(arch)
        example = self.family.example_input(self.workload)
        report = export_onnx(deployed, example, self.onnx_path(arch))
        if self.shipped_path(arch) == self.onnx_path(arch):
            batches = list(self.task.batches("validation", tokens_per_batch=EVALUATION_TOKENS, seed=None))
            error = error_percent(network.eval(), [b.to(self.compute.device) for b in batches], self.task, self.compute)
        else:
            error = self.file_scores(arch, "validation")["error_percent"]
        seconds = round(time.perf_counter() - start, 2)
        facts = {
            "arch": arch.to_json(), "error_percent": error, "train_steps": config.steps, "train_seconds": seconds,
            "export": report.to_json(),
        }  # fmt: skip
        self.run.write_json(f"{FOLDER}/{arch.id}.json", facts)

    def network(self, arch: Architecture) -> nn.Module:
        """The finished network in the form that is exported, in float32 on the CPU."""
        network = self.family.network(arch, backend="blocks")
        network.load_state_dict(load_file(self.run / f"{FOLDER}/{arch.id}.safetensors"))
        return network.eval()

    def measure(
        self, archs: Sequence[Architecture], *, reference_ms: float | None, phase: str, rounds: int
    ) -> dict[str, Measurement]:
        """Times the finished files beside the sentinel, expressed in its `reference_ms`; what this phase has measured is read."""
        have = read_measurements(self.family, self.run, phase=phase)
        missing = [a for a in archs if a.id not in have]
        if missing:
            with tempfile.TemporaryDirectory() as folder:
                networks = [self._exported(a, Path(folder)) for a in missing]
                [sentinel] = export_for_timing(
                    self.family, [sentinel_of(self.family)], self.workload, Path(folder), device=self.device
                )
                fresh = measure(
                    self.device, networks, sentinel=sentinel, workload=self.workload, rounds=rounds,
                    sentinel_reference_ms=reference_ms,
                )  # fmt: skip
            for measurement in fresh:
                have[measurement.arch.id] = measurement
                self.run.append(MEASUREMENTS, {"phase": phase, **measurement.to_json()})
        return have

    def _exported(self, arch: Architecture, folder: Path) -> Exported:
        """The file that ships, or the same network in the other format that the device runs."""
        form, example = form_of(self.family, self.network(arch), self.workload)
        if format_of(self.device) == "onnx":
            path = self.onnx_path(arch, self.workload.mode)
        else:
            path = export_for(self.device, form, example, folder / f"finished-{arch.id}")
        return Exported(arch, path, {name: value.numpy() for name, value in example.items()})

    def verdict(self, arch: Architecture, *, reference_ms: float | None) -> Measurement:
        """One more measurement of a finished network, with twice the rounds."""
        phase, rounds = f"verdict {arch.id}", 2 * self.settings.rounds
        return self.measure([arch], reference_ms=reference_ms, phase=phase, rounds=rounds)[arch.id]

    def file_scores(self, arch: Architecture, split: str) -> dict[str, Any]:
        """`error_percent` and the task's own `metrics` of the file that ships itself, run by ONNX Runtime over a split."""
        session = open_session(self.shipped_path(arch), threads=torch.get_num_threads())
        wrong, total = 0.0, 0
        sums: Counter[str] = Counter()
        for batch in self.task.batches(split, tokens_per_batch=EVALUATION_TOKENS, seed=None):
            feed = {name: value.numpy() for name, value in self._named(batch).items()}
            outputs = torch.from_numpy(session.run(None, feed)[0])
            wrong += self.task.error(outputs, batch.targets)
            total += len(batch.targets)
            if isinstance(self.task, TaskWithMetrics):
                sums.update(self.task.totals(outputs, batch.targets))
        metrics = dict(self.task.metrics(sums)) if isinstance(self.task, TaskWithMetrics) else {}
        return {"error_percent": 100.0 * wrong / total, "metrics": metrics}

    def parity(self, arch: Architecture, *, num_examples: int = 256) -> dict[str, Any]:
        """How the file's answers agree with the network's on at least so many real test inputs (their labels are not read)."""
        inputs, total = [], 0
        for batch in self.task.batches("test", tokens_per_batch=2048, seed=self.seed):
            inputs.append(self._named(batch))
            total += len(batch.targets)
            if total >= num_examples:
                break
        difference, equal, total = compare(self.network(arch), self.shipped_path(arch), inputs)
        return {"num_examples": total, "max_abs_difference": difference, "equal_decisions": equal / total, "inputs": "test split"}

    def onnx_path(self, arch: Architecture, mode: str = "encode") -> Path:
        """The file of a finished network; for another mode than `encode` it is written when it is first asked for."""
        if mode == "encode":
            return self.run / f"{FOLDER}/{arch.id}.onnx"
        path = self.run / f"{FOLDER}/{arch.id}.{mode}.onnx"
        if not path.is_file():
            whole = self.workload.encoded
            tokens, past = (whole.tokens, 0) if mode == "prefill" else (1, whole.tokens - 1)
            workload = Workload(whole.batch, tokens, mode, past)
            export_onnx(*form_of(self.family, self.network(arch), workload), path)
        return path

    def files(self, arch: Architecture) -> dict[str, Path]:
        """What ships, by its names there; the first answers for whole inputs."""
        others = MODES[1:] if isinstance(self.family, GenerativeFamily) else ()
        return {"model.onnx": self.shipped_path(arch), **{f"{mode}.onnx": self.shipped_path(arch, mode) for mode in others}}

    def shipped_path(self, arch: Architecture, mode: str = "encode") -> Path:
        """The file that the device really runs, of those that are ONNX: the exported one, or its quantisation."""
        path = self.onnx_path(arch, mode)
        return self.device.deployed(path) if isinstance(self.device, HasDeployment) else path

    def _named(self, batch: Batch) -> dict[str, torch.Tensor]:
        return dict(zip(self.family.example_input(self.workload), batch.inputs, strict=True))
