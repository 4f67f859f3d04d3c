"""The differentiable search of a run: a proposal for each of several budgets, from the user's to the fastest network's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from experiments.checkpoints import read_checkpoint, write_checkpoint
from experiments.ledger import spent
from experiments.progress import Reporter
from experiments.roles import PROPOSING
from experiments.run_directory import RunDirectory
from experiments.settings import Settings
from nas.compute import Compute
from nas.constraints import Constraint
from nas.darts import Darts
from nas.proposals import Proposal
from nas.protocols import DifferentiableLatencyModel, Family, Task
from nas.types import Workload

PROPOSALS, CHECKPOINT = "proposals.json", "darts.ckpt"
HEALTH = "darts.jsonl"  # what the guards saw


@dataclass(frozen=True)
class Proposer:
    """Searches on a trained supernet, or goes on with it."""

    family: Family
    task: Task
    workload: Workload
    latency_model: DifferentiableLatencyModel
    compute: Compute
    settings: Settings
    run: RunDirectory
    report: Reporter
    limits: Sequence[Constraint] = ()  # what proposals keep beside their budgets in ms

    def budgets(self, most_ms: float, least_ms: float) -> list[float]:
        """In ms, from the most to the least: of a budget that all networks keep, the slowest is the most."""
        budgets: list[float] = np.geomspace(most_ms, least_ms, self.settings.outer.proposals).tolist()
        return budgets

    def propose(self, supernet: nn.Module, budgets: Sequence[float]) -> list[Proposal]:
        """One proposal for each budget; without any, nothing is searched.

        Raises:
            BudgetError: no architecture meets a budget.
            TrainingError: a budget could not be searched with numbers; the proposals before it are kept.
            RunError: a damaged checkpoint.
        """
        if self.run.has(PROPOSALS):
            return [Proposal.from_json(self.family.space, record) for record in self.run.read_json(PROPOSALS)]
        if not budgets:
            return []
        config = self.settings.darts
        darts = Darts(
            self.family, supernet, self.latency_model, self.task, config, compute=self.compute, seed=self.settings.seed,
            limits=self.limits,
        )  # fmt: skip
        proposals: list[Proposal] = []
        state = read_checkpoint(self.run, CHECKPOINT, self.compute)
        if state is not None:
            proposals = [Proposal.from_json(self.family.space, record) for record in json.loads(state["proposals"])]
            darts.load_state_dict(state)
        self._keep_health(until=darts.num_steps)
        steps = [config.steps] + [config.steps_more] * (len(budgets) - 1)
        title, total = PROPOSING, sum(steps)

        def on_setback(words: str) -> None:
            self._keep_health(until=darts.num_steps)
            self.report.say(words)

        with self.report.phase(title, total, done=darts.num_steps) as advance, spent(self.run, title, networks_trained=1):
            for budget_ms, more in list(zip(budgets, steps, strict=True))[len(proposals) :]:

                def on_step(_: int, loss: float, budget_ms: float = budget_ms) -> None:
                    advance(min(darts.num_steps, total), f"for {budget_ms:.3g} ms, loss {loss:.3f}")

                proposal = darts.propose(
                    budget_ms, steps=more, on_step=on_step, on_check=lambda health: self.run.append(HEALTH, health.to_json()),
                    on_setback=on_setback,
                )  # fmt: skip
                if proposal.alarm:
                    self.report.say(f"{title}: {proposal.alarm_sentence}")
                if proposal.frozen > (proposals[-1].frozen if proposals else 0):
                    self.report.say(f"{title}: {proposal.frozen_sentence}")
                proposals.append(proposal)
                records = json.dumps([p.to_json() for p in proposals])
                write_checkpoint(self.run, CHECKPOINT, {**darts.state_dict(), "proposals": records})
        self.run.write_json(PROPOSALS, [p.to_json() for p in proposals])
        (self.run / CHECKPOINT).unlink(missing_ok=True)
        return proposals

    def _keep_health(self, *, until: int) -> None:
        """Drops what is known of steps that are done again, after a stop or a setback."""
        kept = [record for record in self.run.read_lines(HEALTH) if record["step"] <= until]
        with self.run.replacing(HEALTH) as path:
            path.write_text("".join(json.dumps(record) + "\n" for record in kept))
