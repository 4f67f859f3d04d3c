"""The files of a network in fewer bits: which blocks stay as they are, by the error that each adds for each ms that it saves."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from experiments.finishing import Finisher
from hardware.timing import Exported
from nas.finish.precision import blocks, quantised
from nas.finish.quantise import Quantise, order
from nas.space import Architecture
from nas.types import Measurement


@dataclass(frozen=True)
class Quantising:
    """One network and the stage that quantises it; `measured` times files side by side."""

    finisher: Finisher
    arch: Architecture
    stage: Quantise
    measured: Callable[[Sequence[Exported]], Sequence[Measurement]]

    def replace_files(self, before: str, name: str) -> dict[str, Any]:
        """Puts the quantisation of every form of the stage `name` in its place; facts, among them which blocks stayed as they
        were. `before` is the stage whose error limits what may be lost."""
        finisher, stage = self.finisher, self.stage
        with tempfile.TemporaryDirectory() as folder:
            keep: list[str] = []
            if stage.mixed and stage.kind != "fp16":
                limit = self._error(finisher.files.onnx_path(self.arch, tag=before)) + finisher.settings.most_points_lost
                if self._error(self._write(name, "encode", Path(folder) / "all.onnx", [])) > limit:
                    keep = self._kept_blocks(name, Path(folder), limit)
            finished = {mode: self._write(name, mode, Path(folder) / f"{mode}.onnx", keep) for mode in finisher.files.modes}
            for mode, path in finished.items():
                target = finisher.files.onnx_path(self.arch, mode, tag=name).relative_to(finisher.run.path)
                with finisher.run.replacing(str(target)) as unfinished:
                    unfinished.write_bytes(path.read_bytes())
        return {"kind": stage.kind, "aware": stage.aware, "kept_blocks": keep}

    def _write(self, name: str, mode: str, path: Path, keep: Sequence[str]) -> Path:
        """A form of the stage's network in fewer bits, but for the blocks in `keep` and those that the search has chosen."""
        model, stage = onnx.load(self.finisher.files.onnx_path(self.arch, mode, tag=name)), self.stage
        keep = [*keep, *self._chosen_blocks(model)]
        onnx.save(quantised(model, stage.kind, calibration=stage.calibration, feeds=self._feeds, keep=keep), path)
        return path

    def _kept_blocks(self, name: str, folder: Path, limit: float) -> list[str]:
        """Mixed precision: the blocks with the least loss added for each ms saved are quantised, as many as the limit of the
        error on the split "architecture" allows. Each block's ms is measured with it alone quantised."""
        whole = self.finisher.files.onnx_path(self.arch, tag=name)
        model = onnx.load(whole)
        chosen = self._chosen_blocks(model)
        names = [block for block in blocks(model, self.stage.kind) if block not in chosen]
        alone = [
            self._write(name, "encode", folder / f"{i}.onnx", [b for b in names if b != block]) for i, block in enumerate(names)
        ]
        inputs = self.finisher.times.exported(self.arch, folder, tag=name).inputs
        first_ms, *ms = [m.latency_ms for m in self.measured([Exported(self.arch, path, inputs) for path in (whole, *alone)])]
        first, *losses = [self.finisher.scores.of_file(path, "architecture")["loss"] for path in (whole, *alone)]
        added = {block: loss - first for block, loss in zip(names, losses, strict=True)}
        saved_ms = {block: first_ms - own for block, own in zip(names, ms, strict=True)}
        paying = order(names, added, saved_ms)
        for number in range(len(paying), 0, -1):
            keep = [block for block in names if block not in paying[:number]]
            if self._error(self._write(name, "encode", folder / "some.onnx", keep)) <= limit:
                return keep
        return names

    def _chosen_blocks(self, model: onnx.ModelProto) -> list[str]:
        """Those in layers whose precision the search has chosen: they keep it."""
        chosen = "layer1.precision" in self.finisher.family.space.by_name
        return [block for block in blocks(model, self.stage.kind) if chosen and "/stack/" in f"{block}/"]

    def _error(self, path: Path) -> float:
        return float(self.finisher.scores.of_file(path, "architecture")["error_percent"])

    @functools.cached_property
    def _feeds(self) -> list[dict[str, np.ndarray]]:
        """Real inputs of "train" for static ranges, at least so many examples."""
        feeds: list[dict[str, np.ndarray]] = []
        if self.stage.kind != "static":
            return feeds
        total = 0
        for batch in self.finisher.task.batches("train", tokens_per_batch=512, seed=self.finisher.seed):
            feeds.append(self.finisher.scores.feed(batch))
            total += len(batch.targets)
            if total >= self.stage.calibration_examples:
                break
        return feeds
