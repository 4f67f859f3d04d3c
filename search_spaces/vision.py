"""Transformers over one image or one signal, for classification: patches, how they become tokens, and the choices of the trunk.

Shapes: B inputs of C channels, T tokens, D width. An image is [B, C, height, width], cut into squares; a
signal is [B, C, length], cut into pieces. Learned positions, linear classifier over the mean of the tokens or, as in ViT
(arXiv:2010.11929), over a token of its own before them.

    input -> standardised -> patches by a stem + position -> stack -> mean or first -> logits

Patches of each size have stems and positions of their own (see `search_spaces.patches`). Their numbers of tokens differ, so a
relaxed network mixes what comes out of the stack: sum_k p_k mean(stack(patches_k(x))).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from nas.attention import Backend
from nas.encoding import Encoding
from nas.layers import Linear
from nas.protocols import Operator
from nas.reduction import mean_token
from nas.space import Architecture, Choice, Option, SearchSpace
from nas.types import Workload
from search_spaces import pretrained
from search_spaces.attention import LayerAttention
from search_spaces.common import DEFAULTS, GRAPHS, NORM_EPS, norm_parameters, options
from search_spaces.patches import NAME as STEM
from search_spaces.patches import Patches, patch_operators, stem_choices, stems
from search_spaces.stack import Masks, Stack
from search_spaces.trunk import Trunk, TrunkOptions, trunk_choices

Pooling = Literal["mean", "token"]
POOLING = ("mean", "token")


def vision_space(
    *, patch: Sequence[int] = (4, 7), stem: Sequence[str] = ("patches",), name: str = "vision", **choices: Unpack[TrunkOptions]
) -> SearchSpace:
    """The choices; the default holds about 10^9.7 architectures.

    `patch` is categorical, with the finest first: it makes the most tokens, so it belongs to the largest network.

    Raises:
        ValueError: like `trunk_choices` and `stem_choices`, or patches that are not positive, ascending integers.
    """
    sizes = Choice("patch", tuple(patch))
    if not sizes.is_nested:
        raise ValueError(f"patch: {sizes.options} are not integers")
    finest_first = Choice("patch", tuple(map(str, sizes.options)))
    return SearchSpace(name, (finest_first, *stem_choices(stem), *trunk_choices(**choices)))


@dataclass(frozen=True)
class VisionMasks:
    """A relaxed network."""

    patch: Tensor  # [options]: P(each size)
    stem: Tensor | None  # [options]: P(each), where there is a choice
    stack: Masks


class Standard(nn.Module):
    """(x - mean) * scale for each channel: constants that are held like weights, so that a file takes raw values."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], num_dimensions: int) -> None:
        super().__init__()
        shape = (len(mean), *[1] * num_dimensions)
        self.mean = nn.Parameter(torch.tensor(mean).view(shape), requires_grad=False)
        self.scale = nn.Parameter((1.0 / torch.tensor(std)).view(shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


class Vision(nn.Module):
    """One network, with one size of patch; with all of them, at its largest size and called with `masks`, it is the supernet."""

    def __init__(self, standard: Standard, patches: Iterable[tuple[str, Patches]], stack: Stack, classifier: Linear) -> None:
        super().__init__()
        self.standard, self.patches = standard, nn.ModuleDict(dict(patches))
        self.stack, self.classifier = stack, classifier

    def forward(self, x: Tensor, masks: VisionMasks | None = None) -> Tensor:
        """Logits [B, num_classes] of raw inputs, float [B, C, height, width] or [B, C, length]."""
        x = self.standard(x)
        if masks is None:
            finest, *_ = self.patches.values()
            pooled_BD = self._pooled(x, finest, None)
        else:
            pairs = zip(masks.patch.unbind(), self.patches.values(), strict=True)
            live = [(p, patches) for p, patches in pairs if p.requires_grad or float(p) != 0]
            pooled_BD = torch.stack([p * self._pooled(x, patches, masks) for p, patches in live]).sum(dim=0)
        logits: Tensor = self.classifier(pooled_BD)
        return logits

    def _pooled(self, x: Tensor, patches: nn.Module, masks: VisionMasks | None) -> Tensor:
        assert isinstance(patches, Patches)
        stem, stack = (None, None) if masks is None else (masks.stem, masks.stack)
        nothing_hidden = x.new_zeros(1 if masks is None else len(x), 1, 1, patches.num_tokens)  # a constant in an exported file
        tokens: tuple[Tensor, Tensor] = self.stack(patches(x, stem), nothing_hidden, stack)
        x_BTD, left = tokens
        if patches.class_token:
            return x_BTD[:, 0]
        return mean_token(x_BTD, left) if stack is not None and stack.keep is not None else x_BTD.mean(dim=1)


@dataclass(frozen=True)
class VisionFamily:
    """The networks of one space over inputs of one shape.

    Args:
        input_shape: (channels, height, width) of an image or (channels, length) of a signal.
        mean, std: of each channel, with which the network standardises its input.
        pooling: what the classifier reads, the mean of the tokens or a first one without a patch ("token").

    Raises:
        ValueError: a size under 1, another number of dimensions, means or deviations that are not one for each channel, a
            deviation or epsilon that is not positive, unknown pooling, or a patch that does not divide the input.
    """

    space: SearchSpace
    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head_size: int = 32
    window: int = 8
    pooling: Pooling = "mean"
    norm_eps: float = NORM_EPS["pre"]

    def __post_init__(self) -> None:
        for name in ("input_shape", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.input_shape) not in (2, 3) or min(self.input_shape) < 1:
            raise ValueError(f"input_shape: {self.input_shape} is not (channels, height, width) or (channels, length)")
        if self.num_classes < 1:
            raise ValueError(f"num_classes: {self.num_classes} is not at least 1")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.input_shape[0]:
                raise ValueError(f"{name}: {getattr(self, name)} are not {self.input_shape[0]}, one for each channel")
        if min(self.std) <= 0:
            raise ValueError(f"std: {self.std} are not all positive")
        if self.pooling not in POOLING:
            raise ValueError(f"pooling: {self.pooling!r} is not one of {POOLING}")
        common = math.gcd(*self.input_shape[1:])
        for size in self._patch_sizes:
            if common % size:
                allowed = [n for n in range(1, common + 1) if common % n == 0]
                sides = " x ".join(map(str, self.input_shape[1:]))
                channels = f"{self.input_shape[0]} channels, which come first"
                raise ValueError(
                    f"patch: {size} does not divide the input of {sides} ({channels}); allowed are {allowed} (space.patch=[…])"
                )
        fewer = self.trunk.reduction.largest.fewer
        if fewer and self.pooling == "token":
            raise ValueError("keep: a first token that the classifier reads might not be kept; pooling=mean, or space.keep=[]")

    @functools.cached_property
    def trunk(self) -> Trunk:
        most = max(self._num_tokens.values())
        attention = LayerAttention(self.space, self.head_size, self.window, most, hides="nothing")
        return Trunk(attention, "pre", self.norm_eps)

    @property
    def _patch_sizes(self) -> list[int]:
        return [int(option) for option in self.space.by_name["patch"].options]

    @property
    def _num_tokens(self) -> dict[int, int]:
        """By the size of the patches."""
        dimensions, first = len(self.input_shape) - 1, self.pooling == "token"
        return {size: self.num_positions // size**dimensions + first for size in self._patch_sizes}

    @property
    def position(self) -> str:
        """What one of them is called."""
        return "pixel" if len(self.input_shape) == 3 else "sample"

    @property
    def num_positions(self) -> int:
        """Pixels of an image, samples of a signal: what a workload counts as tokens, whatever the patches."""
        return math.prod(self.input_shape[1:])

    @property
    def signature(self) -> str:
        """Changes with whatever changes a network's cost, its graph or its weights' shapes."""
        facts = [GRAPHS, self.space.to_json(), self.input_shape, self.num_classes, self.head_size, self.window]
        facts += [self.pooling] * (self.pooling != "mean")
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def hand_designed(self) -> dict[str, Architecture]:
        """Those of the trunk, and after the largest it with the coarsest patches."""
        shallow = self.trunk.shallow()
        coarsest = self.space.by_name["patch"].options[-1]
        coarse = self.space.canonical({**shallow["largest"].as_dict, "patch": coarsest})
        return {"largest": shallow["largest"], **({"coarse patches": coarse} if len(self._patch_sizes) > 1 else {}), **shallow}

    def supernet(self) -> Vision:
        stack, width = self.trunk.largest_stack(), self.space.by_name["width"].largest
        return self._around(stack, width, self._patch_sizes, options(self.space, STEM))

    def network(self, arch: Architecture, *, backend: Backend = "matmul") -> Vision:
        self.space.validate(arch)
        stem = {**DEFAULTS, **arch.as_dict}[STEM]
        return self._around(self.trunk.stack(arch, backend), arch.size("width"), [int(arch["patch"])], [stem])

    def _around(self, stack: Stack, width: int, sizes: Sequence[int], kinds: Sequence[Option]) -> Vision:
        standard = Standard(self.mean, self.std, len(self.input_shape) - 1)
        named, token = [str(kind) for kind in kinds], self.pooling == "token"
        patches = ((str(size), Patches(self.input_shape, size, width, stems=named, class_token=token)) for size in sizes)
        return Vision(standard, patches, stack, Linear(width, self.num_classes))

    def pretrained(self, folder: Path) -> dict[str, Tensor]:
        """Weights of a ViT, the classifier's not among them (see `search_spaces.pretrained`). Coarser patches than its own begin
        at random.

        Raises:
            ValueError: a checkpoint of another kind or shape than the largest network.
        """
        facts = {"pooling": self.pooling, "patch": self._patch_sizes[0]}
        return pretrained.read(folder, ("vit",), self.supernet, self.trunk, facts)

    def masks(self, encoding: Encoding) -> VisionMasks:
        return VisionMasks(encoding.probabilities("patch"), stems(encoding), self.trunk.masks(encoding))

    def example_input(self, workload: Workload) -> dict[str, Tensor]:
        """Random values with the data's mean and deviation, as `image` or `signal`; the same for the same workload.

        Raises:
            ValueError: another number of tokens than the positions of the input.
        """
        if workload.tokens != self.num_positions:
            sides = " x ".join(map(str, self.input_shape[1:]))
            raise ValueError(f"tokens: {workload.tokens} of the workload are not the {self.num_positions} positions of {sides}")
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(workload.batch, *self.input_shape, generator=generator)
        shape = (-1, *[1] * (len(self.input_shape) - 1))
        values = torch.tensor(self.mean).view(shape) + torch.tensor(self.std).view(shape) * noise
        return {"image" if len(self.input_shape) == 3 else "signal": values}

    def operators(self, encoding: Encoding, workload: Workload) -> list[Operator]:
        """Those before the trunk, the head and the trunk's."""
        counts, channels = self._num_tokens, self.input_shape[0]
        width, classes, batch = encoding.expected("width"), self.num_classes, workload.batch
        values = batch * channels * self.num_positions + 0.0 * width  # an expectation like the others
        return [
            Operator("standard", 1.0, 2.0 * values, 16.0 * values, 2.0 * channels, 8.0 * values),
            *patch_operators(encoding, self.input_shape, counts, batch=batch, width=width),
            Operator(
                "head",
                1.0,
                2.0 * batch * width * classes,
                4.0 * classes * width,
                (width + 1.0) * classes + norm_parameters(encoding),
            ),
            *self.trunk.operators(
                encoding,
                [(n, encoding.probability("patch", str(size))) for size, n in counts.items()],
                batch=batch,
                pairs_of=self.trunk.attention.pairs_of,
            ),
        ]


def vision(
    *, input_shape: Sequence[int], num_classes: int, mean: Sequence[float], std: Sequence[float], patch: Sequence[int],
    head_size: int, window: int, stem: Sequence[str] = ("patches",), pooling: Pooling = "mean",
    norm_eps: float = NORM_EPS["pre"], name: str = "vision", **choices: Unpack[TrunkOptions],
) -> VisionFamily:  # fmt: skip
    """The family of a space that is given by its options; what a configuration builds. Raises ValueError like its parts."""
    space, shape = vision_space(patch=patch, stem=stem, name=name, **choices), tuple(input_shape)
    return VisionFamily(space, shape, num_classes, tuple(mean), tuple(std), head_size, window, pooling, norm_eps)
