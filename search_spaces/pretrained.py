"""A BERT-like checkpoint as the largest network of a post-norm encoder space.

The folder is in the form of Hugging Face: `config.json` and `model.safetensors` of BERT, of MiniLM, which has the same names, or
of DistilBERT. Two things are folded into weights: the scale of the scores into the queries, and token type 0 into the positions.
A pooling layer and a head are left out. Factored matrices of a feed-forward layer begin as the truncated SVD of its own.

A smaller network is a prefix of this one, so what matters is put first, by the magnitude of weights, as Once-for-all sorts
channels before it shrinks them (arXiv:1908.09791, section 3; there by the L1 norm of one matrix). Heads and neurons are sorted by
the norm of the weights that write them times that of those that read them. A channel of a post-norm stream is what norms wrote,
w times something of variance 1, plus b: channels are sorted by the sum of w^2 + b^2. (Of MiniLM without training, the first 288
of 384 channels keep the similarities of 16 sentences with a correlation of 0.57 so, 0.47 in the checkpoint's order, and 0.2 by
the norms of the matrices that write and read them.) The largest network computes the same in any order. Layers stay in theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from search_spaces.common import NORM_EPS

EPS = NORM_EPS["post"]
EMBEDDINGS = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "stack.norm": "embeddings.LayerNorm",
}
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True)
class Layout:
    """How a kind of model calls `depth`, `heads` and `activation` in its configuration, and in a layer our `parts`."""

    prefix: str  # of all its tensors, where the file holds a head too
    layer: str
    depth: str
    heads: str
    activation: str
    parts: Mapping[str, str]


LAYOUTS = {
    "bert": Layout(
        "bert.", "encoder.layer.{}", "num_hidden_layers", "num_attention_heads", "hidden_act",
        {
            "attention.query": "attention.self.query", "attention.key": "attention.self.key",
            "attention.value": "attention.self.value", "attention.out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm", "ffn.up": "intermediate.dense", "ffn.down": "output.dense",
            "ffn_norm": "output.LayerNorm",
        },
    ),
    "distilbert": Layout(
        "distilbert.", "transformer.layer.{}", "n_layers", "n_heads", "activation",
        {
            "attention.query": "attention.q_lin", "attention.key": "attention.k_lin", "attention.value": "attention.v_lin",
            "attention.out": "attention.out_lin", "attention_norm": "sa_layer_norm", "ffn.up": "ffn.lin1",
            "ffn.down": "ffn.lin2", "ffn_norm": "output_layer_norm",
        },
    ),
}  # fmt: skip


def read(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, head_size: int) -> dict[str, Tensor]:
    """Weights of an `Encoder` by its names, in float32, all but the classifier's; sorted by importance.

    Args:
        shapes: of the largest network's parameters, by name.

    Raises:
        ValueError: no such folder, a model of another kind, a tensor that is missing or has another shape.
    """
    config = _config(folder)
    layout = LAYOUTS[config["model_type"]]
    depth = len(_blocks(shapes))
    _check(folder, config, layout, depth=depth, channels=shapes["stack.blocks.0.attention.query.weight"][0], head_size=head_size)
    tensors = _tensors(folder, layout)
    weights = {}
    for ours, theirs in _names(layout, depth):
        for kind in ("weight", "bias"):
            if (name := f"{ours}.{kind}") in shapes:
                weights[name] = _fitting(tensors, f"{theirs}.{kind}", shapes[name], first_rows=ours == "positions")
    for name in [
        name for name in shapes if ".ffn.gate." in name
    ]:  # open, so that a gated layer computes what the checkpoint's does
        weights[name] = torch.full(shapes[name], float(name.endswith("bias")))
    if TOKEN_TYPES in tensors:
        weights["positions.weight"] = weights["positions.weight"] + tensors[TOKEN_TYPES][0].float()
    for name in [name for name in weights if ".query." in name]:
        weights[name] = weights[name] / head_size**0.5
    weights = sort_by_importance(weights, head_size=head_size)
    for name in [name for name in shapes if name.endswith(".reduce")]:
        factored = name.removesuffix(".reduce")
        weights[f"{factored}.expand"], weights[name] = factors(weights[f"{factored}.weight"], shapes[name][0])
    return weights


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Matrices whose product is the nearest one of that rank, by truncated SVD (Eckart and Young, 1936); so are their prefixes of
    every smaller rank."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {folder} has no config.json of a checkpoint ({error})") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise ValueError(f"path: the model_type {kind!r} of {folder}/config.json is not one of {tuple(LAYOUTS)}")
    return dict(config)


def _check(folder: Path, config: Mapping[str, Any], layout: Layout, *, depth: int, channels: int, head_size: int) -> None:
    """What the shapes of tensors do not tell."""
    needed = {
        layout.depth: (config.get(layout.depth), depth, "the space's largest depth"),
        layout.heads: (config.get(layout.heads), channels // head_size, f"the space's most heads of size {head_size}"),
        layout.activation: (config.get(layout.activation), "gelu", "what our feed-forward has"),
        "layer_norm_eps": (config.get("layer_norm_eps", EPS), EPS, "what our post-norm layers have"),
        "position_embedding_type": (config.get("position_embedding_type", "absolute"), "absolute", "what our encoder has"),
    }
    for name, (held, wanted, why) in needed.items():
        if held != wanted:
            raise ValueError(f"{name}: {held!r} of {folder}/config.json is not {wanted!r}, {why}")


def _tensors(folder: Path, layout: Layout) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"path: {path} cannot be read ({error})") from error
    return {name.removeprefix(layout.prefix): tensor for name, tensor in tensors.items()}


def _names(layout: Layout, depth: int) -> Iterator[tuple[str, str]]:
    """Our modules and theirs."""
    yield from EMBEDDINGS.items()
    for i in range(depth):
        for ours, theirs in layout.parts.items():
            yield f"stack.blocks.{i}.{ours}", f"{layout.layer.format(i)}.{theirs}"


def _fitting(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], *, first_rows: bool) -> Tensor:
    """A tensor of the checkpoint, or as many of its first rows as are needed."""
    for ending, old in OLD_NAMES.items():
        if name not in tensors and name.endswith(ending):
            name = name.removesuffix(ending) + old
    if name not in tensors:
        raise ValueError(f"{name}: the checkpoint has no such tensor")
    held = tensors[name]
    cut = held[: shape[0]] if first_rows else held
    if tuple(cut.shape) != shape:
        own = "; does the task use the checkpoint's own tokenizer (task.tokenizer=…)?" if "word_embeddings" in name else ""
        raise ValueError(f"{name}: the checkpoint's is {tuple(held.shape)}, the space's largest network needs {shape}{own}")
    return cut.float()


def _blocks(names: Mapping[str, Any]) -> list[str]:
    """stack.blocks.0, stack.blocks.1, …"""
    found = {match[0] for name in names if (match := re.match(r"stack\.blocks\.\d+", name))}
    return sorted(found, key=lambda name: int(name.rpartition(".")[2]))


def sort_by_importance(weights: Mapping[str, Tensor], *, head_size: int) -> dict[str, Tensor]:
    """The same network with its heads, its neurons and its channels in descending order of importance."""
    result = dict(weights)

    def reorder(order: Tensor, axes: Mapping[str, int]) -> None:
        for name, axis in axes.items():
            result[name] = result[name].index_select(axis, order)

    for block in _blocks(result):
        written, read_ = result[f"{block}.ffn.up.weight"].norm(dim=1), result[f"{block}.ffn.down.weight"].norm(dim=0)
        neurons = _descending(written * read_)
        rows = (f"{block}.ffn.{part}.{kind}" for part in ("up", "gate") for kind in ("weight", "bias"))
        reorder(neurons, {**{name: 0 for name in rows if name in result}, f"{block}.ffn.down.weight": 1})
        value, out = result[f"{block}.attention.value.weight"], result[f"{block}.attention.out.weight"]
        written, read_ = value.unflatten(0, (-1, head_size)).norm(dim=(1, 2)), out.unflatten(1, (-1, head_size)).norm(dim=(0, 2))
        heads = _descending(written * read_)
        channels = (heads[:, None] * head_size + torch.arange(head_size)).flatten()
        projections = {f"{block}.attention.{p}.{kind}": 0 for p in ("query", "key", "value") for kind in ("weight", "bias")}
        reorder(channels, {**projections, f"{block}.attention.out.weight": 1})
    second_moment = torch.stack([tensor.square() for name, tensor in result.items() if "norm." in name]).sum(dim=0)
    reorder(_descending(second_moment), {name: axis for name in result if (axis := _stream_axis(name)) is not None})
    return result


def _descending(importance: Tensor) -> Tensor:
    return importance.argsort(descending=True, stable=True)


STREAM_COLUMNS = re.compile(r"((^|\.)(embedding|positions|query|key|value|up|gate|classifier))\.weight$")
STREAM_ROWS = re.compile(r"(norm|attention\.out|ffn\.down)\.(weight|bias)$")


def _stream_axis(name: str) -> int | None:
    """Which axis of a parameter is the residual stream."""
    if STREAM_COLUMNS.search(name):
        return 1
    return 0 if STREAM_ROWS.search(name) else None
