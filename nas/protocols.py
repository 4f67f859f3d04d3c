"""What acts: the small protocols that a family, a device, a latency model, a searcher and a task keep.

Nothing registers itself and nothing inherits from these: a class that has the methods is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

from nas.encoding import Array, Encoding
from nas.space import Architecture, SearchSpace
from nas.types import Candidate, Measurement, Prediction, Workload

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from nas.attention import Backend


class DeviceError(RuntimeError):
    """A device could not run a network: lost, out of memory, or it refuses the file. Says what and where."""


class ExhaustedError(RuntimeError):
    """A searcher has nothing left to propose."""


@dataclass(frozen=True)
class Operator:
    """Operators of one kind in one network, as data; every number is an expectation, [...] like the encoding.

    `kind` names what shares a speed: a matrix product, an attention of one kind, a norm. `count` is how many run, `flops` their
    floating-point operations (a multiply-add counts 2), `bytes` what they read and write, `parameters` the weights they hold.
    `live_bytes` are the activations that are alive at the worst moment of one of them, and 0 if the family does not say;
    `saved_bytes` are what the weights take less than four bytes each.
    """

    kind: str
    count: Array
    flops: Array
    bytes: Array
    parameters: Array = 0.0
    live_bytes: Array = 0.0
    saved_bytes: Array = 0.0


class Batch(NamedTuple):
    """`inputs` are the network's positional arguments: for text `token_ids` and `attention_mask`, both int64 [B, T], for images
    or signals their values, float32 [B, ...]."""

    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(tuple(x.to(device) for x in self.inputs), self.targets.to(device))

    @property
    def num_tokens(self) -> int:
        return self.inputs[0].numel()


SPLITS = ("train", "architecture", "validation", "test")
IGNORED = -100  # the target of a token that nothing is asked at, as in torch


class Task(Protocol):
    """Data, loss and metrics. Splits never mix: weights learn on `train`, architecture parameters on `architecture`, which
    scores what is searched; what ships is chosen on `validation`, and `test` is read when all is chosen, for the report alone."""

    name: str
    max_tokens: int
    error_means: str
    """What an error is the percentage of: wrong answers, wrong tags, unexplained variance."""

    @property
    def sizes(self) -> Mapping[str, Any]:
        """What a family must know of the data, by the names of its constructor: `num_classes`, `vocab_size`, `input_shape`."""
        ...

    @property
    def interface(self) -> str:
        """What goes into an exported file and comes out of it, in a few sentences of Markdown."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the data and its preprocessing: a run directory belongs to one."""
        ...

    def num_examples(self, split: str) -> int: ...

    def batches(self, split: str, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]:
        """One pass over a split. With a seed, shuffled by it alone; with None, in a fixed order. Every example once."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...

    def error(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Number of wrong answers in the batch (for a rate, divide by the examples); an example with many answers counts by the
        share of them that is wrong, a number by its squared distance in units of the variance of `train`."""
        ...

    def trivial_baselines(self) -> Mapping[str, float]:
        """Validation error in percent of what needs no network: the majority class, a linear model on n-grams."""
        ...

    def save_preprocessing(self, folder: Path) -> None:
        """Writes what turns an input into the network's and an output into a label (tokenizer.json, labels.json)."""
        ...


@runtime_checkable
class TaskWithMetrics(Task, Protocol):
    """A task with further figures of what ships, beside the error."""

    def totals(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, float]:
        """Of one batch: what adds up over batches."""
        ...

    def metrics(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        """The figures by their names, from the sums over a split."""
        ...


@runtime_checkable
class TaskWithAnswers(Task, Protocol):
    """A task over token ids some of whose trivial baselines can teach."""

    able_to_teach: Sequence[str]
    """Their names in `trivial_baselines`."""

    def unseen_answers(self, baseline: str) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """What one of them says of the N examples of `train`, each by a fit that has not seen it: their token ids, and logarithms
        of the probabilities of C classes, [N, C]."""
        ...


@runtime_checkable
class Family(Protocol):
    """A search space, and the networks that its points stand for."""

    @property
    def space(self) -> SearchSpace: ...

    @property
    def signature(self) -> str:
        """Identity of everything beside the architecture that changes a network's cost (vocabulary, head size, ...)."""
        ...

    def supernet(self) -> nn.Module:
        """The largest network, which holds every other's weights as prefixes."""
        ...

    def network(self, arch: Architecture, *, backend: Backend = "matmul") -> nn.Module:
        """The stand-alone network of an architecture, with fresh weights."""
        ...

    def masks(self, encoding: Encoding) -> Any:
        """What the supernet's forward takes as `masks=` to act as a (relaxed) architecture."""
        ...

    def example_input(self, workload: Workload) -> dict[str, torch.Tensor]: ...

    def hand_designed(self) -> Mapping[str, Architecture]:
        """Architectures that one would try without a search, by name; the first is the largest. Baselines of every picture."""
        ...

    def operators(self, encoding: Encoding, workload: Workload) -> list[Operator]:
        """What the networks cost, multilinear in the sizes of independent choices."""
        ...


@runtime_checkable
class GenerativeFamily(Family, Protocol):
    """A family whose networks also go on token by token, with keys and values of the past as inputs and outputs."""

    def form(self, network: nn.Module, workload: Workload) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """What runs for a workload of any mode, over the network's own weights, and its inputs by name."""
        ...


@runtime_checkable
class PretrainedFamily(Family, Protocol):
    """A family whose supernet can begin from a checkpoint."""

    def pretrained(self, folder: Path) -> Mapping[str, torch.Tensor]:
        """Weights of the supernet by name; what is missing begins at random. Raises ValueError if they do not fit."""
        ...


class Device(Protocol):
    """Runs an exported network and returns wall times.

    `environment` is everything that a time depends on beside the network: two devices with an equal `fingerprint` may share
    measurements.
    """

    name: str

    @property
    def environment(self) -> Mapping[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: load, warm up, and time; returns raw samples in ms. Raises DeviceError."""
        ...


class LatencyModel(Protocol):
    """A predictor of latency. Follows scikit-learn: hyper-parameters in the constructor, data in `fit`."""

    def fit(self, family: Family, measurements: Sequence[Measurement]) -> Self: ...

    def predict(self, archs: Sequence[Architecture]) -> Prediction: ...


@runtime_checkable
class DifferentiableLatencyModel(LatencyModel, Protocol):
    def expected_ms(self, encoding: Encoding) -> torch.Tensor:
        """Expected latency of a relaxed architecture, differentiable in its probabilities."""
        ...

    def upper_factor(self) -> float:
        """What a mean is multiplied with to become the calibrated upper bound."""
        ...


@runtime_checkable
class CrossValidatedLatencyModel(LatencyModel, Protocol):
    def unseen_ms(self) -> np.ndarray:
        """Predictions of what it was fitted to, each by a fit without it, [N]."""
        ...


@runtime_checkable
class OperatorLatencyModel(DifferentiableLatencyModel, CrossValidatedLatencyModel, Protocol):
    """A latency model that can learn from networks of any kind."""

    def fit_operators(
        self, family: Family, workload: Workload, networks: Sequence[Sequence[Operator]], measured_ms: np.ndarray
    ) -> Self: ...


@runtime_checkable
class UncertainLatencyModel(DifferentiableLatencyModel, Protocol):
    def disagreement(self, archs: Sequence[Architecture]) -> np.ndarray:
        """How far its predictions would be changed by other measurements, relative, [N]: where to measure next."""
        ...


@runtime_checkable
class DoubtfulLatencyModel(LatencyModel, Protocol):
    def doubt(self, relative_std: float) -> None:
        """Widens the bounds until the next fit: the measurements that it was fitted to are off by so much from what the device
        takes now."""
        ...


@runtime_checkable
class Searcher(Protocol):
    """Proposes architectures. `tell` also accepts candidates that were never asked for.

    A search that goes on in another process asks for the same again: a searcher keeps what it was told, or follows from its seed
    and what it is told anew.
    """

    def ask(self) -> Architecture: ...

    def tell(self, candidate: Candidate) -> None: ...

    def fail(self, arch: Architecture, reason: str) -> None: ...


@runtime_checkable
class PlanningSearcher(Searcher, Protocol):
    """A searcher that may be asked for several architectures before it is told of the first; any other is told of each."""

    @property
    def batch(self) -> int:
        """How many can be asked for now that are the same whatever is told of those among them, at least 1."""
        ...
