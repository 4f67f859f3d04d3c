"""Operation-level early stopping (OLES, Jiang et al., NeurIPS 2023): what only learns the training split by heart stops learning.

An operation whose weights' gradients on the training split and on the architecture split point apart overfits, and skips, which
have no weights, win against it. So where the mean of their cosine over several steps is below a threshold, its weights stand
still for the rest of the search, while the logits go on.

The paper's operations have weights of their own. Here all options of a branch share them, by prefixes and across kinds, so what
is frozen is a branch: an attention or a feed-forward, for all its options alike. A step whose draw leaves a branch out has no
gradient of it, and does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.attention import Attention
from nas.feed_forward import FeedForward


class EarlyStopping:
    """Which branches of a supernet are frozen, and the cosines of those that are not, since their last mean.

    Args:
        steps: whose mean is held against the threshold (the paper's M).

    Raises:
        ValueError: a supernet without such branches.
    """

    def __init__(self, supernet: nn.Module, *, steps: int) -> None:
        self.steps = steps
        self.branches = {
            name: {f"{name}.{own}": parameter for own, parameter in module.named_parameters()}
            for name, module in supernet.named_modules()
            if isinstance(module, Attention | FeedForward)
        }
        if not self.branches:
            kind = type(supernet).__name__
            raise ValueError(f"operation_early_stopping: {kind} has no attention and no feed-forward of `nas` to freeze")
        self.frozen: set[str] = set()
        self.cosines: dict[str, list[float]] = {}

    def held(self) -> set[str]:
        """The names of the parameters that stand still."""
        return {parameter for name in self.frozen for parameter in self.branches[name]}

    def look(self, held_out_loss: Callable[[], Tensor], threshold: float) -> None:
        """Takes one step's gradients on the training split, which the parameters hold, and on the architecture split, whose loss
        it asks for; freezes branches whose mean cosine is below the threshold, and takes the gradients of frozen ones away.

        It costs a forward and a backward pass; nothing, once everything is frozen.
        """
        looked_at = {name: own for name, own in self.branches.items() if name not in self.frozen}
        if looked_at:
            parameters = [p for own in looked_at.values() for p in own.values()]
            found = iter(torch.autograd.grad(held_out_loss(), parameters, allow_unused=True))
            for name, own in looked_at.items():
                self._count(name, [(p.grad, next(found)) for p in own.values()], threshold)
        for name in self.frozen:
            for parameter in self.branches[name].values():
                parameter.grad = None

    def _count(self, name: str, gradients: list[tuple[Tensor | None, Tensor | None]], threshold: float) -> None:
        pairs = [(a.flatten(), b.flatten()) for a, b in gradients if a is not None and b is not None]
        if not pairs:
            return
        trained, held_out = (torch.cat(side).double() for side in zip(*pairs, strict=True))
        norms = float(trained.norm() * held_out.norm())
        if norms == 0.0:
            return
        cosines = self.cosines.setdefault(name, [])
        cosines.append(float(trained @ held_out) / norms)
        if len(cosines) == self.steps:
            if sum(cosines) / self.steps < threshold:
                self.frozen.add(name)
            del self.cosines[name]

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": sorted(self.frozen), "cosines": {name: list(cosines) for name, cosines in self.cosines.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.frozen = set(state["frozen"])
        self.cosines = {name: list(cosines) for name, cosines in state["cosines"].items()}
