"""The folder that ships: one ONNX file, and what is needed to use it, to trust it and to make it again.

export/<id>/  model.onnx  tokenizer.json  labels.json  predict.py  contract.json  card.md  architecture.json  config.yaml

A decoder ships prefill.onnx and decode.onnx too, with a cache of keys and values, and several networks may ship together: several
ONNX files lie over one file of weights, weights.bin. A folder appears under its name when all of it is there, and takes the place
of an earlier export only.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments import predict
from experiments.card import card
from experiments.checkpoints import checksum
from experiments.contract import JUDGED_BY, Files, Limits, beginning_of, files_of, input_of, promised, proven
from experiments.finishing import Finisher
from experiments.formatting import position_of
from experiments.inheriting import TAG, in_words
from experiments.on_device import opened
from experiments.run_directory import CONFIG, RunDirectory, RunError
from experiments.ties import TIES
from experiments.verdicts import Verdict, origin_in_words
from experiments.versions import versions
from nas import qnn_file
from nas.formats import FORMATS, Answer
from nas.shared_weights import share_weights
from nas.space import Architecture
from nas.types import Measurement

TEST = "test.json"
CONTRACT = "contract.json"
WEIGHTS = "weights.bin"
PACKAGES = ("paretoformer", "torch", "onnx", "onnxruntime", "numpy", "tokenizers")
CONVERTERS = {  # and what runs the file, beside those packages
    "openvino": ("openvino",), "pte": ("executorch",), "tflite": ("litert-torch", "ai-edge-litert"),
    **dict.fromkeys(qnn_file.FORMATS, ("onnxruntime-qnn",)),
}  # fmt: skip
SCORES = ("error_percent", "metrics", "num_examples")  # of the test split, that are kept


@dataclass(frozen=True)
class Shipment:
    """One finished network to ship: its files by the names that they get, the one that answers for whole inputs first, its
    measurement and verdict, and what it is called beside its id."""

    arch: Architecture
    files: Mapping[str, Path]
    measurement: Measurement | None
    verdict: Verdict
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Terms:
    """How networks ship.

    Args:
        command: makes the same folder again.
        limits: what is promised.
        kind: one of `nas.formats.FORMATS`.
        variant: what sets the files apart from those that the run's device runs ("int8", "openvino", "inherited"), or nothing.
        replace: also takes the place of a folder that is no export, or was changed.
        keep: what no export wrote is then moved away with its folder (see `Shipped.moved_to`), and not deleted.
    """

    command: str
    limits: Limits = field(default_factory=Limits)
    kind: str = "onnx"
    variant: str = ""
    replace: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Shipped:
    """The folder, its networks' facts as they are in `contract.json`, and where what was there before was kept, if it was."""

    folder: Path
    contract: Mapping[str, Any]
    moved_to: Path | None = None

    @property
    def networks(self) -> Sequence[Mapping[str, Any]]:
        facts: Sequence[Mapping[str, Any]] = self.contract["networks"]
        return facts


def ship(finisher: Finisher, shipments: Sequence[Shipment], terms: Terms) -> Shipped:
    """Writes the folder of finished networks; a file in it is the one that was measured, if it was.

    The test split is read once for each file that ships, by that file; `num_test_reads` counts them, and with them the networks
    that it compared (see `experiments.ties`).

    Raises:
        BrokenPromiseError: a network is over a limit. ExportError, ValueError: the format cannot be written.
        RunError: the folder holds what no export wrote.
    """
    run = finisher.run
    folder = folder_of(run, [s.arch.id for s in shipments], terms.variant)
    moved_to = unused_beside(folder) if terms.keep and holds_foreign(folder) else None
    with replacing(folder, even_if_changed=terms.replace, moved_to=moved_to) as part:
        files, shared = _write(finisher, shipments, terms, part)
        finisher.task.save_preprocessing(part)
        if terms.kind == "onnx":
            shutil.copyfile(predict.__file__, part / "predict.py")
        _write_json(
            part / "architecture.json",
            {"space": finisher.family.space.to_json(), "networks": {s.arch.id: s.arch.to_json() for s in shipments}},
        )
        if run.has(CONFIG):
            shutil.copyfile(run / CONFIG, part / "config.yaml")
        proofs = [
            proven(finisher, s.arch, f, s.measurement, kind=terms.kind, limits=terms.limits)
            for s, f in zip(shipments, files, strict=True)
        ]
        networks = [
            _facts(finisher, s, f, {**proof, **_on_device(finisher, s, proof, terms)}, _test_scores(finisher, s, f, terms))
            for s, f, proof in zip(shipments, files, proofs, strict=True)
        ]
        contract = _contract(finisher, networks, shared, terms, part)
        (part / "card.md").write_text(card(contract), encoding="utf-8")
        contract["files"] = files_of(part)
        contract["sha256"] = predict.checksum_of(contract)
        _write_json(part / CONTRACT, contract)
    return Shipped(folder, contract, moved_to)


def folder_of(run: RunDirectory, ids: Sequence[str], variant: str) -> Path:
    """Where networks ship."""
    return run / "export" / ".".join(["+".join(ids), *([variant] if variant else [])])


@contextmanager
def replacing(folder: Path, *, even_if_changed: bool, moved_to: Path | None = None) -> Iterator[Path]:
    """A folder to write into; it takes the place of `folder` when the block ends well, and leaves nothing when it does not. What
    was there, be it a file or a link, is then deleted, or moved.

    Raises:
        RunError: `folder` is there and is not what an export left, unless `even_if_changed`.
    """
    if not even_if_changed:
        check_unchanged(folder)
    part, old = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "old"))
    for leftover in (part, old):
        _remove(leftover)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if os.path.lexists(folder):
            os.replace(folder, moved_to or old)
        os.replace(part, folder)
    finally:
        _remove(part)
        _remove(old)


def _remove(path: Path) -> None:
    """A folder with all that is in it, a file, or a link without what it leads to; whatever is there, if anything is."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def check_unchanged(folder: Path) -> None:
    """Raises RunError for a folder that holds more or other than an export left there."""
    if not os.path.lexists(folder):
        return
    advice = "move it away, or replace=true replaces it"
    known = _exported(folder)
    if known is None:
        raise RunError(f"export: {folder} exists and has no {CONTRACT} of an export; {advice}")
    try:
        predict.read_contract(folder)
    except predict.Refused as changed:
        raise RunError(f"export: {folder}: {changed}; {advice}") from changed
    for path in sorted(folder.iterdir()):
        if path.name != CONTRACT and not (path.is_file() and known.get(path.name, {}).get("sha256") == checksum(path)):
            raise RunError(f"export: {folder} holds {path.name}, which is not as an export left it; {advice}")


def holds_foreign(folder: Path) -> bool:
    """Whether anything is there that no export wrote; a file that one wrote and somebody changed is an export's."""
    if not os.path.lexists(folder):
        return False
    known = _exported(folder)
    return known is None or not all(path.is_file() and path.name in (*known, CONTRACT) for path in folder.iterdir())


def _exported(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The files that an export left in a folder, as its contract has them; None if there is no such contract."""
    try:
        files: dict[str, dict[str, Any]] = dict(json.loads((folder / CONTRACT).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files


def unused_beside(folder: Path) -> Path:
    """A name where nothing is: that of the folder and `.kept`, with a number from the second one on."""
    names = (folder.with_name(f"{folder.name}.kept{f'-{number}' * (number > 0)}") for number in itertools.count())
    return next(path for path in names if not os.path.lexists(path))


def _write(
    finisher: Finisher, shipments: Sequence[Shipment], terms: Terms, folder: Path
) -> tuple[list[Files], dict[str, Any] | None]:
    """The networks' files, and what sharing weights saves where there are several files."""
    mode, several = finisher.workload.mode, len(shipments) > 1
    named = [{f"{s.arch.id}.{name}" if several else name: path for name, path in s.files.items()} for s in shipments]
    sources = {name: path for files in named for name, path in files.items()}
    data: tuple[str, ...] = ()
    shared = None
    if terms.kind == "onnx" and len(sources) > 1:
        data, saved = (WEIGHTS,), share_weights(sources, folder, data=WEIGHTS)
        shared = {
            "file": WEIGHTS,
            "weight_bytes": saved.weight_bytes,
            "stored_bytes": saved.stored_bytes,
            "shared_percent": saved.shared_percent,
            "parts": {name: beginning_of(folder / WEIGHTS, needed) for name, needed in saved.needed_bytes.items()},
        }
    else:
        for name, source in sources.items():
            shutil.copyfile(source, folder / name)
    return [
        Files(
            (*files, *data),
            whole=folder / next(iter(files)),
            timed=folder / next(name for name in files if mode == "encode" or name.endswith(f"{mode}.onnx")),
        )
        for files in named
    ], shared


def _test_scores(finisher: Finisher, shipment: Shipment, files: Files, terms: Terms) -> dict[str, Any]:
    """Of the file itself, from the first time that these weights in this form shipped."""
    return _tested_once(finisher, shipment, terms, "", lambda: FORMATS[terms.kind].open(files.whole))


def _on_device(finisher: Finisher, shipment: Shipment, proof: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """What is proven of the devices that were timed, with the `test` scores of their own files where these were scored."""

    def with_test(own: Finisher, facts: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        if "validation_error_percent" not in facts:
            return facts
        with opened(own, shipment.arch, 0) as file:
            test = _tested_once(own, shipment, terms, f" on {where}", lambda: file.answer)
        return {**facts, "test": test}

    found: dict[str, Any] = {}
    if "on_device" in proof:
        found["on_device"] = with_test(finisher, proof["on_device"], proof["on_device"]["device"])
    if "also" in proof:
        found["also"] = {
            name: with_test(replace(finisher, device=finisher.also[name]), facts, f"also.{name}")
            for name, facts in proof["also"].items()
        }
    return found


def _tested_once(
    finisher: Finisher, shipment: Shipment, terms: Terms, where: str, answer: Callable[[], Answer]
) -> dict[str, Any]:
    run = finisher.run
    tests: dict[str, Any] = run.read_json(TEST) if run.has(TEST) else {}
    key = ".".join([shipment.arch.id, *([terms.variant] if terms.variant else [])]) + where
    source = checksum(next(iter(shipment.files.values())))
    if tests.get(key, {}).get("sha256") != source:
        found = finisher.scores.of_answers(answer(), "test")
        tests[key] = {**{name: found[name] for name in SCORES}, "sha256": source}
        run.write_json(TEST, tests)
    return {name: value for name, value in tests[key].items() if name != "sha256"}


def _facts(
    finisher: Finisher, shipment: Shipment, files: Files, proof: Mapping[str, Any], test: Mapping[str, Any]
) -> dict[str, Any]:
    verdict, names = shipment.verdict, files.names
    return {
        "id": shipment.arch.id,
        "names": list(shipment.names),
        "architecture": shipment.arch.to_json(),
        "files": list(names),
        "answers": next((name for name in names if name.endswith("decode.onnx")), files.whole.name),
        "timed": files.timed.name,
        "asked_ms": verdict.asked_ms,
        "asked_by": origin_in_words(verdict.asked_origin),
        "predicted_ms": verdict.predicted_ms,
        "predicted_upper_ms": verdict.predicted_upper_ms,
        "kept": verdict.kept,
        "verdict": verdict.sentence,
        "stages": finisher.files.stages(shipment.arch)["stages"],
        "trained": _training_of(finisher, shipment.arch),
        "test": dict(test),
        **_inherited(finisher, shipment.arch),
        **proof,
    }


def _inherited(finisher: Finisher, arch: Architecture) -> dict[str, Any]:
    """What a network that ships with inherited weights learned with, and the error of the file that it has on its own."""
    return {"inherited": finisher.run.read_json(f"{finisher.files.name(arch)}.json")} if finisher.ships == TAG else {}


def _training_of(finisher: Finisher, arch: Architecture) -> str:
    """For how long, in words: networks that a run did not ship were trained to be compared, and no further."""
    if finisher.ships == TAG:
        return in_words(_inherited(finisher, arch)["inherited"], arch.id)
    if not finisher.files.is_finished(arch):
        return "elsewhere"
    steps = f"{finisher.files.record(arch)['train_steps']:,} steps for the short-list"
    stages = finisher.files.stages(arch)["stages"]
    if kept := [stage["name"] for stage in stages if stage["kept"]]:
        return f"{steps}, then by {', '.join(kept)}"
    if stages:
        return f"{steps}; what came after did not ship: {', '.join(stage['name'] for stage in stages)}"
    return f"{steps}, and no further: stages go to what a search ships"


def _contract(
    finisher: Finisher, networks: list[dict[str, Any]], shared: dict[str, Any] | None, terms: Terms, folder: Path
) -> dict[str, Any]:
    run = finisher.run
    return {
        "format": terms.kind,
        "task": finisher.task.name,
        "error_means": finisher.task.error_means,
        "space": finisher.family.space.name,
        "device": finisher.device.name,
        "device_environment": dict(finisher.device.environment),
        "workload": finisher.workload.counting(position_of(finisher.family)),
        "seed": finisher.seed,
        "config": "config.yaml" if (folder / "config.yaml").is_file() else None,
        "command": terms.command,
        "versions": versions((*PACKAGES, *CONVERTERS.get(terms.kind, ()))),
        "limits": terms.limits.to_json(),
        "promised": promised(terms.limits),
        "judged_by": JUDGED_BY,
        "num_test_reads": _num_test_reads(run),
        "input": input_of(finisher, folder, networks[0]),
        "shared_weights": shared,
        "networks": networks,
        "files": files_of(folder),
    }


def _num_test_reads(run: RunDirectory) -> int:
    compared = run.read_json(TIES)["test_error_percent"] if run.has(TIES) else {}
    return len({*run.read_json(TEST), *compared})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
