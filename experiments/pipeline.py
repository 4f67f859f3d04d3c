"""The main job: calibrate, train the supernet, propose, explore, finish a short-list, choose what ships and take it further.

Each phase writes what it found into the run's directory and reads it back when the run is continued, so a run that is stopped at
any moment goes on where it was: same seed and same measurements, same weights, proposals and trials.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages.journal import JournalFileBackend
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.calibration import Calibration, Calibrator, read_measurements
from experiments.finishing import Finisher, shortlist
from experiments.ledger import spent
from experiments.progress import Reporter
from experiments.results import StageReport
from experiments.run_directory import RunDirectory, RunError
from experiments.settings import Settings
from experiments.stages import Stages, check_stages
from experiments.table_calibration import TableCalibrator
from hardware.recorded import RecordedDevice
from hardware.store import MeasurementStore
from nas.compute import Compute, choose_compute
from nas.darts import BudgetError, Darts, Proposal
from nas.finish.teaching import EVALUATION_TOKENS, School
from nas.protocols import (
    Batch,
    Device,
    DeviceError,
    DifferentiableLatencyModel,
    Family,
    GenerativeFamily,
    LatencyModel,
    PretrainedFamily,
    Task,
)  # fmt: skip
from nas.search import RandomSearcher, search
from nas.space import Architecture
from nas.supernet import inherited_error, state_of
from nas.training import supernet_trainer
from nas.types import Candidate, Measurement, Provenance, Workload, pareto_front

CANDIDATES = "candidates.jsonl"


@dataclass(frozen=True)
class Budget:
    """What was asked, in ms, and by whom."""

    ms: float
    origin: str


@dataclass(frozen=True)
class Finalist:
    """An architecture that is trained on its own and measured: of the "search", of "random" search or designed by "hand"."""

    arch: Architecture
    role: str
    label: str


@dataclass(frozen=True)
class Choice:
    """What ships, and its measurement after the choice; or why there is none."""

    arch: Architecture
    measurement: Measurement | None
    unmeasured: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Everything that a search found; `experiments.conclude` makes of it what people read."""

    candidates: tuple[Candidate, ...]
    finalists: tuple[Finalist, ...]
    measurements: Mapping[str, Measurement]
    choice: Choice
    budget: Budget
    calibration: Calibration
    proposals: tuple[Proposal, ...]
    trivial: Mapping[str, float]
    compute: Compute
    finisher: Finisher
    stages: tuple[StageReport, ...]


class Pipeline:
    """One search. The constructor checks everything that can be checked before work starts.

    Raises:
        ValueError: components that do not fit together, or a directory of another run (nothing in it is changed).
    """

    def __init__(
        self, *, task: Task, family: Family, device: Device, latency_model: LatencyModel, settings: Settings,
        directory: Path | str, store: MeasurementStore, report: Reporter,
    ) -> None:  # fmt: skip
        if not isinstance(latency_model, DifferentiableLatencyModel):
            raise ValueError(f"latency_model: {type(latency_model).__name__} is not differentiable, the search needs expected_ms")
        self.task, self.family, self.device, self.latency_model = task, family, device, latency_model
        self.settings, self.store, self.report = settings, store, report
        tokens = settings.tokens or (1 if settings.mode == "decode" else task.max_tokens)
        self.workload = Workload(settings.batch, tokens, settings.mode, settings.past)
        if self.workload.mode != "encode" and not isinstance(family, GenerativeFamily):
            raise ValueError(f"mode: {settings.mode!r} is for spaces of decoders; {family.space.name} answers for whole inputs")
        family.example_input(self.workload)  # refuses a workload that the family cannot take
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

    def identity(self) -> dict[str, Any]:
        """What makes a directory this run's and no other's."""
        without = dataclasses.replace(self.settings, stages={})  # they may come later, and know themselves what they were
        settings = json.dumps(dataclasses.asdict(without), sort_keys=True, default=repr)
        return {
            "space": self.family.space.name,
            "space signature": self.family.signature,
            "task": self.task.name,
            "data": self.task.fingerprint,
            "device": self.device.name,
            "device fingerprint": self.device.fingerprint,
            "latency model": type(self.latency_model).__name__,
            "seed": self.settings.seed,
            "budget_ms": self.settings.budget_ms,
            "settings": hashlib.sha256(settings.encode()).hexdigest()[:12],
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
        budget = self._budget(calibration)
        with spent(self.run, "trivial baselines"):
            trivial = self._once("trivial.json", "Trivial baselines", lambda: dict(self.task.trivial_baselines()))
        compute = self._compute()
        supernet = self._supernet(compute)
        proposals = self._propose(supernet, calibration, budget, compute)
        validation = [
            b.to(compute.device) for b in self.task.batches("validation", tokens_per_batch=EVALUATION_TOKENS, seed=None)
        ]
        explored = self._explore(supernet, calibration, budget, compute, validation, [p.arch for p in proposals])
        finalists = self._finalists(explored, budget)
        finisher = self.finisher(compute)
        self._finish(finisher, finalists, supernet)
        measurements, lost = self._measure(finisher, finalists, calibration)
        choice = self._choose(finisher, finalists, measurements, calibration, budget, lost)
        choice, stages = self._stages(finisher, finalists, measurements, calibration, choice)
        return Outcome(
            candidates=tuple(c for candidates in explored.values() for c in candidates),
            finalists=tuple(finalists),
            measurements=measurements,
            choice=choice,
            budget=budget,
            calibration=calibration,
            proposals=tuple(proposals),
            trivial=trivial,
            compute=compute,
            finisher=finisher,
            stages=tuple(stages),
        )

    def finisher(self, compute: Compute) -> Finisher:
        return Finisher(
            self.family, self.task, self.device, self.workload, compute, self.settings.finish, self.settings.seed, self.run
        )

    def _once(self, name: str, title: str, make: Callable[[], Any]) -> Any:
        """What a file of the run holds, or what `make` returns, then written."""
        if not self.run.has(name):
            with self.report.phase(title, 1):
                self.run.write_json(name, make())
        return self.run.read_json(name)

    def calibrate(self) -> Calibration:
        """Measures what is not known yet and fits the latency model."""
        if isinstance(self.device, RecordedDevice):
            return TableCalibrator(self.family, self.device, self.workload, self.report).calibrate(self.latency_model)
        return self.calibrator().calibrate(self.latency_model, seed=self.settings.seed)

    def calibrator(self) -> Calibrator:
        settings = self.settings.calibration
        return Calibrator(self.family, self.device, self.workload, settings, self.run, self.store, self.report)

    def _budget(self, calibration: Calibration) -> Budget:
        """The user's budget, or half of the largest network's latency; refused if the fastest network is slower."""
        space = self.family.space
        largest, smallest = (self._latency_ms(calibration, arch) for arch in (space.largest(), space.smallest()))
        asked = self.settings.budget_ms
        budget = Budget(asked, "user") if asked is not None else Budget(largest / 2, "half of the largest network's latency")
        fastest = self._fastest_ms(calibration)
        if budget.ms < fastest:
            raise BudgetError(
                f"budget_ms: {budget.ms:.4g} is below the fastest network of the space, which takes {smallest:.4g} ms "
                f"(upper bound {fastest:.4g} ms); allowed is anything from there to {largest:.4g} ms, the largest network's time"
            )
        self.report.say(f"Budget: {budget.ms:.3f} ms ({budget.origin}); the largest network takes {largest:.3f} ms")
        return budget

    def _latency_ms(self, calibration: Calibration, arch: Architecture) -> float:
        """Measured, or else predicted."""
        measurement = calibration.measurements.get(arch.id)
        return measurement.latency_ms if measurement else float(calibration.model.predict([arch]).mean_ms[0])

    def _fastest_ms(self, calibration: Calibration) -> float:
        """Upper bound of the smallest network: no budget below it can be promised."""
        return float(calibration.model.predict([self.family.space.smallest()]).upper_ms[0])

    def _compute(self) -> Compute:
        def choose() -> dict[str, Any]:
            batch = next(iter(self.task.batches("train", tokens_per_batch=self.settings.supernet.train.tokens_per_batch, seed=0)))
            wanted = self.settings.train_on
            device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
            compute, trials = choose_compute(self.family, self.task, batch, device=device)
            return {"chosen": dataclasses.asdict(compute), "trials": [t.to_json() for t in trials]}

        compute = Compute(**self._once("compute.json", "Trying ways to train", choose)["chosen"])
        self.report.say(f"Training on {compute}")
        return compute

    def _supernet(self, compute: Compute) -> nn.Module:
        """The trained supernet, from `supernet.safetensors`, from the checkpoint of this run, or from the start."""
        torch.manual_seed(self.settings.seed)
        supernet = self.family.supernet()
        supernet.load_state_dict({**supernet.state_dict(), **self.pretrained})
        supernet.to(compute.device)
        if self.run.has("supernet.safetensors"):
            supernet.load_state_dict(_loading(self.run / "supernet.safetensors", load_file))
            return supernet
        config = self.settings.supernet.train
        state = self._checkpoint("supernet.ckpt", compute)
        trainer = supernet_trainer(
            self.family, supernet, self.task, config, compute=compute, seed=self.settings.seed,
            num_random=self.settings.supernet.num_random, state=state,
        )  # fmt: skip
        saved = time.monotonic()
        with self.report.phase("Training the supernet", config.steps, done=trainer.step) as advance:

            def on_step(step: int, loss: float) -> None:
                nonlocal saved
                advance(step, f"loss {loss:.3f}")
                if time.monotonic() - saved > self.settings.checkpoint_seconds:
                    self._save_checkpoint("supernet.ckpt", trainer.state_dict())
                    saved = time.monotonic()

            with spent(self.run, "supernet", networks_trained=1):
                trainer.run(on_step=on_step)
        with self.run.replacing("supernet.safetensors") as path:
            save_file(state_of(supernet), path)
        (self.run / "supernet.ckpt").unlink(missing_ok=True)
        return supernet

    def _propose(self, supernet: nn.Module, calibration: Calibration, budget: Budget, compute: Compute) -> list[Proposal]:
        """One proposal for each of several budgets, the user's first, the fastest network's time last."""
        assert isinstance(calibration.model, DifferentiableLatencyModel)
        if self.run.has("proposals.json"):
            return [Proposal.from_json(self.family.space, record) for record in self.run.read_json("proposals.json")]
        budgets = np.geomspace(budget.ms, self._fastest_ms(calibration), self.settings.outer.proposals).tolist()
        config = self.settings.darts
        darts = Darts(self.family, supernet, calibration.model, self.task, config, compute=compute, seed=self.settings.seed)
        proposals: list[Proposal] = []
        state = self._checkpoint("darts.ckpt", compute)
        if state is not None:
            proposals = [Proposal.from_json(self.family.space, record) for record in json.loads(state["proposals"])]
            darts.load_state_dict(state)
        steps = [config.steps] + [config.steps_more] * (len(budgets) - 1)
        title = "Differentiable search"
        with self.report.phase(title, sum(steps), done=darts.num_steps) as advance, spent(self.run, title, networks_trained=1):
            for number in range(len(proposals), len(budgets)):
                words = f"for {budgets[number]:.2f} ms, loss"
                proposal = darts.propose(
                    budgets[number],
                    steps=steps[number],
                    on_step=lambda _, loss, words=words: advance(darts.num_steps, f"{words} {loss:.3f}"),  # type: ignore[misc]
                )
                proposals.append(proposal)
                records = json.dumps([p.to_json() for p in proposals])
                self._save_checkpoint("darts.ckpt", {**darts.state_dict(), "proposals": records})
        self.run.write_json("proposals.json", [p.to_json() for p in proposals])
        (self.run / "darts.ckpt").unlink(missing_ok=True)
        return proposals

    def _explore(
        self, supernet: nn.Module, calibration: Calibration, budget: Budget, compute: Compute, validation: list[Batch],
        initial: list[Architecture],
    ) -> dict[str, list[Candidate]]:  # fmt: skip
        """Candidates of the outer loop (phase "search") and of random search within the budget (phase "random")."""
        settings, space = self.settings.outer, self.family.space
        known = [self._candidate(record) for record in self.run.read_lines(CANDIDATES)]

        def evaluate(arch: Architecture, phase: str) -> Candidate:
            start = time.perf_counter()
            prediction = calibration.model.predict([arch])
            return Candidate(
                arch,
                objectives={
                    "error": inherited_error(self.family, supernet, arch, validation, self.task, compute),
                    "latency_ms": float(prediction.mean_ms[0]),
                    "upper_ms": float(prediction.upper_ms[0]),
                },
                provenance={"error": Provenance.INHERITED, "latency_ms": Provenance.PREDICTED, "upper_ms": Provenance.PREDICTED},
                phase=phase,
                seconds=time.perf_counter() - start,
            )

        def accept(arch: Architecture) -> bool:
            return bool(calibration.model.predict([arch]).upper_ms[0] <= budget.ms)

        self.run.mend("study.journal")
        for lock in self.run.path.glob("study.journal.lock*"):  # of a killed process: a run has one process at a time
            lock.unlink()
        searchers: dict[str, Callable[[], Any]] = {
            "search": lambda: settings.make_searcher(
                space, objectives=("error", "latency_ms"), seed=self.settings.seed, initial=initial,
                constraint=("upper_ms", budget.ms),
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(self.run / "study.journal"))),
            ),
            "random": lambda: RandomSearcher(space, seed=self.settings.seed, accept=accept),
        }  # fmt: skip
        titles = {"search": "Outer loop", "random": "Random search, for comparison"}
        explored = {}
        for phase in ("search", "random") if settings.baseline else ("search",):
            of_phase = [c for c in known if c.phase == phase]
            if len(of_phase) < settings.evaluations:
                with (
                    spent(self.run, titles[phase]),
                    self.report.phase(titles[phase], settings.evaluations, done=len(of_phase)) as advance,
                ):
                    seen = len(of_phase)

                    def on_candidate(candidate: Candidate) -> None:
                        nonlocal seen
                        self.run.append(CANDIDATES, candidate.to_json())
                        seen += 1
                        advance(seen, f"error {candidate.objectives['error']:.1f} %")

                    result = search(
                        searchers[phase](), lambda arch, p=phase: evaluate(arch, p), num_evaluations=settings.evaluations,  # type: ignore[misc]
                        known=of_phase, on_candidate=on_candidate,
                    )  # fmt: skip
                    of_phase = list(result.candidates)
            explored[phase] = of_phase
        return explored

    def _candidate(self, record: Mapping[str, Any]) -> Candidate:
        try:
            return Candidate.from_json(self.family.space, record)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.run / CANDIDATES}: holds a line that is not a candidate of this space: {error}") from error

    def _finalists(self, explored: Mapping[str, list[Candidate]], budget: Budget) -> list[Finalist]:
        """The short-lists of both searches and the hand-designed networks; an architecture that comes twice stays the first."""
        finalists: dict[str, Finalist] = {}
        labels = {"search": "search", "random": "random search"}
        for role, candidates in explored.items():
            within = [c for c in candidates if c.objectives["upper_ms"] <= budget.ms]
            front = pareto_front(within, "latency_ms", "error")
            for arch in shortlist(front, self.settings.finish.shortlist, budget_ms=budget.ms):
                finalists.setdefault(arch.id, Finalist(arch, role, labels[role]))
        for label, arch in self.family.hand_designed().items():
            finalists.setdefault(arch.id, Finalist(arch, "hand", label))
        return list(finalists.values())

    def _finish(self, finisher: Finisher, finalists: list[Finalist], supernet: nn.Module) -> None:
        missing = [f for f in finalists if not finisher.is_finished(f.arch)]
        if not missing:
            return
        done = len(finalists) - len(missing)
        with self.report.phase("Training the short-list", len(finalists), done=done) as advance:
            for number, finalist in enumerate(missing, done + 1):
                if not finisher.is_finished(finalist.arch):  # the largest may have been, to teach
                    with spent(self.run, "short-list", networks_trained=1):
                        finisher.finish(finalist.arch, supernet)
                error = finisher.record(finalist.arch)["error_percent"]
                advance(number, f"{finalist.label} {finalist.arch.id}: error {error:.1f} %")

    def _measure(
        self, finisher: Finisher, finalists: list[Finalist], calibration: Calibration
    ) -> tuple[Mapping[str, Measurement], str | None]:
        """Measurements of the short-list, all or those of an earlier time, and how the device was lost if it was."""
        archs, phase, rounds = [f.arch for f in finalists], "short-list", self.settings.finish.rounds
        with spent(self.run, "measuring the short-list"), self.report.phase("Measuring the short-list", 1):
            try:
                reference_ms = calibration.sentinel_reference_ms
                return finisher.measure(archs, reference_ms=reference_ms, phase=phase, rounds=rounds, tag=""), None
            except DeviceError as error:
                lost = str(error)
        self.report.say(f"{lost}; the search goes on with predicted latencies")
        return read_measurements(self.family, self.run, phase=phase), lost

    def _choose(
        self, finisher: Finisher, finalists: list[Finalist], measurements: Mapping[str, Measurement],
        calibration: Calibration, budget: Budget, lost: str | None,
    ) -> Choice:  # fmt: skip
        """The most accurate of all finished networks that also stays within the budget when it is measured once more.

        Whoever found it: a user wants the best network, and the report says whose it is. The measurement that chose a network
        flatters it, so the verdict has one of its own. When none holds, the fastest ships and the verdict says that the promise
        is broken. A network that could not be measured has its predicted upper bound.
        """
        archs = [f.arch for f in finalists]
        upper_ms = calibration.model.predict(archs).upper_ms.tolist()
        ms = {a.id: measurements[a.id].latency_ms if a.id in measurements else u for a, u in zip(archs, upper_ms, strict=True)}
        by_error = sorted(archs, key=lambda a: (finisher.record(a)["error_percent"], ms[a.id]))
        fits = [a for a in by_error if ms[a.id] <= budget.ms]
        for arch in [*fits, min(archs, key=lambda a: ms[a.id])]:
            if lost is not None:
                return Choice(arch, None, lost)
            try:
                verdict = finisher.verdict(arch, reference_ms=calibration.sentinel_reference_ms, tag="")
            except DeviceError as error:
                return Choice(arch, None, str(error))
            if verdict.latency_ms <= budget.ms:
                break
        return Choice(arch, verdict)

    def _stages(
        self, finisher: Finisher, finalists: list[Finalist], measurements: Mapping[str, Measurement], calibration: Calibration,
        choice: Choice,
    ) -> tuple[Choice, list[StageReport]]:  # fmt: skip
        """Takes what ships through the stages; if one of them is kept, the verdict is measured anew."""
        if choice.measurement is None and self.settings.stages:
            self.report.say(f"{choice.unmeasured}; stages are left out, nothing could be said for them")
            return choice, []
        finished = [
            Candidate(
                f.arch,
                objectives={
                    "error": finisher.record(f.arch)["error_percent"],
                    "latency_ms": measurements[f.arch.id].latency_ms,
                },
                provenance={"error": Provenance.RETRAINED, "latency_ms": Provenance.MEASURED},
            )
            for f in finalists
            if f.arch.id in measurements
        ]

        def teachers(name: str) -> list[nn.Module]:
            largest = [self.family.space.largest()]
            archs = [c.arch for c in pareto_front(finished, "latency_ms", "error")] if name == "front" else largest
            return [finisher.to_train(arch, tag="") for arch in archs]

        school = School(
            self.task, finisher.compute, self.settings.seed, self.family.space, choice.arch, teachers,
            lambda archs: calibration.model.predict(archs).mean_ms.tolist(),
        )  # fmt: skip
        reference_ms = calibration.sentinel_reference_ms
        reports = Stages(finisher, self.settings.stages, school, reference_ms, self.report).run()
        if any(report.kept for report in reports):
            choice = dataclasses.replace(choice, measurement=finisher.verdict(choice.arch, reference_ms=reference_ms))
        return choice, reports

    def _checkpoint(self, name: str, compute: Compute) -> dict[str, Any] | None:
        """What `_save_checkpoint` wrote, or None. Raises RunError for a damaged file."""
        if not self.run.has(name):
            return None
        state: dict[str, Any] = _loading(self.run / name, lambda p: torch.load(p, map_location=compute.device, weights_only=True))
        return state

    def _save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        with self.run.replacing(name) as path:
            torch.save(dict(state), path)


def _loading(path: Path, load: Callable[[Path], Any]) -> Any:
    """Loads weights; a file that is no such thing is the user's to delete."""
    try:
        return load(path)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise RunError(f"{path}: is damaged; delete it to do this part again ({type(error).__name__})") from error
