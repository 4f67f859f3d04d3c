"""Kinds of checkpoints in the form of Hugging Face: what their configurations say, and what they call our modules.

A kind is a `FileLayout`: names, and `plain`, which brings the file's tensors into the form of ours.

| kind | what it is |
|---|---|
| BERT (arXiv:1810.04805), MiniLM, DistilBERT (arXiv:1910.01108) | post-norm encoders |
| GPT-2 (Radford et al., 2019) | fused queries, keys and values; matrices the other way round; GELU as tanh has it ("gelu_new") |
| Llama-like (arXiv:2302.13971) | RMS norms, rotary positions, gated layers (SwiGLU), grouped heads, no biases: ours are 0 |
| ViT (arXiv:2010.11929), DeiT without distillation (arXiv:2012.12877) | pre-norm encoders that answer at a class token |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip
"""Ours by their names."""


@dataclass(frozen=True)
class FileLayout:
    """One kind of model.

    Args:
        prefix: of all its tensors, where the file holds a head too.
        layer: what the tensors of a layer begin with.
        outside: its names of our modules before and behind the layers; `{patch}` is the size of the patches.
        parts: its names of our modules in a layer.
        keys: what its configuration calls a fact of our networks.
        facts: what holds for all networks of this kind.
        defaults: of its configuration.
        fixed: what its configuration may not change.
        biases: of our modules that may have none, where the configuration says whether they do.
        buffers: endings of tensors in its layers that are no weights.
    """

    prefix: str
    layer: str
    outside: Mapping[str, str]
    parts: Mapping[str, str]
    keys: Mapping[str, str]
    facts: Mapping[str, object]
    defaults: Mapping[str, object] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    plain: Callable[[Tensors], Tensors] = dict


def bert_plain(tensors: Tensors) -> Tensors:
    """With the names of today for norms, and token type 0 in the positions."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    plain = {}
    for name, tensor in tensors.items():
        for ending, new in old.items():
            name = name.removesuffix(ending) + new if name.endswith(ending) else name
        plain[name] = tensor
    positions, types = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    if positions in plain and types in plain:
        plain[positions] = plain[positions] + plain[types][0]
    return plain


def gpt2_plain(tensors: Tensors) -> Tensors:
    """Matrices as those of a linear layer, [outputs, inputs]; queries, keys and values by themselves."""
    plain = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        turned = tensor.t() if module.endswith(("c_attn", "c_proj", "c_fc")) and tensor.ndim == 2 else tensor
        if module.endswith("c_attn"):
            parts = zip(("query", "key", "value"), turned.chunk(3), strict=False)
            plain.update({f"{module}.{part}.{kind}": rows for part, rows in parts})
        else:
            plain[name] = turned
    return plain


def vit_plain(tensors: Tensors) -> Tensors:
    """The convolution over patches as a matrix, and the class token in its position. Raises ValueError if there is no token."""
    plain = dict(tensors)
    patches, positions, token = (
        f"embeddings.{name}" for name in ("patch_embeddings.projection.weight", "position_embeddings", "cls_token")
    )
    if patches in plain:
        plain[patches] = plain[patches].flatten(1)
    if token not in plain:
        raise ValueError(f"{token}: the checkpoint has no such tensor")
    if positions in plain:
        first, *others = plain[positions][0]
        plain[f"{positions}.weight"] = torch.stack([first + plain[token][0, 0], *others])
    return plain


POST_NORM = {"norm": "post", "norm_kind": "layer", "ffn_kind": "mlp", "sharing": "none"}
PRE_NORM = {"norm": "pre", "norm_kind": "layer", "ffn_kind": "mlp", "sharing": "none"}
BERT_EMBEDDINGS = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "stack.norm": "embeddings.LayerNorm",
}
BERT_KEYS = {
    "depth": "num_hidden_layers", "heads": "num_attention_heads", "activation": "hidden_act", "norm_eps": "layer_norm_eps",
}  # fmt: skip

LAYOUTS = {
    "bert": FileLayout(
        "bert.", "encoder.layer.{}", BERT_EMBEDDINGS,
        {
            "attention.query": "attention.self.query", "attention.key": "attention.self.key",
            "attention.value": "attention.self.value", "attention.out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm", "ffn.up": "intermediate.dense", "ffn.down": "output.dense",
            "ffn_norm": "output.LayerNorm",
        },
        BERT_KEYS, POST_NORM, {"layer_norm_eps": 1e-12}, {"position_embedding_type": "absolute"}, plain=bert_plain,
    ),
    "distilbert": FileLayout(
        "distilbert.", "transformer.layer.{}", BERT_EMBEDDINGS,
        {
            "attention.query": "attention.q_lin", "attention.key": "attention.k_lin", "attention.value": "attention.v_lin",
            "attention.out": "attention.out_lin", "attention_norm": "sa_layer_norm", "ffn.up": "ffn.lin1",
            "ffn.down": "ffn.lin2", "ffn_norm": "output_layer_norm",
        },
        {"depth": "n_layers", "heads": "n_heads", "activation": "activation", "norm_eps": "layer_norm_eps"},
        POST_NORM, {"layer_norm_eps": 1e-12}, plain=bert_plain,
    ),
    "gpt2": FileLayout(
        "transformer.", "h.{}", {"embedding": "wte", "positions": "wpe", "stack.norm": "ln_f", "head": "lm_head"},
        {
            "attention.query": "attn.c_attn.query", "attention.key": "attn.c_attn.key", "attention.value": "attn.c_attn.value",
            "attention.out": "attn.c_proj", "attention_norm": "ln_1", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
            "ffn_norm": "ln_2",
        },
        {
            "depth": "n_layer", "heads": "n_head", "activation": "activation_function", "norm_eps": "layer_norm_epsilon",
            "tied": "tie_word_embeddings",
        },
        PRE_NORM | {"positions": "learned"},
        {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        buffers=("attn.bias", "attn.masked_bias"), plain=gpt2_plain,
    ),
    "llama": FileLayout(
        "model.", "layers.{}", {"embedding": "embed_tokens", "stack.norm": "norm", "head": "lm_head"},
        {
            "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
            "attention.out": "self_attn.o_proj", "attention_norm": "input_layernorm", "ffn.up": "mlp.gate_proj",
            "ffn.gate": "mlp.up_proj", "ffn.down": "mlp.down_proj", "ffn_norm": "post_attention_layernorm",
        },
        {
            "depth": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
            "activation": "hidden_act", "norm_eps": "rms_norm_eps", "tied": "tie_word_embeddings", "rotary_base": "rope_theta",
        },
        PRE_NORM | {"norm_kind": "rms", "ffn_kind": "glu", "positions": "rotary"},
        {
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0,
            "attention_bias": False, "mlp_bias": False,
        },
        {"rope_type": "default", "partial_rotary_factor": 1.0, "rope_interleaved": False},
        {part: "attention_bias" if "attention" in part else "mlp_bias" for part in (
            "attention.query", "attention.key", "attention.value", "attention.out", "ffn.up", "ffn.gate", "ffn.down"
        )},
        ("rotary_emb.inv_freq",),
    ),
    "vit": FileLayout(
        "vit.", "encoder.layer.{}",
        {
            "patches.{patch}.stems.patches.embedding": "embeddings.patch_embeddings.projection",
            "patches.{patch}.positions": "embeddings.position_embeddings", "stack.norm": "layernorm",
        },
        {
            "attention.query": "attention.attention.query", "attention.key": "attention.attention.key",
            "attention.value": "attention.attention.value", "attention.out": "attention.output.dense",
            "attention_norm": "layernorm_before", "ffn.up": "intermediate.dense", "ffn.down": "output.dense",
            "ffn_norm": "layernorm_after",
        },
        BERT_KEYS | {"patch": "patch_size"}, PRE_NORM | {"pooling": "token"}, {"layer_norm_eps": 1e-12, "qkv_bias": True},
        biases={f"attention.{part}": "qkv_bias" for part in ("query", "key", "value")}, plain=vit_plain,
    ),
}  # fmt: skip
"""By the `model_type` of a configuration."""


def completed(layout: FileLayout, config: Config) -> dict[str, Any]:
    """A configuration with its defaults, and with what newer ones put into parts of their own at its old place."""
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rotary = {"rope_type" if name == "type" else name: value for name, value in rotary.items()}
    completed = {**layout.fixed, **layout.defaults, **config, **rotary}
    if completed.get("num_key_value_heads") is None:  # as it was before there was a choice
        completed["num_key_value_heads"] = completed.get("num_attention_heads")
    return completed
