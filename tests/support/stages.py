"""A small task, a device that weighs files, and the way of a network through stages."""

import itertools
from collections import Counter
from typing import Any, ClassVar, cast

import onnx
import pytest
import torch
from torch.nn import functional as F

from experiments.finishing import Finisher
from experiments.progress import Reporter
from experiments.results import StageReport
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from experiments.stages import Stages
from nas.compute import Compute
from nas.finish.teaching import School
from nas.protocols import Batch, DeviceError
from nas.training import TrainConfig
from nas.types import Workload

FAST = TrainConfig(steps=3, tokens_per_batch=64)
ANY = 100.0  # points that may be lost
BUDGET_MS = 1e6


class Sum:
    """Which of three classes do the tokens name most often?"""

    name, max_tokens = "sum", 8
    sizes: ClassVar = {"vocab_size": 20, "num_classes": 3, "max_tokens": 8}
    loss = staticmethod(F.cross_entropy)

    def batches(self, split, *, tokens_per_batch, seed):
        generator = torch.Generator().manual_seed((seed or 0) % 1000 + len(split))
        for _ in range(4):
            ids = torch.randint(20, (tokens_per_batch // 8 or 1, 8), generator=generator)
            yield Batch((ids, torch.ones_like(ids)), (ids % 3).mode(dim=1).values)

    def error(self, outputs, targets):
        return float((outputs.argmax(-1) != targets).sum())


class Scale:
    """Takes the longer the more bytes of weights a file has; or is lost."""

    name, fingerprint = "scale", "scale"

    def __init__(self, *, constant: bool = False, lost: bool = False) -> None:
        self.constant, self.lost, self.environment = constant, lost, {"precision": "fp32"}

    def run(self, onnx_path, inputs):
        if self.lost:
            raise DeviceError("the scale is gone")
        weights = onnx.load(onnx_path).graph.initializer
        return (1.0 if self.constant else sum(len(w.raw_data) for w in weights) / 1e4,) * 3


def school(family, arch=None, predict_ms=None, saved=None):
    arch = arch or family.space.largest()
    return School(
        Sum(),
        Compute(),
        0,
        family.space,
        arch,
        lambda name: [family.network(arch)],
        predict_ms or (lambda a: [1.0]),
        saved or (lambda network, others: [0.0] * len(others)),
        0.5,
    )


def finisher_of(family, tmp_path, device=None, **settings):
    settings = {"train": FAST, "most_steps": 4, "rounds": 2, "most_points_lost": ANY, **settings}
    return Finisher(
        family, cast(Any, Sum()), device or Scale(), Workload(1, 8), Compute(), FinishSettings(**settings), 0,
        RunDirectory(tmp_path), checkpoint_seconds=0.0,
    )  # fmt: skip


def through(finisher, stages, arch=None, teachers=None, predict_ms=lambda arch: 1.0) -> list[StageReport]:
    arch = arch or finisher.family.space.largest()
    if not finisher.files.is_finished(arch):
        finisher.finish(arch, finisher.family.supernet())
    school = School(
        finisher.task, finisher.compute, 0, finisher.family.space, arch,
        lambda name: [finisher.files.to_train(arch, tag="")] if teachers is None else teachers,
        lambda archs: [predict_ms(arch) for arch in archs],
        lambda network, others: finisher.times.saved(arch, network, others, reference_ms=None),
        finisher.settings.most_points_lost,
    )  # fmt: skip
    return Stages(finisher, stages, school, None, BUDGET_MS, Reporter(quiet=True)).run()


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def stopped_and_done(work, monkeypatch, *, after, steps) -> None:
    """Stops a training of so many steps after some of them, and does it again from another random state."""
    calls, step, seen = itertools.count(), torch.optim.AdamW.step, Counter()

    def stopped(optimizer, *arguments):
        if next(calls) == after:
            raise KeyboardInterrupt
        seen["steps"] += 1
        return step(optimizer, *arguments)

    torch.manual_seed(99)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            work()
        assert seen["steps"] == after
        work()
        assert seen["steps"] == steps, "no step is taken again"
