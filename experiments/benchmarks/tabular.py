"""Search problems whose best front is known exactly, so that what a search has missed is known too.

*Recorded devices*: the space of HAT with the latency of a recorded device, by the model that is fitted to its table, and the
parameters that a network lacks to the largest. Both follow from sums over layers, of which the space has fewer than a million:
the front comes from all of them.

*Trained encoders*: all networks of a small space, trained by `bench exhaustive`, with their validation errors and predicted
latencies. The error is that of one training, seed and all.

*A synthetic law* over the default space of encoders. No network was trained for it: an invented error falls with width, heads and
feed-forward sizes, each with diminishing returns, and every layer helps less than the one before it; an invented device takes a
time for each operator and for its FLOPs, which the family counts. Both are sums over layers once the width is chosen, so the
front is found layer by layer: what is dominated after n layers of one width stays so, whatever follows (dynamic programming).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.trained_table import TrainedTable
from hardware.tables import load_table
from latency_models.physical import PhysicalRegressor
from nas.encoding import Encoding
from nas.pareto import hypervolume, non_dominated
from nas.protocols import Family
from nas.space import Architecture, Option, SearchSpace
from nas.types import Workload
from search_spaces import hat

WORKLOAD = Workload(tokens=64)
LAUNCH_MS, FLOPS_PER_MS = 0.004, 4e7  # of the invented device
FLOOR, SPAN = 5.0, 85.0  # error in percent: of an unlimited network, and what is above it
LAYER = 0.8  # what a layer adds, relative to the one before it
ATTENTION = {"full": 1.0, "window": 0.8, "none": 0.0}  # what heads are worth

Costs = tuple[float, float]


@dataclass(frozen=True)
class Tabular:
    """Two numbers of each architecture, both minimised, and the points [N, 2] that nothing in the space dominates."""

    name: str
    space: SearchSpace
    costs: Callable[[Architecture], Costs]
    front: np.ndarray
    reference: Costs

    def regret(self, found: np.ndarray) -> float:
        """Share of the best hypervolume that points [N, 2] miss."""
        return 1.0 - hypervolume(found, self.reference) / self.best

    @property
    def best(self) -> float:
        return hypervolume(self.front, self.reference)


def front_of(costs: np.ndarray) -> np.ndarray:
    """The points [N, 2] that no other dominates, ascending in the first; of equals one."""
    front = costs[non_dominated(costs)]
    result: np.ndarray = front[np.argsort(front[:, 0])]
    return result


# --- recorded devices


def recorded(name: str, folder: Path | None) -> Tabular:
    """Latency in ms and the parameters that the largest network has more. Raises ValueError if the table is not there."""
    table, space = load_table(name, folder), hat.hat_space()
    model = PhysicalRegressor().fit(hat.costs(table.rows), table.values)
    corners = hat.features([space.largest(), space.smallest()])
    most, fewest = hat.num_parameters(corners)

    def of_rows(rows: np.ndarray) -> np.ndarray:
        return np.stack([model.predict(hat.costs(rows)), most - hat.num_parameters(rows)], axis=1)

    def costs(arch: Architecture) -> Costs:
        [(ms, missing)] = of_rows(hat.features([arch])).tolist()
        return ms, missing

    slowest = float(of_rows(corners)[0, 0])
    return Tabular(name, space, costs, front_of(of_rows(all_rows(space))), (slowest, float(most - fewest)))


def all_rows(space: SearchSpace) -> np.ndarray:
    """The ten features of every network of a space of HAT, [N, 10], without repetitions; heads of the encoder cost nothing."""
    sizes = {choice.name: choice.sizes for choice in space if choice.is_nested}
    layers = hat.ENCODER_LAYERS
    encoder = [np.array(sizes["encoder.width"]), _sums(sizes["encoder1.ffn"], layers) / layers]
    grids = []
    for depth in sizes["decoder.depth"]:
        decoder = [_sums(sizes[f"decoder1.{part}"], depth) / depth for part in ("ffn", "heads", "cross_heads", "attended")]
        width, ffn, *rest = (axis.ravel() for axis in np.meshgrid(*encoder, np.array(sizes["decoder.width"]), *decoder))
        once = np.ones(len(width))
        grids.append(
            np.stack([width, layers * once, ffn, sizes["encoder1.heads"][0] * once, rest[0], depth * once, *rest[1:]], 1)
        )
    return np.concatenate(grids)


def _sums(options: Sequence[int], number: int) -> np.ndarray:
    """What so many picks of the options can add up to."""
    return np.unique([sum(picks) for picks in itertools.combinations_with_replacement(options, number)])


# --- trained encoders


def trained(table: TrainedTable) -> Tabular:
    """Predicted latency in ms and the error in percent after the training with seed 0."""
    rows = np.stack([table.columns["predicted_ms"], table.columns["error_percent_0"]], axis=1)
    costs = {arch.id: (ms, error) for arch, (ms, error) in zip(table.archs, rows.tolist(), strict=True)}
    space, (slowest, worst) = table.recipe.search_space(), rows.max(axis=0).tolist()
    return Tabular(space.name, space, lambda arch: costs[arch.id], front_of(rows), (slowest, worst))


# --- a law


def law(family: Family) -> Tabular:
    """The synthetic law; for spaces whose choices are those of the default one and that hold one and two layers."""
    space = family.space

    def costs(arch: Architecture) -> Costs:
        layers = [_layer_of(arch, number) for number in range(1, arch.size("depth") + 1)]
        worth = _worth_of_width(space, arch.size("width")) + sum(
            LAYER**number * worth_of_layer(layer) for number, layer in enumerate(layers)
        )
        return float(_time_ms(family, [arch])[0]), _error(worth)

    reference = (costs(space.largest())[0], costs(space.smallest())[1])
    return Tabular("law", space, costs, _front_by_layers(family), reference)


def worth_of_layer(layer: Mapping[str, Option]) -> float:
    """Of the first layer; `layer` holds its picks by their names after the dot."""
    heads = ATTENTION[str(layer["attention"])] * math.log1p(int(layer.get("heads", 0)))
    return 0.2 * heads + 0.15 * math.log1p(int(layer["ffn"]) / 64)


def _worth_of_width(space: SearchSpace, width: int) -> float:
    return 0.4 * math.log(width / space.by_name["width"].sizes[0])


def _error(worth: float) -> float:
    return FLOOR + SPAN * math.exp(-worth)


def _time_ms(family: Family, archs: Sequence[Architecture]) -> np.ndarray:
    operators = family.operators(Encoding.of(family.space, archs), WORKLOAD)
    total: np.ndarray = np.zeros(len(archs)) + sum(LAUNCH_MS * o.count + o.flops / FLOPS_PER_MS for o in operators)
    return total


def _layer_of(arch: Architecture, number: int) -> dict[str, Option]:
    prefix = f"layer{number}."
    return {name.removeprefix(prefix): pick for name, pick in arch.as_dict.items() if name.startswith(prefix)}


def _front_by_layers(family: Family) -> np.ndarray:
    """Of all architectures: for each width the sums of time and worth that are worth keeping, one layer more at a time."""
    space, fronts = family.space, []
    depths = space.by_name["depth"].sizes
    layers = _layers(space)
    worths = np.array([worth_of_layer(layer) for layer in layers])
    for width in space.by_name["width"].sizes:
        once, twice = (_time_ms(family, [_stack(space, width, [layer] * number) for layer in layers]) for number in (1, 2))
        times, without = twice - once, 2 * once - twice
        assert np.allclose(without, without[0]), "the time is not a sum over layers"
        kept = np.array([[without[0], -_worth_of_width(space, width)]])
        for number in range(max(depths)):
            added = np.stack([times, -(LAYER**number) * worths], axis=1)
            kept = front_of((kept[:, None] + added[None]).reshape(-1, 2))
            if number + 1 in depths:
                fronts.append(kept)
    found = np.concatenate(fronts)
    return front_of(np.stack([found[:, 0], [_error(-negative) for negative in found[:, 1]]], axis=1))


def _layers(space: SearchSpace) -> list[dict[str, Option]]:
    """Every different layer."""
    choices = [choice for choice in space if choice.name.startswith("layer1.")]
    smallest = space.smallest().as_dict
    products = itertools.product(*(choice.options for choice in choices))
    archs = {space.canonical({**smallest, **dict(zip((c.name for c in choices), picks, strict=True))}) for picks in products}
    return [_layer_of(arch, 1) for arch in sorted(archs, key=lambda arch: arch.id)]


def _stack(space: SearchSpace, width: int, layers: Sequence[Mapping[str, Option]]) -> Architecture:
    picks = {f"layer{number}.{part}": pick for number, layer in enumerate(layers, 1) for part, pick in layer.items()}
    return space.canonical({"width": width, "depth": len(layers), **picks})
