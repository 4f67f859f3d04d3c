"""Choices and picks, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nas.space import Choice, Option, SearchSpace

LAYER = re.compile(r"\blayer(\d+)\.")  # that a choice's name begins with


def in_all_layers(space: SearchSpace) -> dict[str, dict[Option, dict[str, Option]]]:
    """By the names of choices without their layers, and by option, the picks of all that have it."""
    groups: dict[str, list[Choice]] = {}
    for choice in space.choices:
        groups.setdefault(LAYER.sub("", choice.name), []).append(choice)
    return {
        name: {
            option: {choice.name: option for choice in members if option in choice.options}
            for option in dict.fromkeys(option for choice in members for option in choice.options)
        }
        for name, members in groups.items()
    }


def split_layers(arch: Mapping[str, int | str]) -> tuple[dict[str, int | str], list[dict[str, int | str]]]:
    """The picks of the whole network, and layer by layer those named `layer<number>.<name>`."""
    whole: dict[str, int | str] = {}
    layers: dict[int, dict[str, int | str]] = {}
    for name, option in arch.items():
        layer, dot, part = name.partition(".")
        if dot and layer.startswith("layer") and layer[5:].isdecimal():
            layers.setdefault(int(layer[5:]), {})[part] = option
        else:
            whole[name] = option
    return whole, [layers[number] for number in sorted(layers)]


def parts_of(layers: Sequence[Mapping[str, int | str]]) -> list[str]:
    """The names of all picks that a layer may have, in the order of the fullest layer."""
    return list(dict.fromkeys(part for layer in sorted(layers, key=len, reverse=True) for part in layer))


def arch_in_short(arch: Mapping[str, int | str]) -> str:
    """`width 64, depth 3: full/4/256, 2 × none/–/128`: equal neighbours once, the parts of a layer in one order."""
    whole, layers = split_layers(arch)
    words = ["/".join(str(layer.get(part, "–")) for part in parts_of(layers)) for layer in layers]
    runs: list[tuple[int, str]] = []
    for word in words:
        if runs and runs[-1][1] == word:
            runs[-1] = (runs[-1][0] + 1, word)
        else:
            runs.append((1, word))
    head = ", ".join(f"{name} {option}" for name, option in whole.items())
    tail = ", ".join(f"{times} × {word}" if times > 1 else word for times, word in runs)
    return ": ".join(part for part in (head, tail) if part)
