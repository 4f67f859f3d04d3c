"""Full attention as the one operator that ONNX Runtime has for it: projections, heads, scores and mixture.

Written out, that is some twenty operators a layer, and in a small network each takes longer to begin than to compute. As
`com.microsoft::Attention` a network of 16 tokens and width 64 is 1.5 times as fast, one of 64 tokens and width 128 1.1 times.
`com.microsoft::QAttention` is the same in int8. A decoder's steps with a past are one product and `MultiHeadAttention`, 1.1 to
1.2 times as fast. All are in every build of ONNX Runtime, and in no other runtime.

Shapes: B sequences, T tokens, D width, H heads, C channels of all heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.onnx.symbolic_helper import _optional_input_placeholder_tensor

from nas.attention import Attention, Cache, Hides
from nas.attention_kinds import BLOCKED, attention, causal_bias
from nas.fewer_bits import Int8Linear
from nas.layers import Linear
from nas.rotary import Rotation
from nas.rounding import ROUNDINGS


def with_runtime_attention(network: nn.Module) -> nn.Module:
    """The network, or a copy of it with the operator wherever a layer attends as it does. Linear maps in fewer bits are those of
    `nas.fewer_bits.with_fewer_bits`."""
    if not any(_fits(part) for part in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, Attention) and _fits(part):
                setattr(module, name, RuntimeAttention(part))
    return network


def _fits(part: nn.Module) -> bool:
    """Whether a layer attends as the operator does: with all tokens, as many heads of keys as of queries, and weights in float32,
    or in int8 if no token counts for a part."""
    if not isinstance(part, Attention) or part.hides is None or part.kind.form != "full" or part.shared != 1:
        return False
    linears = (part.query, part.key, part.value)
    if all(isinstance(linear, Int8Linear) for linear in linears):
        return part.hides != "shares"
    return all(type(linear) is Linear and linear.precision not in ROUNDINGS for linear in linears)


def with_products(model: onnx.ModelProto, *, all_of_them: bool) -> None:
    """Makes a product, which every quantiser knows, of what the operators begin with, and `MultiHeadAttention` of the rest: of
    those with shares, which `QAttention` does not take, or of all."""
    for graph in graphs(model.graph):
        nodes = [part for node in graph.node for part in (_parts(node) if _has_shares(node) or all_of_them else (node,))]
        del graph.node[:]
        graph.node.extend(nodes)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those of its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def _has_shares(node: onnx.NodeProto) -> bool:
    return node.op_type == "Attention" and len(node.input) == 6


def _parts(node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
    """Of an Attention; of another node itself."""
    if node.op_type != "Attention":
        return (node,)
    x, weight, bias, *seen = node.input
    product, shifted, *qkv = (f"{node.name}/{part}" for part in ("product", "shifted", "query", "key", "value"))
    mask, shares = seen[0] if seen else "", seen[-1] if _has_shares(node) else ""
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (
        helper.make_node("MatMul", [x, weight], [product], name=f"{node.name}/MatMul"),
        helper.make_node("Add", [product, bias], [shifted], name=f"{node.name}/Add"),
        helper.make_node("Split", [shifted], qkv, name=f"{node.name}/Split", axis=2, num_outputs=3),
        helper.make_node(
            "MultiHeadAttention", [*qkv, "", mask, shares], node.output, name=f"{node.name}/heads", domain=node.domain, **options
        ),
    )


class Attending(NamedTuple):
    """How the operator attends."""

    heads: int
    causal: bool
    hides: Hides | None

    @property
    def attributes(self) -> dict[str, Any]:
        return {"num_heads_i": self.heads, "unidirectional_i": int(self.causal), "scale_f": 1.0, "mask_filter_value_f": BLOCKED}


class RuntimeAttention(nn.Module):
    """The same answers as the layer, without a gradient. What the operators cannot do, a rotation, or a past in int8, the layer
    does."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.out, self.layer = layer.out, layer
        linears: Sequence[Any] = (layer.query, layer.key, layer.value)
        is_int8 = isinstance(layer.query, Int8Linear)
        weights_DC = [linear.weight.detach() if is_int8 else linear.weight.detach().t() for linear in linears]
        self.register_buffer("weight", torch.cat(weights_DC, dim=1))
        self.register_buffer("bias", torch.cat([linear.bias.detach() for linear in linears]))
        self.register_buffer("scale", torch.cat([linear.scale for linear in linears]) if is_int8 else None)

    def forward(self, x_BTD: Tensor, bias: Tensor, rotation: Rotation | None = None) -> Tensor:
        if rotation is not None:
            answer: Tensor = self.layer(x_BTD, bias, rotation)
            return answer
        terms = Attending(self.layer.heads, self.layer.causal, self.layer.hides)
        seen: tuple[Tensor, ...] = ()
        if terms.hides == "padding":
            seen = (((bias[:, 0, -1] if terms.causal else bias.flatten(1)) > BLOCKED / 2).to(torch.int32),)
        elif terms.hides == "shares":
            seen = ((bias - bias).transpose(-1, -2) + bias,)  # for every row; made once for all layers
        if self.scale is None:
            heads_BTC = _Attention.apply(x_BTD, self.weight, self.bias, terms, *seen)  # type: ignore[no-untyped-call]
        else:
            heads_BTC = _QAttention.apply(x_BTD, self.weight, self.bias, self.scale, terms, *seen)  # type: ignore[no-untyped-call]
        mixed_BTD: Tensor = self.out(heads_BTC)
        return mixed_BTD

    def received(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        return self.layer.received(x_BTD, bias_B11T)

    def cached(
        self, x_BTD: Tensor, bias: Tensor | None, past: Cache | None, rotation: Rotation | None
    ) -> tuple[Tensor, Cache]:  # fmt: skip
        if rotation is not None or self.scale is not None:
            return self.layer.cached(x_BTD, bias, past, rotation)
        terms = Attending(self.layer.heads, past is None, self.layer.hides)
        heads_BTC, *present = _CachedAttention.apply(  # type: ignore[no-untyped-call]
            x_BTD, self.weight, self.bias, terms, *(past or ())
        )
        mixed_BTD: Tensor = self.out(heads_BTC)
        return mixed_BTD, tuple(present)


def _projected(x_BTD: Tensor, weight_D3C: Tensor, bias_3C: Tensor, terms: Attending) -> tuple[Tensor, ...]:
    """Queries, keys and values, [B, H, T, K] each."""
    q, k, v = (x_BTD @ weight_D3C + bias_3C).unflatten(-1, (3, terms.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return q, k, v


def _attended(x_BTD: Tensor, weight_D3C: Tensor, bias_3C: Tensor, terms: Attending, seen: tuple[Tensor, ...]) -> Tensor:
    """What the operators compute, [B, T, C]."""
    q, k, v = _projected(x_BTD, weight_D3C, bias_3C, terms)
    bias = x_BTD.new_zeros(1, 1, 1, 1)
    if terms.hides == "padding":
        bias = (1 - seen[0][:, None, None]) * BLOCKED
    elif terms.hides == "shares":
        [bias] = seen
    if terms.causal:
        bias = bias + causal_bias(x_BTD.shape[1], x_BTD)
    return attention(q, k, v, bias).transpose(1, 2).flatten(2)


def _typed(output: Any, x_BTD: Any, bias_3C: Any) -> Any:
    """The exporter does not know the shape of these operators' output."""
    output.setType(x_BTD.type().with_sizes([None, None, bias_3C.type().sizes()[0] // 3]))
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D3C: Tensor, bias_3C: Tensor, terms: Attending, *seen: Tensor) -> Tensor:
        return _attended(x, weight_D3C, bias_3C, terms, seen)

    @staticmethod
    def symbolic(g: Any, x: Any, weight_D3C: Any, bias_3C: Any, terms: Attending, *seen: Any) -> Any:
        missing = _optional_input_placeholder_tensor(g)
        last = {"nothing": (), "padding": seen, "shares": (missing, missing, *seen)}[terms.hides or "nothing"]
        return _typed(g.op("com.microsoft::Attention", x, weight_D3C, bias_3C, *last, **terms.attributes), x, bias_3C)


class _CachedAttention(torch.autograd.Function):
    """What the heads make of the last tokens and those of the past, and the keys and values of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D3C: Tensor, bias_3C: Tensor, terms: Attending, *past: Tensor) -> tuple[Tensor, ...]:
        q, k, v = _projected(x, weight_D3C, bias_3C, terms)
        k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True)) if past else (k, v)
        bias = causal_bias(x.shape[1], x) if terms.causal else x.new_zeros(1, 1)
        return attention(q, k, v, bias).transpose(1, 2).flatten(2), k, v

    @staticmethod
    def symbolic(g: Any, x: Any, weight_D3C: Any, bias_3C: Any, terms: Attending, *past: Any) -> Any:
        shifted = g.op("Add", g.op("MatMul", x, weight_D3C), bias_3C)
        qkv = g.op("Split", shifted, axis_i=2, num_outputs_i=3, outputs=3)
        missing = [_optional_input_placeholder_tensor(g)] * 3
        last = (*missing, *past) if past else ()
        heads, *present = g.op("com.microsoft::MultiHeadAttention", *qkv, *last, **terms.attributes, outputs=3)
        channels = bias_3C.type().sizes()[0] // 3
        for output in present:
            output.setType(x.type().with_sizes([None, terms.heads, None, channels // terms.heads]))
        return _typed(heads, x, bias_3C), *present


class _QAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_D3C: Tensor, bias_3C: Tensor, scale_3C: Tensor, terms: Attending, *seen: Tensor
    ) -> Tensor:  # fmt: skip
        return _attended(ROUNDINGS["int8"].input(x), weight_D3C * scale_3C, bias_3C, terms, seen)

    @staticmethod
    def symbolic(g: Any, x: Any, weight_D3C: Any, bias_3C: Any, scale_3C: Any, terms: Attending, *seen: Any) -> Any:
        integers, scale, zero = g.op("DynamicQuantizeLinear", x, outputs=3)
        none = g.op("Constant", value_t=torch.zeros(bias_3C.type().sizes()[0], dtype=torch.int8))
        mask = seen[0] if seen else _optional_input_placeholder_tensor(g)
        inputs = (integers, weight_D3C, bias_3C, scale, scale_3C, mask, zero, none)
        return _typed(g.op("com.microsoft::QAttention", *inputs, **terms.attributes), x, bias_3C)
