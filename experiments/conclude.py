"""From what a search found to what people read: the exported network, results, picture, page, and the last lines on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.card import device_sentence
from experiments.contract import MAX_DROP, Limits, tolerance_of
from experiments.costing import Costs, measured_costs
from experiments.formatting import position_of
from experiments.ledger import NAME as LEDGER
from experiments.networks import Network, hypervolumes
from experiments.objectives import further, upper
from experiments.outcome import Chosen, Finalist, Outcome
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.proposing import HEALTH
from experiments.report import write_report
from experiments.results import LedgerEntry, Parity, PredictorReport, Results
from experiments.sentences import health_sentence
from experiments.shipping import Shipment, Shipped, Terms, ship
from experiments.summary import summary, written
from experiments.ties import told_apart
from experiments.verdicts import LimitVerdict, Verdict, facts_of, times_of
from experiments.versions import versions
from hardware.surroundings import device_of
from nas.protocols import Device
from nas.space import Architecture
from nas.types import Measurement

INTERVAL = "the quietest to the noisiest visit, drift removed"
PACKAGES = ("torch", "optuna", "onnxruntime", "numpy", "hydra-core")


def conclude(pipeline: Pipeline, outcome: Outcome, *, command: str, report: Reporter) -> Results:
    """Exports what was picked, writes the report's files and prints the summary."""
    networks = _networks(outcome)
    choice, budget = outcome.choice, outcome.budget
    picked = next(n for n in networks if n.id == choice.arch.id)
    verdict = verdict_of(picked, choice, asked_ms=budget.ms, asked_origin=budget.origin)
    outcome.finisher.files.check(choice.arch)
    files = outcome.finisher.files.shipped(choice.arch)
    shipment, limits = (
        Shipment(choice.arch, files, choice.measurement, verdict),
        Limits(tolerance=tolerance_of(files["model.onnx"])),
    )
    with report.phase("Exporting what ships"):
        shipped = ship(outcome.finisher, [shipment], Terms(command, limits, replace=True, keep=True))
    if shipped.moved_to is not None:
        report.say(f"{shipped.folder} held what no export wrote; it is in {shipped.moved_to} now.")
    ties = told_apart(outcome.finisher, [f.arch for f in outcome.finalists], report)
    with report.phase("Writing the report"):
        results = assemble(pipeline, outcome, networks, verdict, shipped, ties, command=command)
        write_report(results, outcome.candidates, pipeline.run.path)
    for line in (*summary(results), *written(results, pipeline.run.path)):
        report.console.print(line)
    return results


def assemble(
    pipeline: Pipeline, outcome: Outcome, networks: tuple[Network, ...], verdict: Verdict, shipped: Shipped,
    ties: Mapping[str, Any], *, command: str,
) -> Results:  # fmt: skip
    """The results of a run as plain data."""
    facts = shipped.networks[0]
    ledger: dict[str, Any] = pipeline.run.read_json(LEDGER)
    reference = (outcome.budget.ms, 100.0)
    return Results(
        title=f"{pipeline.task.name} on {pipeline.device.name}",
        task=pipeline.task.name,
        device=f"{pipeline.device.name}: {_describe(device_of(pipeline.device, outcome.choice.arch))}",
        workload=pipeline.workload,
        position=position_of(pipeline.family),
        space=pipeline.family.space.name,
        seed=pipeline.settings.seed,
        networks=networks,
        picked_id=outcome.choice.arch.id,
        interval=INTERVAL,
        verdict=verdict,
        predictor=PredictorReport.of(outcome.calibration.quality, outcome.calibration.held_out),
        trivial_baselines=dict(outcome.trivial),
        test_error_percent=facts["test"]["error_percent"],
        parity=Parity(**{name: facts["parity"][name] for name in Parity.__dataclass_fields__}),
        files=tuple(str(p.relative_to(pipeline.run.path)) for p in sorted(shipped.folder.iterdir())),
        hypervolumes=hypervolumes(networks, reference),
        hypervolume_reference=reference,
        error_means=pipeline.task.error_means,
        ledger=tuple(LedgerEntry(phase, **entry) for phase, entry in ledger.items()),
        notes=_notes(pipeline, outcome, shipped),
        command=command,
        objectives=pipeline.settings.objectives,
        beside=_beside(outcome),
        ties=ties,
        refined=outcome.explored.refined,
        looks=tuple(look.to_json() for of in (outcome.calibration, *outcome.further) for look in of.looks),
        tuned=outcome.tuned,
        elsewhere=outcome.elsewhere,
        stages=outcome.stages,
        lost=lost_sentence(facts),
        cautions=outcome.calibration.cautions,
        alarms=tuple(p.alarm_sentence for p in outcome.proposals if p.alarm),
        versions=versions(PACKAGES),
    )


def _networks(outcome: Outcome) -> tuple[Network, ...]:
    names = further(outcome.costing.names)
    archs = [f.arch for f in outcome.finalists]
    return tuple(_network(f, outcome, costs, names) for f, costs in zip(outcome.finalists, outcome.costing(archs), strict=True))


def _network(finalist: Finalist, outcome: Outcome, costs: Costs, names: Sequence[str]) -> Network:
    record = outcome.finisher.files.record(finalist.arch)
    id_, measurement = finalist.arch.id, _measurement(finalist.arch, outcome)
    num_parameters = record["export"]["num_parameters"]
    measured = {**measured_costs(measurement, outcome.measured_mib.get(id_)), "parameters": num_parameters / 1e6}
    return Network(
        id=id_,
        arch=finalist.arch.to_json(),
        role=finalist.role,
        label=finalist.label,
        error_percent=record["error_percent"],
        predicted_ms=costs["latency_ms"],
        predicted_upper_ms=costs["upper_ms"],
        num_parameters=num_parameters,
        train_seconds=record["train_seconds"],
        predicted={name: costs[name] for name in names},
        measured={name: measured[name] for name in names if name in measured},
        **times_of(measurement),
    )


def _measurement(arch: Architecture, outcome: Outcome) -> Measurement | None:
    """Of a network as it was trained: of the short-list, and of what ships the verdict's, which did not choose it."""
    if arch == outcome.choice.arch and outcome.choice.measurement is not None and not any(s.kept for s in outcome.stages):
        return outcome.choice.measurement
    return outcome.measurements.get(arch.id)


def _beside(outcome: Outcome) -> dict[str, LimitVerdict]:
    """On what has a budget beside latency; energy as the last measurement of what ships has it."""
    choice = outcome.choice
    [costs] = outcome.costing([choice.arch])
    measured = measured_costs(choice.measurement, outcome.measured_mib.get(choice.arch.id))
    return {
        name: LimitVerdict.of(
            name, asked=asked, predicted=costs[name], predicted_upper=costs[upper(name)], measured=measured.get(name),
            unmeasured=choice.unmeasured if name == "energy_mj" else None,
        )
        for name, asked in outcome.budget.beside.items()
    }  # fmt: skip


def verdict_of(picked: Network, choice: Chosen, *, asked_ms: float, asked_origin: str) -> Verdict:
    """Asked, predicted and measured latency of what ships."""
    return Verdict.of(
        asked_ms=asked_ms,
        asked_origin=asked_origin,
        predicted_ms=picked.predicted_ms,
        predicted_upper_ms=picked.predicted_upper_ms,
        unmeasured=choice.unmeasured,
        **facts_of(choice.measurement),
    )


def lost_sentence(facts: Mapping[str, Any]) -> str:
    """Where the file that ships errs far more than the network that was trained; a search ships it all the same, `export` would
    refuse it. Empty if it does not."""
    trained, on_device = facts["torch_validation_error_percent"], facts.get("on_device", {})
    error = max(facts["validation_error_percent"], on_device.get("validation_error_percent", 0.0))
    if error - trained <= MAX_DROP:
        return ""
    return (
        f"The file that ships is not as good as its network: {error:.2f} % validation error instead of {trained:.2f} % in torch, "
        f"where export allows {MAX_DROP:g} point. Its precision costs too much; try a higher one."
    )


def _describe(device: Device) -> str:
    facts = device.environment
    threads = facts.get("threads")
    words = [
        facts.get("device") or facts.get("cpu"),
        threads and f"{threads} thread{'s' * (threads != 1)}",
        facts.get("precision"),
    ]
    return ", ".join(str(word) for word in words if word)


def _notes(pipeline: Pipeline, outcome: Outcome, shipped: Shipped) -> tuple[str, ...]:
    """What a reader should know to judge the numbers."""
    notes = [f"Networks were trained on {outcome.compute}."]
    records = [outcome.finisher.files.record(f.arch) for f in outcome.finalists]
    if teachers := dict.fromkeys(name for record in records for name in record.get("taught_by", ())):
        notes.append(f"Trained networks learned from the targets and from answers of {' and '.join(teachers)}.")
    for finalist, record in zip(outcome.finalists, records, strict=True):
        notes += [f"In the training of {finalist.arch.id}, {words}." for words in record.get("setbacks", ())]
    if (measurement := outcome.choice.measurement) is not None and measurement.environment.get("estimated"):
        notes.append("All latencies are estimates of a model of the device: nothing was measured on one.")
    elif measurement is not None:
        notes.append(
            f"A latency is that of the device's quietest moments: the lower quartile of the quietest of several visits. Half of "
            f"all calls of the exported file took at most {measurement.percentile_ms(50):.3f} ms, nine in ten at most "
            f"{measurement.percentile_ms(90):.3f} ms."
        )
    if unmeasured := len(outcome.finalists) - len(outcome.measurements):
        notes.append(f"{unmeasured} of {len(outcome.finalists)} networks could not be measured; their latencies are predicted.")
    notes.append(
        'The search scored candidates on the split "architecture". Validation errors chose the network, so they flatter it; the '
        "test split was read after the choice: by the exported file, and by each trained network, once, to tell ties."
    )
    if on_device := shipped.networks[0].get("on_device"):
        notes.append(f"The device that was timed: {device_sentence(on_device)}.")
    notes += [f"On {name}: {device_sentence(facts)}." for name, facts in shipped.networks[0].get("also", {}).items()]
    if metrics := shipped.networks[0]["test"]["metrics"]:
        said = ", ".join(f"{value:.3f} {name}" for name, value in metrics.items())
        notes.append(f"The exported file on the test split: {said}.")
    if health := health_sentence(pipeline.run.read_lines(HEALTH)):
        notes.append(health)
    for p in outcome.proposals:
        others = "".join(f", at most {upper:.4g} of {name}" for name, upper in p.others.items())
        notes.append(
            f"The differentiable search proposed {p.arch.id} for {p.budget_ms:.3f} ms: predicted {p.predicted_ms:.3f} ms "
            f"(at most {p.upper_ms:.3f}){others}, {p.relaxed_ms:.3f} ms while relaxed; entropy of its choices {p.entropy:.2f}."
        )
    return tuple(notes)
