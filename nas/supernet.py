"""One set of weights for every architecture: prefixes, cutting out, and the two ways to train.

A *sampled* architecture runs as its own small network over views of the supernet's parameters: it costs what the small network
costs, keeps no state, and its gradient lands in the supernet. A *relaxed* architecture runs as the supernet under masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nas.compute import Compute
from nas.finish.fake_quant import rounding
from nas.protocols import IGNORED, Batch, Family, Task
from nas.space import Architecture, SearchSpace
from nas.surroundings import surroundings_of

EVALUATION_TOKENS = 8192  # a batch, where nothing is trained


def prefixes(supernet: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """For each parameter of `network`, the view of the supernet's parameter of the same name that begins at index 0.

    Raises:
        ValueError: a parameter that the supernet lacks or holds smaller.
    """
    shared = dict(supernet.named_parameters())
    views = {}
    for name, parameter in network.named_parameters():
        if name not in shared or any(s > b for s, b in zip(parameter.shape, shared[name].shape, strict=True)):
            held = tuple(shared[name].shape) if name in shared else "nothing"
            raise ValueError(f"{name}: needs {tuple(parameter.shape)}, the supernet holds {held}")
        views[name] = shared[name][tuple(slice(0, size) for size in parameter.shape)]
    return views


def skeleton(family: Family, arch: Architecture, compute: Compute) -> nn.Module:
    """The network of an architecture without memory for its weights: a shape to call over the supernet's."""
    with torch.device("meta"):
        return family.network(arch, backend=compute.backend)


def call(supernet: nn.Module, network: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """Runs a skeleton over the supernet's weights."""
    outputs: Tensor = functional_call(network, prefixes(supernet, network), tuple(inputs))
    return outputs


def cut_out(family: Family, supernet: nn.Module, arch: Architecture, compute: Compute) -> nn.Module:
    """A stand-alone network with copies of the weights that the architecture inherits, on the supernet's device."""
    network = family.network(arch, backend=compute.backend)
    inherited = {name: view.detach().clone() for name, view in prefixes(supernet, network).items()}
    network.load_state_dict(inherited)
    return network.to(next(supernet.parameters()).device)


def fixed(supernet: nn.Module) -> dict[str, Tensor]:
    """The weights, for a pass in which they do not learn."""
    return {name: parameter.detach() for name, parameter in supernet.named_parameters()}


def sandwich(space: SearchSpace, rng: np.random.Generator, *, num_random: int) -> list[Architecture]:
    """The largest, the smallest and random architectures, the largest first (sandwich rule, arXiv:1903.05134)."""
    return [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(num_random))]


def sandwich_step(
    family: Family, supernet: nn.Module, archs: Sequence[Architecture], batch: Batch, task: Task, compute: Compute, *,
    distillation: float,
) -> float:  # fmt: skip
    """Adds to the supernet's gradients those of one sandwich; returns the largest network's loss.

    The largest learns from the targets, the others also from the largest's answers (inplace distillation, arXiv:1903.05134, with
    the KL divergence as in BigNAS, arXiv:2003.11142; see `distance`). Each network is freed before the next runs, so the peak is
    one network's.

    Args:
        distillation: weight of the largest's answers in what the others learn, 0 to 1; the rest is that of the targets.
    """
    with compute.autocast():
        largest = call(supernet, skeleton(family, archs[0], compute), batch.inputs)
        loss = task.loss(largest, batch.targets)
    loss.backward()
    answers = largest.detach().float()
    for arch in archs[1:]:
        with compute.autocast():
            outputs = call(supernet, skeleton(family, arch, compute), batch.inputs)
            learned = distillation * distance(outputs.float(), answers, batch.targets)
            if distillation < 1:
                learned = learned + (1 - distillation) * task.loss(outputs, batch.targets)
        learned.backward()
    return float(loss.detach())


def distance(outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
    """How far outputs are from a teacher's, both [..., number of logits]: mean KL divergence of what is asked for, in nats; of
    numbers, which are single logits, the mean squared difference."""
    if outputs.shape[-1] == 1:
        return F.mse_loss(outputs, answers)
    each = F.kl_div(F.log_softmax(outputs, dim=-1), F.log_softmax(answers, dim=-1), reduction="none", log_target=True).sum(dim=-1)
    asked = (targets != IGNORED).to(each.dtype)
    return (each * asked).sum() / asked.sum()


@torch.no_grad()
def inherited_error(
    family: Family, supernet: nn.Module, arch: Architecture, batches: Sequence[Batch], task: Task, compute: Compute
) -> float:
    """Error in percent of an architecture with the supernet's weights, in its precision, over the given batches."""
    network = skeleton(family, arch, compute).eval()
    weights = prefixes(supernet, network)
    with in_precision(network, arch):
        return error_percent(lambda *inputs: functional_call(network, weights, inputs), batches, task, compute)


def in_precision(network: nn.Module, arch: Architecture) -> AbstractContextManager[Any]:
    """Inside the block, the network rounds as its file will, if its surroundings say int8."""
    return rounding(network) if surroundings_of(arch).get("precision") == "int8" else nullcontext()


def evaluation_batches(task: Task, split: str) -> Iterator[Batch]:
    """One pass over a split in its fixed order, in batches of the size at which networks are judged and not trained."""
    return task.batches(split, tokens_per_batch=EVALUATION_TOKENS, seed=None)


@torch.no_grad()
def error_percent(run: Callable[..., Tensor], batches: Sequence[Batch], task: Task, compute: Compute) -> float:
    """Error in percent of anything that maps a batch's inputs to outputs."""
    wrong, total = 0.0, 0
    for batch in batches:
        with compute.autocast():
            outputs = run(*batch.inputs)
        wrong += task.error(outputs.float(), batch.targets)
        total += len(batch.targets)
    return 100.0 * wrong / total


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Detached copies of the weights on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
