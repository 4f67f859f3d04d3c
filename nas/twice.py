"""Second derivatives of functions whose first ones are written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def again(
    plainly: Callable[..., Any], inputs: Sequence[Any], needed: Sequence[bool], *grads: Tensor
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """What the backward pass of an autograd function gives where it is itself to be differentiated.

    `plainly(*inputs)` computes the same as the function, in operations that have all derivatives; `needed` are the inputs whose
    gradients are asked for, `grads` those of its outputs.
    """
    wanted = [x for x, n in zip(inputs, needed, strict=True) if n]
    found = iter(torch.autograd.grad(plainly(*inputs), wanted, grads, create_graph=True))
    return tuple(next(found) if n else None for n in needed)
