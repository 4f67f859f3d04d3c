"""A network that may answer before its last layers, and its file, which then really stops.

Shapes: B examples, T tokens, D width, C classes.

    layers 1 … k -> head -> early answer; sure of it, it is the answer
                 -> layers k + 1 … -> last answer of the others

An example is sure where the largest probability of the early answer is above a threshold (BranchyNet, arXiv:1709.01686, which
takes the entropy). An answer does not depend on what else is in the batch, but a batch stops only where all examples are sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from nas.reduction import mean_token

NEVER = 1.0  # the threshold that no probability is above
SURE = "sure"  # bool [B, 1] in a file: who is
GOES_ON = "goes_on"  # the part of a file for the others


@runtime_checkable
class HasEarlyAnswers(Protocol):
    """A network that learns to answer several times."""

    def answers(self, *inputs: Tensor) -> list[Tensor]:
        """The answers in the order in which they come; the last is the whole network's."""
        ...


def answers_of(network: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """All answers of a network; of most the only one."""
    return network.answers(*inputs) if isinstance(network, HasEarlyAnswers) else [network(*inputs)]


class Head(nn.Module):
    """Norm, mean over the tokens, linear classifier."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        """Logits [B, C] of what the bias of the layer's scores lets it see."""
        logits: Tensor = self.classifier(mean_token(self.norm(x_BTD), bias_B11T))
        return logits


class Exits(nn.Module):
    """A network with heads.

    Args:
        network: whose `stack.layers` are its layers in their order, and whose `classifier` gives its answer.
        heads: by the number of layers before each.
    """

    threshold: Tensor

    def __init__(self, network: nn.Module, heads: Mapping[int, Head], *, threshold: float = NEVER) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict({str(after): head for after, head in sorted(heads.items())})
        self.register_buffer("threshold", torch.tensor(threshold))
        if hasattr(network, "dynamic_axes"):
            self.dynamic_axes = network.dynamic_axes

    @classmethod
    def of_weights(cls, network: nn.Module, state: Mapping[str, Tensor]) -> Exits:
        """With heads of the shapes of these weights, which are yet to be loaded."""
        weights = {name: weight for name, weight in state.items() if is_head(name) and name.endswith("classifier.weight")}
        return cls(network, {int(name.split(".")[1]): Head(*weight.shape[::-1]) for name, weight in weights.items()})

    @property
    def layers(self) -> Sequence[nn.Module]:
        return layers_of(self.network)

    def answers(self, *inputs: Tensor) -> list[Tensor]:
        """Logits [B, C] of each head, then the network's. A layer is called with its stream and with the bias of its scores."""
        seen: list[tuple[Tensor, Tensor]] = []
        with after_layers(self.network, lambda _, given, x_BTD: seen.append((x_BTD, given[1]))):
            last: Tensor = self.network(*inputs)
        return [*(head(*seen[int(after) - 1]) for after, head in self.heads.items()), last]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits [B, C]: of the first head that is sure, else the network's."""
        *early, result = self.answers(*inputs)
        for logits_BC in reversed(early):
            result = torch.where(confidence(logits_BC) > self.threshold, logits_BC, result)
        return result

    def rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What is exported of a network with one head, so that it stops."""
        return stopping(model)


@contextmanager
def after_layers(network: nn.Module, hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """Calls a forward hook after each layer of a network; after a block that layers share, once for each of them."""
    handles = [block.register_forward_hook(hook) for block in dict.fromkeys(layers_of(network))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_head(name: str) -> bool:
    """Whether a weight of that name belongs to a head of `Exits`."""
    return name.startswith("heads.")


def layers_of(network: nn.Module) -> Sequence[nn.Module]:
    """In the order in which they run; some may be the same."""
    stack: Any = network.stack
    return list(stack.layers)


def confidence(logits_BC: Tensor) -> Tensor:
    """The largest probability, [B, 1]."""
    return logits_BC.float().softmax(dim=-1).amax(dim=-1, keepdim=True)


def early_loss(early: Sequence[Tensor], last: Tensor, own: Sequence[Tensor]) -> Tensor:
    """Mean over early answers of their `own` losses, and of their distance to the last answer, which does not learn from it: KL
    in nats (as heads learn in "Be Your Own Teacher", arXiv:1905.08094)."""
    target = F.log_softmax(last.detach().float(), dim=-1)
    apart = [F.kl_div(F.log_softmax(x.float(), dim=-1), target, reduction="batchmean", log_target=True) for x in early]
    return torch.stack([a + b for a, b in zip(own, apart, strict=True)]).mean()


def stopping(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its only Where(a > b, early, late) in the branch of an `If`, with all that only `late` needs.

    The branch runs unless all are sure, over what it takes from the graph around it.
    """
    nodes = list(model.graph.node)
    compared = {name for node in nodes if node.op_type == "Greater" for name in node.output}
    [where] = [node for node in nodes if node.op_type == "Where" and node.input[0] in compared]
    sure, early, _ = where.input
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [SURE if name == sure else name for name in names]
    result = where.output[0]
    kept, answered = (helper.make_tensor_value_info(f"{result}_{when}", TensorProto.FLOAT, None) for when in ("early", "late"))
    first = _needed([node for node in nodes if node is not where], {SURE, early, *(value.name for value in model.graph.output)})
    rest = [node for node in nodes if not any(node is other for other in first)]
    where.output[0] = answered.name
    condition = [
        helper.make_node("Cast", [SURE], ["sure_number"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["sure_number"], ["least_sure"], keepdims=0),
        helper.make_node("Cast", ["least_sure"], ["all_sure"], to=TensorProto.BOOL),
    ]
    outside = {name for node in first for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name not in outside]
    stops = helper.make_graph([helper.make_node("Identity", [early], [kept.name])], "stops", [], [kept])
    goes_on = helper.make_graph(rest, GOES_ON, [], [answered], weights)  # their kernels want the weights inside
    branch = helper.make_node("If", ["all_sure"], [result], name="early_exit", then_branch=stops, else_branch=goes_on)
    behind = _behind(first, {result})
    before = [node for node in first if not any(node is other for other in behind)]
    _replace(model.graph.node, [*before, *condition, branch, *behind])
    _replace(model.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name in outside])
    return model


def deciding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of a model that `stopping` made, the part before the branch, whose output is who is sure."""
    _replace(model.graph.node, _needed(model.graph.node, {SURE}))
    used = {name for node in model.graph.node for name in node.input}
    _replace(model.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name in used])
    _replace(model.graph.output, [helper.make_tensor_value_info(SURE, TensorProto.BOOL, ["batch", 1])])
    return model


def going_on(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of a model that `stopping` made, the one that always runs everything; any other as it is."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        branches = [a.g for a in node.attribute if a.g.name == GOES_ON]
        for branch in branches:
            nodes += [*branch.node, helper.make_node("Identity", [branch.output[0].name], node.output)]
            model.graph.initializer.extend(branch.initializer)
        nodes += [] if branches else [node]
    _replace(model.graph.node, nodes)
    return model


def _needed(nodes: Iterable[onnx.NodeProto], names: set[str]) -> list[onnx.NodeProto]:
    """Those that make what has these names, in their order."""
    found: list[onnx.NodeProto] = []
    for node in reversed(list(nodes)):
        if names & set(node.output):
            names = names | set(node.input)
            found.insert(0, node)
    return found


def _behind(nodes: Iterable[onnx.NodeProto], names: set[str]) -> list[onnx.NodeProto]:
    """Those that need what has these names."""
    found: list[onnx.NodeProto] = []
    for node in nodes:
        if names & set(node.input):
            names = names | set(node.output)
            found.append(node)
    return found


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field[:]
    field.extend(values)
