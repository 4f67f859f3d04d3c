"""Networks that ship with the weights that they inherit from the run's supernet, so that one file of weights holds all of them.

Before they are cut out they may learn together: in each step all of them, the largest from the targets, the others from its
answers, too (see `nas.supernet.sandwich_step`). Their weights stay parts of the same ones.

Writes `shortlist/<id>.inherited.{safetensors,onnx,json}`, and while they learn `inherited.ckpt`; what was written of the same
networks is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from experiments.checkpoints import TrainingCheckpoint, checksum, identity_of
from experiments.finishing import Finisher
from experiments.progress import Reporter
from experiments.run_directory import SUPERNET
from nas.costs import flops_of
from nas.space import Architecture
from nas.supernet import cut_out
from nas.training import supernet_trainer

TAG = "inherited"


def inheriting(
    finisher: Finisher, archs: Sequence[Architecture], supernet: nn.Module, *, steps: int, distillation: float, report: Reporter
) -> Finisher:
    """The same with these networks' inherited weights as what ships of them.

    Args:
        archs: of which each has been trained on its own, too.
        supernet: of the run; it is changed.
        steps: that the networks learn together, each of a batch of the short-list's size.
        distillation: weight of the largest's answers in what the others learn, 0 to 1.

    Raises:
        TrainingError: as of `Trainer.run`. RunError: a damaged checkpoint, or file of a network's own.
    """
    sizes = flops_of(finisher.family, archs, finisher.workload)
    archs = [arch for _, arch in sorted(zip(sizes.tolist(), archs, strict=True), key=lambda pair: -pair[0])]
    config = dataclasses.replace(finisher.settings.train, steps=steps) if steps else None
    how = [[arch.id for arch in archs], config, distillation, finisher.seed, finisher.device.fingerprint]
    how.append(checksum(finisher.run / SUPERNET))
    identity = identity_of(how)
    inheriting = dataclasses.replace(finisher, ships=TAG)
    if all(_record(finisher, arch).get("identity") == identity for arch in archs):
        return inheriting
    for arch in archs:
        finisher.files.check(arch)
    checkpoint = TrainingCheckpoint(finisher.run, f"{TAG}.ckpt", identity, finisher.compute, finisher.checkpoint_seconds)
    if config is not None:
        trainer = supernet_trainer(
            finisher.family, supernet, finisher.task, config, compute=finisher.compute, seed=finisher.seed, together=archs,
            distillation=distillation, state=checkpoint.read(),
        )  # fmt: skip
        with report.phase("Training what ships together", steps, done=trainer.step) as advance:

            def on_step(step: int, loss: float) -> None:
                advance(step, f"loss {loss:.3f}")
                checkpoint.write(trainer.state_dict)

            trainer.run(on_step=on_step, on_setback=report.say)
    for arch in archs:
        inheriting.files.export(arch, cut_out(finisher.family, supernet, arch, finisher.compute), tag=TAG)
        for mode in finisher.files.modes[1:]:  # of another time
            (finisher.run / f"{finisher.files.name(arch, TAG)}.{mode}.onnx").unlink(missing_ok=True)
        own = finisher.scores.of(arch, "validation")["error_percent"]
        facts = {"together": [a.id for a in archs], "steps": steps, "own_validation_error_percent": own, "identity": identity}
        finisher.run.write_json(f"{finisher.files.name(arch, TAG)}.json", facts)
    checkpoint.remove()
    return inheriting


def in_words(facts: dict[str, Any], own: str) -> str:
    """How the network of this id and with these facts was trained."""
    if not facts["steps"]:
        return "as a part of the supernet, and no further"
    others = [id_ for id_ in facts["together"] if id_ != own]
    return f"as a part of the supernet, then {facts['steps']:,} steps{' together with ' * bool(others)}{', '.join(others)}"


def _record(finisher: Finisher, arch: Architecture) -> dict[str, Any]:
    name = f"{finisher.files.name(arch, TAG)}.json"
    facts: dict[str, Any] = finisher.run.read_json(name) if finisher.run.has(name) else {}
    return facts
