"""A search in a space that is known from a table of times or energies alone: the most parameters that a budget buys.

    paretoformer search space=hat device=recorded device.table=hat_raspberrypi4 device.data=DIR budget_ms=5000 run=DIR
    paretoformer search space=hat device=recorded device.table=hat_gtx1080_energy device.data=DIR budget_mj=9000 run=DIR

    paretoformer search space=hat device=recorded device.table=hat_raspberrypi4 device.data=DIR budget_ms=5000 run=DIR \
        also='{gpu: {device: recorded, table: hat_gtx1080_energy, data: DIR, budget_mj: 9000}}'

Nothing is trained and nothing can be measured, so a network's worth is its capacity: the parameters of its layers. Half of the
table is fitted, with a bound that holds for picks. The other half judges it: of those networks, too, the largest whose bound is
within the budget is picked, and its recorded time, or energy, says whether the budget is kept. Further tables are fitted, kept
and judged in the same way, each by its own rows: of 2,000 networks no two tables have more than four in common.

It takes seconds, so a search that was stopped begins again; it finds the same, and files are written when it is done.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.budgets import Ends, in_words
from experiments.formatting import format_ms
from experiments.objectives import OBJECTIVES
from experiments.plots.capacity import capacity_figure
from experiments.plots.style import png
from experiments.progress import Reporter
from experiments.roles import PHASES, SEARCHES
from experiments.run_directory import RunDirectory
from experiments.settings import Settings
from experiments.table_place import Halves, Place, judged
from latency_models.intervals import Bounded
from nas.extremes import least
from nas.pareto import hypervolume
from nas.projection import BudgetError
from nas.protocols import Device, Searcher
from nas.search import search
from nas.searchers.random import Random
from nas.space import Architecture, SearchSpace
from nas.types import Candidate, Provenance, pareto_front
from search_spaces import hat

MISSING = "missing"  # the parameters that the largest network has more
Costs = Callable[[Sequence[Architecture]], dict[str, np.ndarray]]
"""Of architectures, each [N]: what is predicted on all tables, and its bounds."""


class TableSearch:
    """One search; the constructor checks what can be checked before work starts.

    Raises:
        ValueError: a device that has no measurements of this space, or a directory that cannot be used.
    """

    def __init__(
        self, space: SearchSpace, device: Device, *, settings: Settings, directory: Path | str, report: Reporter,
        also: Sequence[Place] = (),
    ) -> None:  # fmt: skip
        first, outer = Place(device, None), settings.outer
        self.cost = first.cost
        of_networks = settings.budget_mib is not None or settings.objectives != Settings().objectives
        if of_networks or outer.measure or outer.processes > 1:
            words = OBJECTIVES[self.cost.name].words
            raise ValueError(
                f"space: {space.name} is known from a table alone, which weighs parameters against {words}: budget_mib, "
                f"objectives, searcher.measure and searcher.processes are for spaces with networks"
            )
        budgets = {"latency_ms": settings.budget_ms, "energy_mj": settings.budget_mj}
        self.asked = budgets.pop(self.cost.name)
        for name, asked in budgets.items():
            if asked is not None:
                held, wanted = OBJECTIVES[self.cost.name], OBJECTIVES[name].budget
                raise ValueError(
                    f"{wanted}: {asked:g}: {first.table.name} holds {held.words} in {held.unit}; give {held.budget}=…"
                )
        self.places = (replace(first, asked=self.asked), *also)
        self.objectives = (self.cost.name, MISSING, *(place.objective for place in also))
        outer.searcher(space, objectives=self.objectives, seed=0, initial=[], limits={first.bound: 1.0})  # may refuse
        self.space, self.device, self.settings, self.report = space, device, settings, report
        self.most, self.fewest = (int(n) for n in hat.num_parameters(hat.features([space.largest(), space.smallest()])))
        self.run = RunDirectory(directory)

    def claim(self) -> None:
        """Makes the directory this run's. Raises RunError if it is another's; nothing in it is changed then."""
        choices = hashlib.sha256(json.dumps(self.space.to_json()).encode()).hexdigest()[:12]
        device = {"device": self.device.name, "device fingerprint": self.device.fingerprint}
        matter = ("seed", self.cost.key("budget"), "searcher.")
        settings = {name: value for name, value in self.settings.said().items() if name.startswith(matter)}
        for place in self.places[1:]:
            device[f"device {place.name}"] = place.device.fingerprint
            settings[f"also.{place.name}.{place.cost.key('budget')}"] = place.asked
        self.run.claim({"space": self.space.name, "choices": choices, **device, "settings": settings})

    def search(self, *, command: str) -> dict[str, Any]:
        """Fits, searches, judges, prints and writes; returns what `results.json` holds.

        Raises:
            ValueError: a table whose values have nothing to do with its networks.
            BudgetError: no network meets the budget.
        """
        first, *further = self.places
        outer = self.settings.outer
        halves_of = {p.name: p.fit(seed=self.settings.seed, pool=outer.evaluations) for p in self.places}
        halves = halves_of[first.name]
        ends = Ends.of(
            self.space, lambda archs: halves.model.predict(hat.costs(hat.features(archs))), {}, name=self.cost.name
        )  # fmt: skip
        budget = ends.budget(self.asked, self.report)
        budgets = {p: asked for p in further if (asked := p.budget(halves_of[p.name].model, self.space)) is not None}
        limits = {place.bound: asked.ms for place, asked in {first: budget, **budgets}.items()}
        costs = self._costs({name: halves.model for name, halves in halves_of.items()})
        beginning = self._within(limits, costs)
        roles = SEARCHES if self.settings.outer.baseline else SEARCHES[:1]
        found = {role: self._explore(role, costs, beginning, limits) for role in roles}
        within = {
            role: [c for c in of_role if all(c.objectives[name] <= most for name, most in limits.items())]
            for role, of_role in found.items()
        }
        fronts = {role: pareto_front(of_role, *self.objectives) for role, of_role in within.items()}
        best = min(fronts["search"], key=lambda c: [c.objectives[name] for name in (MISSING, self.cost.name)])
        results = {
            "title": f"{self.space.name} on {self.device.name}",
            "device": dict(self.device.environment),
            "seed": self.settings.seed,
            "picked_id": best.arch.id,
            "num_parameters": self._num_parameters(best),
            "unit": self.cost.unit,
            **judged(first, halves, budget, best),
            "elsewhere": {
                place.name: {
                    "device": dict(place.device.environment),
                    "unit": place.cost.unit,
                    **judged(place, halves_of[place.name], budgets.get(place), best),
                }
                for place in further
            },
            "most_parameters": {role: max(map(self._num_parameters, front)) for role, front in fronts.items()},
            "hypervolume_shares": {role: self._area(front, budget.ms) for role, front in fronts.items()},
            "command": command,
        }
        self._show(fronts["search"], results)
        self._write(found, fronts["search"], best, halves, results)
        return results

    def _costs(self, models: Mapping[str, Bounded]) -> Costs:
        """What is predicted of architectures on all tables, and the parameters that they have less than the largest."""

        def costs(archs: Sequence[Architecture]) -> dict[str, np.ndarray]:
            rows = hat.features(archs)
            columns: dict[str, np.ndarray] = {}
            for place in self.places:
                prediction = models[place.name].predict(hat.costs(rows))
                columns |= {place.objective: prediction.mean_ms, place.bound: prediction.upper_ms}
            return {**columns, MISSING: self.most - hat.num_parameters(rows)}

        return costs

    def _within(self, limits: Mapping[str, float], costs: Costs) -> Architecture:
        """The network that takes the least share of what is allowed, where it takes most of it. Raises BudgetError if that is
        more than all."""

        def share(archs: Sequence[Architecture]) -> np.ndarray:
            columns = costs(archs)
            return np.asarray(np.max([columns[name] / most for name, most in limits.items()], axis=0))

        found = least(self.space, share)
        if share([found])[0] > 1:
            takes = " and ".join(f"{costs([found])[name][0]:.4g} of {most:.4g} ({name})" for name, most in limits.items())
            raise BudgetError(
                f"budgets: networks keep each of them, and none that was found keeps all; {in_words(found)} comes nearest with "
                f"at most {takes}"
            )
        return found

    def _explore(self, role: str, costs: Costs, within: Architecture, limits: Mapping[str, float]) -> tuple[Candidate, ...]:
        """As many architectures for either role; the first is one that is within the budgets."""

        def evaluate(arch: Architecture) -> Candidate:
            objectives = {name: float(column[0]) for name, column in costs([arch]).items()}
            return Candidate(arch, objectives, dict.fromkeys(objectives, Provenance.PREDICTED), phase=role)

        settings = self.settings.outer
        searcher: Searcher = Random(self.space, seed=self.settings.seed, limits=limits, costs=costs)
        if role == "search":
            searcher = settings.searcher(
                self.space, objectives=self.objectives, seed=self.settings.seed, initial=[], limits=limits, costs=costs
            )  # fmt: skip
        first = evaluate(within)
        searcher.tell(first)
        with self.report.phase("Search" if role == "search" else PHASES[role]):
            return search(searcher, evaluate, num_evaluations=settings.evaluations, known=[first]).candidates

    def _num_parameters(self, candidate: Candidate) -> int:
        return int(self.most - candidate.objectives[MISSING])

    def _area(self, front: Sequence[Candidate], asked: float) -> float:
        """Hypervolume up to the budget and the smallest network's parameters, as a share of what no network could exceed."""
        reference = (asked, self.most - self.fewest)
        costs = np.array([[c.objectives[name] for name in (self.cost.name, MISSING)] for c in front])
        return hypervolume(costs, reference) / math.prod(reference)

    def _show(self, front: Sequence[Candidate], results: Mapping[str, Any]) -> None:
        further = [word for place in self.places[1:] for word in (f"{place.name} ({place.cost.unit})", "at most")]
        shapes = [] if further else ["encoder", "decoder"]  # there is no room for both
        table = Table(
            "network", "predicted", "at most", *further, "params", *shapes, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )  # fmt: skip
        averages = ", average feed-forward sizes" if shapes else ""
        table.title = f"{results['title']}: the front, {self.cost.unit}, million parameters{averages}"
        for candidate, row in zip(front, hat.features([c.arch for c in front]), strict=True):
            times = (format_ms(candidate.objectives[name]) for place in self.places for name in (place.objective, place.bound))
            width, layers, ffn, _, decoder_width, depth, decoder_ffn, *_ = row
            stacks = (f"{layers:g} × {width:g}, ffn {ffn:.0f}", f"{depth:g} × {decoder_width:g}, ffn {decoder_ffn:.0f}")
            table.add_row(candidate.arch.id, *times, f"{self._num_parameters(candidate) / 1e6:.1f}", *stacks[: len(shapes)])
        self.report.console.print(table)
        predictor, known = results["predictor"], results["held_out"]
        self.report.say(
            f"From {predictor['num_fit']} rows, the other {predictor['num_held_out']} are predicted to "
            f"{predictor['mape_percent']:.1f} % (rank correlation {predictor['spearman']:.3f}); "
            f"{predictor['coverage_percent']:.1f} % of them are within their bounds, which are made for what a search picks."
        )
        if "random" in results["most_parameters"]:
            (ours, theirs), (area, other) = (results[n].values() for n in ("most_parameters", "hypervolume_shares"))
            self.report.say(
                f"Random search at equal evaluations finds {theirs / 1e6:.1f} M parameters against {ours / 1e6:.1f} M, "
                f"hypervolume {other:.3f} against {area:.3f}."
            )
        self.report.say(f"{results['picked_id']}, {results['num_parameters'] / 1e6:.1f} M: {results['verdict']['sentence']}")
        self.report.say(f"Of recorded networks that were not fitted, {known['sentence']}")
        for name, there in results["elsewhere"].items():
            said = f"rows that the fit did not see are predicted to {there['predictor']['mape_percent']:.1f} %"
            if "verdict" in there:
                said += (
                    f". {there['verdict']['sentence']} Of recorded networks that were not fitted, {there['held_out']['sentence']}"
                )
            self.report.say(f"On {name}: {said}")

    def _write(
        self, found: Mapping[str, Sequence[Candidate]], front: Sequence[Candidate], best: Candidate, halves: Halves,
        results: Mapping[str, Any],
    ) -> None:  # fmt: skip
        with self.run.replacing("pareto.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file)
            names = [name for place in self.places for name in (place.objective, place.bound)]
            predicted = [
                f"{place.cost.key(kind)}{place.name and '_' + place.name}"
                for place in self.places
                for kind in ("predicted", "predicted_upper")
            ]
            writer.writerow(["id", "role", *predicted, "num_parameters", "on_front", "picked", "arch"])
            for c in (c for of_role in found.values() for c in of_role):
                times = (f"{c.objectives[name]:.6g}" for name in names)
                flags = (str(flag).lower() for flag in (c in front, c is best))
                writer.writerow([c.arch.id, c.phase, *times, self._num_parameters(c), *flags, json.dumps(c.arch.to_json())])
        points = {
            role: [(c.objectives[self.cost.name], self._num_parameters(c) / 1e6) for c in of_role]
            for role, of_role in {**found, "front": pareto_front(front, self.cost.name, MISSING)}.items()
        }
        points["recorded"] = list(zip(halves.recorded.tolist(), (halves.capacity / 1e6).tolist(), strict=True))
        with self.run.replacing("pareto.png") as path:
            path.write_bytes(png(capacity_figure(results, points, cost=self.cost.name)))
        self.run.write_json("results.json", results)
        self.report.say(f"Written: {self.run.path}/pareto.csv, pareto.png, results.json")
