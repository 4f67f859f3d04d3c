"""How a stand-alone network learns: from the targets, from teachers, and under whatever a stage does to it.

    loss = alpha * cross-entropy + beta * distillation + gamma * quantisation error

with weights that go linearly from a first to a last value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from nas.compute import Compute
from nas.finish.exits import answers_of, early_loss
from nas.finish.imitation import imitating
from nas.finish.losses import MATCHES
from nas.finish.precision import check
from nas.protocols import IGNORED, Batch, Task
from nas.space import Architecture, SearchSpace
from nas.supernet import error_percent, evaluation_batches, state_of
from nas.training import TrainConfig, Trainer, stream

TEACHERS = ("largest", "front", "itself", "baseline")


@dataclass(frozen=True)
class Lesson:
    """What is learned, and until when.

    Args:
        alpha, beta, gamma: weights of the three losses, of the first and of the last step.
        teacher: "largest", the finished largest network; "front", all finished networks that no other beats in latency and error;
            "itself", the network as it was before the stage; "baseline", the best trivial baseline of the task where it is better
            than the network, by answers of fits that have not seen what they answer, and where none is, nobody. Or the folder of
            a fine-tuned checkpoint.
        match: what is learned from the teacher: "answers", "hidden" (the last states) and "relations" (of the last attention).
        temperature: that softens answers.
        class_weights: whether each class counts as if it had as many examples as any other.
        check_every: steps between looks at the error of the split "architecture", whose best weights are kept; 0: no look.
        patience: looks without a new best after which training ends.

    Raises:
        ValueError: a value outside its range, or states to be learned from teachers that have only answers in common.
    """

    alpha: Sequence[float] = (1.0, 1.0)
    beta: Sequence[float] = (0.0, 0.0)
    gamma: Sequence[float] = (0.0, 0.0)
    teacher: str = "largest"
    match: Sequence[str] = ("answers",)
    temperature: float = 2.0
    class_weights: bool = False
    check_every: int = 0
    patience: int = 3

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            weights = getattr(self, name)
            if len(weights) != 2 or min(weights) < 0:
                raise ValueError(f"{name}: {list(weights)} is not a first and a last weight, both at least 0")
            object.__setattr__(self, name, tuple(weights))
        object.__setattr__(self, "match", tuple(self.match))
        if self.is_of_checkpoint and not Path(self.teacher).is_dir():
            raise ValueError(f"teacher: {self.teacher!r} is not one of {TEACHERS}, nor a folder")
        for match in self.match:
            check("match", match, MATCHES)
        if self.teacher not in ("largest", "itself") and self.match != ("answers",):
            raise ValueError(f"match: {list(self.match)} of the teacher {self.teacher!r} is not ['answers']")
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} is not positive")
        if self.check_every < 0 or self.patience < 1:
            raise ValueError(f"check_every, patience: {self.check_every}, {self.patience} are not at least 0 and 1")

    @property
    def needs_teacher(self) -> bool:
        return max(self.beta) > 0

    @property
    def is_of_baseline(self) -> bool:
        return self.needs_teacher and self.teacher == "baseline"

    @property
    def is_of_checkpoint(self) -> bool:
        return self.teacher not in TEACHERS

    @property
    def is_of_outsider(self) -> bool:
        """Whether it is taught by what is no network of the search, whose answers are known before: a baseline, a checkpoint."""
        return self.is_of_baseline or (self.needs_teacher and self.is_of_checkpoint)

    def weights(self, progress: float) -> tuple[float, float, float]:
        """alpha, beta and gamma at a share of the training."""
        alpha, beta, gamma = (w[0] + (w[1] - w[0]) * progress for w in (self.alpha, self.beta, self.gamma))
        return alpha, beta, gamma


class Checkpoint(Protocol):
    """Where a training is written on its way, so that one that was stopped goes on."""

    def read(self) -> Mapping[str, Any] | None:
        """What was written of this training, or None."""
        ...

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Called after each step; may leave it."""
        ...


class Nowhere:
    """No checkpoint."""

    def read(self) -> Mapping[str, Any] | None:
        return None

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        pass


@dataclass(frozen=True)
class School:
    """Where a stage's network learns.

    Args:
        arch: what the network was before any stage.
        teachers: the networks that a name of `TEACHERS` stands for, or a folder holds, on the training device.
        predict_ms: of architectures of the space.
        saved: shares of a network's latency on the device that others like it save, measured side by side; 0 where one is not
            clearly faster. Raises DeviceError.
        most_points_lost: of error, that a stage may cost.
        on_step: called after each step of a training with the number of finished steps.
        facts: what a stage has to say of what it did.
        checkpoint: of the one training of a stage.
    """

    task: Task
    compute: Compute
    seed: int
    space: SearchSpace
    arch: Architecture
    teachers: Callable[[str], Sequence[nn.Module]]
    predict_ms: Callable[[Sequence[Architecture]], Sequence[float]]
    saved: Callable[[nn.Module, Sequence[nn.Module]], Sequence[float]]
    most_points_lost: float
    on_step: Callable[[int], None] = lambda step: None
    facts: dict[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint = field(default_factory=Nowhere)

    def teach(
        self,
        network: nn.Module,
        train: TrainConfig,
        lesson: Lesson,
        *,
        on_step: Callable[[int], None] = lambda step: None,
        **how: Any,
    ) -> None:
        """Trains in place; `on_step` and `how` are the callbacks of `teach`."""

        def after(step: int) -> None:
            on_step(step)
            self.on_step(step)

        teachers = self.teachers(lesson.teacher) if lesson.needs_teacher else []
        setbacks: list[str] = []
        teach(
            network, self.task, train, lesson, teachers=teachers, compute=self.compute, seed=self.seed,
            on_step=after, on_setback=setbacks.append, checkpoint=self.checkpoint, **how,
        )  # fmt: skip
        if setbacks:
            self.facts["setbacks"] = setbacks

    def loss_on(self, network: nn.Module, split: str, *, num_batches: int) -> Callable[[], float]:
        """The mean loss of the network, in whatever state it is by then, over the same first batches of a split."""
        source = stream(self.task, split, tokens_per_batch=2048, seed=self.seed)
        batches = [batch.to(self.compute.device) for batch in islice(source, num_batches)]
        network.eval()

        def loss() -> float:
            with self.compute.autocast():
                return sum(float(self.task.loss(network(*b.inputs), b.targets)) for b in batches) / num_batches

        return loss


def teach(
    network: nn.Module, task: Task, train: TrainConfig, lesson: Lesson, *, compute: Compute, seed: int,
    teachers: Sequence[nn.Module] = (),
    quantisation_error: Callable[[], Tensor] = lambda: torch.zeros(()),
    on_step: Callable[[int], None] = lambda step: None, on_setback: Callable[[str], None] = lambda words: None,
    checkpoint: Checkpoint = Nowhere(),  # noqa: B008 (it has no state)
) -> None:  # fmt: skip
    """Trains a stand-alone network in place. Weights of linear maps that are zero stay zero: sparse networks stay sparse.

    Early answers, of a network that has any, learn from the targets and from its last answer (see `early_loss`).

    From a checkpoint it goes on to the same weights, but for the last digits of answers that a teaching network gives again, in
    other batches than before (see `nas.finish.remembered`).

    Args:
        teachers: of the lesson, if it needs any; their mean answers.
        quantisation_error: of the network's last call.
        on_step: called after each step with the number of finished steps, and for the step of a checkpoint.
        on_setback: as that of `Trainer.run`.
        checkpoint: of a network with other weights than this one's is none.

    Raises:
        TrainingError: as of `Trainer.run`.
        ValueError: class weights for a task whose targets are not one class an example, or a teacher that cannot be matched.
    """
    loss_of = _balanced(task, train, compute) if lesson.class_weights else task.loss
    total = train.steps * train.accumulate
    told: list[str] = []
    with imitating(
        network, teachers if lesson.needs_teacher else [], task, match=lesson.match, temperature=lesson.temperature,
        example=lambda: _first_batch(task, train, compute),
    ) as imitation:  # fmt: skip
        module = nn.ModuleList([network, imitation.projection])
        state = _state_for(module, checkpoint)
        drawn = state["drawn"] if state else 0
        batches = stream(task, "train", tokens_per_batch=train.tokens_per_batch, seed=seed, start=drawn)

        def gradient(number: int) -> float:
            nonlocal drawn
            batch, drawn = next(batches).to(compute.device), drawn + 1
            alpha, beta, gamma = lesson.weights(number / max(1, total - 1))
            with compute.autocast():
                *early, outputs = answers_of(network, batch.inputs)
                loss = alpha * loss_of(outputs, batch.targets)
                if early:
                    loss = loss + early_loss(early, outputs, [loss_of(answer, batch.targets) for answer in early])
                if imitation.teachers and beta:
                    loss = loss + beta * imitation.loss(outputs, batch)
                error = quantisation_error()
                if gamma:
                    loss = loss + gamma * error
            loss.backward()
            return float(loss.detach())

        def note(words: str) -> None:
            told.append(words)
            on_setback(words)

        def enough(step: int) -> bool:
            ends = best.enough(step)
            if not ends:
                checkpoint.write(lambda: {**trainer.state_dict(), **best.state_dict(), "drawn": drawn, "told": told})
            return ends

        trainer = Trainer(module, train, gradient, bind=_zeros_kept(network))
        best = _Best(network, task, compute, lesson, trainer)
        if state:
            trainer.load_state_dict(state)
            best.load_state_dict(state)
            for words in state["told"]:
                note(words)
            on_step(trainer.step)
        trainer.run(on_step=lambda step, _: on_step(step), enough=enough, on_setback=note)
        best.restore()


def _first_batch(task: Task, train: TrainConfig, compute: Compute) -> Batch:
    return next(iter(task.batches("train", tokens_per_batch=train.tokens_per_batch, seed=0))).to(compute.device)


def _state_for(module: nn.Module, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What was written of a training of a module with these weights, or nothing."""
    state = checkpoint.read()
    return state if state is not None and _shapes(state["module"]) == _shapes(module.state_dict()) else {}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _zeros_kept(network: nn.Module) -> Callable[[], None]:
    """Makes those weights of linear maps zero again that are zero now."""
    plain = [m.weight for m in network.modules() if isinstance(m, nn.Linear) and not parametrize.is_parametrized(m)]
    zeros = [(weight, weight == 0) for weight in plain if bool((weight == 0).any())]

    def keep() -> None:
        for weight, zero in zeros:
            weight.masked_fill_(zero, 0.0)

    return keep


class _Best:
    """Looks at the error on "architecture" now and then, and keeps the best weights."""

    def __init__(self, network: nn.Module, task: Task, compute: Compute, lesson: Lesson, trainer: Trainer) -> None:
        self.network, self.task, self.compute, self.lesson, self.trainer = network, task, compute, lesson, trainer
        self.error, self.misses = float("inf"), 0
        self.state: dict[str, Tensor] = {}
        self.batches: list[Batch] = []

    def enough(self, step: int) -> bool:
        if not self.lesson.check_every or step % self.lesson.check_every:
            return False
        if not self.batches:
            self.batches = [batch.to(self.compute.device) for batch in evaluation_batches(self.task, "architecture")]
        self.trainer.swap()
        error = error_percent(self.network.eval(), self.batches, self.task, self.compute)
        if error < self.error:
            self.error, self.misses, self.state = error, 0, state_of(self.network)
        else:
            self.misses += 1
        self.trainer.swap()
        self.network.train()
        return self.misses >= self.lesson.patience

    def state_dict(self) -> dict[str, Any]:
        return {"least_error": self.error, "misses": self.misses, "best": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.error, self.misses, self.state = state["least_error"], state["misses"], state["best"]

    def restore(self) -> None:
        if self.state:
            self.network.load_state_dict(self.state)


def _balanced(task: Task, train: TrainConfig, compute: Compute) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy in which each class weighs the inverse of its share of `train`."""
    classes = task.sizes.get("num_classes", 0)
    if classes < 2:
        raise ValueError(f"class_weights: the task {task.name} has no classes")
    targets = (batch.targets[batch.targets != IGNORED] for batch in evaluation_batches(task, "train"))
    counts = torch.stack([torch.bincount(asked, minlength=classes) for asked in targets]).sum(dim=0)
    weights = (counts.sum() / (classes * counts)).to(compute.device)
    return lambda outputs, targets: F.cross_entropy(outputs.float().flatten(0, -2), targets.flatten(), weight=weights)
