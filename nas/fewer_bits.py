"""Linear maps in fewer bits as they are in an ONNX file: what is multiplied is in fewer bits, not floats that were rounded.

ONNX Runtime's quantisers find their nodes by name, and the exporter's names do not tell the layers of a decoder's other forms
apart. Here a map writes its own operators, those of the quantisers, so exactly the chosen ones are in fewer bits in every form.

Shapes: C outputs, D inputs, N blocks of B of them; packed, B is half as large.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn

from nas.layers import Linear
from nas.rounding import BLOCK, ROUNDINGS, integer_blocks, weight_scale

INT8_COMPUTE = 4  # how MatMulNBits calls it


def fewer_bits_of(network: nn.Module) -> set[str]:
    """The precisions but fp32 that were chosen for linear maps of the network."""
    return {part.precision for part in network.modules() if isinstance(part, Linear) and part.precision in ROUNDINGS}


def with_fewer_bits(network: nn.Module) -> nn.Module:
    """The network, or a copy of it with its linear maps in fewer bits as in a file."""
    if not fewer_bits_of(network):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, Linear) and part.precision in ROUNDINGS:
                setattr(module, name, IN_FILES[part.precision](part))
    return network


class HalfLinear(nn.Module):
    """The same answers as `nas.layers.Linear` in fp16, without a gradient; what comes out is rounded too."""

    weight: Tensor

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().t().contiguous().half())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        product = (x.half() @ self.weight).to(x.dtype)
        return product if self.bias is None else product + self.bias


class Int8Linear(nn.Module):
    """The same answers as `nas.layers.Linear` in int8, without a gradient: dynamic quantisation."""

    weight: Tensor
    zero: Tensor
    scale: Tensor

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        scale_C1 = weight_scale(layer.weight)
        self.register_buffer("weight", (layer.weight.detach() / scale_C1).round().to(torch.int8).t().contiguous())
        self.register_buffer("zero", torch.zeros(layer.out_features, dtype=torch.int8))
        self.register_buffer("scale", scale_C1[:, 0].clone())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _MatMulInteger.apply(x, self.weight, self.zero, self.scale)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _MatMulInteger(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_DC: Tensor, zero_C: Tensor, scale_C: Tensor) -> Tensor:
        return ROUNDINGS["int8"].input(x) @ (weight_DC * scale_C)

    @staticmethod
    def symbolic(g: Any, x: Any, weight_DC: Any, zero_C: Any, scale_C: Any) -> Any:
        """The operators that ONNX Runtime makes one of."""
        integers, scale, zero = g.op("DynamicQuantizeLinear", x, outputs=3)
        product = g.op("MatMulInteger", integers, weight_DC, zero, zero_C)
        return g.op("Mul", g.op("Cast", product, to_i=TensorProto.FLOAT), g.op("Mul", scale, scale_C))


class Int4Linear(nn.Module):
    """The same in int4; two weights are one byte."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        integers_CNB, scale_CN1 = integer_blocks(layer.weight)
        first, second = (integers_CNB + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
        self.register_buffer("weight", first + 16 * second)
        self.register_buffer("scale", scale_CN1[..., 0].clone())
        self.bias, self.inputs = layer.bias, layer.in_features

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _MatMulNBits.apply(x, self.weight, self.scale, self.inputs, x.dim())  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _MatMulNBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed_CNB: Tensor, scale_CN: Tensor, inputs: int, rank: int) -> Tensor:
        integers_CNB = torch.stack([packed_CNB % 16, packed_CNB // 16], dim=-1).flatten(-2).float() - 8
        weight_CD = (integers_CNB * scale_CN[..., None]).flatten(-2)[:, :inputs]
        return ROUNDINGS["int4"].input(x) @ weight_CD.t()

    @staticmethod
    def symbolic(g: Any, x: Any, packed_CNB: Any, scale_CN: Any, inputs: int, rank: int) -> Any:
        outputs = packed_CNB.type().sizes()[0]
        sizes = {"K_i": inputs, "N_i": outputs, "bits_i": 4, "block_size_i": BLOCK, "accuracy_level_i": INT8_COMPUTE}
        product = g.op("com.microsoft::MatMulNBits", x, packed_CNB, scale_CN, **sizes)
        product.setType(x.type().with_sizes([None] * (rank - 1) + [outputs]))  # which the exporter does not know of itself
        return product


IN_FILES: Mapping[str, Callable[[Linear], nn.Module]] = {"fp16": HalfLinear, "int8": Int8Linear, "int4": Int4Linear}
