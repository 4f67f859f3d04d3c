"""Latency where surroundings are chosen: one model for each, of the same kind, or one that knows nothing of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch

from nas.encoding import Encoding
from nas.protocols import DifferentiableLatencyModel, DoubtfulLatencyModel, Family, UncertainLatencyModel
from nas.space import Architecture, Option
from nas.surroundings import PREFIX, all_surroundings, bare, network_of, surroundings_of
from nas.types import Measurement, Prediction


class PerSurroundings:
    """A latency model in each of the surroundings of a space, fitted to what was measured in them.

    Threads change which operators pay, and a precision what each costs: nothing is shared between surroundings.

    Args:
        model: what is fitted, once for each.

    Raises:
        ValueError: a model that does not say where it is uncertain, or is not differentiable.
    """

    def __init__(self, model: UncertainLatencyModel) -> None:
        if not isinstance(model, UncertainLatencyModel):
            raise ValueError(f"latency_model: {type(model).__name__} is not differentiable, the search needs expected_ms")
        self.model = model

    def fit(self, family: Family, measurements: Sequence[Measurement]) -> Self:
        """Raises ValueError where the model does, for too few measurements in some surroundings."""
        self.surroundings_: list[Mapping[str, Option]] = [*all_surroundings(family.space)]
        own = [[m for m in measurements if surroundings_of(m.arch) == picks] for picks in self.surroundings_]
        self.models_: list[UncertainLatencyModel] = [copy.deepcopy(self.model).fit(family, of) for of in own]
        return self

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        columns = np.empty((4, len(archs)))
        for rows, model in self._parts(archs):
            prediction = model.predict([archs[i] for i in rows])
            columns[:, rows] = prediction.mean_ms, prediction.std_ms, prediction.lower_ms, prediction.upper_ms
        return Prediction(*columns)

    def disagreement(self, archs: Sequence[Architecture]) -> np.ndarray:
        found = np.empty(len(archs))
        for rows, model in self._parts(archs):
            found[rows] = model.disagreement([archs[i] for i in rows])
        return found

    def expected_ms(self, encoding: Encoding) -> torch.Tensor:
        """Over the probabilities of the surroundings, which do not depend on the network's."""
        total = torch.zeros((), dtype=encoding.values.dtype)
        for picks, model in zip(self.surroundings_, self.models_, strict=True):
            probability = torch.ones((), dtype=encoding.values.dtype)
            for name, pick in picks.items():
                probability = probability * encoding.probability(f"{PREFIX}{name}", pick)
            total = total + probability * model.expected_ms(encoding)
        return total

    def upper_factor(self) -> float:
        """The largest, so that it holds in all."""
        return max(model.upper_factor() for model in self.models_)

    def doubt(self, relative_std: float) -> None:
        """In all of them."""
        for model in self.models_:
            if isinstance(model, DoubtfulLatencyModel):
                model.doubt(relative_std)

    def _parts(self, archs: Sequence[Architecture]) -> list[tuple[list[int], UncertainLatencyModel]]:
        """Which rows each model has to say something of."""
        rows = [[i for i, arch in enumerate(archs) if surroundings_of(arch) == picks] for picks in self.surroundings_]
        return [(of, model) for of, model in zip(rows, self.models_, strict=True) if of]


class AnySurroundings:
    """The latency of networks on a device that the surroundings are not those of: the same in all of them.

    Args:
        model: of the networks alone, in the space without surroundings.
    """

    def __init__(self, model: DifferentiableLatencyModel) -> None:
        self.model = model

    def fit(self, family: Family, measurements: Sequence[Measurement]) -> Self:
        """Of a family, and of networks, without surroundings."""
        self.model.fit(family, measurements)
        return self

    def predict(self, archs: Sequence[Architecture]) -> Prediction:
        return self.model.predict([network_of(arch) for arch in archs])

    def expected_ms(self, encoding: Encoding) -> torch.Tensor:
        space = bare(encoding.space)
        own = [encoding.probabilities(choice.name) for choice in space]
        return self.model.expected_ms(Encoding(space, torch.cat(own, dim=-1)))

    def upper_factor(self) -> float:
        return self.model.upper_factor()

    def doubt(self, relative_std: float) -> None:
        if isinstance(self.model, DoubtfulLatencyModel):
            self.model.doubt(relative_std)
