"""What can be chosen, and one way of choosing it.

A `SearchSpace` is a tuple of `Choice`s; an `Architecture` picks one option of each. Nothing here knows torch: a space can be
sampled, mutated, crossed, counted and written to JSON on a machine that has only numpy.

Two architectures that build the same network are the same architecture. A choice whose `requires` does not hold (the heads of
layer 5 in a network of 4 layers) is *absent*, and `SearchSpace.canonical` drops it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Option = int | str


@dataclass(frozen=True)
class Condition:
    """Holds when the pick of `choice` is one of `options`; an absent choice satisfies nothing."""

    choice: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))


@dataclass(frozen=True)
class Choice:
    """One decision.

    Ascending positive integers are *nested*: a smaller option uses a prefix of the weights of a larger one. Strings are
    *categorical*. `requires` says when the decision exists at all: every condition must hold. A condition on an absent choice
    does not hold, so `requires` need not repeat what the choices before it require.

    Raises:
        ValueError: no options, options of mixed kinds, repeated, not ascending or not positive.
    """

    name: str
    options: tuple[Option, ...]
    requires: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "requires", tuple(self.requires))
        if not self.options:
            raise ValueError(f"{self.name}: has no options")
        if len(set(self.options)) != len(self.options):
            raise ValueError(f"{self.name}: options {self.options} repeat a value")
        if all(isinstance(o, str) for o in self.options):
            return
        if not all(isinstance(o, int) and not isinstance(o, bool) for o in self.options):
            raise ValueError(f"{self.name}: options {self.options} must be all integers or all strings")
        sizes = [o for o in self.options if isinstance(o, int)]
        if sizes != sorted(sizes) or sizes[0] < 1:
            raise ValueError(f"{self.name}: options {self.options} must be positive and ascending")

    @property
    def is_nested(self) -> bool:
        return isinstance(self.options[0], int)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The options of a nested choice."""
        return tuple(o for o in self.options if isinstance(o, int))

    @property
    def largest(self) -> int:
        """The largest option of a nested choice."""
        return self.sizes[-1]

    def index(self, option: Option) -> int:
        """Position of an option. Raises ValueError with the value and what is allowed."""
        if option not in self.options:
            raise ValueError(f"{self.name}: {option!r} is not one of {self.options}")
        return self.options.index(option)


@dataclass(frozen=True)
class Architecture:
    """One point of a space: immutable, hashable, JSON both ways. Make it with `SearchSpace.canonical`."""

    picks: tuple[tuple[str, Option], ...]

    def __getitem__(self, name: str) -> Option:
        return self.as_dict[name]

    def __contains__(self, name: str) -> bool:
        return name in self.as_dict

    def size(self, name: str) -> int:
        """The pick of a nested choice, as the integer that it is."""
        pick = self[name]
        if not isinstance(pick, int):
            raise ValueError(f"{name}: {pick!r} is not a size")
        return pick

    @functools.cached_property
    def as_dict(self) -> dict[str, Option]:
        return dict(self.picks)

    @functools.cached_property
    def id(self) -> str:
        """Ten hexadecimal digits, the same for the same network in every process."""
        return hashlib.sha256(json.dumps(self.picks).encode()).hexdigest()[:10]

    def to_json(self) -> dict[str, Option]:
        return dict(self.picks)


@dataclass(frozen=True)
class SearchSpace:
    """A named tuple of choices; a choice may require only choices that stand before it.

    Raises:
        ValueError: a repeated name, or a requirement on an unknown choice or option.
    """

    name: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        seen: dict[str, Choice] = {}
        for choice in self.choices:
            if choice.name in seen:
                raise ValueError(f"{self.name}: the choice {choice.name} stands twice")
            for condition in choice.requires:
                if condition.choice not in seen:
                    raise ValueError(f"{choice.name}: requires {condition.choice}, which does not stand before it")
                for option in condition.options:
                    seen[condition.choice].index(option)
            seen[choice.name] = choice

    @functools.cached_property
    def by_name(self) -> dict[str, Choice]:
        return {choice.name: choice for choice in self.choices}

    def present(self, choice: Choice, picks: Mapping[str, Option]) -> bool:
        """Whether the decision exists, given the picks of the choices before it."""
        return all(c.choice in picks and picks[c.choice] in c.options for c in choice.requires)

    def canonical(self, picks: Mapping[str, Option]) -> Architecture:
        """The architecture of these picks, without the picks of absent choices.

        Raises:
            ValueError: a name that the space does not have, a present choice without a pick, a pick that is not an option.
        """
        unknown = sorted(set(picks) - set(self.by_name))
        if unknown:
            raise ValueError(f"{unknown[0]}: is not a choice of the space {self.name}: {tuple(self.by_name)}")
        kept: dict[str, Option] = {}
        for choice in self.choices:
            if not self.present(choice, kept):
                continue
            if choice.name not in picks:
                raise ValueError(f"{choice.name}: has no pick; allowed are {choice.options}")
            choice.index(picks[choice.name])
            kept[choice.name] = picks[choice.name]
        return Architecture(tuple(kept.items()))

    def validate(self, arch: Architecture) -> None:
        """Raises ValueError unless `arch` is a canonical point of this space."""
        if self.canonical(arch.as_dict) != arch:
            raise ValueError(f"{arch.id}: holds picks of absent choices; make it with SearchSpace.canonical")

    def sample(self, rng: np.random.Generator) -> Architecture:
        """Every option of every choice equally likely."""
        return self.canonical({c.name: c.options[rng.integers(len(c.options))] for c in self.choices})

    def largest(self) -> Architecture:
        """The last option of every nested choice and the first of every categorical one."""
        return self.canonical({c.name: c.options[-1] if c.is_nested else c.options[0] for c in self.choices})

    def smallest(self) -> Architecture:
        """The first option of every nested choice and the last of every categorical one."""
        return self.canonical({c.name: c.options[0] if c.is_nested else c.options[-1] for c in self.choices})

    def complete(self, arch: Architecture, rng: np.random.Generator) -> dict[str, Option]:
        """A pick for every choice: those of `arch`, and random ones where it has none."""
        return {c.name: arch[c.name] if c.name in arch else c.options[rng.integers(len(c.options))] for c in self.choices}

    def mutate(self, arch: Architecture, rng: np.random.Generator, *, probability: float) -> Architecture:
        """Each pick is drawn anew with `probability`; at least one present pick changes if any can."""
        picks = self.complete(arch, rng)
        open_choices = [c for c in self.choices if len(c.options) > 1 and c.name in arch]
        drawn = [c for c in open_choices if rng.random() < probability]
        if not drawn and open_choices:
            drawn = [open_choices[rng.integers(len(open_choices))]]
        for choice in drawn:
            others = [o for o in choice.options if o != picks[choice.name]]
            picks[choice.name] = others[rng.integers(len(others))]
        return self.canonical(picks)

    @functools.cached_property
    def offsets(self) -> dict[str, slice]:
        """Where each choice lies in an encoding vector (see `encode`)."""
        ends = np.cumsum([0] + [len(c.options) for c in self.choices]).tolist()
        return {c.name: slice(ends[i], ends[i + 1]) for i, c in enumerate(self.choices)}

    @property
    def encoding_size(self) -> int:
        return sum(len(c.options) for c in self.choices)

    def encode(self, archs: Sequence[Architecture]) -> np.ndarray:
        """One-hot rows [N, encoding_size]; the columns of an absent choice are zero."""
        rows = np.zeros((len(archs), self.encoding_size))
        for row, arch in zip(rows, archs, strict=True):
            for name, pick in arch.picks:
                row[self.offsets[name].start + self.by_name[name].index(pick)] = 1.0
        return rows

    def log10_size(self) -> float:
        """log10 of the number of different architectures."""
        return math.log10(self.num_architectures())

    def num_architectures(self) -> int:
        """Counts canonical points: choices that nothing depends on are multiplied, the others are enumerated.

        Raises:
            ValueError: the choices that others depend on jointly have too many combinations to enumerate.
        """
        return _count(self.choices, {})

    def architectures(self) -> list[Architecture]:
        """All of them, each once; only for small spaces."""
        found: list[dict[str, Option]] = [{}]
        for choice in self.choices:
            found = [
                {**picks, **more}
                for picks in found
                for more in ([{choice.name: option} for option in choice.options] if self.present(choice, picks) else [{}])
            ]
        return [Architecture(tuple(picks.items())) for picks in found]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "choices": [
                {
                    "name": c.name,
                    "options": list(c.options),
                    "requires": [{"choice": r.choice, "options": list(r.options)} for r in c.requires],
                }
                for c in self.choices
            ],
        }

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)


def _count(choices: Sequence[Choice], picks: dict[str, Option]) -> int:
    """Number of canonical completions. Groups of choices that no requirement joins are counted apart and multiplied."""
    total = 1
    for head, *rest in _components(_possible(choices, picks), picks):
        if rest:
            total *= sum(_count(rest, {**picks, head.name: option}) for option in head.options)
        else:
            total *= len(head.options)
    return total


def _possible(choices: Sequence[Choice], picks: Mapping[str, Option]) -> list[Choice]:
    """Those that may still exist: no requirement has failed, or is on a choice that cannot exist itself."""
    open_names: set[str] = set()
    kept = []
    for choice in choices:
        if all(picks[r.choice] in r.options if r.choice in picks else r.choice in open_names for r in choice.requires):
            open_names.add(choice.name)
            kept.append(choice)
    return kept


def _components(choices: Sequence[Choice], picks: Mapping[str, Option]) -> list[list[Choice]]:
    """Connected groups under undecided requirements, each in the order of the space."""
    parent = {c.name: c.name for c in choices}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for choice in choices:
        for requirement in choice.requires:
            if requirement.choice not in picks and requirement.choice in parent:
                parent[root(choice.name)] = root(requirement.choice)
    groups: dict[str, list[Choice]] = {}
    for choice in choices:
        groups.setdefault(root(choice.name), []).append(choice)
    return list(groups.values())
