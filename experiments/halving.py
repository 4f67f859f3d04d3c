"""From cheap to dear: what inherited weights rank best trains for a while, and the better half of it goes on.

Inherited errors are biased: the supernet serves its large networks better than its small ones. So each search's best are
trained on their own for a share of their steps, scored again on the split of the search, and ranked by those errors; from rung
to rung the share grows and half of them stay. It is successive halving (Jamieson & Talwalkar, arXiv:1502.07943) on
non-dominated ranks, as Schmucker et al. (arXiv:2106.12639) do it. Optuna's pruners compare one number, and `Trial.report` refuses
a study of several objectives: so nothing of them is used.

A rung trains anew, by a schedule of its own that ends at a rate of zero, and keeps nothing but the error: a long training that
is stopped on the way has given away inherited weights and not won them back. On the embedded task, with `init=sandwich` (23
networks of 2 seeds, all errors of the split that chooses), those after 5, 10 and 20 % of the steps have a Kendall's tau of
0.38, 0.45 and 0.47 with the final ones, those of the whole training stopped at 10 % one of 0.11, inherited ones 0.08.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from experiments.budgets import Budget
from experiments.finishing import Finisher
from experiments.ledger import spent
from experiments.outcome import Climbed, Explored
from experiments.progress import Reporter
from experiments.roles import RUNG, SEARCHES
from experiments.run_directory import CANDIDATES
from experiments.settings import Settings
from nas.pareto import fittest
from nas.surroundings import answering
from nas.types import Candidate, Provenance


@dataclass(frozen=True)
class Halving:
    """Takes the candidates of one run up the rungs; what was scored there is read from its `candidates.jsonl`."""

    finisher: Finisher
    budget: Budget
    settings: Settings
    report: Reporter

    def climb(self, explored: Explored, supernet: nn.Module) -> Climbed:
        """The short-list of each search. All enter with equally many; a network that two of them found is trained once."""
        num, rungs = self.settings.finish.shortlist, self.settings.finish.rungs
        left = {role: [c for c in explored.by_phase.get(role, ()) if self.budget.allows(c.objectives)] for role in SEARCHES}
        scored: list[Candidate] = []
        for number, share in enumerate(rungs):
            left = {role: self.best(candidates, num * 2 ** (len(rungs) - number)) for role, candidates in left.items()}
            on_rung = self._rung(share, [c for candidates in left.values() for c in candidates], supernet)
            left = {role: [on_rung[c.arch.id] for c in candidates] for role, candidates in left.items()}
            scored += on_rung.values()
        return Climbed({role: self.best(candidates, num) for role, candidates in left.items()}, tuple(scored))

    def best(self, candidates: Sequence[Candidate], num: int) -> list[Candidate]:
        """At most `num`, front by front (see `nas.pareto.fittest`), the fastest first. The hypervolume goes up to the budget,
        100 % error, and a little more than the worst of all else."""
        names = self.settings.objectives
        costs = np.array([[c.objectives[name] for name in names] for c in candidates]).reshape(-1, len(names))
        known = {"latency_ms": self.budget.ms, "error": 100.0}
        reference = [known.get(name) or 1.01 * column.max(initial=0.0) for name, column in zip(names, costs.T, strict=True)]
        chosen = fittest(costs, num, reference=reference, first=names.index("error"))
        return sorted((candidates[i] for i in chosen), key=lambda c: (c.objectives["latency_ms"], c.arch.id))

    def _rung(self, share: float, candidates: Sequence[Candidate], supernet: nn.Module) -> dict[str, Candidate]:
        """By their ids, with the errors after a share of the training."""
        phase, title = f"{RUNG}{share:g}", f"Rung at {100 * share:g} % of the training"
        entering = {c.arch.id: c for c in candidates}
        lines = {r["id"]: r for r in self.finisher.run.read_lines(CANDIDATES) if r["phase"] == phase and r["id"] in entering}
        on_rung = {id_: _tuned(entering[id_], r["objectives"]["error"], phase, r["seconds"]) for id_, r in lines.items()}
        missing = [c for id_, c in entering.items() if id_ not in on_rung]
        errors = {answering(c.arch).id: c.objectives["error"] for c in on_rung.values()}
        if not missing:
            return on_rung
        with self.report.phase(title, len(entering), done=len(on_rung)) as advance:
            for candidate in missing:
                start, arch, answers = time.perf_counter(), candidate.arch, answering(candidate.arch).id
                if answers not in errors:
                    with spent(self.finisher.run, "rungs", networks_trained=1):
                        errors[answers] = self.finisher.error_after(arch, supernet, share=share)
                error = errors[answers]
                on_rung[arch.id] = _tuned(candidate, error, phase, time.perf_counter() - start)
                self.finisher.run.append(CANDIDATES, on_rung[arch.id].to_json())
                advance(len(on_rung), f"{arch.id}: error {error:.1f} %, inherited {candidate.objectives['error']:.1f} %")
        return on_rung


def _tuned(candidate: Candidate, error: float, phase: str, seconds: float) -> Candidate:
    return replace(
        candidate, objectives={**candidate.objectives, "error": error}, phase=phase, seconds=seconds,
        provenance={**candidate.provenance, "error": Provenance.TUNED},
    )  # fmt: skip
