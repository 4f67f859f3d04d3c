"""A network whose middle layers run for difficult inputs only, by a gate after the first ones.

Shapes: B examples, T tokens, D width, C classes.

    layers 1 ... k -> gate -> easy: layers l + 1 ... -> answer
                           -> layers k + 1 ... l of the others

The gate reads the mean token and gives a probability that the short way is enough (SkipNet, arXiv:1711.09485, has such a gate
before each layer). Like an early exit, an answer does not depend on what else is in the batch, but a batch skips only where all
examples are easy. Unlike one, both ways end in the same layers and the same head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from nas.finish.exits import NEVER, after_layers, layers_of, stopping
from nas.reduction import mean_token

SKIPPED = "skipped"  # the numbers of layers before, and of the last that is skipped, among the weights


class Gate(nn.Module):
    """Norm, mean over the tokens, and the probability that an example is easy."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 1)

    def features(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        """What the gate decides by, [B, D]."""
        return mean_token(self.norm(x_BTD), bias_B11T)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        """[B, 1]."""
        return torch.sigmoid(self.linear(self.features(x_BTD, bias_B11T)))


class Skips(nn.Module):
    """A network with a gate.

    Args:
        network: whose `stack.layers` are its layers in their order, called with their stream and the bias of their scores.
        after: layers before the gate.
        until: the last layer that is skipped; none of the skipped ones leaves tokens out.
    """

    threshold: Tensor
    skipped: Tensor

    def __init__(self, network: nn.Module, gate: Gate, *, after: int, until: int, threshold: float = NEVER) -> None:
        super().__init__()
        self.network, self.gate, self.after, self.until = network, gate, after, until
        self.register_buffer("threshold", torch.tensor(threshold))
        self.register_buffer(SKIPPED, torch.tensor([after, until]))
        if hasattr(network, "dynamic_axes"):
            self.dynamic_axes = network.dynamic_axes

    @classmethod
    def of_weights(cls, network: nn.Module, state: Mapping[str, Tensor]) -> Skips:
        """With a gate of the shapes of these weights, which are yet to be loaded."""
        after, until = state[SKIPPED].tolist()
        return cls(network, Gate(state["gate.linear.weight"].shape[1]), after=after, until=until)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return layers_of(self.network)

    def answers(self, *inputs: Tensor) -> list[Tensor]:
        """Logits [B, C] of the short way, and of the whole network."""
        return [self._run(inputs, lambda seen, _: seen[0]), self.network(*inputs)]

    def features(self, *inputs: Tensor) -> Tensor:
        """What the gate decides by, [B, D]."""
        seen, _ = self._around(inputs)
        return self.gate.features(*seen)

    @torch.no_grad()
    def shapes_fit(self, *inputs: Tensor) -> bool:
        """Whether no tokens are left out by the layers that may be skipped."""
        (x_BTD, _), behind_BTD = self._around(inputs)
        return x_BTD.shape == behind_BTD.shape

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self._run(inputs, self._chosen)

    def rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What is exported, so that it skips."""
        return stopping(model)

    def _around(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The stream before the layers that may be skipped, with its bias, and that behind them."""
        found: list[tuple[tuple[Tensor, Tensor], Tensor]] = []

        def note(seen: tuple[Tensor, Tensor], x_BTD: Tensor) -> Tensor:
            found.append((seen, x_BTD))
            return x_BTD

        self._run(inputs, note)
        return found[0]

    def _chosen(self, seen: tuple[Tensor, Tensor], x_BTD: Tensor) -> Tensor:
        easy_B1 = self.gate(*seen) > self.threshold  # as it is exported, nothing but the choice may need what is skipped
        return torch.where(easy_B1, seen[0].flatten(1), x_BTD.flatten(1)).view_as(seen[0])

    def _run(self, inputs: Sequence[Tensor], choose: Callable[[tuple[Tensor, Tensor], Tensor], Tensor]) -> Tensor:
        """The answer where the stream behind the skipped layers is what is chosen by that before them, with its bias, and it."""
        given: list[tuple[Tensor, Tensor]] = []

        def after_layer(_: nn.Module, to_layer: tuple[Tensor, ...], x_BTD: Tensor) -> Tensor | None:
            given.append((to_layer[0], to_layer[1]))
            return choose(given[self.after], x_BTD) if len(given) == self.until else None

        with after_layers(self.network, after_layer):
            answer: Tensor = self.network(*inputs)
        return answer
