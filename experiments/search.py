"""`paretoformer search`: composes the configuration with Hydra and runs the main job on it.

Importing torch takes seconds, so nothing here does: the job is named and loaded when the configuration is known to be good.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.cli import guarded
from experiments.config import SearchConfig, composed, register

JOB = "experiments.main_job.run"
NOISE = ("full_key:", "object_type=", "reference_type=", "Set the env", "See https:")  # Hydra's lines about structure and traces
PATHS = "Config search path"  # what Hydra says from there on is where it looked
MULTIRUN = ("--multirun", "-m")


def main(words: Sequence[str]) -> int:
    """Runs the search, or several with --multirun.

    Raises:
        ValueError: an override that does not fit the configuration, in one line; whatever the job raises.
    """
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and we say them in one line
    sys.argv = [
        "paretoformer search",
        *sorted(words, key=lambda word: word not in MULTIRUN),
    ]  # which argparse takes in front only
    start = time.time()
    failed: list[BaseException] = []

    def job(config: DictConfig) -> None:
        made = Path(HydraConfig.get().runtime.output_dir)
        mode = HydraConfig.get().mode
        if mode is not None and mode.name == "MULTIRUN":
            config.run = str(made)
        try:
            for name in config.keys() - {field.name for field in fields(SearchConfig)}:  # which came by +NAME=VALUE
                raise ValueError(_unknown(str(name), words))
            hydra.utils.get_method(JOB)(config)
        except BaseException as error:
            if (made / "run.json").exists():
                error.add_note(f"The same command with run={config.run} goes on where it was.")
            elif made.stat().st_mtime >= start and not any(made.iterdir()):  # Hydra's, not one that was there
                made.rmdir()
            failed.append(error)
            raise SystemExit(1) from error  # past Hydra, which would print its own story

    entry: Any = hydra.main(version_base="1.3", config_path="pkg://conf", config_name="search")(job)
    code = 0
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_in_words(error, words)) from error
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    if failed:  # not raised above: what it came from, such as Ctrl-C, would be forgotten for the SystemExit
        raise failed[0]
    return code


def _in_words(error: Exception, words: Sequence[str]) -> str:
    """Hydra's complaint and its cause without `NOISE`, and what there is instead of what is not there."""
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown(found[1], words)
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


def _unknown(key: str, words: Sequence[str]) -> str:
    """That there is no such value, and which are near it: at its place, or by its name at others."""
    others = [word for word in words if "=" in word and word.lstrip("+~").partition("=")[0] != key]
    try:
        config = composed(*others)
    except ValueError:  # there is more that does not fit
        config = composed()
    *above, name = key.split(".")
    known = [path for path in _paths(OmegaConf.to_container(config)) if "_target_" not in path]
    here = {path[-1]: ".".join(path) for path in known if path[:-1] == tuple(above)}
    elsewhere = [".".join(path) for path in known if path[-1] == name]
    near = [here[match] for match in get_close_matches(name, here, n=3)] or elsewhere
    said = _near(near) or f"; there are {', '.join(here.values())}"
    return f"there is no value {key!r}{said}"


def _near(names: Sequence[str]) -> str:
    return f"; near it: {', '.join(names)}" if names else ""


def _paths(node: Any) -> Iterator[tuple[str, ...]]:
    """To each value of a configuration, also to those that hold others."""
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield (str(name),)
            yield from ((str(name), *path) for path in _paths(child))


def _options(group: str) -> Iterator[str]:
    """What can be chosen in a group, sorted; nothing if there is no such group."""
    folder = importlib.resources.files("conf").joinpath(group)
    files = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return (name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


if __name__ == "__main__":
    sys.exit(guarded("experiments.search", sys.argv[1:]))
