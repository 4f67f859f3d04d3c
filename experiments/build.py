"""From a composed configuration to components. The only module that instantiates, and only what we mean to."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import platformdirs
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.also import Companion
from experiments.config import composed
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.settings import Settings, check_budget
from experiments.signatures import check_values, required, taken
from experiments.table_place import Place
from hardware.remote import Remote
from hardware.store import MeasurementStore
from hardware.surroundings import Surrounded
from latency_models.surroundings import PerSurroundings
from nas.protocols import Device, Family, Task
from nas.space import Option, SearchSpace
from nas.surroundings import all_surroundings, surrounded

PLAIN = (
    "seed", "budget_ms", "budget_mib", "budget_mj", "batch", "tokens", "mode", "past", "torch_threads", "train_on",
    "train_precision", "train_attention", "checkpoint_seconds",
)  # fmt: skip
BUDGETS = ("budget_ms", "budget_mj")  # of a further device
NAME = re.compile(r"[a-z][a-z0-9_]*")  # of a further device
ALLOWED = ("experiments.", "hardware.", "latency_models.", "nas.", "search_spaces.", "sklearn.")


def build(config: DictConfig, *, report: Reporter) -> Pipeline:
    """The pipeline of a configuration, with everything checked that can be checked without work.

    Raises:
        ValueError: what a constructor refused, in its own words; a missing value; a target outside our packages.
    """
    settings = make_settings(config)
    device, latency_model = make_device(config), make(config, "latency_model")
    if surroundings(config):
        latency_model = PerSurroundings(latency_model)
    task, family = family_of_task(config)
    return Pipeline(
        task=task, family=family, device=device, latency_model=latency_model, settings=settings, directory=config.run,
        store=MeasurementStore(store_folder(config.store)), report=report, also=make_also(config),
    )  # fmt: skip


def make_settings(config: DictConfig) -> Settings:
    """The plain values. Raises ValueError like `build`."""
    return Settings(
        **{name: config[name] for name in PLAIN if name in config},  # runs of before had fewer
        objectives=tuple(config.objectives),
        also={name: values.get("budget_ms") for name, values in also(config).items()},
        supernet=make(config, "init"),
        calibration=make(config, "calibration"),
        darts=make(config, "darts"),
        outer=make(config, "searcher"),
        finish=make(config, "finish"),
        stages=make(config, "stages"),
    )


def surroundings(config: DictConfig) -> dict[str, list[Option]]:
    """What the study chooses beside the network; runs of before had nothing.

    Raises:
        ValueError: what the device has no name for.
    """
    chosen = {str(name): list(options) for name, options in config.get("surroundings", {}).items() if options}
    for name in chosen:
        if name not in config.device:
            raise ValueError(f"surroundings.{name}: the device {config.device._target_} has no {name} to choose")
    return chosen


def make_device(config: DictConfig) -> Device:
    """The device, in all surroundings that the study may choose. Raises ValueError like `build`."""
    if not surroundings(config):
        return _known(make(config, "device"), config)

    def within(picks: Mapping[str, Option]) -> Device:
        return _known(make(OmegaConf.merge(config, {"device": dict(picks)}), "device"), config)  # type: ignore[arg-type]

    return Surrounded(within, all_surroundings(surrounded(SearchSpace("device", ()), surroundings(config))))


def _known(device: Device, config: DictConfig) -> Device:
    """The device; the facts of a board are kept beside its measurements."""
    if isinstance(device, Remote):
        device.remember_in(store_folder(config.get("store")))
    return device


def also(config: DictConfig) -> dict[str, dict[str, Any]]:
    """Further devices as they are configured, by name; runs of before had none. Raises ValueError for what is no such thing."""
    found: Any = OmegaConf.to_container(config.get("also") or OmegaConf.create({}), resolve=True)
    for name, values in found.items():
        if not NAME.fullmatch(name) or not isinstance(values, dict) or "device" not in values:
            raise ValueError(f"also.{name}: {values!r} is not like {{device: recorded, table: jetson_nano_cpu, budget_ms: 40}}")
    return dict(found)


def make_also(config: DictConfig) -> list[Companion]:
    """Further devices, each with the latency model that its kind has by default. Raises ValueError like `build`."""
    found = []
    for name, values in also(config).items():
        if "budget_mj" in values:
            raise ValueError(f"also.{name}.budget_mj: energy on further devices is known of the tables of space=hat alone")
        with _of_further(name):
            whole = _composed_further(values)
            device = _known(make(whole, "device"), config)
            found.append(Companion(name, device, make(whole, "latency_model"), values.get("budget_ms")))
    return found


def make_places(config: DictConfig) -> list[Place]:
    """Further tables of a space that is known from tables alone. Raises ValueError like `build`."""
    found = []
    for name, values in also(config).items():
        with _of_further(name):
            place = Place(make(_composed_further(values), "device"), None, name)
            budgets = {key: values[key] for key in BUDGETS if key in values}
            asked = budgets.pop(own := place.cost.key("budget"), None)
            if budgets:
                raise ValueError(f"{next(iter(budgets))}: {place.table.name} holds {place.cost.name}; give {own}")
        check_budget(f"also.{name}.{own}", asked)
        found.append(replace(place, asked=asked))
    return found


def _composed_further(values: Mapping[str, Any]) -> DictConfig:
    return composed(*(f"{'' if key == 'device' else 'device.'}{key}={v}" for key, v in values.items() if key not in BUDGETS))


@contextmanager
def _of_further(name: str) -> Iterator[None]:
    """Says of which device it is what a constructor refuses."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"also.{name}: {error}") from error


def make_family(config: DictConfig) -> Callable[..., Family]:
    """What makes the family of a space from the sizes of a task. Raises ValueError for a space without networks."""
    made = make(config, "space")
    if not callable(made):
        raise ValueError(f"space: {made.name} has no networks that can be built; it is searched with device=recorded")
    family: Callable[..., Family] = made
    return family


def family_of_task(config: DictConfig) -> tuple[Task, Family]:
    """The task, and the family of the space over its sizes. Raises ValueError if they are not what the space takes."""
    of_sizes, task = make_family(config), make(config, "task")
    if not fits(of_sizes, task.sizes):
        names = [name for name, of_others in space_makers().items() if fits(of_others, task.sizes)]
        needed = f"space={' or space='.join(names)}, or one like it" if names else "another space"
        gives = ", ".join(task.sizes)
        raise ValueError(f"task: {task.name} does not go with the space {config.space.name}; it gives {gives} and needs {needed}")
    family: Any = of_sizes(**task.sizes)
    beside = surroundings(config)
    return task, replace(family, space=surrounded(family.space, beside)) if beside else family


def fits(of_sizes: Callable[..., Family], sizes: Mapping[str, object]) -> bool:
    """Whether what makes a family takes all these sizes of a task, and asks for no other."""
    known = taken(of_sizes)
    return (known is None or sizes.keys() <= known.keys()) and required(of_sizes) <= sizes.keys()


def space_makers() -> dict[str, Callable[..., Family]]:
    """What makes the families of the spaces in `conf` that are not made from another one, by their names."""
    files = importlib.resources.files("conf").joinpath("space").iterdir()
    nodes = {file.name.removesuffix(".yaml"): OmegaConf.create(file.read_text()) for file in files if file.name.endswith(".yaml")}
    return {name: make(OmegaConf.create({"space": nodes[name]}), "space") for name in sorted(nodes) if "_partial_" in nodes[name]}


def store_folder(name: str | None) -> Path:
    """Where measurements are kept between runs."""
    return Path(name) if name is not None else platformdirs.user_cache_path("paretoformer") / "measurements"


def make(config: DictConfig, group: str) -> Any:
    """The component of one group of a configuration. Raises ValueError like `build`."""
    node = config[group]
    _check_targets(node, group)
    check_values(node, group)
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        have, them = ("has", "one") if len(missing) == 1 else ("have", "them")
        words = " ".join(f"{name}=…" for name in missing)
        raise ValueError(f"{', '.join(missing)}: {have} no value; give {them} as {words}")
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError):
            raise ValueError(f"{group}: {cause}") from error
        if isinstance(cause, TypeError):
            raise ValueError(f"{group}: {cause} ({node['_target_']})") from error
        if "locating target" in str(error):
            key = str(error).partition("full_key: ")[2] or group
            raise ValueError(f"{key}._target_: {OmegaConf.select(config, f'{key}._target_')} does not exist") from error
        raise


def _check_targets(node: Any, group: str) -> None:
    if isinstance(node, DictConfig):
        target = str(OmegaConf.select(node, "_target_", default=ALLOWED[0]))
        if not target.startswith(ALLOWED):
            allowed = ", ".join(prefix.rstrip(".") for prefix in ALLOWED)
            raise ValueError(f"{group}._target_: {target} is not a part of {allowed}")
        for name in map(str, node):
            if not OmegaConf.is_missing(node, name):
                _check_targets(node[name], f"{group}.{name}")
    elif isinstance(node, ListConfig):
        for child in node:
            _check_targets(child, group)
