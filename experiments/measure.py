"""`paretoformer measure FILE.onnx … [device=local_cpu threads=1 rounds=10]`: times networks side by side and shows the times.

    paretoformer measure a.onnx b.onnx batch=1 tokens=64 ids=8000     any ONNX files; inputs are made from their graphs
    paretoformer measure run=DIR pick=knee other.onnx                 what ships of a run's network, beside another file
    paretoformer measure run=DIR arch=ID                              any architecture that a run scored, or one as JSON
    paretoformer measure a.onnx device=ssh device.host=board out=times.json

The networks are visited in rounds, with a sentinel between any two: an architecture's family has one, else it is the first file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from experiments.arguments import parse
from experiments.build import family_of_task, make, make_device
from experiments.composing import VOCABULARY, stand_in_family
from experiments.compute import chosen_compute
from experiments.config import composed
from experiments.finished_run import config_of, existing_run, load
from experiments.finishing import Finisher
from experiments.measured import Timed, said, write
from experiments.network_files import FOLDER
from experiments.networks import Network, pick
from experiments.onnx_inputs import DynamicSizes, dynamic_dimensions, make_inputs
from experiments.progress import Reporter
from experiments.run_directory import CANDIDATES, CONFIG, RunDirectory, RunError
from experiments.timed_networks import export_for_timing, sentinel_of
from hardware.timing import CutShortError, Exported, measure
from nas.export import format_of, runs_onnx
from nas.protocols import Device, DeviceError, Family
from nas.space import Architecture
from nas.surroundings import PREFIX
from nas.types import Workload

WIDTH = 100  # of the table where there is no terminal
BATCH, TOKENS = 1, 64
SIZES = ("batch", "tokens")
SUFFIXES = (".json", ".csv")


@dataclass
class Words:
    """What the command takes, beside files, arch=JSON and the words of a device."""

    rounds: int = 10  # visits to each network
    batch: int | None = None  # of dynamic dimensions; 1, or the run's
    tokens: int | None = None  # 64, or the run's
    dims: dict[str, int] = field(default_factory=dict)  # dynamic dimensions by their names: dims={height:224}
    ids: int | None = None  # integer inputs are below it; by default below the rows of the table that they look up
    run: str | None = None  # a finished run, for pick and arch
    pick: str | None = None  # knee, best, or an id
    space: str = "encoder"  # of an arch without a run
    threads: int | None = None  # short for device.threads
    out: str | None = None  # a .json or .csv file for raw samples


def main(words: Sequence[str]) -> int:
    """Measures, prints the table, and writes the samples to `out` if that is given.

    Raises:
        ValueError: nothing to measure, or a word, file, run or architecture that cannot be used; before anything is timed.
        DeviceError: the device failed; the rounds that were complete are shown and written before.
    """
    given, files, arch, device_words = read_words(words)
    report = Reporter()
    if not report.console.is_terminal:
        report.console.width = WIDTH
    run = None if given.run is None else existing_run(given.run)
    workload, picked = of_run(run, given)
    config = compose_config(given, device_words, run)
    device = make_device(config)
    check_device(device, files)
    networks = [from_file(path, workload, given) for path in dict.fromkeys(files)]
    with tempfile.TemporaryDirectory() as folder:
        if run is not None and picked is not None:
            networks.insert(0, shipped(picked, config, run, device, workload, Path(folder)))
        if arch is not None:
            family = family_of(config, workload, given)
            chosen = architecture(arch, family, run)
            made, sentinel = export_for_timing(family, [chosen, sentinel_of(family)], workload, Path(folder), device=device)
            networks.append(made)
        else:
            sentinel = networks[0]
        lost: CutShortError | None = None
        try:
            measured = measure(
                device, networks, sentinel=sentinel, workload=workload, rounds=given.rounds,
                on_visit=lambda done, total: _progress(report.console, done, total),
            )  # fmt: skip
        except CutShortError as error:
            measured, lost = error.measured, error
        except DeviceError as error:
            raise DeviceError(f"{error}{_sizes_given([n for n in networks if n.path in files], str(error))}") from error
    show([Timed(label(n), n, m) for n, m in zip(networks, measured, strict=True)], given, report.console)
    if lost is not None:
        raise DeviceError(f"{lost}; shown are the {lost.rounds} of {given.rounds} rounds that were complete") from lost
    return 0


def show(timed: Sequence[Timed], given: Words, console: Console) -> None:
    """Prints the table, and writes the samples to `out` if that is given."""
    for line in said(timed):
        console.print(line, markup=False, highlight=False)
    if given.out is not None:
        write(Path(given.out), timed)


def read_words(words: Sequence[str]) -> tuple[Words, list[Path], str | None, list[str]]:
    """Options, files, the architecture as it was written, and what is meant for the device. Raises ValueError."""
    files, archs, of_device, rest = [], [], [], []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or "/" in name:
            files.append(Path(word))
        elif name == "arch":
            archs.append(value)
        elif name.split(".")[0].lstrip("+") == "device":
            of_device.append(word)
        else:
            rest.append(word)
    given = parse(Words, rest)
    if given.rounds < 1:
        raise ValueError(f"rounds: {given.rounds} is not at least 1")
    if (given.pick is not None) and given.run is None:
        raise ValueError(f"pick: {given.pick!r} needs run=DIR")
    if not (files or archs or given.pick):
        raise ValueError("measure: name ONNX files, run=DIR pick=knee, or arch=JSON")
    if given.out is not None:
        if Path(given.out).suffix not in SUFFIXES:
            raise ValueError(f"out: {given.out!r} does not end in one of {SUFFIXES}")
        if not Path(given.out).absolute().parent.is_dir():
            raise ValueError(f"out: the folder of {given.out!r} does not exist")
    if given.threads is not None:
        of_device.append(f"device.threads={given.threads}")
    return given, files, archs[-1] if archs else None, of_device


def of_run(run: RunDirectory | None, given: Words) -> tuple[Workload, Network | None]:
    """The run's workload in the sizes that are asked for, and its network that is picked."""
    asked = {name: size for name in SIZES if (size := getattr(given, name)) is not None}
    if run is None:
        return replace(Workload(batch=BATCH, tokens=TOKENS), **asked), None
    results, _ = load(run)
    return replace(results.workload, **asked), None if given.pick is None else pick(results.networks, given.pick)


def compose_config(given: Words, device_words: list[str], run: RunDirectory | None) -> DictConfig:
    """Device, space and task: the run's, if there is one, with the device that is asked for. Raises ValueError."""
    names_a_device = any(word.startswith("device=") for word in device_words)
    if run is None or not run.has(CONFIG):
        return composed(f"space={given.space}", *device_words)
    known = config_of(run)
    if names_a_device:
        known["device"] = composed(*device_words)["device"]
        return known
    try:
        return cast(DictConfig, OmegaConf.merge(known, OmegaConf.from_dotlist(device_words)))
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error


def _sizes_given(networks: Sequence[Exported], error: str) -> str:
    """What the file of which an error speaks was run with, if it leaves sizes open."""
    for network in networks:
        if str(network.path) in error and dynamic_dimensions(network.path):
            sizes = ", ".join(f"{name} [{', '.join(map(str, value.shape))}]" for name, value in network.inputs.items())
            return f"; it was run with {sizes}; other sizes are given by batch=, tokens= or dims="
    return ""


def check_device(device: Any, files: Sequence[Path]) -> None:
    """Whether networks can be made for the device and run on it.

    Raises:
        ValueError: a device that runs nothing, or other files than these.
        DeviceError: what the device needs is not there, or the board does not answer.
    """
    if not hasattr(device, "run"):
        raise ValueError(f"device: {type(device).__name__} holds times that others have measured, and runs nothing")
    if files and not runs_onnx(device):
        raise ValueError(f"{files[0]}: the device {device.name} runs {format_of(device)} files; give arch=JSON to have one made")
    assert device.environment, "says what is missing, before a network is made"


def from_file(path: Path, workload: Workload, given: Words) -> Exported:
    """A file with inputs made for it. Raises ValueError: it is none, or has no such dimension as was asked for."""
    sizes = DynamicSizes(workload.batch, workload.tokens, given.dims, given.ids)
    asked = {name for name in SIZES if getattr(given, name) is not None} | set(given.dims)
    if unused := sorted(asked - dynamic_dimensions(path)):
        raise ValueError(f"{unused[0]}: no input of {path} has such a dynamic dimension")
    return Exported(Architecture((("file", str(path)),)), path, make_inputs(path, sizes))


def shipped(
    network: Network, config: DictConfig, run: RunDirectory, device: Device, workload: Workload, folder: Path
) -> Exported:
    """What ships of a network, after all stages that it went through, with the inputs that its run times it with.

    Raises:
        RunError: the run has no configuration.
        ValueError: the workload is not one of the run's task.
    """
    if not run.has(CONFIG):
        raise RunError(f"run: {run.path} was made from Python; name its files, {run / FOLDER}/*.onnx, instead of pick")
    task, family = family_of_task(config)
    finisher = Finisher(family, task, device, workload, chosen_compute(run), make(config, "finish"), config.seed, run)
    of_run = finisher.times.exported(family.space.canonical(network.arch), folder)
    surroundings = [(name, pick) for name, pick in of_run.arch.picks if name.startswith(PREFIX)]
    return replace(of_run, arch=Architecture((("file", str(of_run.path)), *surroundings)))


def family_of(config: DictConfig, workload: Workload, given: Words) -> Family:
    """The run's family, or that of a space with `ids` words."""
    if given.run is not None:
        return family_of_task(config)[1]
    return stand_in_family(config, tokens=workload.tokens, vocab_size=given.ids or VOCABULARY)


def architecture(text: str, family: Family, run: RunDirectory | None) -> Architecture:
    """What JSON says, or the candidate of the run whose id begins so. Raises ValueError."""
    try:
        picks = json.loads(text)
    except json.JSONDecodeError:
        picks = None
    if isinstance(picks, dict):
        return family.space.canonical(picks)
    if run is None:
        raise ValueError(f"arch: {text!r} is not a JSON object; an id needs run=DIR")
    known = {str(r["id"]): r["arch"] for r in run.read_lines(CANDIDATES)}
    matches = [id_ for id_ in known if text and id_.startswith(text)]
    if len(matches) != 1:
        raise ValueError(f"arch: {text!r} begins {len(matches)} of the {len(known)} ids that {run.path} has scored, not one")
    return family.space.canonical(known[matches[0]])


def label(network: Exported) -> str:
    """A file's name, or an architecture's id."""
    return network.path.name if "file" in network.arch else network.arch.id


def _progress(console: Console, done: int, total: int) -> None:
    """Written between visits, for people only: a bar is drawn by a thread, which would disturb what is timed."""
    if console.is_terminal:
        console.print(f"Measuring: {done} of {total} visits" if done < total else " " * 40, end="\r")
