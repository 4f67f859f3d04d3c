"""What can be chosen about a differentiable search (`nas.darts`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from nas.ranges import check_finite, check_not_negative, check_positive, check_whole
from nas.relaxations import RELAXATIONS, Relaxation

Discretisation = Literal["probability", "perturbation"]
Remedy = Literal["none", "auxiliary_skip", "beta_decay", "operation_early_stopping", "perturbation"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class DartsConfig:
    """Steps of one search and how fast things move.

    `steps` are for the first budget, `steps_more` for each further one, which starts from the logits and weights of the one
    before. The temperature falls geometrically from `temperature[0]` to `temperature[1]` in every search. The guards look every
    `check_every` steps and at the end of a budget; a look costs about as much as two steps. Their alarm trips at a budget's
    second look or later, as a budget that is smaller than the one before overshoots at first; where a shorter budget looks like
    a collapse, it gets the steps to a second look. Then the search for that budget begins again with even logits and the
    `remedy`, for the steps that are left: `auxiliary_skip` or `beta_decay`, of weight 1, `operation_early_stopping` at 0.4, or
    `perturbation`, which trains the weights under even probabilities and then ranks the options by perturbation, once for all
    budgets. The alarm is false where a small network is as good as any: a remedy stays only if what it finds has less loss on
    the architecture split than what was found before.

    The weight of the auxiliary skips falls linearly from `auxiliary_skip` (1 in their paper) at a budget's first step to 0 at
    its last. A branch stops learning, for all budgets that follow, where the mean cosine of its gradients on the two splits over
    `early_stopping_steps` (20 in the paper) is below `operation_early_stopping` (0.4 in the paper); -1 looks at none. A look at
    it costs one more pass forward and back at each step.

    With the `schedule` "cosine", the weights' rate falls from `weight_rate` towards zero within each budget, as half a cosine;
    the logits' rate is constant.

    Raises:
        ValueError: a value outside its range.
    """

    steps: int = 18
    steps_more: int = 3
    tokens_per_batch: int = 2048
    logit_rate: float = 0.1
    weight_rate: float = 5e-4
    schedule: Schedule = "constant"
    temperature: tuple[float, float] = (1.0, 0.4)
    penalty: float = 5.0
    relaxation: Relaxation = "gumbel"
    unroll_rate: float = 0.0
    auxiliary_skip: float = 0.0
    beta_decay: float = 0.0
    operation_early_stopping: float = -1.0
    early_stopping_steps: int = 6
    discretisation: Discretisation = "probability"
    remedy: Remedy = "perturbation"
    check_every: int = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", tuple(self.temperature))
        check_whole(self, "steps", "steps_more", "tokens_per_batch", "early_stopping_steps", "check_every")
        check_positive(self, "logit_rate", "weight_rate", "penalty")
        check_not_negative(self, "unroll_rate", "auxiliary_skip", "beta_decay")
        if len(self.temperature) != 2 or not all(isinstance(t, int | float) and 0 < t < math.inf for t in self.temperature):
            raise ValueError(f"temperature: {self.temperature} is not a pair of positive numbers")
        check_finite(self, "operation_early_stopping")
        if not -1 <= self.operation_early_stopping <= 1:
            raise ValueError(f"operation_early_stopping: {self.operation_early_stopping} is not in [-1, 1], as cosines are")
        allowed = {
            "relaxation": RELAXATIONS, "discretisation": get_args(Discretisation), "remedy": get_args(Remedy),
            "schedule": get_args(Schedule),
        }  # fmt: skip
        for name, options in allowed.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {options}")
