"""What a configuration could not be composed of, in one line, and what was perhaps meant."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf

Compose = Callable[..., DictConfig]
"""Makes the configuration of overrides, or raises ValueError."""

KINDS = {"Float": "a number", "Integer": "a whole number"}  # of values, as the schema calls them
NOISE = ("full_key:", "object_type=", "reference_type=", "Set the env", "See https:")  # Hydra's lines about structure and traces
PATHS = "Config search path"  # what Hydra says from there on is where it looked


def in_words(error: Exception, words: Sequence[str], compose: Compose) -> str:
    """Hydra's complaint and its cause without `NOISE`, and what there is instead of what is not there."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown(found[1], words, compose)
    if found := re.search(r"Error merging override (\S+?)=(.*)\n?", text):
        name, value = found.groups()
        whole = f"{text} {error.__cause__}"
        if wrong := re.search(rf"Value '(.*)' of type '\w+' could not be converted to ({'|'.join(KINDS)})", whole):
            return f"{name}: {wrong[1]!r} is not {KINDS[wrong[2]]}"
        if "is not a ListConfig" in whole:
            return f"{name}: {value!r} is not a list; write {name}=[{value}]"
    if found := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        name, value = found.groups()
        allowed = f"a decimal takes a point, a list is {name}=[{value}], a search of each takes --multirun"
        return f"{name}: {value!r} are several values; {allowed}"
    if found := re.search(r"parsing override '(.*)'\s+missing EQUAL", text):
        return f"{found[1]!r} is not NAME=VALUE"
    if found := re.search(r"Could not (?:find|load) '([^']+)/([^']+)'", text):
        group, option = found.groups()
        options = [*_options(group)]
        near = get_close_matches(option, options, n=3)
        return f"{group}: there is no {option!r}{_near(near)}. Available options in {group!r}: {' '.join(options)}"
    said = [text, *([str(error.__cause__)] if error.__cause__ else [])]
    lines = [line.strip() for part in said for line in part.split(PATHS)[0].splitlines()]
    kept = [line for line in lines if line and not line.startswith(NOISE)]
    return " ".join(dict.fromkeys(kept))


def unknown(key: str, words: Sequence[str], compose: Compose) -> str:
    """That there is no such value, and which are near it: at its place, or by its name at others."""
    others = [word for word in words if "=" in word and not f"{word.lstrip('+~').partition('=')[0]}.".startswith(f"{key}.")]
    try:
        config = compose(*(others if len(others) < len(words) else ()))  # always of fewer, as it may come back to here
    except ValueError:  # there is more that does not fit
        config = compose()
    *above, name = key.split(".")
    known = [path for path in _paths(OmegaConf.to_container(config)) if "_target_" not in path]
    if above and tuple(above) not in known:
        return unknown(".".join(above), words, compose)
    here = {path[-1]: ".".join(path) for path in known if path[:-1] == tuple(above)}
    near = [here[match] for match in get_close_matches(name, here, n=3)]
    if not near and len(above) == 1 and (options := _options_with(above[0], name)):
        return f"there is no value {key!r} of what is chosen; {above[0]} is to be one of {', '.join(options)}, which have it"
    near = near or [".".join(path) for path in known if path[-1] == name]
    said = _near(near) or (f"; there are {', '.join(here.values())}" if here else "")
    return f"there is no value {key!r}{said}"


def _near(names: Sequence[str]) -> str:
    return f"; near it: {', '.join(names)}" if names else ""


def _paths(node: Any) -> Iterator[tuple[str, ...]]:
    """To each value of a configuration, also to those that hold others."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield (str(name),)
            yield from ((str(name), *path) for path in _paths(child))


def _options_with(group: str, name: str) -> list[str]:
    """What can be chosen in a group and has a value of this name."""
    folder = importlib.resources.files("conf").joinpath(group)
    texts = {option: folder.joinpath(f"{option}.yaml").read_text(encoding="utf-8") for option in _options(group)}
    nodes: dict[str, Any] = {option: OmegaConf.to_container(OmegaConf.create(text)) for option, text in texts.items()}

    def has(option: str) -> bool:
        return name in nodes[option] or any(
            has(base) for base in nodes[option].get("defaults", ()) if isinstance(base, str) and base in nodes
        )

    return list(filter(has, nodes))


def _options(group: str) -> Iterator[str]:
    """What can be chosen in a group, sorted; nothing if there is no such group."""
    folder = importlib.resources.files("conf").joinpath(group)
    files = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return (name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
