"""`paretoformer export run=DIR pick=knee`: exports another network of a finished run, and measures what ships once more."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.arguments import parse
from experiments.build import build
from experiments.calibration import read_measurements
from experiments.conclude import verdict_of
from experiments.outcome import Choice
from experiments.pareto import existing_run, load
from experiments.progress import Reporter
from experiments.results import pick
from experiments.run_directory import RunError
from experiments.shipping import ship
from nas.compute import Compute
from nas.protocols import DeviceError


@dataclass
class Words:
    """What the command takes."""

    run: str = MISSING  # the directory of a finished run
    pick: str = "knee"  # knee, best, fastest_within:1.5%, budget:8ms, or the beginning of an id


def main(words: Sequence[str]) -> int:
    """Raises ValueError: no such run, or nothing that the pick names."""
    given = parse(Words, words)
    run = existing_run(given.run)
    results, _ = load(run)
    network = pick(results.networks, given.pick)
    if not run.has(".hydra/config.yaml"):
        raise RunError(f"run: {run.path} was made from Python; export with experiments.shipping.ship there")
    config = OmegaConf.load(run / ".hydra/config.yaml")
    assert isinstance(config, DictConfig)
    report = Reporter()
    pipeline = build(OmegaConf.merge(config, {"run": str(run.path)}), report=report)  # type: ignore[arg-type]
    with run.lock():
        pipeline.claim()
        finisher = pipeline.finisher(Compute(**run.read_json("compute.json")["chosen"]))
        arch = pipeline.family.space.canonical(network.arch)
        known = read_measurements(pipeline.family, run, phase="calibration")
        reference_ms = next((m.sentinel_reference_ms for m in known.values()), None)
        try:
            choice = Choice(arch, finisher.verdict(arch, reference_ms=reference_ms))
        except DeviceError as error:
            choice = Choice(arch, None, str(error))
        verdict = verdict_of(network, choice, asked_ms=results.verdict.asked_ms, asked_origin=results.verdict.asked_origin)
        command = shlex.join(["paretoformer", "export", *(f"{name}={value}" for name, value in asdict(given).items())])
        shipped = ship(finisher, arch, choice.measurement, verdict, command=command)
    report.say(f"{arch.id} ({network.label}): test error {shipped.test_error_percent:.2f} %. {verdict.sentence}")
    for path in sorted(shipped.folder.iterdir()):
        report.say(f"  {path}")
    return 0
