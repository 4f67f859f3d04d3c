"""Networks whose layers a stage has cut or factored, or without some of them: their weights' names and shapes say everything."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.attention import Attention
from nas.finish.exits import Exits, is_head
from nas.finish.skips import SKIPPED, Skips
from nas.layers import Linear, with_precision

BLOCK = re.compile(r"(?:network\.)?stack\.blocks\.(\d+)\.")  # of a weight's name, perhaps in a network around


def with_weights(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The network, its linear maps replaced where the weights are those of smaller or of factored ones, with these weights;
    without the blocks that they do not hold, and with early exits, or a gate, where they hold any."""
    held = {match[1] for name in state if (match := BLOCK.match(name))}
    without_blocks(network, {match[1] for name, _ in network.named_parameters() if (match := BLOCK.match(name))} - held)
    if any(map(is_head, state)):
        network = Exits.of_weights(network, state)
    elif SKIPPED in state:
        network = Skips.of_weights(network, state)
    for name, layer in list(linear_layers(network)):
        if f"{name}.0.weight" in state:
            first, second = state[f"{name}.0.weight"], state[f"{name}.1.weight"]
            replace(network, name, factored(first, second, state.get(f"{name}.1.bias")))
        elif state[f"{name}.weight"].shape != layer.weight.shape:
            rows, columns = state[f"{name}.weight"].shape
            replace(network, name, Linear(columns, rows, bias=layer.bias is not None))
    for module in network.modules():
        if isinstance(module, Attention):
            module.heads, module.kv_heads = (_rows(part) // module.head_size for part in (module.query, module.key))
            module.shared = module.heads // module.kv_heads
    network.load_state_dict(state)
    return network


def without_blocks(network: nn.Module, numbers: Collection[str]) -> None:
    """Takes blocks out of the stack, and with them the layers that use their weights."""
    if numbers:
        stack: Any = network.stack
        stack.users = [users for users in stack.users if users[0] not in numbers]
        for number in numbers:
            del stack.blocks[number]


def linear_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps inside the blocks of the network, by name: neither what reads the input nor what gives the answer."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and ".blocks." in f".{name}":
            yield name, module


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts a layer in the place of a linear map, in the precision of that."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, with_precision(layer, getattr(network.get_submodule(name), "precision", "")))


def factored(first_RD: Tensor, second_CR: Tensor, bias_C: Tensor | None) -> nn.Sequential:
    """x -> second (first x) + bias."""
    rank, columns = first_RD.shape
    first = Linear(columns, rank, bias=False, device=first_RD.device)
    second = Linear(rank, second_CR.shape[0], bias=bias_C is not None, device=first_RD.device)
    with torch.no_grad():
        first.weight.copy_(first_RD)
        second.weight.copy_(second_CR)
        if bias_C is not None:
            second.bias.copy_(bias_C)
    return nn.Sequential(first, second)


def _rows(projection: nn.Module) -> int:
    last = projection[-1] if isinstance(projection, nn.Sequential) else projection
    assert isinstance(last, nn.Linear)
    return last.out_features
