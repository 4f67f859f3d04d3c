"""`paretoformer space [space=encoder space.width=[…] task=… batch=1 tokens=64 picture=FILE]`: what a space holds, and its costs.

The number of its architectures, its choices and when each exists, the networks at its ends and those designed by hand, and what
the largest network gains when one choice takes another option; and a picture of these. Without a task the sizes are those of a
small text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.arguments import parse
from experiments.build import family_of_task
from experiments.composing import stand_in_family
from experiments.config import composed
from experiments.formatting import aligned, position_of
from experiments.layers import LAYER, in_all_layers
from experiments.plots.space import space_figure
from experiments.plots.style import png, svg
from experiments.progress import Reporter
from experiments.run_directory import replacing
from nas.costs import flops_of, parameters_of
from nas.protocols import Family
from nas.space import Architecture, Choice, Condition, Option, SearchSpace
from nas.types import Workload

MIB = 2.0**20
DRAWN = (".png", ".svg")
NUM_DRAWN = 2000  # random networks in a picture


@dataclass
class Words:
    """What the command takes, beside the words of a space and of a task."""

    space: str = "encoder"
    task: str | None = None  # without one: texts over 8000 words
    batch: int = 1
    tokens: int | None = None  # 64, or the task's longest input
    picture: str | None = None  # a file for the picture of the space, .png or .svg


def main(words: Sequence[str]) -> int:
    """Raises ValueError: a word that it does not take, or a space or task that cannot be built so."""
    parts = [word for word in words if word.startswith(("space.", "task."))]
    given = parse(Words, [word for word in words if word not in parts])
    if given.picture is not None and Path(given.picture).suffix not in DRAWN:
        raise ValueError(f"picture: {given.picture} does not end in one of {tuple(DRAWN)}")
    if given.task is None and any(word.startswith("task.") for word in parts):
        raise ValueError(f"{next(w for w in parts if w.startswith('task.'))}: needs task=…")
    config = composed(f"space={given.space}", *([f"task={given.task}"] if given.task else []), *parts)
    if given.task is None:
        tokens = 64 if given.tokens is None else given.tokens
        family = stand_in_family(config, tokens=tokens)
        workload = Workload(given.batch, getattr(family, "num_positions", tokens))
        of = "no task in particular (task=…)"
    else:
        task, family = family_of_task(config)
        workload = Workload(given.batch, task.max_tokens if given.tokens is None else given.tokens)
        of = f"the task {task.name}"
    family.example_input(workload)  # refuses a workload that the family cannot take
    report = Reporter()
    size = f"{family.space.name}: 10^{family.space.log10_size():.1f} architectures"
    costs_of = f"costs of {workload.batch} x {workload.tokens} {position_of(family)}s of {of}"
    report.say(f"{size}; {costs_of}")
    for rows in (choices(family.space), networks(family, workload), changes(family, workload)):
        report.say("")
        for line in aligned(rows):
            report.say(line)
    if given.picture is not None:
        draw(Path(given.picture), size, costs_of, family, workload)
        report.say(f"\nDrawn: {given.picture}")
    return 0


def draw(path: Path, title: str, subtitle: str, family: Family, workload: Workload) -> None:
    """Writes the picture of a space; random networks are always the same."""
    space, rng = family.space, np.random.default_rng(0)
    named_ = with_names(family)
    archs = [*named_.values(), *(space.sample(rng) for _ in range(NUM_DRAWN))]
    points = np.stack(costs(family, archs, workload), axis=1) / (1e6, 1e3)
    of_names = {name: (float(f), float(p)) for name, (f, p) in zip(named_, points, strict=False)}
    figure = space_figure(title, subtitle, points[len(named_) :], of_names, flops_of_options(family, workload))
    with replacing(path) as unfinished:
        unfinished.write_bytes({".png": png, ".svg": svg}[path.suffix](figure))


def flops_of_options(family: Family, workload: Workload) -> dict[str, dict[str, float]]:
    """By choice and option, FLOPs of the largest network that has it wherever it can, in percent of its own; of choices that
    change any."""
    space = family.space
    picks, [whole] = most_of_each(space), costs(family, [space.largest()], workload)[0]
    found: dict[str, dict[str, float]] = {}
    for name, options in in_all_layers(space).items():
        flops, _ = costs(family, [space.canonical({**picks, **others}) for others in options.values()], workload)
        if any(flops != whole):
            found[name] = {str(option): 100 * f / whole for option, f in zip(options, flops, strict=True)}
    return found


def choices(space: SearchSpace) -> list[list[str]]:
    """A row for each choice; layers that can choose the same share one."""
    groups: dict[tuple[str, tuple[Option, ...]], list[Choice]] = {}
    for choice in space.choices:
        groups.setdefault((LAYER.sub("layerN.", choice.name), choice.options), []).append(choice)
    rows = [["choice", "options", "exists for"]]
    for (_, options), members in groups.items():
        said = {condition_in_words(space, c, r): None for c in members for r in c.requires}
        rows.append([named(members), " ".join(map(str, options)), " and ".join(said)])
    return rows


def named(members: Sequence[Choice]) -> str:
    """The name of a choice, or of those of several layers: layer1-6.heads."""
    found = [match for choice in members if (match := LAYER.search(choice.name))]
    if len(members) == 1 or not found:
        return members[0].name
    layers = sorted(int(match[1]) for match in found)
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return LAYER.sub(f"layer{f'{layers[0]}-{layers[-1]}' if whole else ','.join(map(str, layers))}.", members[0].name)


def condition_in_words(space: SearchSpace, choice: Choice, condition: Condition) -> str:
    """With N for the choice's own layer: `depth >= N`, `layerN.attention full or window`."""
    layer = int(match[1]) if (match := LAYER.search(choice.name)) else None
    on = space.by_name[condition.choice]
    name = LAYER.sub("layerN.", on.name)
    kept = condition.options
    if on.is_nested and kept == on.options[-len(kept) :]:
        refused = max((size for size in on.sizes if size not in kept), default=0)
        same = layer is not None and refused < layer <= int(kept[0])
        return f"{name} >= {'N' if same else kept[0]}"
    return f"{name} {' or '.join(map(str, kept))}"


def networks(family: Family, workload: Workload) -> list[list[str]]:
    """Those at the ends of the space and those designed by hand, with what they cost."""
    named_ = with_names(family)
    flops, parameters = costs(family, list(named_.values()), workload)
    rows = [["network", "parameters", "MFLOPs", "MiB (float32)"]]
    for name, f, p in zip(named_, flops, parameters, strict=True):
        rows.append([name, f"{p:,.0f}", f"{f / 1e6:,.2f}", f"{4 * p / MIB:,.2f}"])
    return rows


def changes(family: Family, workload: Workload) -> list[list[str]]:
    """What the largest network gains when one choice takes another option; layers that gain the same share a row."""
    space = family.space
    picks = most_of_each(space)
    others = [(c, option) for c in space.choices for option in c.options if option != picks[c.name]]
    flops, parameters = costs(family, [space.largest(), *(space.canonical({**picks, c.name: o}) for c, o in others)], workload)
    groups: dict[tuple[str, Option, str, str], list[Choice]] = {}
    for (choice, option), f, p in zip(others, flops[1:] - flops[0], parameters[1:] - parameters[0], strict=True):
        gained = f"{p:+,.0f} ({p / parameters[0]:+.1%})", f"{f / 1e6:+,.2f} ({f / flops[0]:+.1%})"
        groups.setdefault((LAYER.sub("layerN.", choice.name), option, *gained), []).append(choice)
    rows = [["the largest with", "", "parameters", "MFLOPs"]]
    for (_, option, p_gained, f_gained), members in groups.items():
        one = " (each)" if len(members) > 1 else ""
        rows.append([named(members) + one, str(option), p_gained, f_gained])
    return rows


def with_names(family: Family) -> dict[str, Architecture]:
    """The networks that one would look at first: those designed by hand, the largest among them, and the smallest."""
    return {**family.hand_designed(), "smallest": family.space.smallest()}


def most_of_each(space: SearchSpace) -> dict[str, Option]:
    """The picks of the largest network, and what it would pick where a choice of it does not exist."""
    return {c.name: c.options[-1] if c.is_nested else c.options[0] for c in space.choices}


def costs(family: Family, archs: Sequence[Architecture], workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and parameters, [N] each."""
    return flops_of(family, archs, workload), parameters_of(family, archs, workload)
