"""The main job: calibrate, train the supernet, propose, explore, finish a short-list, choose what ships and take it further.

Each phase writes what it found into the run's directory and reads it back when the run is continued, so a run that is stopped at
any moment goes on where it was: same seed and same measurements, same weights, proposals and trials.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.also import Companion
from experiments.baseline_teachers import BaselineTeachers
from experiments.budgets import Ends, check_reachable, fastest_within
from experiments.calibration import Calibration, Calibrator
from experiments.checkpoint_teacher import CheckpointTeachers, check_teacher
from experiments.checkpoints import loaded, read_checkpoint, write_checkpoint
from experiments.compute import COMPUTE, chosen_compute, tried_once
from experiments.costing import Costing, check_device, check_precisions, check_real, check_times, memory_costs
from experiments.exploring import Explorer
from experiments.finishing import Finisher
from experiments.halving import Halving
from experiments.journal import check_journal
from experiments.ledger import spent
from experiments.outcome import Explored, Outcome
from experiments.progress import Reporter
from experiments.proposing import Proposer
from experiments.roles import SCORED_ON
from experiments.run_directory import SUPERNET, RunDirectory
from experiments.selecting import Selection
from experiments.settings import Settings
from experiments.stages import check_match, check_stages
from experiments.table_calibration import TableCalibrator
from experiments.tuning import Tuner
from hardware.recorded import RecordedDevice
from hardware.store import MeasurementStore
from nas.compute import Compute
from nas.protocols import (
    Device,
    DifferentiableLatencyModel,
    Family,
    GenerativeFamily,
    LatencyModel,
    PretrainedFamily,
    Task,
)  # fmt: skip
from nas.supernet import state_of
from nas.training import supernet_trainer
from nas.types import Workload


class Pipeline:
    """One search. The constructor checks everything that can be checked before work starts.

    Raises:
        ValueError: components that do not fit together, or a directory of another run (nothing in it is changed).
    """

    def __init__(
        self, *, task: Task, family: Family, device: Device, latency_model: LatencyModel, settings: Settings,
        directory: Path | str, store: MeasurementStore, report: Reporter, also: Sequence[Companion] = (),
    ) -> None:  # fmt: skip
        if not isinstance(latency_model, DifferentiableLatencyModel):
            raise ValueError(f"latency_model: {type(latency_model).__name__} is not differentiable, the search needs expected_ms")
        self.task, self.family, self.device, self.latency_model = task, family, device, latency_model
        self.settings, self.store, self.report, self.also = settings, store, report, tuple(also)
        longest = 1 if settings.mode == "decode" else task.max_tokens
        tokens = longest if settings.tokens is None else settings.tokens
        self.workload = Workload(settings.batch, tokens, settings.mode, settings.past)
        if self.workload.mode != "encode" and not isinstance(family, GenerativeFamily):
            raise ValueError(f"mode: {settings.mode!r} is for spaces of decoders; {family.space.name} answers for whole inputs")
        family.example_input(self.workload)  # refuses a workload that the family cannot take
        for one in (device, *(companion.device for companion in also)):
            check_real(one)
            check_times(one)
        settings.outer.check(family.space, settings.objectives)
        check_device(settings, device)
        check_precisions(family, device)
        if settings.outer.measure and isinstance(device, RecordedDevice):
            raise ValueError(f"searcher.measure: {device.name} is a table, nothing can be measured on it")
        for companion in also:
            if not isinstance(companion.latency_model, DifferentiableLatencyModel):
                kind = type(companion.latency_model).__name__
                raise ValueError(f"also.{companion.name}: {kind} is not differentiable, the search needs expected_ms")
        self._check_memory()
        check_match("finish.lesson", settings.finish.lesson, family.space)
        check_teacher("finish.lesson", settings.finish.lesson, task)
        check_stages(settings.stages, task=task, family=family, device=device)
        self.pretrained = self._pretrained()
        self.run = RunDirectory(directory)

    def _pretrained(self) -> Mapping[str, torch.Tensor]:
        """What the supernet begins with, where that is not random."""
        path = self.settings.supernet.path
        if path is None:
            return {}
        if not isinstance(self.family, PretrainedFamily):
            raise ValueError(f"init.path: networks of the space {self.family.space.name} cannot begin from a checkpoint")
        try:
            return self.family.pretrained(Path(path))
        except ValueError as error:
            raise ValueError(f"init: {error}") from error

    def _check_memory(self) -> None:
        """Whether the family says what its networks need, and whether any of them is within the budget."""
        if "memory_mib" in (*self.settings.objectives, *self.settings.beside):
            memory_costs(self.family, [self.family.space.largest()], self.workload)
        if self.settings.budget_mib is not None:
            check_reachable(
                "memory_mib", self.settings.budget_mib, self.family.space, lambda a: memory_costs(self.family, a, self.workload)
            )

    def identity(self) -> dict[str, Any]:
        """What makes a directory this run's and no other's."""
        return {
            "space": self.family.space.name,
            "space signature": self.family.signature,
            "task": self.task.name,
            "data": self.task.fingerprint,
            "device": self.device.name,
            "device fingerprint": self.device.fingerprint,
            **{f"device {c.name}": c.device.fingerprint for c in self.also},
            "latency model": type(self.latency_model).__name__,
            "seed": self.settings.seed,
            "budget_ms": self.settings.budget_ms,
            "budget_mib": self.settings.budget_mib,
            "budget_mj": self.settings.budget_mj,
            "objectives": list(self.settings.objectives),
            "candidates scored on": SCORED_ON,
            "settings": self.settings.said(),
        }

    def claim(self) -> None:
        """Makes the directory this run's. Raises RunError if it is another's; nothing in it is changed then."""
        self.run.claim(self.identity())

    def search(self) -> Outcome:
        """Runs, or goes on with, every phase.

        Raises:
            BudgetError: no architecture meets the budget; before any training.
            DeviceError: while the latency model lacks measurements; a device that is lost later leaves the rest to the model.
            TrainingError, ExportError: with everything kept that was finished.
        """
        torch.set_num_threads(self.settings.torch_threads)
        self.claim()
        with spent(self.run, "calibration"):
            calibration = self.calibrate()
        ends = Ends.of(self.family.space, calibration.model.predict, calibration.measured_ms)
        budget = ends.budget(self.settings.budget_ms, self.report)
        elsewhere = self._elsewhere()
        models = {name: found.model for name, found in elsewhere.items()}
        also_ms = {c.name: c.budget_ms for c in self.also if c.budget_ms is not None}
        budget = dataclasses.replace(budget, beside=self.settings.beside, also_ms=also_ms)
        costing = Costing.of(self.settings, self.family, self.workload, calibration, also=models)
        if (asked_mj := budget.beside.get("energy_mj")) is not None:  # memory was checked before anything was measured
            check_reachable("energy_mj", asked_mj, self.family.space, costing.columns)
        least_ms = ends.fastest.upper_ms if len(budget.limits) == 1 else fastest_within(budget, self.family.space, costing)
        check_journal(self.run, self.family.space, objectives=self.settings.objectives, limits=budget.limits)
        with spent(self.run, "trivial baselines"):
            trivial = self._once("trivial.json", "Trivial baselines", lambda: dict(self.task.trivial_baselines()))
        compute = self.compute()
        supernet = self.supernet(compute)
        model = calibration.model
        assert isinstance(model, DifferentiableLatencyModel)
        proposer = Proposer(
            self.family, self.task, self.workload, model, compute, self.settings, self.run, self.report,
            limits=costing.limits(budget),
        )  # fmt: skip
        proposals = proposer.propose(supernet, proposer.budgets(min(budget.ms, ends.slowest.upper_ms), least_ms))
        explorer = Explorer(
            self.family, self.task, supernet, compute, calibration, costing, budget, self.settings, self.run, self.report
        )
        calibrator = self.calibrator()
        further = {c.name: (c.calibrator(calibrator), elsewhere[c.name]) for c in self.also if c.is_live}
        explored = explorer.explore([p.arch for p in proposals], calibrator, further)
        baselines = BaselineTeachers(self.task, trivial)
        finisher = self._taught(self.finisher(compute), baselines, explored)
        settings, tuned = Tuner(finisher, budget, self.settings, self.report).tuned(explored, supernet)
        finisher = dataclasses.replace(finisher, settings=settings.finish)
        climbed = Halving(finisher, budget, settings, self.report).climb(explored, supernet)
        checkpoints = CheckpointTeachers(self.task, compute, self.run, self.report)
        selection = Selection(finisher, calibration, costing, budget, baselines, checkpoints, settings, self.report)
        finalists = selection.finalists(climbed.shortlists)
        selection.train(finalists, supernet)
        measurements, lost = selection.measure(finalists)
        measured_mib = selection.measure_memory(finalists)
        choice = selection.choose(finalists, measurements, measured_mib, lost)
        choice, stages = selection.finish(choice, finalists, measurements)
        return Outcome(
            explored=explored,
            climbed=climbed,
            finalists=tuple(finalists),
            measurements=measurements,
            measured_mib=measured_mib,
            choice=choice,
            budget=budget,
            calibration=calibration,
            proposals=tuple(proposals),
            trivial=trivial,
            compute=compute,
            finisher=finisher,
            costing=costing,
            stages=tuple(stages),
            tuned=tuned,
            further=tuple(elsewhere.values()),
            elsewhere={c.name: v for c in self.also if (v := c.verdict(elsewhere[c.name], finisher, choice.arch))},
        )

    def _taught(self, finisher: Finisher, baselines: BaselineTeachers, explored: Explored) -> Finisher:
        """With the baseline that teaches the short-list, if one does, or with the answers of the checkpoint that is asked for."""
        if baseline := baselines.of_short_list(explored, self.settings.finish.lesson, self.report):
            return dataclasses.replace(finisher, outsider=baseline)
        if finisher.outsider is not None:
            with spent(self.run, "teacher"):
                finisher.outsider()
        return finisher

    def finisher(self, compute: Compute) -> Finisher:
        lesson, checkpoints = self.settings.finish.lesson, CheckpointTeachers(self.task, compute, self.run, self.report)
        of_checkpoint = lesson.is_of_outsider and lesson.is_of_checkpoint
        return Finisher(
            self.family, self.task, self.device, self.workload, compute, self.settings.finish, self.settings.seed, self.run,
            outsider=functools.partial(checkpoints.teacher, lesson.teacher) if of_checkpoint else None,
            checkpoint_seconds=self.settings.checkpoint_seconds,
            also={companion.name: companion.device for companion in self.also if companion.is_live},
        )  # fmt: skip

    def _once(self, name: str, title: str, make: Callable[[], Any]) -> Any:
        """What a file of the run holds, or what `make` returns, then written."""
        if not self.run.has(name):
            with self.report.phase(title):
                self.run.write_json(name, make())
        return self.run.read_json(name)

    def calibrate(self) -> Calibration:
        """Measures what is not known yet and fits the latency model."""
        if isinstance(self.device, RecordedDevice):
            return TableCalibrator(self.family, self.device, self.workload, self.report).calibrate(self.latency_model)
        return self.calibrator().calibrate(self.latency_model, seed=self.settings.seed)

    def _elsewhere(self) -> dict[str, Calibration]:
        """Of further devices, by name."""
        found = {}
        for companion in self.also:
            with spent(self.run, f"calibration of {companion.name}"):
                found[companion.name] = companion.calibrate(self.calibrator(), seed=self.settings.seed)
        return found

    def calibrator(self) -> Calibrator:
        settings = self.settings.calibration
        return Calibrator(self.family, self.device, self.workload, settings, self.run, self.store, self.report)

    def compute(self) -> Compute:
        """Where and how this run trains: the fastest way that a short trial found, of this run or of an earlier one."""

        def choose() -> dict[str, Any]:
            wanted, tokens = self.settings.train_on, self.settings.supernet.train.tokens_per_batch
            device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
            return tried_once(
                self.store.folder, self.family, self.task, tokens_per_batch=tokens, device=device,
                precision=self.settings.train_precision, backend=self.settings.train_attention,
            )  # fmt: skip

        self._once(COMPUTE, "Trying ways to train", choose)
        compute = chosen_compute(self.run)
        self.report.say(f"Training on {compute}")
        return compute

    def supernet(self, compute: Compute) -> nn.Module:
        """The trained supernet, from `supernet.safetensors`, from the checkpoint of this run, or from the start."""
        torch.manual_seed(self.settings.seed)
        supernet = self.family.supernet()
        supernet.load_state_dict({**supernet.state_dict(), **self.pretrained})
        supernet.to(compute.device)
        if self.run.has(SUPERNET):
            supernet.load_state_dict(loaded(self.run / SUPERNET, load_file))
            return supernet
        config = self.settings.supernet.train
        state = read_checkpoint(self.run, "supernet.ckpt", compute)
        trainer = supernet_trainer(
            self.family, supernet, self.task, config, compute=compute, seed=self.settings.seed,
            rule=self.settings.supernet.rule, num_random=self.settings.supernet.num_random,
            distillation=self.settings.supernet.distillation, state=state,
        )  # fmt: skip
        saved = time.monotonic()
        with self.report.phase("Training the supernet", config.steps, done=trainer.step) as advance:

            def on_step(step: int, loss: float) -> None:
                nonlocal saved
                advance(step, f"loss {loss:.3f}")
                if time.monotonic() - saved > self.settings.checkpoint_seconds:
                    write_checkpoint(self.run, "supernet.ckpt", trainer.state_dict())
                    saved = time.monotonic()

            with spent(self.run, "supernet", networks_trained=1):
                trainer.run(on_step=on_step, on_setback=self.report.say)
        with self.run.replacing(SUPERNET) as path:
            save_file(state_of(supernet), path)
        (self.run / "supernet.ckpt").unlink(missing_ok=True)
        return supernet
