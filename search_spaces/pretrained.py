"""A checkpoint as the largest network of a space.

The folder is in the form of Hugging Face: `config.json` and `model.safetensors` (see `search_spaces.checkpoints`). The scale of
the scores is folded into the queries. A pooling layer and a classifier are left out. Where the space's largest network is gated
and the checkpoint is not, gates begin open; factored matrices of a feed-forward layer begin as the truncated SVD of its own. What
matters is put first (see `search_spaces.importance`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from search_spaces.checkpoints import ACTIVATIONS, LAYOUTS, FileLayout, Tensors, completed
from search_spaces.common import options
from search_spaces.importance import blocks, reorder_heads, sort_by_importance
from search_spaces.trunk import Trunk

WHY = {"depth": "largest depth", "heads": "most heads", "kv_heads": "most heads of keys and values", "patch": "finest patch"}
"""What is not simply the space's option of that name, or its first one."""


def read(
    folder: Path, kinds: Sequence[str], supernet: Callable[[], nn.Module], trunk: Trunk, facts: Mapping[str, object]
) -> dict[str, Tensor]:  # fmt: skip
    """Weights of the supernet by its names, in float32, all but a classifier's; sorted by importance.

    Args:
        kinds: of models that the family can be.
        facts: what else holds for the family's networks, by the names of a configuration.

    Raises:
        ValueError: no such folder, a model of another kind, or a tensor that is missing, that has another shape, or that our
            networks have no place for.
    """
    config, layout = read_config(folder, kinds)
    _check(folder, config, layout, {**largest(trunk), **facts})
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in supernet().named_parameters()}
    weights = _weights(read_tensors(folder, layout), config, layout, shapes)
    head_size = trunk.attention.head_size
    for name in [name for name in weights if ".query." in name]:
        weights[name] = weights[name] / head_size**0.5
    for block in blocks(weights):
        _our_order(weights, block, head_size)
    weights = sort_by_importance(weights, head_size=head_size, pre_norm=trunk.norm == "pre")
    for name in [name for name in shapes if name.endswith(".reduce")]:
        factored = name.removesuffix(".reduce")
        weights[f"{factored}.expand"], weights[name] = factors(weights[f"{factored}.weight"], shapes[name][0])
    return weights


def largest(trunk: Trunk) -> dict[str, Any]:
    """What holds for the largest network of a space."""
    space, attention = trunk.space, trunk.attention
    first = {name: options(space, name)[0] for name in ("activation", "norm_kind", "sharing")}
    sizes = {"depth": trunk.num_layers, "heads": attention.heads[-1], "kv_heads": attention.most_kv_heads}
    norms = {"norm": trunk.norm, "norm_eps": trunk.norm_eps}
    return {**first, **sizes, **norms, "ffn_kind": options(space, "layer1.ffn_kind")[0], "max_tokens": attention.max_tokens}


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Matrices whose product is the nearest one of that rank, by truncated SVD (Eckart and Young, 1936); so are their prefixes of
    every smaller rank."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def read_config(folder: Path, kinds: Sequence[str]) -> tuple[dict[str, Any], FileLayout]:
    """A checkpoint's configuration, completed, and its kind. Raises ValueError if there is none of these kinds."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {folder} has no config.json of a checkpoint ({error})") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"path: the model_type {kind!r} of {folder}/config.json is not one of {tuple(kinds)}")
    return completed(LAYOUTS[kind], config), LAYOUTS[kind]


def _check(folder: Path, config: Mapping[str, Any], layout: FileLayout, ours: Mapping[str, Any]) -> None:
    """What the shapes of tensors do not tell."""
    check_fixed(folder, config, layout)
    for name, theirs in layout.facts.items():
        opened = name == "ffn_kind" and (theirs, ours[name]) == ("mlp", "glu")
        if ours[name] != theirs and not opened:
            raise ValueError(f"space.{name}: {ours[name]!r} is not {theirs!r}, which the checkpoint {folder} has")
    for name, key in layout.keys.items():
        held = config.get(key)
        if (activation_of(folder, config, layout) if name == "activation" else held) != ours[name]:
            why = WHY.get(name, name)
            raise ValueError(f"{key}: {held!r} of {folder}/config.json is not {ours[name]!r}, the space's {why}")
    longest = config.get("max_position_embeddings", math.inf)
    if ours["max_tokens"] > longest:
        raise ValueError(
            f"max_position_embeddings: {longest} of {folder}/config.json is less than the {ours['max_tokens']} tokens of the task"
        )


def check_fixed(folder: Path, config: Mapping[str, Any], layout: FileLayout) -> None:
    """Raises ValueError for a configuration that changes what our networks cannot."""
    for name, allowed in layout.fixed.items():
        if config[name] != allowed:
            raise ValueError(f"{name}: {config[name]!r} of {folder}/config.json is not {allowed!r}, which our networks have")


def activation_of(folder: Path, config: Mapping[str, Any], layout: FileLayout) -> str:
    """Our name of a configuration's activation. Raises ValueError if we have none."""
    key = layout.keys["activation"]
    held = config.get(key)
    if held not in ACTIVATIONS:
        raise ValueError(f"{key}: {held!r} of {folder}/config.json is not one of {tuple(ACTIVATIONS)}")
    return ACTIVATIONS[str(held)]


def read_tensors(folder: Path, layout: FileLayout) -> Tensors:
    """In float32, by their names without the prefix. Raises ValueError for a file that cannot be read."""
    path = folder / "model.safetensors"
    try:
        tensors: Tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"path: {path} cannot be read ({error})") from error
    return layout.plain({name.removeprefix(layout.prefix): tensor.float() for name, tensor in tensors.items()})


def _weights(tensors: Tensors, config: Mapping[str, Any], layout: FileLayout, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Ours, in their order and with their scale."""
    weights, read = {}, set()
    for ours, theirs, has_bias in _names(config, layout, len(blocks(shapes))):
        for kind in ("weight", "bias"):
            name, wanted = f"{ours}.{kind}", f"{theirs}.{kind}"
            if name not in shapes:
                continue
            if kind == "bias" and not has_bias:
                weights[name] = torch.zeros(shapes[name])
                continue
            weights[name] = _fitting(tensors, wanted, shapes[name], ours)
            read.add(wanted)
    inside = re.compile(re.escape(layout.layer).replace(r"\{\}", r"\d+") + r"\.")
    for name in sorted(set(tensors) - read):
        if inside.match(name) and not name.endswith(layout.buffers):
            raise ValueError(f"{name}: our networks have no place for this tensor of the checkpoint")
    for name in [name for name in shapes if ".ffn.gate." in name and name not in weights]:
        weights[name] = torch.full(shapes[name], float(name.endswith("bias")))
    return weights


def _names(config: Mapping[str, Any], layout: FileLayout, depth: int) -> Iterator[tuple[str, str, bool]]:
    """Our modules and theirs, and whether these have biases, where ours do."""
    for ours, theirs in layout.outside.items():
        yield ours.format(patch=config.get("patch_size")), theirs, True
    for i in range(depth):
        for ours, theirs in layout.parts.items():
            has_bias = ours not in layout.biases or bool(config[layout.biases[ours]])
            yield f"stack.blocks.{i}.{ours}", f"{layout.layer.format(i)}.{theirs}", has_bias


def _fitting(tensors: Tensors, name: str, shape: tuple[int, ...], ours: str) -> Tensor:
    """A tensor of the checkpoint, or of its positions as many as are needed."""
    if name not in tensors:
        raise ValueError(f"{name}: the checkpoint has no such tensor")
    held = tensors[name]
    cut = held[: shape[0]] if ours == "positions" else held
    if tuple(cut.shape) != shape:
        own = "; does the task use the checkpoint's own tokenizer (task.tokenizer=…)?" if ours == "embedding" else ""
        raise ValueError(f"{name}: the checkpoint's is {tuple(held.shape)}, the space's largest network needs {shape}{own}")
    return cut


def _our_order(weights: Tensors, block: str, head_size: int) -> None:
    """Of query heads: theirs share a head of keys and values with their neighbours, ours with every G-th."""
    num_heads, num_others = (len(weights[f"{block}.attention.{part}.weight"]) // head_size for part in ("query", "key"))
    order = torch.arange(num_heads).view(num_others, -1).t().flatten()
    reorder_heads(weights, block, order, torch.arange(num_others), head_size)
