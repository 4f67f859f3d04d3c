"""Whole heads and neurons go: those that matter least, where the latency model says that it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.attention import Attention
from nas.feed_forward import FeedForward
from nas.finish.teaching import Lesson, School
from nas.layers import Linear
from nas.space import Architecture, SearchSpace
from nas.training import TrainConfig, stream

NUM_BATCHES = 8  # that importance is judged on


@dataclass(frozen=True)
class Cut:
    """Cuts the layers to smaller options of the space, one step at a time and always where the least importance is lost for each
    predicted ms, and then teaches the network.

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
        layers = cuttable(network, school.space)
        scores = importance(network, layers, school)
        target = smaller(school, scores, faster=self.faster)
        for choice, score in scores.items():
            _keep(layers[choice], score.topk(target.size(choice)).indices.sort().values)
        school.teach(network, self.train, self.lesson)
        return network


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


def smaller(school: School, scores: Mapping[str, Tensor], *, faster: float) -> Architecture:
    """The architecture that is left when the cheapest cuts were made until so much is saved, or nothing saves any more."""
    arch = school.arch
    first_ms = ms = float(school.predict_ms([arch])[0])
    ascending = {choice: score.sort().values for choice, score in scores.items()}
    while ms > (1 - faster) * first_ms:
        prices = []
        for choice, after in _moves(arch, school, list(scores)):
            after_ms = float(school.predict_ms([after])[0])
            gone = [len(ascending[choice]) - a.size(choice) for a in (arch, after)]
            if after_ms < ms:
                prices.append((float(ascending[choice][slice(*gone)].sum()) / (ms - after_ms), choice, after, after_ms))
        if not prices:
            break
        _, _, arch, ms = min(prices, key=lambda price: price[:2])
    return arch


def _moves(arch: Architecture, school: School, choices: Sequence[str]) -> list[tuple[str, Architecture]]:
    """Each choice one option smaller, where there is one."""
    moves = []
    for choice in choices:
        options = [int(o) for o in school.space.by_name[choice].options if int(o) < arch.size(choice)]
        if options:
            moves.append((choice, school.space.canonical({**arch.as_dict, choice: max(options)})))
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
