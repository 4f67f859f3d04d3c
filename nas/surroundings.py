"""What surrounds a network when it runs: threads, precision, execution provider, as choices of the same space.

A surrounding is a choice whose name begins with `device.`; what builds networks and counts operators does not look at it. So
whoever samples, mutates, relaxes or asks for architectures searches the surroundings as well, and an architecture says how its
file is to be run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from nas.space import Architecture, Choice, Option, SearchSpace

PREFIX = "device."
ANSWERS = (f"{PREFIX}precision",)  # what changes answers, and not times alone


def surrounded(space: SearchSpace, options: Mapping[str, Sequence[Option]]) -> SearchSpace:
    """The space with further choices, by what a device calls them. Raises ValueError like `Choice`."""
    return SearchSpace(space.name, (*space.choices, *(Choice(f"{PREFIX}{name}", tuple(of)) for name, of in options.items())))


def bare(space: SearchSpace) -> SearchSpace:
    """The space without the surroundings."""
    return SearchSpace(space.name, tuple(choice for choice in space.choices if not choice.name.startswith(PREFIX)))


def surroundings_of(arch: Architecture) -> dict[str, Option]:
    """What an architecture is run in, by what a device calls it."""
    return {name.removeprefix(PREFIX): pick for name, pick in arch.picks if name.startswith(PREFIX)}


def network_of(arch: Architecture) -> Architecture:
    """The architecture without its surroundings: two with the same one are the same network."""
    return Architecture(tuple((name, pick) for name, pick in arch.picks if not name.startswith(PREFIX)))


def answering(arch: Architecture) -> Architecture:
    """The architecture without what changes its time alone: two with the same one answer alike."""
    return Architecture(tuple((name, pick) for name, pick in arch.picks if not name.startswith(PREFIX) or name in ANSWERS))


def all_surroundings(space: SearchSpace) -> list[dict[str, Option]]:
    """Every combination, by what a device calls them; of a space without any, that is one, and empty."""
    choices = [choice for choice in space if choice.name.startswith(PREFIX)]
    names = [choice.name.removeprefix(PREFIX) for choice in choices]
    return [dict(zip(names, picks, strict=True)) for picks in itertools.product(*(choice.options for choice in choices))]


def everywhere(space: SearchSpace, archs: Sequence[Architecture]) -> list[Architecture]:
    """Each network in all surroundings, one after the other; each architecture once."""
    within = [{f"{PREFIX}{name}": pick for name, pick in picks.items()} for picks in all_surroundings(space)]
    return list(dict.fromkeys(space.canonical({**arch.as_dict, **picks}) for arch in archs for picks in within))
