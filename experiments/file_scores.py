"""How good the files of a run's networks are: their errors on a split, and how their answers agree with torch's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.network_files import NetworkFiles
from nas.export import compare
from nas.formats import FORMATS, Answer
from nas.protocols import Batch, Task, TaskWithMetrics
from nas.space import Architecture
from nas.supernet import evaluation_batches


@dataclass(frozen=True)
class FileScores:
    """Scores the files of one run over the splits of its task."""

    files: NetworkFiles
    task: Task
    seed: int

    def of(self, arch: Architecture, split: str, *, tag: str | None = None) -> dict[str, Any]:
        """`error_percent` and the task's own `metrics` of the file that ships itself, run by ONNX Runtime over a split."""
        return self.of_file(self.files.shipped_path(arch, tag=tag), split)

    def of_file(self, path: Path, split: str) -> dict[str, Any]:
        """The same of any ONNX file of such a network."""
        return self.of_answers(FORMATS["onnx"].open(path), split)

    def of_answers(self, answer: Answer, split: str) -> dict[str, Any]:
        """`error_percent`, the task's own `metrics`, the mean `loss` and `num_examples` of whatever answers, over a split."""
        wrong, loss, total = 0.0, 0.0, 0
        sums: Counter[str] = Counter()
        for outputs, targets in self._answers(answer, split):
            wrong += self.task.error(outputs, targets)
            loss += float(self.task.loss(outputs, targets)) * len(targets)
            total += len(targets)
            if isinstance(self.task, TaskWithMetrics):
                sums.update(self.task.totals(outputs, targets))
        metrics = dict(self.task.metrics(sums)) if isinstance(self.task, TaskWithMetrics) else {}
        return {"error_percent": 100.0 * wrong / total, "metrics": metrics, "loss": loss / total, "num_examples": total}

    def errors_by_example(self, arch: Architecture, split: str, *, tag: str | None = None) -> np.ndarray:
        """Error in percent of each example [N], in the split's order, of the file that ships itself."""
        answer = FORMATS["onnx"].open(self.files.shipped_path(arch, tag=tag))
        pairs = (pair for outputs, targets in self._answers(answer, split) for pair in zip(outputs, targets, strict=True))
        return 100.0 * np.array([self.task.error(output[None], target[None]) for output, target in pairs])

    def _answers(self, answer: Answer, split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Outputs and targets of each batch."""
        for batch in evaluation_batches(self.task, split):
            with torch.no_grad():
                outputs = torch.from_numpy(answer(self._named(batch))[0])
            yield outputs, batch.targets

    def parity(self, arch: Architecture, *, num_examples: int = 256, tag: str | None = None) -> dict[str, Any]:
        """How the file's answers agree with the network's on at least so many real test inputs (their labels are not read)."""
        inputs = self.real_inputs(num_examples)
        difference, equal, total = compare(self.files.network(arch, tag=tag), self.files.shipped_path(arch, tag=tag), inputs)
        return {"num_examples": total, "max_abs_difference": difference, "equal_decisions": equal / total, "inputs": "test split"}

    def real_inputs(self, num_examples: int) -> list[dict[str, torch.Tensor]]:
        """At least so many of the test split, if it has them, without their labels."""
        inputs, total = [], 0
        for batch in self.task.batches("test", tokens_per_batch=2048, seed=self.seed):
            inputs.append(self._named(batch))
            total += len(batch.targets)
            if total >= num_examples:
                break
        return inputs

    def feed(self, batch: Batch) -> dict[str, np.ndarray]:
        """A batch's inputs as the file takes them."""
        return {name: value.numpy() for name, value in self._named(batch).items()}

    def _named(self, batch: Batch) -> dict[str, torch.Tensor]:
        return dict(zip(self.files.family.example_input(self.files.workload), batch.inputs, strict=True))
