"""A search as a run does it, without a device: errors with a supernet's weights, and predicted latency.

Task, space and settings are those of the main job with a few overrides. The device is the invented one of `bench darts`, so that
the figures do not depend on how busy this machine is. As in a run that is asked for none, the budget is half of the largest
network's latency; or it is a tight one, which one of five random networks keeps. Random search draws only what is predicted to
keep it. Searches score every third batch of the split that scores candidates, so that there is time for many; what an evaluation
costs is said of the complete one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.benchmarks.darts import invented_device
from experiments.build import family_of_task, make_settings
from experiments.config import composed
from experiments.progress import Reporter
from experiments.roles import SCORED_ON
from experiments.run_directory import replacing
from experiments.settings import Settings, SupernetSettings
from latency_models.additive import AdditiveLatency
from nas.compute import Compute, choose_compute
from nas.darts import Darts
from nas.extremes import least
from nas.pareto import hypervolume
from nas.protocols import Batch, Family, Searcher, Task
from nas.search import search
from nas.space import Architecture
from nas.supernet import evaluation_batches, inherited_error, state_of
from nas.training import supernet_trainer
from nas.types import Candidate, Provenance, Workload

OBJECTIVES = ("error", "latency_ms")
SAMPLES, KEEP_A_TIGHT_BUDGET = 500, 0.2  # random networks, and the share of them that keeps a tight budget
PART = 3  # one of so many batches is what searches see
PROVENANCE = {"error": Provenance.INHERITED, **dict.fromkeys(("latency_ms", "upper_ms"), Provenance.PREDICTED)}


@dataclass(frozen=True)
class Inherited:
    """The problem. Errors are remembered, whoever asked for them."""

    family: Family
    task: Task
    settings: Settings
    supernet: nn.Module
    compute: Compute
    model: AdditiveLatency
    batches: Sequence[Batch]
    budget_ms: float
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, overrides: Sequence[str], folder: Path, report: Reporter) -> Inherited:
        """That of the main job with these overrides, with the supernet that the folder holds, or one that is trained and left
        there."""
        config = composed(*overrides)
        settings = make_settings(config)
        task, family = family_of_task(config)
        batch = next(iter(task.batches("train", tokens_per_batch=settings.supernet.train.tokens_per_batch, seed=0)))
        compute, _ = choose_compute(family, task, batch)
        supernet = _supernet(family, task, settings.supernet, compute, folder, report)
        batches = list(evaluation_batches(task, SCORED_ON))
        model = invented_device(family, Workload(tokens=task.max_tokens))
        budget_ms = float(model.predict([family.space.largest()]).mean_ms[0]) / 2
        return cls(family, task, settings, supernet, compute, model, batches, budget_ms)

    def tight(self) -> Inherited:
        """The same with a budget that few networks keep."""
        rng = np.random.default_rng(0)
        upper_ms = self._upper_ms([self.family.space.sample(rng) for _ in range(SAMPLES)])
        return replace(self, budget_ms=float(np.quantile(upper_ms, KEEP_A_TIGHT_BUDGET)))

    def evaluate(self, arch: Architecture) -> Candidate:
        if arch.id not in self.errors:
            self.errors[arch.id] = self._error(arch, self.batches[::PART])
        costs = {name: float(column[0]) for name, column in self.costs([arch]).items()}
        return Candidate(arch, {"error": self.errors[arch.id], **costs}, PROVENANCE)

    def costs(self, archs: Sequence[Architecture]) -> dict[str, np.ndarray]:
        """What is known of candidates before they are scored, each [N]."""
        prediction = self.model.predict(archs)
        return {"latency_ms": prediction.mean_ms, "upper_ms": prediction.upper_ms}

    def seconds_of_complete(self, num: int) -> np.ndarray:
        """CPU and wall seconds of so many random networks' errors over the complete split, [N, 2]."""
        rng, seconds = np.random.default_rng(0), []
        for _ in range(num):
            arch = self.family.space.sample(rng)
            start = time.process_time(), time.perf_counter()
            self._error(arch, self.batches)
            seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        return np.array(seconds)

    def found(self, make: Callable[..., Searcher], num: int, *, seed: int, initial: Sequence[Architecture] = ()) -> np.ndarray:
        """Error in percent and latency in ms, [N, 2], of what a strategy asks for within the budget, in its order; what is beyond
        it counts as an evaluation and is not a number."""
        space, limits = self.family.space, {"upper_ms": self.budget_ms}
        searcher = make(
            space, objectives=OBJECTIVES, seed=seed, initial=initial, limits=limits, costs=self.costs,
            population=self.settings.outer.population,
        )  # fmt: skip
        candidates = search(searcher, self.evaluate, num_evaluations=num).candidates
        points = [
            [c.objectives[n] if c.objectives["upper_ms"] <= self.budget_ms else np.nan for n in OBJECTIVES] for c in candidates
        ]
        return np.array(points).reshape(-1, 2)

    def volume(self, found: np.ndarray) -> float:
        """Hypervolume in percent times ms up to the budget and the error of the smallest network."""
        worst = self.evaluate(self.family.space.smallest()).objectives["error"]
        return hypervolume(found[~np.isnan(found[:, 0])], (worst, self.budget_ms))

    def propose(self, *, seed: int) -> tuple[list[Architecture], float]:
        """Proposals for as many budgets as a run has, and the CPU seconds that they took."""
        config, num = self.settings.darts, self.settings.outer.proposals
        fastest = float(self._upper_ms([least(self.family.space, self._upper_ms)])[0])
        start = time.process_time()
        darts = Darts(self.family, self.supernet, self.model, self.task, config, compute=self.compute, seed=seed)
        archs = [
            darts.propose(budget, steps=config.steps_more if number else config.steps).arch
            for number, budget in enumerate(np.geomspace(self.budget_ms, fastest, num).tolist())
        ]
        return archs, time.process_time() - start

    def _error(self, arch: Architecture, batches: Sequence[Batch]) -> float:
        return inherited_error(self.family, self.supernet, arch, batches, self.task, self.compute)

    def _upper_ms(self, archs: Sequence[Architecture]) -> np.ndarray:
        return self.model.predict(archs).upper_ms


def _supernet(
    family: Family, task: Task, settings: SupernetSettings, compute: Compute, folder: Path, report: Reporter
) -> nn.Module:
    identity = json.dumps([family.signature, task.fingerprint, asdict(settings)])
    path = folder / f"supernet-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.safetensors"
    torch.manual_seed(0)
    supernet = family.supernet()
    if path.is_file():
        supernet.load_state_dict(load_file(path))
        return supernet
    with report.phase(f"Training the supernet of {task.name}", settings.train.steps) as advance:
        supernet_trainer(
            family, supernet, task, settings.train, compute=compute, seed=0, rule=settings.rule, num_random=settings.num_random,
            distillation=settings.distillation,
        ).run(on_step=lambda step, loss: advance(step, f"loss {loss:.3f}"))  # fmt: skip
    with replacing(path) as unfinished:
        save_file(state_of(supernet), unfinished)
    return supernet
