"""Layers that are ordinary without masks and exact under one-hot masks.

Shapes: B sequences, T tokens, D width, C channels of a branch, K modules that are mixed.

Weight entanglement (TangleNAS, arXiv:2312.10440): a mixture of zero-padded prefixes of a weight is one mask,

    sum_k p_k pad(W[:s_k]) x = m * (W x),   m_i = P(size > i).

A mask is folded into a weight that touches the masked dimension: a matrix of weights instead of a matrix of activations. The
width of the residual stream is masked where the stream is written, and what is written is centred over the active channels, in
the weights too (as in SliceGPT, arXiv:2401.15024, section 3.2). Then the mean over all channels is that over the active ones,
zero, and the variances differ by a known factor: the ordinary layer norm reads the masked stream exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.rounding import ROUNDINGS
from nas.twice import again


@dataclass(frozen=True)
class Width:
    """Which channels of the residual stream are active, and what follows from it for who writes and reads it."""

    mask: Tensor  # [D]
    share: Tensor  # [D], of each channel in the mean that is taken off
    gain: Tensor  # scalar: the standard deviation over all channels to that over the active ones
    active: float  # expected share of active channels
    centred: Tensor | None = None  # P(norms are layer norms), where they may be others: as much of the mean is taken off

    @classmethod
    def of(cls, mask: Tensor, centred: Tensor | None = None) -> Width:
        total = mask.sum()
        active = total / len(mask)
        share = mask / total if centred is None else mask * (centred / total)
        return cls(mask, share, active.sqrt(), float(active.detach()), centred)

    def centre(self, x_BTD: Tensor) -> Tensor:
        """The masked stream to begin with."""
        return (x_BTD - (x_BTD @ self.share)[..., None]) * self.mask

    def centre_again(self, x_BTD: Tensor) -> Tensor:
        """A masked stream whose mean is not zero, as after a norm; the mask is not applied a second time."""
        return x_BTD - x_BTD.sum(dim=-1, keepdim=True) * self.share

    def write(self, x_BTC: Tensor, weight_DC: Tensor, bias_D: Tensor, mask_C: Tensor | None = None) -> Tensor:
        """A linear map of channels, which a mask may scale, into the masked stream."""
        arguments = (x_BTC, weight_DC, bias_D, mask_C, self.mask, self.share)
        if weight_DC.requires_grad:
            return _written(*arguments)
        written: Tensor = _WrittenByFixed.apply(*arguments)  # type: ignore[no-untyped-call]
        return written


def _written(
    x_BTC: Tensor, weight_DC: Tensor, bias_D: Tensor, mask_C: Tensor | None, mask_D: Tensor, share_D: Tensor
) -> Tensor:  # fmt: skip
    if mask_C is not None:
        weight_DC = weight_DC * mask_C
    weight_DC = (weight_DC - share_D @ weight_DC) * mask_D[:, None]
    return F.linear(x_BTC, weight_DC, (bias_D - share_D @ bias_D) * mask_D)


class _WrittenByFixed(torch.autograd.Function):
    """`_written` with weights that do not learn. Its masks' gradients go through the weights', a product over all tokens as large
    as the map itself; here they are sums over what goes in and what comes out."""

    @staticmethod
    def forward(
        ctx: Any, x_BTC: Tensor, weight_DC: Tensor, bias_D: Tensor, mask_C: Tensor | None, mask_D: Tensor, share_D: Tensor
    ) -> Tensor:
        weight_DC = weight_DC.to(share_D.dtype)  # a product of factors has the lower precision of autocast
        with torch.autocast(x_BTC.device.type, enabled=False):
            centred_DC = weight_DC - share_D @ weight_DC
            masked_DC = centred_DC if mask_C is None else centred_DC * mask_C
            y_BTD = F.linear(x_BTC, masked_DC.to(x_BTC.dtype), (bias_D - share_D @ bias_D).to(x_BTC.dtype))
        ctx.save_for_backward(x_BTC, weight_DC, bias_D, mask_C, mask_D, share_D, centred_DC, y_BTD)
        return y_BTD * mask_D

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *arguments, centred_DC, y_BTD = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_written, arguments, ctx.needs_input_grad, grad)
        x_BTC, weight_DC, bias_D, mask_C, mask_D, share_D = arguments
        x_NC, y_ND, grad_ND = (tensor.flatten(0, -2) for tensor in (x_BTC, y_BTD, grad))
        against_N = grad_ND @ mask_D  # what is taken off
        seen_C, against = (against_N.to(x_NC.dtype) @ x_NC).to(share_D.dtype), against_N.sum()
        grad_NC = grad_ND.to(x_NC.dtype) @ (centred_DC * mask_D[:, None]).to(x_NC.dtype)
        grad_mask_C: Tensor | None = None
        if mask_C is not None:
            seen_C, grad_mask_C = seen_C * mask_C, (grad_NC * x_NC).sum(dim=0, dtype=mask_C.dtype)
            grad_NC = grad_NC.mul_(mask_C)
        grad_bias_D, grad_mask_D = grad_ND.sum(dim=0) * mask_D - against * share_D, (grad_ND * y_ND).sum(dim=0)
        return grad_NC.view_as(x_BTC), None, grad_bias_D, grad_mask_C, grad_mask_D, -(weight_DC @ seen_C + against * bias_D)


def mixed(modules: Sequence[nn.Module], weights: Tensor) -> dict[str, Tensor]:
    """Parameters by name, sum_k w_k parameters_k of modules of one shape: with one-hot weights, those of one of them.

    For `torch.func.functional_call`. A mixture of weights costs a pass over the weights, one of outputs a pass over all tokens.
    """
    parameters = [dict(module.named_parameters()) for module in modules]
    found = _MixedWeights.apply(weights, *(p for one in parameters for p in one.values()))  # type: ignore[no-untyped-call]
    return dict(zip(parameters[0], found, strict=True))


class _MixedWeights(torch.autograd.Function):
    """Of K lists of tensors, one after the other, the mixed list."""

    @staticmethod
    def forward(ctx: Any, weights_K: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weights_K, *tensors)
        first, *others = weights_K.tolist()
        step = len(tensors) // len(weights_K)
        results = [tensor * first for tensor in tensors[:step]]
        for k, weight in enumerate(others, start=1):
            for result, tensor in zip(results, tensors[k * step :], strict=False):
                result.add_(tensor, alpha=weight)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights_K, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_mixed_plainly, ctx.saved_tensors, ctx.needs_input_grad, *grads)
        shares, grad_weights = weights_K.tolist(), torch.zeros_like(weights_K)
        if ctx.needs_input_grad[0]:
            for i, tensor in enumerate(tensors):
                grad_weights[i // len(grads)] += torch.dot(grads[i % len(grads)].flatten(), tensor.flatten())
        return grad_weights, *(grad * share for share in shares for grad in grads)


def _mixed_plainly(weights_K: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    step = len(tensors) // len(weights_K)
    lists = (tensors[k * step : (k + 1) * step] for k in range(len(weights_K)))
    return tuple(sum(w * t for w, t in zip(weights_K, row, strict=True)) for row in zip(*lists, strict=True))


class Linear(nn.Linear):
    """A linear map, in a precision; on the meta device, where there is nothing to initialise, quick to make."""

    precision: str = ""  # nobody chose one, so it is fp32 here and the finisher may change it; else fp32, or one of ROUNDINGS

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if self.precision not in ROUNDINGS:
            return super().forward(x)
        rounding = ROUNDINGS[self.precision]
        return F.linear(rounding.input(x), rounding.weight(self.weight), self.bias)


def with_precision(module: nn.Module, precision: str) -> nn.Module:
    """The module with all its linear maps in a precision."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.precision = precision
    return module


class Norm(nn.LayerNorm):
    """Layer norm."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def relaxed(self, x_BTD: Tensor, width: Width) -> Tensor:
        """Of the active channels of a masked stream; zero elsewhere.

        A layer norm is an RMS norm of a stream without mean, and a bias. So the mixture of both kinds is an RMS norm of a stream
        that part of the mean was taken from, and that part of the bias.
        """
        weight, bias, eps = self.weight * width.gain, self.bias * width.mask, self.eps * width.active
        if width.centred is None:
            return F.layer_norm(x_BTD, self.normalized_shape, weight, bias, eps)
        return _rms_norm(x_BTD, weight, bias * width.centred, eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467), in the form that ONNX Runtime makes one operator of."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD / torch.sqrt(x_BTD.pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight

    def relaxed(self, x_BTD: Tensor, width: Width) -> Tensor:
        """Of the active channels of a masked stream."""
        return _rms_norm(x_BTD, self.weight * width.gain, torch.zeros_like(self.weight), self.eps * width.active)


def _rms_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    normed: Tensor = _RMSNorm.apply(x_BTD, weight_D, bias_D, eps)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight + bias, which keeps x alone for the backward pass: that of a layer norm whose mean is 0
    by decree, and what the gradient of its mean takes off too much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight_D, bias_D)
        ctx.eps = eps
        return torch.mul(x, scale).mul_(weight_D).add_(bias_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight_D, bias_D = ctx.saved_tensors
        if torch.is_grad_enabled():
            return again(_rms_plainly, (x, weight_D, bias_D, ctx.eps), ctx.needs_input_grad, grad)
        needed, shape = [True, True, True], list(weight_D.shape)
        backward = torch.ops.aten.native_layer_norm_backward
        below, of_weight, of_bias = backward(grad, x, shape, torch.zeros_like(scale), scale, weight_D, bias_D, needed)
        mean = (grad @ weight_D).div_(len(weight_D))[..., None]
        return below.add_(mean * scale), of_weight, of_bias, None


def _rms_plainly(x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight_D + bias_D


class Table(nn.Embedding):
    """An embedding with small weights, as transformers begin with (standard deviation 0.02)."""

    std = 0.02

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=self.std)
