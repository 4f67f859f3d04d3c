"""A fine-tuned classifier of texts as it is, to teach other networks.

The folder is in the form of Hugging Face: `config.json` and `model.safetensors` of BERT (arXiv:1810.04805) or DistilBERT
(arXiv:1910.01108) with the head of a sequence classification, which answers at the first token.

Shapes: B texts, T tokens, D width, H heads, K head size, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.feed_forward import ACTIVATIONS
from search_spaces.checkpoints import FileLayout, Tensors
from search_spaces.pretrained import activation_of, check_fixed, read_config, read_tensors

HEADS: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "bert": ("pooler.dense", torch.tanh),
    "distilbert": ("pre_classifier", F.relu),
}
"""Of the model types that can teach, what lies before the classifier."""


class TextTeacher(nn.Module):
    """Answers in the order of somebody's classes.

    Args:
        folder: the checkpoint's.
        labels: of the classes; a checkpoint that names its own has the same ones, one that does not has them in this order.
        vocab_size, max_tokens: of the texts that will come.

    Raises:
        ValueError: no such folder, another kind of model, no head or one of other classes, a tensor that is missing or has
            another shape, another vocabulary, or texts that are too long.
    """

    def __init__(self, folder: Path, *, labels: Sequence[str], vocab_size: int, max_tokens: int) -> None:
        super().__init__()
        config, layout = read_config(folder, tuple(HEADS))
        check_fixed(folder, config, layout)
        tensors = read_tensors(folder, layout)
        num_layers, self.heads, eps = (config[layout.keys[name]] for name in ("depth", "heads", "norm_eps"))
        self.function: Callable[[Tensor], Tensor] = ACTIVATIONS[activation_of(folder, config, layout)][0]
        before, self.squash = HEADS[config["model_type"]]
        words = _held(tensors, f"{layout.outside['embedding']}.weight", None, None)
        D = words.shape[1]
        if len(words) < vocab_size:
            raise ValueError(f"vocab_size: {vocab_size} words of the task, the checkpoint {folder} has {len(words)}")
        positions = _held(tensors, f"{layout.outside['positions']}.weight", None, D)
        if len(positions) < max_tokens:
            raise ValueError(f"max_tokens: {max_tokens} of the task, the checkpoint {folder} has {len(positions)} positions")
        self.register_buffer("words_VD", words)
        self.register_buffer("positions_TD", positions)
        self.norm = _norm(tensors, layout.outside["stack.norm"], D, eps)
        self.layers = nn.ModuleList(_layer(tensors, layout, i, D, eps) for i in range(num_layers))
        self.before = _linear(tensors, before, D, D)
        if "classifier.weight" not in tensors:
            raise ValueError(f"classifier.weight: the checkpoint {folder} has no such tensor; it is not fine-tuned to classify")
        order = _order(folder, config, labels, len(tensors["classifier.weight"]))
        self.classifier = _linear(tensors, "classifier", len(labels), D)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                parameter.copy_(parameter[order].clone())
        self.eval().requires_grad_(False)

    def forward(self, token_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Logits, [B, C]; whatever a text is padded to, they are the same."""
        words_VD, positions_TD = self.get_buffer("words_VD"), self.get_buffer("positions_TD")
        x_BTD = self.norm(words_VD[token_ids_BT] + positions_TD[: token_ids_BT.shape[1]])
        seen_B11T = (attention_mask_BT > 0)[:, None, None, :]
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            q, k, v = (
                layer[f"attention_{part}"](x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed_BTD = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_B11T).transpose(1, 2).flatten(2)
            x_BTD = layer["attention_norm"](x_BTD + layer["attention_out"](mixed_BTD))
            x_BTD = layer["ffn_norm"](x_BTD + layer["ffn_down"](self.function(layer["ffn_up"](x_BTD))))
        logits_BC: Tensor = self.classifier(self.squash(self.before(x_BTD[:, 0])))
        return logits_BC


def _layer(tensors: Tensors, layout: FileLayout, number: int, D: int, eps: float) -> nn.ModuleDict:
    modules: dict[str, nn.Module] = {}
    for ours, theirs in layout.parts.items():
        name = f"{layout.layer.format(number)}.{theirs}"
        if ours.endswith("norm"):
            modules[ours.replace(".", "_")] = _norm(tensors, name, D, eps)
        else:
            inputs, outputs = (None if ours == "ffn.down" else D), (None if ours == "ffn.up" else D)
            modules[ours.replace(".", "_")] = _linear(tensors, name, outputs, inputs)
    return nn.ModuleDict(modules)


def _linear(tensors: Tensors, name: str, outputs: int | None, inputs: int | None) -> nn.Linear:
    weight = _held(tensors, f"{name}.weight", outputs, inputs)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": _held(tensors, f"{name}.bias", weight.shape[0])})
    return linear


def _norm(tensors: Tensors, name: str, D: int, eps: float) -> nn.LayerNorm:
    norm = nn.LayerNorm(D, eps=eps)
    norm.load_state_dict({kind: _held(tensors, f"{name}.{kind}", D) for kind in ("weight", "bias")})
    return norm


def _held(tensors: Tensors, name: str, *shape: int | None) -> Tensor:
    """A tensor of that shape, in which None is any size."""
    if name not in tensors:
        raise ValueError(f"{name}: the checkpoint has no such tensor")
    held = tensors[name]
    if held.ndim != len(shape) or any(size not in (None, own) for size, own in zip(shape, held.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: the checkpoint's is {tuple(held.shape)}, a text classifier's is ({wanted})")
    return held


def _order(folder: Path, config: Mapping[str, Any], labels: Sequence[str], num_answers: int) -> list[int]:
    """Which of the checkpoint's classes each of ours is."""
    if num_answers != len(labels):
        raise ValueError(f"classifier.weight: the checkpoint {folder} has {num_answers} classes, the task has {len(labels)}")
    named = config.get("id2label") or {}
    theirs = [str(named.get(str(i), f"LABEL_{i}")) for i in range(num_answers)]
    if theirs == [f"LABEL_{i}" for i in range(num_answers)]:
        return list(range(num_answers))
    if sorted(theirs) != sorted(labels):
        raise ValueError(f"id2label: {sorted(theirs)} of {folder}/config.json are not the task's classes {sorted(labels)}")
    return [theirs.index(label) for label in labels]
