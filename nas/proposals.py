"""What a differentiable search proposes for a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nas.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Proposal:
    """What one differentiable search found for one budget, and how decided it was."""

    arch: Architecture
    budget_ms: float
    predicted_ms: float
    upper_ms: float
    relaxed_ms: float  # expected latency of the relaxed architecture at the end
    entropy: float  # mean over choices, 0 (decided) to 1 (uniform)
    loss: float  # of the relaxed architecture on the architecture split, mean of the last ten batches
    frozen: int = 0  # branches whose weights stood still at the end
    alarm: str = ""  # what the guards found wrong at first, in words
    remedy: str = ""  # what was tried against it
    remedy_losses: tuple[float, ...] = ()  # of the discrete architectures with it and without, on the architecture split
    others: Mapping[str, float] = field(default_factory=dict)  # upper bounds of what else has a limit, by its name

    @property
    def alarm_sentence(self) -> str:
        """What was wrong, what was done, and whether it helped; or nothing."""
        if not self.alarm:
            return ""
        done = "nothing was done about it"
        if self.remedy:
            with_it, without = self.remedy_losses
            verdict = "which helps" if with_it < without else "which does not help, so that it went on as before: a false alarm"
            done = f"it began again with the remedy {self.remedy!r}, {verdict} (loss {with_it:.3f}, without it {without:.3f})"
        return f"For {self.budget_ms:.3f} ms it seemed to collapse: {self.alarm}; {done}."

    @property
    def frozen_sentence(self) -> str:
        """How much no longer learns at the end of the search for this budget."""
        branches = "1 branch" if self.frozen == 1 else f"{self.frozen} branches"
        since = f"After the search for {self.budget_ms:.3f} ms the weights of {branches} stand still"
        return f"{since}: the gradients on the two splits disagree."

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "arch": self.arch.to_json()}

    @classmethod
    def from_json(cls, space: SearchSpace, record: Mapping[str, Any]) -> Proposal:
        losses = tuple(record.get("remedy_losses", ()))
        return cls(**{**record, "arch": space.canonical(record["arch"]), "remedy_losses": losses})
