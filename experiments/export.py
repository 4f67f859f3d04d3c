"""`paretoformer export run=DIR pick=knee`: exports another network of a finished run, and measures what ships once more.

paretoformer export run=DIR pick=best precision=int8 max_drop=0.5      as int8, unless it loses more than 0.5 points
paretoformer export run=DIR pick=budget:8ms                            refused if it takes more than 8 ms when it is measured
paretoformer export run=DIR pick=fast,balanced,best                    a family over one file of weights
paretoformer export run=DIR pick=fast,best weights=inherited steps=300 parts of one supernet, which share them, trained together
paretoformer export run=DIR pick=knee format=openvino                  or pt2, pte, torchscript, tflite
paretoformer export run=DIR pick=knee format=qnn-sm8650                compiled for the NPU of a chip of Qualcomm's
"""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.arguments import parse
from experiments.build import build, make, make_device
from experiments.calibration import read_measurements
from experiments.compute import chosen_compute
from experiments.conclude import verdict_of
from experiments.contract import TOLERANCE, Limits, tolerance_of
from experiments.finished_run import config_of, existing_run, load
from experiments.finishing import Finisher
from experiments.inheriting import TAG, inheriting
from experiments.networks import Network, pick
from experiments.outcome import Chosen
from experiments.progress import Reporter
from experiments.results import Results
from experiments.run_directory import CONFIG, SUPERNET, RunError
from experiments.shipping import Shipment, Terms, check_unchanged, folder_of, ship
from experiments.timed_networks import export_for_timing, sentinel_of
from experiments.verdicts import USER
from hardware.runtimes import RUNTIMES
from hardware.store import sentinel_reference
from hardware.timing import Exported, measure
from nas.export import write_as
from nas.formats import FORMATS
from nas.protocols import Device, DeviceError
from nas.space import Architecture
from nas.types import Measurement

NAMES = {"fast": "fastest_within:100%", "balanced": "knee"}  # what picks of a family are also called


@dataclass
class Words:
    """What the command takes."""

    run: str = MISSING  # the directory of a finished run
    pick: str = (
        "knee"  # fast, balanced, knee, best, fastest_within:1.5%, budget:8ms, or the beginning of an id; several by commas
    )
    format: str = "onnx"  # onnx, openvino, pt2, pte, torchscript, tflite, or qnn-sm8650 and others of Qualcomm's chips
    weights: str = "trained"  # on its own, each network; inherited: from the run's supernet, so that several share most of them
    steps: int = 0  # of a training of all of them together, with weights=inherited
    precision: str | None = None  # of the run's device, if it has any: fp32, int8, …; by default the run's
    tolerance: float | None = None  # of outputs against torch's; 1e-4 in fp32, else no limit
    max_drop: float = 1.0  # points of validation error that the file may lose against the torch network
    budget_ms: float | None = None  # by default that of pick=budget:8ms, else no limit
    replace: bool = False  # a folder that is there and was changed


def main(words: Sequence[str]) -> int:
    """Raises ValueError: no such run, nothing that the pick names, a format that cannot be written, a folder that was changed, a
    broken promise."""
    given = parse(Words, words)
    limits = limits_of(given)
    run = existing_run(given.run)
    results, _ = load(run)
    picked = picks(results.networks, given.pick)
    if len(picked) > 1 and given.format != "onnx":
        raise ValueError(f"pick: several networks share one file of weights in format=onnx alone, not in {given.format}")
    if not run.has(CONFIG):
        raise RunError(f"run: {run.path} was made from Python; export with experiments.shipping.ship there")
    config = config_of(run)
    device, variant = variant_of(config, given)
    inherits = given.weights == TAG
    if inherits and not run.has(SUPERNET):
        raise RunError(f"weights: {run.path} has no {SUPERNET} to inherit from")
    apart = ".".join(word for word in (TAG * inherits, variant) if word)
    if not given.replace:
        check_unchanged(folder_of(run, [network.id for network, _ in picked], apart))
    report = Reporter()
    with report.phase("Reading the run"):
        pipeline = build(OmegaConf.merge(config, {"run": str(run.path)}), report=report)  # type: ignore[arg-type]
    with run.lock(), tempfile.TemporaryDirectory() as folder:
        pipeline.claim()
        finisher = pipeline.finisher(chosen_compute(run))
        if variant:
            finisher = replace(finisher, device=device)
        if inherits:
            archs = [finisher.family.space.canonical(network.arch) for network, _ in picked]
            supernet, distillation = pipeline.supernet(finisher.compute), pipeline.settings.supernet.distillation
            finisher = inheriting(finisher, archs, supernet, steps=given.steps, distillation=distillation, report=report)
        asked_ms = limits.budget_ms if math.isfinite(limits.budget_ms) else None
        exporter = Exporter(finisher, results, given.format, variant, Path(folder), report, asked_ms)
        shipments = [exporter.shipment(network, names) for network, names in picked]
        if given.tolerance is None:
            files = [finisher.files.shipped(s.arch)["model.onnx"] for s in shipments]
            in_fp32 = FORMATS[given.format].precision == "fp32"
            limits = replace(limits, tolerance=max(map(tolerance_of, files)) if in_fp32 else math.inf)
        command = shlex.join(["paretoformer", "export", *words])
        with report.phase("Exporting what ships"):
            shipped = ship(finisher, shipments, Terms(command, limits, kind=given.format, variant=apart, replace=given.replace))
    for facts, (network, _) in zip(shipped.networks, picked, strict=True):
        report.say(f"{facts['id']} ({network.label}): test error {facts['test']['error_percent']:.2f} %. {facts['verdict']}")
        report.say(f"{facts['id']} was trained {facts['trained']}")
        if inherits:
            own, error = facts["inherited"]["own_validation_error_percent"], facts["validation_error_percent"]
            report.say(f"{facts['id']} has {error:.2f} % validation error with inherited weights, {own:.2f} % trained on its own")
    if (shared := shipped.contract["shared_weights"]) is not None:
        mib = shared["stored_bytes"] / 2**20
        report.say(f"{len(shipments)} networks over {mib:.2f} MiB of weights; sharing saves {shared['shared_percent']:.1f} %")
    for path in sorted(shipped.folder.iterdir()):
        report.say(f"  {path}")
    return 0


def picks(networks: Sequence[Network], rules: str) -> list[tuple[Network, list[str]]]:
    """Each network that is named, once, with what it is called. Raises ValueError like `experiments.networks.pick`."""
    found: dict[str, tuple[Network, list[str]]] = {}
    for rule in (rule.strip() for rule in rules.split(",")):
        network = pick(networks, NAMES.get(rule, rule))
        found.setdefault(network.id, (network, []))[1].append(rule)
    return list(found.values())


def limits_of(given: Words) -> Limits:
    """What the words promise; where they name no tolerance, that of the precision comes later. Raises ValueError."""
    if given.format not in (formats := ("onnx", *RUNTIMES)):
        raise ValueError(f"format: {given.format!r} is not one of {formats}")
    if given.format != "onnx" and given.precision not in (None, "fp32"):
        raise ValueError(f"precision: {given.precision} goes with format=onnx, other formats are in fp32")
    if given.weights not in (known := ("trained", TAG)):
        raise ValueError(f"weights: {given.weights!r} is not one of {known}")
    if given.steps < 0 or (given.steps and given.weights != TAG):
        raise ValueError(f"steps: {given.steps} is not 0, or more with weights={TAG}")
    asked = [rule.partition(":")[2].strip() for rule in given.pick.split(",") if rule.strip().startswith("budget:")]
    budget_ms = max((number("pick", text.removesuffix("ms")) for text in asked), default=math.inf)
    return Limits(
        tolerance=math.inf if given.tolerance is None else given.tolerance,
        max_drop=given.max_drop,
        budget_ms=budget_ms if given.budget_ms is None else given.budget_ms,
    )


def number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a number like 8ms") from None


def variant_of(config: DictConfig, given: Words) -> tuple[Device, str]:
    """What runs the files, and what sets them apart from those of the run's own device, if anything does.

    Raises:
        ValueError: a precision that the device does not have, or a format of a runtime that does not time this workload.
    """
    if given.format != "onnx":
        if config.mode != "encode":
            raise ValueError(f"format: {given.format} holds networks for whole inputs, this run is timed in {config.mode}")
        return RUNTIMES[given.format](threads=int(config.device.get("threads", 1))), given.format
    if given.precision is None or given.precision == config.device.get("precision"):
        return make_device(config), ""
    if config.get("surroundings", {}).get("precision"):
        raise ValueError(f"precision: {given.precision} cannot be asked for, surroundings.precision of the run chose it")
    if "precision" not in config.device:
        raise ValueError(f"precision: the run's device ({config.device._target_}) has none to choose")
    device: Device = make(OmegaConf.merge(config, {"device": {"precision": given.precision}}), "device")  # type: ignore[arg-type]
    return device, given.precision


@dataclass(frozen=True)
class Exporter:
    """From networks of a run to what is shipped of them, measured once more."""

    finisher: Finisher
    results: Results
    kind: str
    variant: str
    folder: Path
    report: Reporter
    asked_ms: float | None = None  # by the words, where it is another budget than the run's

    def shipment(self, network: Network, names: Sequence[str]) -> Shipment:
        """Raises RunError: a file of the network is damaged."""
        arch = self.finisher.family.space.canonical(network.arch)
        self.finisher.files.check(arch)
        files = self.finisher.files.shipped(arch) if self.kind == "onnx" else self.converted(arch)
        if self.finisher.device.environment.get("emulated"):  # its times are no latencies
            choice = Chosen(arch, None, f"{self.finisher.device.name} is emulated on this machine")
            return self._shipped(network, files, choice, names)
        try:
            with self.report.phase(f"Measuring {arch.id}", 2 * self.finisher.settings.rounds) as advance:
                choice = Chosen(arch, self.measured(arch, files, lambda done, total: advance(done, total=total)))
        except DeviceError as error:
            choice = Chosen(arch, None, str(error))
        return self._shipped(network, files, choice, names)

    def _shipped(self, network: Network, files: Mapping[str, Path], choice: Chosen, names: Sequence[str]) -> Shipment:
        arch = choice.arch
        asked_ms, origin = self.results.verdict.asked_ms, self.results.verdict.asked_origin
        if self.asked_ms is not None:
            asked_ms, origin = self.asked_ms, USER
        verdict = verdict_of(network, choice, asked_ms=asked_ms, asked_origin=origin)
        if self.variant:
            verdict = replace(verdict, sentence=f"{verdict.sentence} The prediction is that of the run's own device.")
        return Shipment(arch, files, choice.measurement, verdict, tuple(name for name in names if not arch.id.startswith(name)))

    def converted(self, arch: Architecture) -> Mapping[str, Path]:
        """The files of the network for whole inputs in another format than ONNX, the one that is opened first."""
        folder = self.folder / arch.id
        folder.mkdir()
        path = folder / f"model{FORMATS[self.kind].suffix}"
        example = self.finisher.family.example_input(self.finisher.workload.encoded)
        write_as(self.kind, self.finisher.files.network(arch), [example], path, tolerance=TOLERANCE)
        return {p.name: p for p in sorted(folder.iterdir(), key=lambda p: (p != path, p.name))}

    def measured(self, arch: Architecture, files: Mapping[str, Path], on_visit: Callable[[int, int], None]) -> Measurement:
        """With twice the rounds of the short-list; once in a run for what its own device runs."""
        finisher = self.finisher
        family, workload, device = finisher.family, finisher.workload, finisher.device
        if not self.variant:
            known = read_measurements(family, finisher.run, phase="calibration")
            return finisher.times.verdict(arch, reference_ms=sentinel_reference(known.values()), on_visit=on_visit)
        [sentinel] = export_for_timing(family, [sentinel_of(family)], workload, self.folder, device=device)
        path = finisher.files.onnx_path(arch, workload.mode) if self.kind == "onnx" else next(iter(files.values()))
        exported, rounds = Exported(arch, path, finisher.times.inputs(arch)), 2 * finisher.settings.rounds
        return measure(device, [exported], sentinel=sentinel, workload=workload, rounds=rounds, on_visit=on_visit)[0]
