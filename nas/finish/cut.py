"""Whole heads, neurons and layers go: those that matter least, where the latency model says that it pays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.attention import Attention
from nas.feed_forward import FeedForward
from nas.finish.exits import layers_of
from nas.finish.shapes import without_blocks
from nas.finish.stage import NothingToDoError
from nas.finish.teaching import Lesson, School
from nas.layers import Linear
from nas.space import Architecture, SearchSpace
from nas.training import TrainConfig, stream

NUM_BATCHES = 8  # that importance is judged on
LAYER = re.compile(r"layer\d+\.")


@dataclass(frozen=True)
class Cut:
    """Cuts the network to smaller options of the space, one step at a time and always where the least importance is lost for each
    predicted ms, and then teaches it. A step is a layer with fewer heads or neurons, or fewer layers, whichever of them.

    Args:
        faster: predicted share of the latency to save.

    Raises:
        ValueError: a share outside (0, 1).
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200, learning_rate=1e-3))
    lesson: Lesson = field(default_factory=Lesson)
    faster: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.faster < 1:
            raise ValueError(f"faster: {self.faster} is not between 0 and 1")

    def apply(self, network: nn.Module, school: School) -> nn.Module:
        """Raises NothingToDoError where no cut is predicted to save anything, and ValueError as of `cuttable`."""
        layers = cuttable(network, school.space)
        scores = importance(network, layers, school)
        target = smaller(school, scores, added_by_layers(network, school), faster=self.faster)
        if target.arch == school.arch:
            raise NothingToDoError("no option of the space with fewer heads, neurons or layers is predicted to be faster")
        for choice, score in scores.items():
            if size := target.size(choice):
                _keep(layers[choice], score.topk(size).indices.sort().values)
        school.facts["layers_gone"] = [n for n in range(1, school.arch.size("depth") + 1) if n not in target.layers]
        without_blocks(network, {str(number - 1) for number in school.facts["layers_gone"]})
        school.teach(network, self.train, self.lesson)
        return network


@dataclass(frozen=True)
class Plan:
    """What is to be left: an architecture, and which layers of the network its layers are, counted from 1."""

    arch: Architecture
    layers: tuple[int, ...]

    def own(self, choice: str) -> str:
        """The name in the architecture of a choice of the network, `layer1.ffn` of `layer2.ffn` where layer 1 is gone."""
        layer, _, part = choice.partition(".")
        return f"layer{1 + self.layers.index(int(layer.removeprefix('layer')))}.{part}"

    def size(self, choice: str) -> int:
        """Of a choice of the network; 0 where its layer is gone."""
        return self.arch.size(self.own(choice)) if int(choice.partition(".")[0].removeprefix("layer")) in self.layers else 0

    def shrunk(self, choice: str, space: SearchSpace) -> list[Plan]:
        """With the next smaller option of a choice of the network, if there is one."""
        size = self.size(choice)
        options = [int(o) for o in space.by_name[self.own(choice)].options if int(o) < size] if size else []
        return [Plan(space.canonical({**self.arch.as_dict, self.own(choice): max(options)}), self.layers)] if options else []

    def without(self, gone: Collection[int], space: SearchSpace) -> list[Plan]:
        """Without these layers of the network, if the space has what is left in that order."""
        layers = tuple(layer for layer in self.layers if layer not in gone)
        picks = {name: option for name, option in self.arch.as_dict.items() if not LAYER.match(name)}
        for number, layer in enumerate(layers, start=1):
            first = f"layer{1 + self.layers.index(layer)}."
            own = {name.removeprefix(first): option for name, option in self.arch.as_dict.items() if name.startswith(first)}
            picks |= {f"layer{number}.{part}": option for part, option in own.items()}
        with contextlib.suppress(ValueError):
            return [Plan(space.canonical({**picks, "depth": len(layers)}), layers)]
        return []


def cuttable(network: nn.Module, space: SearchSpace) -> dict[str, Attention | FeedForward]:
    """The layers whose heads or neurons a choice counts, by that choice: `layer1.ffn` of `stack.blocks.0.ffn`.

    Raises:
        ValueError: a layer is factored, shares keys and values, or the space has no such choice.
    """
    layers: dict[str, Attention | FeedForward] = {}
    for name, module in network.named_modules():
        if isinstance(module, Attention | FeedForward):
            number = next((int(part) for part in name.split(".") if part.isdecimal()), -1) + 1
            choice = f"layer{number}.{'heads' if isinstance(module, Attention) else 'ffn'}"
            whole = isinstance(module.out if isinstance(module, Attention) else module.down, Linear)
            whole = whole and not (isinstance(module, Attention) and module.shared > 1)
            if choice not in space.by_name or not whole:
                raise ValueError(f"cut: {name} is no layer whose size is the choice {choice} of the space {space.name}")
            layers[choice] = module
    return layers


def importance(network: nn.Module, layers: Mapping[str, Attention | FeedForward], school: School) -> dict[str, Tensor]:
    """What the loss would change to first order if a head or a neuron went: |sum of weight times gradient| over what it writes,
    mean over some batches (heads: Michel et al., arXiv:1905.10650, eq. 2; neurons alike)."""
    scores = {choice: torch.zeros(_num_units(layer)) for choice, layer in layers.items()}
    batches = stream(school.task, "train", tokens_per_batch=2048, seed=school.seed)
    network.train()
    for _ in range(NUM_BATCHES):
        batch = next(batches).to(school.compute.device)
        network.zero_grad()
        with school.compute.autocast():
            loss = school.task.loss(network(*batch.inputs), batch.targets)
        loss.backward()
        for choice, layer in layers.items():
            weight = _writer(layer).weight
            assert weight.grad is not None
            change_C = (weight * weight.grad).detach().sum(dim=0)
            scores[choice] += change_C.unflatten(0, (_num_units(layer), -1)).sum(dim=1).abs().cpu() / NUM_BATCHES
    network.zero_grad()
    return scores


@torch.no_grad()
def added_by_layers(network: nn.Module, school: School) -> dict[int, float]:
    """What the mean loss over some batches gains without a layer, by its number counted from 1. Nothing where layers share
    weights or choose the tokens of others: there none goes."""
    layers, stack = layers_of(network), cast(Any, network.stack)
    if len(set(layers)) < len(layers) or stack.keep.fewer:
        return {}
    loss = school.loss_on(network, "train", num_batches=NUM_BATCHES)
    first, added = loss(), {}
    for number, layer in enumerate(layers, start=1):
        with passing_by(layer):
            added[number] = loss() - first
    return added


@contextlib.contextmanager
def passing_by(layer: nn.Module) -> Iterator[None]:
    """Inside the block, what comes into the layer comes out of it."""
    handle = layer.register_forward_hook(lambda _, given, __: given[0])
    try:
        yield
    finally:
        handle.remove()


def smaller(school: School, scores: Mapping[str, Tensor], added: Mapping[int, float], *, faster: float) -> Plan:
    """What is left when the cheapest cuts were made until so much is saved, or nothing saves any more.

    Args:
        scores: importance of heads or neurons, by their choice.
        added: loss without each layer that may go.
    """
    plan = Plan(school.arch, tuple(range(1, school.arch.size("depth") + 1)))
    first_ms = ms = float(school.predict_ms([plan.arch])[0])
    ascending = {choice: score.sort().values for choice, score in scores.items()}
    while ms > (1 - faster) * first_ms:
        prices = []
        for lost, after in _moves(plan, school.space, ascending, added):
            after_ms = float(school.predict_ms([after.arch])[0])
            if after_ms < ms:
                prices.append((lost / (ms - after_ms), after.arch.id, after, after_ms))
        if not prices:
            break
        _, _, plan, ms = min(prices, key=lambda price: price[:2])
    return plan


def _moves(
    plan: Plan, space: SearchSpace, ascending: Mapping[str, Tensor], added: Mapping[int, float]
) -> list[tuple[float, Plan]]:  # fmt: skip
    """What is lost by each choice one option smaller, and by the next smaller depth without each layer; where that is more than
    one less, without those of the others that add least, too."""
    moves = []
    for choice, scores in ascending.items():
        for after in plan.shrunk(choice, space):
            gone = [len(scores) - p.size(choice) for p in (plan, after)]
            moves.append((float(scores[slice(*gone)].sum()), after))
    depths = [depth for depth in space.by_name["depth"].sizes if depth < len(plan.layers)]
    if added and depths:
        fewer, ranked = len(plan.layers) - max(depths), sorted(plan.layers, key=lambda layer: added[layer])
        for together in {frozenset([one, *[o for o in ranked if o != one][: fewer - 1]]) for one in plan.layers}:
            moves += [(sum(max(0.0, added[layer]) for layer in together), after) for after in plan.without(together, space)]
    return moves


def _writer(layer: Attention | FeedForward) -> Linear:
    writer = layer.out if isinstance(layer, Attention) else layer.down
    assert isinstance(writer, Linear)
    return writer


def _num_units(layer: Attention | FeedForward) -> int:
    return layer.heads if isinstance(layer, Attention) else _writer(layer).in_features


def _keep(layer: Attention | FeedForward, stays: Tensor) -> None:
    """Leaves the heads or neurons of these numbers."""
    if isinstance(layer, Attention):
        channels = (stays[:, None] * layer.head_size + torch.arange(layer.head_size)).flatten()
        layer.heads = layer.kv_heads = len(stays)
        names = ["query", "key", "value"]
    else:
        channels, names = stays, ["up", "gate"] if layer.gate is not None else ["up"]
    channels = channels.to(_writer(layer).weight.device)
    for name in names:
        reader = getattr(layer, name)
        setattr(layer, name, _linear(reader.weight[channels], reader.bias[channels], reader.precision))
    writer = _writer(layer)
    cut = _linear(writer.weight[:, channels], writer.bias, writer.precision)
    setattr(layer, "out" if isinstance(layer, Attention) else "down", cut)


def _linear(weight_CD: Tensor, bias_C: Tensor, precision: str) -> Linear:
    layer = Linear(weight_CD.shape[1], weight_CD.shape[0]).to(weight_CD.device)
    layer.precision = precision
    with torch.no_grad():
        layer.weight.copy_(weight_CD)
        layer.bias.copy_(bias_C)
    return layer
