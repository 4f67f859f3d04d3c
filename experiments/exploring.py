"""The outer loop of a run: candidates with inherited weights and predicted costs, and the measurements on the way."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from experiments.budgets import Budget
from experiments.calibration import Calibration, Calibrator
from experiments.costing import Costing
from experiments.journal import open_study
from experiments.ledger import spent
from experiments.outcome import Explored
from experiments.progress import Reporter
from experiments.roles import PHASES
from experiments.run_directory import CANDIDATES, SUPERNET, RunDirectory, RunError
from experiments.scoring import Scorer, Scoring, WorkerError
from experiments.settings import Settings
from nas.compute import Compute
from nas.costs import parameters_of
from nas.pareto import fittest, ranks
from nas.protocols import DeviceError, Family, Searcher, Task, UncertainLatencyModel
from nas.search import search
from nas.searchers.random import Random
from nas.space import Architecture
from nas.surroundings import answering
from nas.types import Candidate, Provenance, pareto_front

POOL = 20  # times the evaluations: random networks of which those with the most parameters for their latency are scored
NEAR = 1.1  # times a budget: how far beyond it a network may be predicted and still be worth a measurement
ANSWER = "the answer"  # the moment of a run that devices are looked at before
Known = tuple[Calibrator, Calibration]
"""What a further device is calibrated with, and what that found."""


@dataclass(frozen=True)
class Explorer:
    """Explores one space within a budget; what was scored is read from the run's `candidates.jsonl`.

    Errors are those of the split "architecture", so that the one that chooses what ships has judged nothing of it before.
    """

    family: Family
    task: Task
    supernet: nn.Module
    compute: Compute
    calibration: Calibration
    costing: Costing
    budget: Budget
    settings: Settings
    run: RunDirectory
    report: Reporter

    def explore(
        self, initial: Sequence[Architecture], calibrator: Calibrator, further: Mapping[str, Known] = MappingProxyType({})
    ) -> Explored:
        """Candidates of the outer loop, of random search and of parameter count alone within the budgets, and of the networks
        designed by hand.

        With `searcher.measure`, the latency model is fitted again half way through the outer loop, and in the end if the device
        has changed since the calibration, and so are those of `further` devices that measure, by name; all numbers are those of
        the last fit, but for what a strategy was told before.
        """
        with self.scoring:
            return self._explored(initial, calibrator, further)

    def _explored(self, initial: Sequence[Architecture], calibrator: Calibrator, further: Mapping[str, Known]) -> Explored:
        outer = self.settings.outer
        refined: Mapping[str, Any] | None = None
        if outer.measure:
            half = max(1, outer.evaluations // 2)
            refined = self.refine(self._phase("search", self._strategy(initial), half)[:half], calibrator)
        by_phase = {"search": self._phase("search", self._strategy(initial), outer.evaluations)}
        if outer.baseline:
            num = max(1, min(outer.evaluations, len(by_phase["search"])))  # a strategy may have ended before
            by_phase["random"] = self._phase("random", self._random(), num)
            by_phase["parameters"] = self._phase("parameters", self._by_parameters(), num)
        by_phase["hand"] = self._by_hand()
        self._look(calibrator, further)
        return Explored({phase: self._priced(found) for phase, found in by_phase.items()}, refined)

    @functools.cached_property
    def scoring(self) -> Scoring:
        scorer = Scorer(self.family, self.supernet, self.task, self.compute)
        processes, threads = self.settings.outer.processes, self.settings.torch_threads
        return Scoring(scorer, weights=self.run / SUPERNET, processes=processes, threads=threads)

    def _strategy(self, initial: Sequence[Architecture]) -> Searcher:
        """That goes on from what the run has; opened again where costs are predicted anew, as by who continues the run then."""
        return self.settings.outer.searcher(
            self.family.space, objectives=self.settings.objectives, seed=self.settings.seed, initial=initial,
            limits=self.budget.limits, costs=self.costing.columns, storage=open_study(self.run),
        )  # fmt: skip

    def _random(self, initial: Sequence[Architecture] = ()) -> Searcher:
        limits, costs = self.budget.limits, self.costing.columns
        return Random(self.family.space, seed=self.settings.seed, initial=initial, limits=limits, costs=costs)

    def _by_parameters(self) -> Searcher:
        """What who takes parameters for accuracy would score: of a pool of random networks, front by front those that no other
        beats in parameters and predicted latency."""
        num, rng = self.settings.outer.evaluations, np.random.default_rng([self.settings.seed, 1])
        pool = list(dict.fromkeys(self.family.space.sample(rng) for _ in range(POOL * num)))
        within = [(a, c) for a, c in zip(pool, self.costing(pool), strict=True) if self.budget.allows(c)]
        archs, latency_ms = [arch for arch, _ in within], np.array([costs["latency_ms"] for _, costs in within])
        costs = np.stack([latency_ms, -parameters_of(self.family, archs, self.costing.workload)], axis=1)
        best = fittest(costs, num, reference=(self.budget.ms, 0.0), first=1)
        return self._random([archs[i] for i in best])

    def _phase(self, phase: str, searcher: Searcher, num: int) -> tuple[Candidate, ...]:
        """At least `num` candidates of a phase: those that the run has, and new ones up to that number."""
        known = self._known(phase)
        if len(known) >= num:
            return tuple(known)
        evaluate = self._evaluation(phase)
        with spent(self.run, PHASES[phase]), self.report.phase(PHASES[phase], num, done=len(known)) as advance:
            seen = len(known)

            def on_candidate(candidate: Candidate) -> None:
                nonlocal seen
                self.run.append(CANDIDATES, candidate.to_json())
                seen += 1
                advance(seen, f"error {candidate.objectives['error']:.1f} %")

            try:
                return search(
                    searcher, evaluate, num_evaluations=num, known=known, on_candidate=on_candidate, ahead=self.scoring.ahead
                ).candidates  # fmt: skip
            except WorkerError:
                for arch in self.scoring.finished():  # by other processes, out of turn
                    with contextlib.suppress(ValueError):
                        on_candidate(evaluate(arch))
                raise

    def _by_hand(self) -> tuple[Candidate, ...]:
        known = {candidate.arch.id: candidate for candidate in self._known("hand")}
        missing = [arch for arch in self.family.hand_designed().values() if arch.id not in known]
        if missing:
            evaluate = self._evaluation("hand")
            with spent(self.run, PHASES["hand"]):
                self.scoring.ahead(missing)
                for arch in missing:
                    known[arch.id] = evaluate(arch)
                    self.run.append(CANDIDATES, known[arch.id].to_json())
        return tuple(known.values())

    def _evaluation(self, phase: str) -> Callable[[Architecture], Candidate]:
        """Scores nothing twice. What another phase has scored books the seconds that it took there, so that phases can be
        compared as if each had done all of its own."""
        scored = [c for c in self._candidates() if c.phase in PHASES]
        self.scoring.errors.update({answering(c.arch).id: c.objectives["error"] for c in scored})
        elsewhere: dict[str, float] = {}  # seconds that scoring took in other phases
        for c in scored:
            elsewhere[answering(c.arch).id] = max(c.seconds, elsewhere.get(answering(c.arch).id, 0.0))
        own = {answering(c.arch).id for c in scored if c.phase == phase}

        def evaluate(arch: Architecture) -> Candidate:
            id_ = answering(arch).id
            error, seconds = self.scoring(arch)
            start = time.perf_counter()
            [costs] = self.costing([arch])
            provenance = {"error": Provenance.INHERITED, **dict.fromkeys(costs, Provenance.PREDICTED)}
            seconds += time.perf_counter() - start
            if id_ not in own:
                seconds = elsewhere.get(id_, seconds)
            own.add(id_)
            return Candidate(arch, {"error": error, **costs}, provenance, phase, seconds)

        return evaluate

    def _known(self, phase: str) -> list[Candidate]:
        """Those of a phase."""
        return [c for c in self._candidates() if c.phase == phase]

    def _candidates(self) -> list[Candidate]:
        """Candidates of the run with the costs that they were found with."""
        try:
            return [Candidate.from_json(self.family.space, record) for record in self.run.read_lines(CANDIDATES)]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.run / CANDIDATES}: holds a line that is not a candidate of this space: {error}") from error

    def _priced(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """With the costs that are predicted now."""
        if not candidates:
            return ()
        costs = self.costing([c.arch for c in candidates])
        return tuple(replace(c, objectives={**c.objectives, **now}) for c, now in zip(candidates, costs, strict=True))

    # --- hardware in the loop

    def refine(self, candidates: Sequence[Candidate], calibrator: Calibrator) -> Mapping[str, Any]:
        """Measures those near the front of which the latency model is least certain, and fits it again, in place.

        Returns what that changed: the error of the old predictions, and who joined and left the front. A device that is lost
        leaves everything as it was.
        """
        title = "Measuring near the front"
        near = self._uncertain_near_front(candidates)
        if not near:
            return {"measured": 0}
        with spent(self.run, title):
            start = time.perf_counter()
            try:
                fresh = calibrator.more([c.arch for c in near], self.calibration)
            except DeviceError as error:
                self.report.say(f"{error}; the search goes on without measurements")
                return {"measured": 0, "lost": str(error)}
            self.calibration.measurements.update(fresh)
            self.costing.fit(self.calibration)
        before_ms = np.array([c.objectives["latency_ms"] for c in near])
        measured_ms = np.array([fresh[c.arch.id].latency_ms for c in near])
        priced = self._priced(candidates)
        was_ms, is_ms = (np.array([c.objectives["latency_ms"] for c in kind]) for kind in (candidates, priced))
        fronts = [self._front(kind) for kind in (candidates, priced)]
        return {
            "measured": len(near),
            "mape_percent_before": 100 * float(np.mean(np.abs(before_ms / measured_ms - 1))),
            "over_bound_before": int(sum(m > c.objectives["upper_ms"] for c, m in zip(near, measured_ms, strict=True))),
            "mean_change_percent": 100 * float(np.mean(np.abs(is_ms / was_ms - 1))),
            "front_before": len(fronts[0]),
            "joined": sorted(fronts[1] - fronts[0]),
            "left": sorted(fronts[0] - fronts[1]),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def _look(self, calibrator: Calibrator, further: Mapping[str, Known]) -> None:
        """Whether the devices are what they were when they were calibrated, before it is said what is within the budgets."""
        with spent(self.run, "calibration"):
            if calibrator.look(self.calibration, before=ANSWER):
                self.costing.fit(self.calibration)
        for name, (own, calibration) in further.items():
            with spent(self.run, f"calibration of {name}"):
                if own.look(calibration, before=ANSWER):
                    calibration.fit(self.costing.also[name], own.family)

    def _uncertain_near_front(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """On one of the first two fronts, not far beyond a budget, not measured by the calibration; the most uncertain first."""
        within = [c for c in candidates if all(c.objectives[n] <= NEAR * limit for n, limit in self.budget.limits.items())]
        if not within:
            return []
        rank = ranks(np.array([[c.objectives[name] for name in self.settings.objectives] for c in within]))
        near = [c for c, r in zip(within, rank, strict=True) if r < 2 and c.arch.id not in self.calibration.measurements]
        model = self.calibration.model
        archs = [c.arch for c in near]
        if isinstance(model, UncertainLatencyModel):
            doubt = model.disagreement(archs)
        else:
            prediction = model.predict(archs)
            doubt = prediction.std_ms / prediction.mean_ms
        return [near[i] for i in np.argsort(-doubt, kind="stable")[: self.settings.outer.measure]]

    def _front(self, candidates: Sequence[Candidate]) -> set[str]:
        within = [c for c in candidates if self.budget.allows(c.objectives)]
        return {c.arch.id for c in pareto_front(within, *self.settings.objectives)}
