"""The parts of a brief search on a device whose times are known: its calibration, an explorer, and what that scored."""

import json
from datetime import UTC, datetime

import numpy as np

from experiments.budgets import Budget
from experiments.calibration import Calibration
from experiments.costing import Costing
from experiments.exploring import Explorer
from experiments.progress import Reporter
from latency_models.additive import AdditiveLatency
from latency_models.memory import memory_of
from nas.compute import Compute
from nas.types import Candidate, Measurement, Provenance, Workload


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def measurement(arch, milliseconds, **environment):
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Measurement(arch, "simulated", Workload(tokens=32), ((milliseconds,),), ((1.0,),), 1.0, {"time": now, **environment})


def law_ms(pipeline, archs, *, factor=1.0):
    """What the simulated device takes: all operators cost by their FLOPs, those of the widest networks `factor` times as much."""
    flops = np.array([memory_of(pipeline.family, [a], pipeline.workload)[0].weights_mib for a in archs])
    return [float(f * (factor if a.size("width") == 64 else 1.0)) for f, a in zip(flops, archs, strict=True)]


def calibration_of(pipeline):
    rng = np.random.default_rng(0)
    archs = list({a.id: a for a in (pipeline.family.space.sample(rng) for _ in range(40))}.values())[:12]
    times = law_ms(pipeline, archs)
    known = {a.id: measurement(a, t, energy_mj=[3 * t] * 3) for a, t in zip(archs, times, strict=True)}
    model = AdditiveLatency().fit(pipeline.family, list(known.values()))
    return Calibration(model, known, 1.0, {}, [])


def explorer(pipeline, calibration):
    costing = Costing.of(pipeline.settings, pipeline.family, pipeline.workload, calibration)
    supernet = pipeline.family.supernet()
    return Explorer(
        pipeline.family, pipeline.task, supernet, Compute("cpu", "float32", "matmul"), calibration, costing, Budget(10.0, "user"),
        pipeline.settings, pipeline.run, Reporter(quiet=True),
    )  # fmt: skip


def scored(pipeline, calibration):
    rng = np.random.default_rng(1)
    archs = list({a.id: a for a in (pipeline.family.space.sample(rng) for _ in range(60))}.values())
    predicted = calibration.model.predict(archs)
    return [
        Candidate(
            a, {"error": 50 / (1 + m), "latency_ms": m, "upper_ms": u},
            {"error": Provenance.INHERITED, "latency_ms": Provenance.PREDICTED, "upper_ms": Provenance.PREDICTED}, "search",
        )
        for a, m, u in zip(archs, predicted.mean_ms.tolist(), predicted.upper_ms.tolist(), strict=True)
    ]  # fmt: skip


def splits_read(monkeypatch, task):
    """The splits of a task that are read from now on."""
    read, batches = set(), type(task).batches

    def spy(self, split, **how):
        read.add(split)
        return batches(self, split, **how)

    monkeypatch.setattr(type(task), "batches", spy)
    return read
