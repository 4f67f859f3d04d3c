"""What a stage is, and in which order stages make sense."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import onnx
from torch import nn

from nas.finish.teaching import Lesson, School
from nas.training import TrainConfig

STAGES = ("longer", "distil", "cut", "low_rank", "prune", "early_exit", "layer_skip", "quantise")
"""A cut wants whole matrices, factors would fill what was pruned, and what comes after the quantiser would undo it."""


class NothingToDoError(Exception):
    """A stage that can do nothing for this network; says why."""


class Stage(Protocol):
    """A way to finish a network."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def lesson(self) -> Lesson: ...

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        """The network that comes out, perhaps the given one changed in place. Raises NothingToDoError."""
        ...


@runtime_checkable
class ReadsFile(Stage, Protocol):
    """A stage whose promise is one about the exported file."""

    def facts_of(self, model: onnx.ModelProto) -> dict[str, Any]:
        """What the file has to say of it."""
        ...
