"""GPT-2, Llama-like and ViT checkpoints become the largest networks: equal to forward passes that are written here."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from nas.compute import Compute
from nas.protocols import PretrainedFamily
from nas.supernet import cut_out
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.vision import VisionFamily, vision_space

WIDTH, HEADS, OTHERS, FFN, WORDS, POSITIONS, PATCH = 32, 4, 2, 48, 60, 20, 4
GPT2 = {
    "model_type": "gpt2", "n_layer": 2, "n_head": HEADS, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": OTHERS,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 500.0, "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}  # fmt: skip
VIT = {
    "model_type": "vit", "num_hidden_layers": 2, "num_attention_heads": HEADS, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "patch_size": PATCH, "qkv_bias": True,
}  # fmt: skip
SIZES = {"width": (16, WIDTH), "depth": (1, 2), "heads": (2, HEADS), "ffn": (16, FFN), "attention": ("full", "none")}
Tensors = dict[str, torch.Tensor]


class Maker:
    """Random tensors by name."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, name: str, *shape: int, mean: float = 0.0) -> None:
        self.tensors[name] = mean + 0.3 * torch.randn(shape, generator=self.generator)

    def dense(self, name: str, *shape: int, bias: int = 0) -> None:
        self(f"{name}.weight", *shape)
        if bias:
            self(f"{name}.bias", bias)

    def norm(self, name: str) -> None:
        self(f"{name}.weight", WIDTH, mean=1.0)
        self(f"{name}.bias", WIDTH)


def gpt2_tensors() -> Tensors:
    make = Maker()
    make("wte.weight", WORDS, WIDTH)
    make("wpe.weight", POSITIONS, WIDTH)
    for i in range(2):
        make.norm(f"h.{i}.ln_1")
        make.norm(f"h.{i}.ln_2")
        for name, inputs, outputs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH), ("mlp.c_fc", WIDTH, FFN),
            ("mlp.c_proj", FFN, WIDTH),
        ):  # fmt: skip
            make.dense(f"h.{i}.{name}", inputs, outputs, bias=outputs)
        make.tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS).tril()
    make.norm("ln_f")
    return make.tensors


def llama_tensors() -> Tensors:
    make, kv = Maker(), WIDTH // HEADS * OTHERS
    make("model.embed_tokens.weight", WORDS, WIDTH)
    for i in range(2):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            make(f"{layer}.{name}.weight", WIDTH, mean=1.0)
        for name, outputs, inputs in (
            ("self_attn.q_proj", WIDTH, WIDTH), ("self_attn.k_proj", kv, WIDTH), ("self_attn.v_proj", kv, WIDTH),
            ("self_attn.o_proj", WIDTH, WIDTH), ("mlp.gate_proj", FFN, WIDTH), ("mlp.up_proj", FFN, WIDTH),
            ("mlp.down_proj", WIDTH, FFN),
        ):  # fmt: skip
            make.dense(f"{layer}.{name}", outputs, inputs)
    make("model.norm.weight", WIDTH, mean=1.0)
    make("lm_head.weight", WORDS, WIDTH)
    return make.tensors


def vit_tensors() -> Tensors:
    make = Maker()
    make("vit.embeddings.cls_token", 1, 1, WIDTH)
    make("vit.embeddings.position_embeddings", 1, 7, WIDTH)
    make.dense("vit.embeddings.patch_embeddings.projection", WIDTH, 3, PATCH, PATCH, bias=WIDTH)
    for i in range(2):
        layer = f"vit.encoder.layer.{i}"
        for name, outputs, inputs in (
            *((f"attention.attention.{name}", WIDTH, WIDTH) for name in ("query", "key", "value")),
            ("attention.output.dense", WIDTH, WIDTH), ("intermediate.dense", FFN, WIDTH), ("output.dense", WIDTH, FFN),
        ):  # fmt: skip
            make.dense(f"{layer}.{name}", outputs, inputs, bias=outputs)
        make.norm(f"{layer}.layernorm_before")
        make.norm(f"{layer}.layernorm_after")
    make.norm("vit.layernorm")
    make.dense("classifier", 5, WIDTH, bias=5)
    return make.tensors


def layer_norm(t: Tensors, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Of heads [B, H, T, K], joined again."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1) == 1, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def gpt2_logits(t: Tensors, ids_BT: torch.Tensor) -> torch.Tensor:
    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["wte.weight"][ids_BT] + t["wpe.weight"][: ids_BT.shape[1]]
    for i in range(2):
        qkv = conv(f"h.{i}.attn.c_attn", layer_norm(t, f"h.{i}.ln_1", x, 1e-5))
        q, k, v = (split(part, HEADS) for part in qkv.split(WIDTH, dim=-1))
        x = x + conv(f"h.{i}.attn.c_proj", attention(q, k, v, causal=True))
        h = conv(f"h.{i}.mlp.c_fc", layer_norm(t, f"h.{i}.ln_2", x, 1e-5))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + conv(f"h.{i}.mlp.c_proj", h)
    return layer_norm(t, "ln_f", x, 1e-5) @ t["wte.weight"].T


def llama_logits(t: Tensors, ids_BT: torch.Tensor) -> torch.Tensor:
    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = t.get(f"{name}.bias", torch.zeros(()))
        return x @ t[f"{name}.weight"].T + bias

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * t[f"{name}.weight"]

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2])[:, None] / 500.0 ** (torch.arange(half) / half)
        numbers = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones(()), angles)
        return torch.cat([numbers.real, numbers.imag], dim=-1)

    x = t["model.embed_tokens.weight"][ids_BT]
    for i in range(2):
        layer = f"model.layers.{i}"
        h = norm(f"{layer}.input_layernorm", x)
        q = turned(split(dense(f"{layer}.self_attn.q_proj", h), HEADS))
        k = turned(split(dense(f"{layer}.self_attn.k_proj", h), OTHERS)).repeat_interleave(HEADS // OTHERS, dim=1)
        v = split(dense(f"{layer}.self_attn.v_proj", h), OTHERS).repeat_interleave(HEADS // OTHERS, dim=1)
        x = x + dense(f"{layer}.self_attn.o_proj", attention(q, k, v, causal=True))
        h = norm(f"{layer}.post_attention_layernorm", x)
        h = F.silu(dense(f"{layer}.mlp.gate_proj", h)) * dense(f"{layer}.mlp.up_proj", h)
        x = x + dense(f"{layer}.mlp.down_proj", h)
    return norm("model.norm", x) @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


def vit_answer(t: Tensors, image: torch.Tensor) -> torch.Tensor:
    """What the classifier reads, [B, D]."""

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", torch.zeros(()))

    patches = "vit.embeddings.patch_embeddings.projection"
    x = F.conv2d(image, t[f"{patches}.weight"], t[f"{patches}.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([t["vit.embeddings.cls_token"].expand(len(x), -1, -1), x], dim=1) + t["vit.embeddings.position_embeddings"]
    for i in range(2):
        layer = f"vit.encoder.layer.{i}"
        h = layer_norm(t, f"{layer}.layernorm_before", x, 1e-12)
        q, k, v = (split(dense(f"{layer}.attention.attention.{name}", h), HEADS) for name in ("query", "key", "value"))
        x = x + dense(f"{layer}.attention.output.dense", attention(q, k, v, causal=False))
        h = F.gelu(dense(f"{layer}.intermediate.dense", layer_norm(t, f"{layer}.layernorm_after", x, 1e-12)))
        x = x + dense(f"{layer}.output.dense", h)
    return layer_norm(t, "vit.layernorm", x, 1e-12)[:, 0]


def gpt2_family(**changes) -> DecoderFamily:
    space = {**SIZES, "activation": ("gelu_tanh", "relu"), **{n: v for n, v in changes.items() if n in (*SIZES, "activation")}}
    facts = {"max_tokens": 12, "head_size": 8} | {n: v for n, v in changes.items() if n not in space}
    return DecoderFamily(decoder_space(**space), WORDS, **facts)


def llama_family(**changes) -> DecoderFamily:
    own = {"kv_heads": (1, OTHERS), "ffn_kind": ("glu", "mlp"), "activation": ("silu",), "norm_kind": ("rms",)}
    space = {**SIZES, **own} | {n: v for n, v in changes.items() if n in (*SIZES, *own)}
    facts = {"max_tokens": 12, "head_size": 8, "positions": "rotary", "rotary_base": 500.0, "tied": False, "norm_eps": 1e-6}
    return DecoderFamily(decoder_space(**space), WORDS, **(facts | {n: v for n, v in changes.items() if n not in space}))


def vit_family(**changes) -> VisionFamily:
    facts = {"input_shape": (3, 8, 12), "mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0), "pooling": "token", "norm_eps": 1e-12}
    space = vision_space(patch=changes.get("patch", (PATCH,)), **SIZES)
    facts |= {name: value for name, value in changes.items() if name != "patch"}
    return VisionFamily(space, num_classes=5, head_size=8, **facts)


def write(folder: Path, config: dict[str, object], tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def begun(family: PretrainedFamily, folder: Path) -> torch.nn.Module:
    """The supernet as a search begins with it."""
    assert isinstance(family, PretrainedFamily)
    supernet = family.supernet()
    supernet.load_state_dict({**supernet.state_dict(), **family.pretrained(folder)})
    return supernet


def tied(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def with_biases(tensors: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    matrices = {name: tensor for name, tensor in tensors.items() if "_proj" in name}
    return tensors | {n.replace("weight", "bias"): torch.randn(len(t), generator=generator) for n, t in matrices.items()}


BIASES = {"attention_bias": True, "mlp_bias": True}
NEW_NAMES = {name: value for name, value in LLAMA.items() if name != "rope_theta"} | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "head_dim": WIDTH // HEADS,
}  # fmt: skip
DECODERS = {
    "gpt2": (GPT2, gpt2_tensors, gpt2_logits, gpt2_family()),
    "gpt2 with a prefix": (GPT2, lambda: {f"transformer.{n}": t for n, t in gpt2_tensors().items()}, gpt2_logits, gpt2_family()),
    "llama": (LLAMA, llama_tensors, llama_logits, llama_family()),
    "llama, tied": (
        LLAMA | {"tie_word_embeddings": True}, lambda: tied(llama_tensors()), llama_logits, llama_family(tied=True)
    ),
    "llama with biases": (LLAMA | BIASES, lambda: with_biases(llama_tensors()), llama_logits, llama_family()),
    "llama, new names": (NEW_NAMES, llama_tensors, llama_logits, llama_family()),
}  # fmt: skip


def is_sorted(supernet: torch.nn.Module) -> bool:
    """Whether the neurons of each layer are in descending order of what is written to them times what is read."""
    layers = [block.ffn for block in supernet.stack.layers]
    return all(bool(((ffn.up.weight.norm(dim=1) * ffn.down.weight.norm(dim=0)).diff() <= 1e-6).all()) for ffn in layers)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_largest_decoder_is_the_checkpoint(kind, tmp_path):
    config, make, reference, family = DECODERS[kind]
    tensors = make()
    supernet = begun(family, write(tmp_path / "model", config, tensors))
    ids = torch.randint(WORDS, (3, 12), generator=torch.Generator().manual_seed(1))
    expected = reference({name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, ids)
    torch.testing.assert_close(supernet(ids, torch.ones_like(ids)), expected, rtol=1e-4, atol=1e-4)
    assert is_sorted(supernet)
    smallest = cut_out(family, supernet, family.space.smallest(), Compute())
    assert smallest(ids, torch.ones_like(ids)).isfinite().all()


@pytest.mark.parametrize("biases", [True, False])
def test_the_largest_vision_network_is_the_checkpoint(biases, tmp_path):
    tensors = {n: t for n, t in vit_tensors().items() if biases or not n.endswith(("query.bias", "key.bias", "value.bias"))}
    family = vit_family(patch=(PATCH,))
    supernet = begun(family, write(tmp_path / "model", VIT | {"qkv_bias": biases}, tensors))
    image = torch.randn(4, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    found = []
    supernet.classifier.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    supernet(image)
    expected = vit_answer(tensors, supernet.standard(image))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert is_sorted(supernet)


def test_what_matters_is_first_where_heads_share_keys_and_values(tmp_path):
    """Of four query heads, the first pair shares keys and values in the checkpoint. It is silent but for its second head, which
    nothing reads: so the other pair's keys come first, and each pair's louder query is in the first half."""
    tensors, size = llama_tensors(), WIDTH // HEADS
    out = tensors["model.layers.0.self_attn.o_proj.weight"]
    for head, volume in enumerate((0.01, 0.0, 0.1, 1.0)):
        out[:, head * size : (head + 1) * size] *= volume
    weights = llama_family().pretrained(write(tmp_path / "model", LLAMA, tensors))
    key = tensors["model.layers.0.self_attn.k_proj.weight"]
    assert torch.equal(weights["stack.blocks.0.attention.key.weight"], torch.cat([key[size:], key[:size]]))
    volumes = weights["stack.blocks.0.attention.out.weight"].unflatten(1, (HEADS, size)).norm(dim=(0, 2))
    loudest, quieter, quiet, silent = volumes[[0, 2, 1, 3]]
    assert loudest > 5 * quieter > 25 * quiet > silent == 0


@pytest.mark.parametrize(
    ("changes", "config", "name", "shape", "message"),
    [
        ({}, {}, "h.1.mlp.c_fc.bias", None, "h.1.mlp.c_fc.bias: the checkpoint has no such tensor"),
        ({}, {}, "h.0.attn.c_attn.weight", (WIDTH, 60), "h.0.attn.c_attn.query.weight: the checkpoint's is (20, 32)"),
        ({}, {}, "h.0.attn.q_attn.weight", (WIDTH, WIDTH), "h.0.attn.q_attn.weight: our networks have no place for this tensor"),
        ({}, {"activation_function": "gelu_fast"}, None, None, "activation_function: 'gelu_fast' of"),
        ({"activation": ("gelu", "gelu_tanh")}, {}, None, None, "activation_function: 'gelu_new' of"),
        ({}, {"scale_attn_by_inverse_layer_idx": True}, None, None, "scale_attn_by_inverse_layer_idx: True of"),
        ({}, {"tie_word_embeddings": False}, None, None, "tie_word_embeddings: False of"),
        ({"positions": "rotary"}, {}, None, None, "space.positions: 'rotary' is not 'learned', which the checkpoint"),
        ({"max_tokens": 21}, {}, None, None, "wpe.weight: the checkpoint's is (20, 32), the space's largest network needs (21"),
        ({"depth": (1, 3)}, {}, None, None, "n_layer: 2 of"),
        ({}, {"model_type": "bert"}, None, None, "the model_type 'bert' of"),
    ],
)
def test_a_gpt2_that_does_not_fit(changes, config, name, shape, message, tmp_path):
    refused(gpt2_family(**changes), GPT2 | config, gpt2_tensors(), name, shape, message, tmp_path)


@pytest.mark.parametrize(
    ("changes", "config", "name", "shape", "message"),
    [
        ({}, {}, "lm_head.weight", None, "lm_head.weight: the checkpoint has no such tensor"),
        ({}, {}, "model.layers.0.self_attn.q_proj.bias", (WIDTH,), "layers.0.self_attn.q_proj.bias: our networks have no place"),
        ({}, {}, "model.layers.0.self_attn.q_norm.weight", (8,), "layers.0.self_attn.q_norm.weight: our networks have no place"),
        ({"tied": True}, {}, None, None, "tie_word_embeddings: False of"),
        ({"rotary_base": 10000.0}, {}, None, None, "rope_theta: 500.0 of"),
        ({"norm_eps": 1e-5}, {}, None, None, "rms_norm_eps: 1e-06 of"),
        ({"kv_heads": (1,)}, {}, None, None, "num_key_value_heads: 2 of"),
        ({"ffn_kind": ("mlp",)}, {}, None, None, "space.ffn_kind: 'mlp' is not 'glu', which the checkpoint"),
        ({"norm_kind": ("layer", "rms")}, {}, None, None, "space.norm_kind: 'layer' is not 'rms', which the checkpoint"),
        ({}, {"rope_scaling": {"type": "linear", "factor": 2.0}}, None, None, "rope_type: 'linear' of"),
        ({"max_tokens": 21}, {}, None, None, "max_position_embeddings: 20 of"),
    ],
)
def test_a_llama_that_does_not_fit(changes, config, name, shape, message, tmp_path):
    refused(llama_family(**changes), LLAMA | config, llama_tensors(), name, shape, message, tmp_path)


@pytest.mark.parametrize(
    ("changes", "config", "name", "shape", "message"),
    [
        ({}, {}, "vit.embeddings.cls_token", None, "embeddings.cls_token: the checkpoint has no such tensor"),
        ({"input_shape": (3, 8, 8)}, {}, None, None, "position_embeddings.weight: the checkpoint's is (7, 32), the space's"),
        (
            {"input_shape": (1, 8, 12), "mean": (0,), "std": (1,)},
            {},
            None,
            None,
            "projection.weight: the checkpoint's is (32, 48)",
        ),
        ({"patch": (2, PATCH)}, {}, None, None, "patch_size: 4 of"),
        ({"pooling": "mean"}, {}, None, None, "space.pooling: 'mean' is not 'token', which the checkpoint"),
        ({}, {"model_type": "deit"}, None, None, "the model_type 'deit' of"),
    ],
)
def test_a_vit_that_does_not_fit(changes, config, name, shape, message, tmp_path):
    refused(vit_family(**changes), VIT | config, vit_tensors(), name, shape, message, tmp_path)


def refused(family, config, tensors, name, shape, message, tmp_path) -> None:
    if name is not None:
        tensors.pop(name, None)
        tensors |= {name: torch.zeros(shape)} if shape else {}
    folder = write(tmp_path / "model", config, tensors)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        family.pretrained(folder)
    assert message in str(refusal.value)
