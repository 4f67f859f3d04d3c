"""An export is a contract: one folder that stands alone, says what was measured, and is refused when a promise is broken."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from experiments import shipping
from experiments.build import build
from experiments.card import card
from experiments.checkpoints import checksum
from experiments.cli import main
from experiments.conclude import lost_sentence
from experiments.contract import BrokenPromiseError, Limits, tolerance_of
from experiments.export import Exporter, Words, limits_of, picks
from experiments.inheriting import inheriting
from experiments.networks import pick
from experiments.predict import Predictor, Refused, checksum_of, chosen
from experiments.predict import main as predict
from experiments.progress import Reporter
from experiments.results import Results
from experiments.run_directory import RunError
from experiments.shipping import Shipped, Terms, check_unchanged, holds_foreign, replacing, ship, unused_beside
from hardware import placement
from hardware.executorch_device import ExecuTorch
from hardware.litert import LiteRt
from hardware.local_torch import LocalTorch
from hardware.openvino_device import OpenVino
from hardware.placement import CPU, Placement, operators, peak_memory, tune
from hardware.qnn import Qnn
from nas.compute import Compute
from nas.export import compare, export_onnx
from nas.finish.precision import quantised
from nas.fixed_sizes import FixedSizes
from nas.formats import ExportError, open_session
from nas.protocols import Device
from nas.shared_weights import share_weights


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A copy of the finished run, to export from."""
    copy = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "export")
    return copy


@pytest.fixture(scope="module")
def folder(run) -> Path:
    assert main(["export", f"run={run}", "pick=best"]) == 0
    [folder] = (run / "export").iterdir()
    return folder


@pytest.fixture(scope="module")
def contract(folder):
    return json.loads((folder / "contract.json").read_text())


def ask(folder: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs the folder's own script, where nothing of this project can be imported."""
    return subprocess.run(
        [sys.executable, "-I", "-X", "utf8", str(folder / "predict.py"), *words],
        input=stdin, capture_output=True, timeout=60, check=False, cwd=folder, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip


def test_the_folder_stands_alone(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    long = b"lorem ipsum dolor " * 6000
    done = ask(moved, "--top", "2", stdin=b"Guten Tag\n\xff\xfe\n   \n" + long + b"\n" + b"a" * 100_000 + b"\r\n")
    assert done.returncode == 1, done.stderr
    first, invalid, empty, cut, word = map(json.loads, done.stdout.splitlines())
    assert first["tokens"] <= 5 * 2
    assert not first["cut"]
    assert first["top"][0]["probability"] >= first["top"][1]["probability"] > 0
    assert invalid == {"error": "input 2 is not valid UTF-8 (byte 0)"}
    assert empty == {"error": "input 3 is empty"}
    assert (cut["tokens"], cut["cut"]) == (32, True)
    assert (word["tokens"], word["cut"]) == (32, True)
    session = onnxruntime.InferenceSession(moved / "model.onnx")
    tokenizer = shipping.predict.read_tokenizer(moved / "tokenizer.json")
    ids = np.array([tokenizer.encode("Guten Tag").ids])
    [logits] = session.run(None, {"token_ids": ids, "attention_mask": np.ones_like(ids)})
    assert first["label"] == json.loads((moved / "labels.json").read_text())[int(logits[0].argmax())]
    assert first["probability"] == pytest.approx(float(torch.from_numpy(logits[0]).softmax(-1).max()), abs=1e-5)


def test_a_changed_file_is_not_used(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    content = bytearray((moved / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (moved / "model.onnx").write_bytes(content)
    done = ask(moved, "Guten Tag")
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.decode().strip() == (
        "predict.py: model.onnx: is not the file that was exported, its checksum differs from the one in contract.json"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--within", "0.00001ms"], "no network answers within 1e-05 ms, the fastest takes 0."),
        (["--within", "soon"], "--within: 'soon' is no time like 8ms"),
        (["--network", "other"], "--network: 'other' is not one of best, "),
        (["--top", "0"], "--top: 0 is not at least 1"),
        (["--temperature", "nan"], "--temperature: nan is not 0 or more"),
        (["--seed", "-1", "--temperature", "1"], "--seed: -1 is not 0 or more"),
    ],
)
def test_what_predict_refuses(folder, words, message, capsys, monkeypatch):
    monkeypatch.setattr("experiments.predict.__file__", str(folder / "predict.py"))
    assert predict(["Guten Tag", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_s_name_is_no_text_that_one_means(folder):
    done = ask(folder, "card.md", "Guten Tag")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr.decode().strip() == (
        "predict.py: card.md is read as a text, though it is a file's name; its lines: < card.md"
    )


def test_who_has_read_enough_is_told_no_more(folder):
    line = [sys.executable, "-I", str(folder / "predict.py"), *["a"] * 5000]  # more than a pipe holds
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1


def test_predict_says_that_a_disk_is_full(folder):
    line = [sys.executable, "-I", str(folder / "predict.py"), "a"]
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (found.returncode, found.stderr) == (2, "predict.py: answers cannot be written: No space left on device\n")


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "model.onnx")

    monkeypatch.setattr(Path, "open", forbidden)  # root reads everything
    with pytest.raises(Refused, match=r"model\.onnx: cannot be read \(\[Errno 13\] Permission denied"):
        shipping.predict.checked(folder, {"files": {}}, "model.onnx")


def test_budgets_and_predict_judge_by_the_same_time(contract):
    [facts] = contract["networks"]
    judged_ms = facts["latency_ms"][contract["judged_by"]]
    Limits(budget_ms=judged_ms).check("net", budget_ms=facts["latency_ms"]["quiet"])
    assert chosen(contract, within=f"{judged_ms} ms", name=None) == [facts]
    with pytest.raises(Refused, match=r"\(quiet\)"):
        chosen(contract, within=f"{0.99 * judged_ms} ms", name=None)


def test_a_card_tells_another_way_of_measuring(contract):
    [facts] = contract["networks"]
    way = {"provider": CPU, "threads": 1, "graph_optimization": "none"}
    text = card({**contract, "networks": [{**facts, "measured_with": way, "run_ms": 0.5, "measured_with_ms": 0.75}]})
    said = (
        f"the latency above was measured with {CPU}, 1 thread, graph optimisation `none`; briefly tried side by side, they take "
    )
    assert f"{said}0.500 ms beside 0.750 ms" in text
    assert "was measured with" not in card({**contract, "networks": [{**facts, "measured_with": facts["run"]}]})


@pytest.mark.parametrize("content", ["", "{}", '{"files": {"a": 1}, "networks": [{}]}', "[]", "3", "[" * 20_000])
def test_a_damaged_contract(tmp_path, content, capsys, monkeypatch):
    (tmp_path / "contract.json").write_text(content)
    monkeypatch.setattr("experiments.predict.__file__", str(tmp_path / "predict.py"))
    assert predict(["a"]) == 2
    assert capsys.readouterr().err.startswith("predict.py: contract.json: is ")


def test_a_changed_figure_of_a_contract_is_noticed(folder, tmp_path, capsys, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    monkeypatch.setattr("experiments.predict.__file__", str(moved / "predict.py"))
    text = (moved / "contract.json").read_text()
    (moved / "contract.json").write_text(text.replace('"validation_error_percent": ', '"validation_error_percent": 1', 1))
    said = "contract.json: is not the one that was exported, its checksum differs from its own sha256"
    assert predict(["Guten Tag"]) == 2
    assert capsys.readouterr() == ("", f"predict.py: {said}\n")
    with pytest.raises(RunError, match=said):
        check_unchanged(moved)
    (moved / "contract.json").write_text(json.dumps(json.loads(text)))  # says the same
    assert predict(["Guten Tag"]) == 0


def test_every_file_of_a_folder_can_be_checked(folder, contract, tmp_path, capsys, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    monkeypatch.setattr("experiments.predict.__file__", str(moved / "predict.py"))
    assert predict(["--check"]) == 0
    assert capsys.readouterr().out == f"{len(list(folder.iterdir()))} files are as they were exported\n"
    for name in contract["files"]:
        content = (moved / name).read_bytes()
        (moved / name).write_bytes(content + b"\n")
        assert predict(["--check"]) == 2
        assert capsys.readouterr() == ("", f"predict.py: {name}: is not the file that was exported, its checksum differs from "
                                           "the one in contract.json\n")  # fmt: skip
        (moved / name).write_bytes(content)


@pytest.mark.parametrize(("stream", "message"), [
    ("stdin", "there is no input, and stdin is closed"), ("stdout", "stdout is closed, so answers cannot be written"),
])  # fmt: skip
def test_a_stream_that_is_closed(folder, stream, message, capsys, monkeypatch):
    """As `<&-` and `>&-` leave it."""
    monkeypatch.setattr("experiments.predict.__file__", str(folder / "predict.py"))
    monkeypatch.setattr(sys, stream, None)
    assert predict([]) == 2
    assert capsys.readouterr().err == f"predict.py: {message}\n"


def test_the_contract_says_what_was_measured(run, folder, contract):
    [facts] = contract["networks"]
    network = pick(Results.from_json(json.loads((run / "results.json").read_text())).networks, "best")
    assert facts["id"] == network.id == folder.name
    assert facts["validation_error_percent"] == pytest.approx(network.error_percent, abs=0.5)
    assert facts["validation_error_percent"] == facts["torch_validation_error_percent"]
    assert facts["parity"]["equal_decisions"] == 1
    assert 0 < facts["parity"]["max_abs_difference"] <= 1e-4
    assert facts["parity"]["runtime"] == f"onnxruntime {onnxruntime.__version__} on this machine's CPU"
    assert facts["parity"]["runtime_is_timed"]
    assert facts["test"]["num_examples"] == facts["parity"]["num_examples"]
    times = facts["latency_ms"]
    assert times["p50"] <= times["p90"] <= times["p99"]
    assert sum(o["percent"] for o in facts["operators"]) == pytest.approx(100, abs=2)
    ways = [{**t, "file": t.get("file", "")} for t in facts["tried"]]
    for name in ("run", "measured_with"):
        assert facts[f"{name}_ms"] in [t["latency_ms"] for t in ways if not t["file"] and facts[name].items() <= t.items()]
    assert {name: facts["environment"][name] for name in facts["measured_with"]} == facts["measured_with"]
    assert {o["provider"] for o in facts["operators"]} == {CPU}
    assert facts["fallbacks"] == []
    assert facts["run"] in [{name: t[name] for name in facts["run"]} for t in facts["tried"] if t["equal"]]
    assert all(way["equal"] for way in facts["tried"] if way.get("file") == "attention written out")
    assert facts["memory"]["peak"]["process_mib"] > facts["memory"]["peak"]["network_mib"] > facts["memory"]["weights_mib"]
    files = {path.name for path in folder.iterdir()}
    assert files == {*contract["files"], "contract.json"}
    assert all(checksum(folder / name) == facts["sha256"] for name, facts in contract["files"].items())
    assert contract["command"].endswith("pick=best")
    assert contract["versions"]["onnxruntime"] == onnxruntime.__version__
    assert {"environment", "kept", "asked_ms"} <= set(facts)
    assert (contract["seed"], contract["config"]) == (0, "config.yaml")
    tests = json.loads((run / "test.json").read_text())
    assert tests[facts["id"]]["error_percent"] == facts["test"]["error_percent"]
    compared = json.loads((run / "ties.json").read_text())["test_error_percent"]
    assert compared[facts["id"]] == pytest.approx(facts["test"]["error_percent"])
    assert contract["num_test_reads"] == len({*tests, *compared})
    card = (folder / "card.md").read_text()
    assert "- rounds: " in card
    assert not any(mark in card.partition("## Measured with")[2].partition("## Made")[0] for mark in ("{'", "[", "None"))
    assert f"{facts['test']['error_percent']:.2f} %" in card
    assert contract["files"]["model.onnx"]["sha256"] in card


@pytest.fixture(scope="module")
def exporter(run, folder, tmp_path_factory) -> Exporter:
    """What the command makes of the run, with fewer rounds."""
    config = OmegaConf.load(run / ".hydra/config.yaml")
    finisher = build(OmegaConf.merge(config, {"run": str(run)}), report=Reporter(quiet=True)).finisher(Compute())
    finisher = replace(finisher, settings=replace(finisher.settings, rounds=1))
    results = Results.from_json(json.loads((run / "results.json").read_text()))
    return Exporter(finisher, results, "onnx", "", tmp_path_factory.mktemp("files"), Reporter(quiet=True))


@pytest.mark.parametrize("limits", [Limits(tolerance=1e-12), Limits(budget_ms=1e-6)])
def test_a_broken_promise_ships_nothing(run, folder, exporter, limits):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    reads = (run / "test.json").read_bytes()
    shipment = exporter.shipment(pick(exporter.results.networks, "best"), ["best"])
    with pytest.raises(BrokenPromiseError, match=f"{folder.name} has .*, promised is at most .*; nothing was written"):
        ship(exporter.finisher, [shipment], Terms("again", limits))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in (run / "export").iterdir() if path.name.startswith(".")] == []
    assert (run / "test.json").read_bytes() == reads, "the test split is not read for what does not ship"


class NoNumber(torch.nn.Module):
    """A network whose ONNX graph says NaN for some inputs."""

    def forward(self, x):
        return torch.where(x > 0, x * math.nan, x) if torch.onnx.is_in_onnx_export() else x


def test_what_is_no_number_is_not_equal(tmp_path):
    bad, good = {"x": torch.tensor([[1.0, -2.0], [-1.0, -2.0]])}, {"x": -torch.ones(1, 2)}
    with pytest.raises(ExportError, match=r"m\.onnx: answers with numbers that are not finite"):
        export_onnx(NoNumber(), bad, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
    export_onnx(NoNumber(), good, tmp_path / "m.onnx")
    assert compare(NoNumber(), tmp_path / "m.onnx", [good, bad]) == (math.inf, 2, 3)
    with pytest.raises(ValueError, match=r"m\.onnx: CPUExecutionProvider answers with numbers that are not finite"):
        tune(tmp_path / "m.onnx", {"x": bad["x"].numpy()}, Placement(), tolerance=1.0, rounds=1)


def test_a_file_that_answers_with_no_numbers_does_not_ship(exporter, tmp_path):
    """Whatever the limits are."""
    shipment = exporter.shipment(pick(exporter.results.networks, "best"), ["best"])
    model = onnx.load(shipment.files["model.onnx"])
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            broken = np.full(tuple(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(broken, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    shipment = replace(shipment, files={"model.onnx": tmp_path / "model.onnx"})
    with pytest.raises(
        BrokenPromiseError, match=r"tolerance: .* answers with numbers that are not finite .*; nothing was written"
    ):
        ship(exporter.finisher, [shipment], Terms("again"))


def test_limits():
    limits = Limits(max_drop=1.0)
    limits.check("net", max_drop=1.0, budget_ms=None)
    with pytest.raises(BrokenPromiseError, match=r"max_drop: net has 1\.2, promised is at most 1;"):
        limits.check("net", max_drop=1.2)
    with pytest.raises(BrokenPromiseError, match="max_drop: net has nan"):
        limits.check("net", max_drop=float("nan"))
    with pytest.raises(BrokenPromiseError, match=r"budget_ms: net was not measured, 8 is promised"):
        Limits(budget_ms=8.0).check("net", budget_ms=None)
    with pytest.raises(ValueError, match=r"max_drop: -1\.0 is not 0 or more"):
        Limits(max_drop=-1.0)
    assert limits.to_json() == {"tolerance": None, "max_drop": 1.0, "budget_ms": None}


def test_a_pick_by_budget_promises_it():
    assert limits_of(Words(run="", pick="budget:8ms")) == Limits(max_drop=1.0, budget_ms=8.0)
    assert limits_of(Words(run="", pick="budget:8ms", budget_ms=9.0, max_drop=0.5)) == Limits(max_drop=0.5, budget_ms=9.0)
    assert limits_of(Words(run="", pick="best,knee", tolerance=0.1)) == Limits(max_drop=1.0, tolerance=0.1)
    with pytest.raises(ValueError, match="pick: 'soon' is not a number like 8ms"):
        limits_of(Words(run="", pick="budget:soon"))


def test_a_quantised_file_is_known_by_its_graph(folder, tmp_path):
    assert tolerance_of(folder / "model.onnx") == 1e-4
    onnx.save(quantised(onnx.load(folder / "model.onnx"), "dynamic"), tmp_path / "int8.onnx")
    assert tolerance_of(tmp_path / "int8.onnx") == math.inf


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=gguf"], "format: 'gguf' is not one of ('onnx', 'openvino', 'pt2', "),
        (["precision=int3"], "precision: 'int3' is not one of ('fp32', 'int8')"),
        (["precision=int8", "format=pt2"], "precision: int8 goes with format=onnx"),
        (["pick=best,knee,fast", "format=pt2"], "pick: several networks share one file of weights in format=onnx alone"),
        (["max_drop=-1"], "max_drop: -1.0 is not 0 or more"),
        (["weights=shared"], "weights: 'shared' is not one of ('trained', 'inherited')"),
        (["steps=5"], "steps: 5 is not 0, or more with weights=inherited"),
    ],
)
def test_what_export_refuses(run, words, message, capsys):
    assert main(["export", f"run={run}", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_a_damaged_file_of_the_short_list(run, suffix, capsys):
    [path] = (run / "shortlist").glob(f"{pick_id(run)}.{suffix}")
    content = path.read_bytes()
    path.write_bytes(b"\xff" * 100)
    try:
        assert main(["export", f"run={run}", "pick=best", "replace=true"]) == 2
    finally:
        path.write_bytes(content)
    error = capsys.readouterr().err
    assert f"{path}: is damaged; delete shortlist/{pick_id(run)}.* of the run, and the same search makes them again (" in error
    assert len(error.splitlines()) == 1


def test_a_changed_folder_is_refused_before_anything_is_measured(run, folder, capsys, monkeypatch):
    monkeypatch.setattr(Exporter, "shipment", lambda *_: pytest.fail("it was measured"))
    (folder / "notes.txt").write_text("dear to somebody")
    try:
        assert main(["export", f"run={run}", "pick=best"]) == 2
    finally:
        (folder / "notes.txt").unlink()
    assert "holds notes.txt, which is not as an export left it" in capsys.readouterr().err


def pick_id(run: Path) -> str:
    return pick(Results.from_json(json.loads((run / "results.json").read_text())).networks, "best").id


def test_what_is_not_an_export_s_own_stays(folder, tmp_path):
    check_unchanged(tmp_path / "nowhere")
    check_unchanged(folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "notes.txt").write_text("dear to somebody")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which is not as an export left it; move it away, or replace=true"):
        check_unchanged(copy)
    (copy / "notes.txt").unlink()
    (copy / "card.md").write_text("mine")
    with pytest.raises(ValueError, match=r"holds card\.md"), replacing(copy, even_if_changed=False):
        pytest.fail("the folder was changed")
    (copy / "contract.json").unlink()
    with pytest.raises(ValueError, match=r"exists and has no contract\.json of an export"):
        check_unchanged(copy)
    with replacing(copy, even_if_changed=True) as part:
        (part / "new").write_text("whole")
    assert [path.name for path in copy.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_what_no_export_wrote_is_moved_with_its_folder(folder, tmp_path):
    copy = tmp_path / "copy"
    assert not holds_foreign(copy)
    shutil.copytree(folder, copy)
    (copy / "card.md").write_text("changed")
    assert not holds_foreign(copy), "a changed file of the export itself"
    for name in ("copy.kept", "copy.kept-1"):
        (copy / "notes.txt").write_text(name)
        assert holds_foreign(copy)
        assert unused_beside(copy) == tmp_path / name
        with replacing(copy, even_if_changed=True, moved_to=tmp_path / name) as part:
            seal(part, {"files": {}})
        assert (tmp_path / name / "notes.txt").read_text() == name
        assert not holds_foreign(copy)
    (copy / "contract.json").unlink()
    assert holds_foreign(copy)
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "copy.kept", "copy.kept-1"}


def test_files_and_links_are_replaced(tmp_path):
    folder, target = tmp_path / "folder", tmp_path / "target"
    with replacing(target, even_if_changed=False) as part:
        seal(part, {"files": {}})
    for number in range(2):
        folder.symlink_to(target)
        with replacing(folder, even_if_changed=False) as part:
            (part / "file").write_text(str(number))
        assert not folder.is_symlink()
        assert (folder / "file").read_text() == str(number)
        shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(ValueError, match=r"exists and has no contract\.json of an export"):
        check_unchanged(folder)
    with replacing(folder, even_if_changed=True) as part:
        (part / "file").write_text("whole")
    assert (folder / "file").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "target"}, "what a link led to stays"
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"exists and has no contract\.json of an export"):
        check_unchanged(folder)


def test_an_interrupted_export_leaves_what_was_there(tmp_path):
    for number in range(2):
        with replacing(tmp_path / "folder", even_if_changed=True) as part:
            (part / "file").write_text(str(number))
    (tmp_path / ".folder.part").mkdir()  # of a process that was killed

    def interrupted() -> None:
        with replacing(tmp_path / "folder", even_if_changed=True) as part:
            (part / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "1"


@pytest.fixture(scope="module")
def family(exporter) -> Shipped:
    networks = picks(exporter.results.networks, "fast,knee,best")
    return ship(exporter.finisher, [exporter.shipment(*network) for network in networks], Terms("again"))


def test_a_family_over_one_file_of_weights(run, family):
    folder, contract, facts = family.folder, json.loads((family.folder / "contract.json").read_text()), family.networks
    assert {name for n in facts for name in n["names"]} == {"fast", "knee", "best"}
    assert contract["shared_weights"]["stored_bytes"] == (folder / "weights.bin").stat().st_size
    assert all((folder / n["answers"]).stat().st_size < 50_000 for n in facts), "weights lie in the shared file"
    for n in facts:
        plain = json.loads((run / "test.json").read_text())[n["id"]]
        assert n["test"]["error_percent"] == plain["error_percent"]
        assert n["parity"]["equal_decisions"] == 1
    fast = next(n for n in facts if "fast" in n["names"])
    assert chosen(contract, within=None, name="fast")[0]["id"] == fast["id"]
    best = min(contract["networks"], key=lambda n: n["validation_error_percent"])
    assert chosen(contract, within="1000ms", name=None)[0] == best
    done = ask(folder, "Guten Tag", "--network", "fast", "--within", "1000")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"]


def test_a_family_of_one_supernet_shares_its_weights(run, exporter, family, capsys):
    """Each is what the supernet has for it, is measured as it ships, and is said beside what it is on its own."""
    before = {path: path.read_bytes() for path in (run / "shortlist").iterdir()}
    words = ["export", f"run={run}", "pick=fast,knee,best", "weights=inherited"]
    assert main(words) == 0
    folder = next(path for path in (run / "export").iterdir() if path.name.endswith(".inherited"))
    contract, weights = json.loads((folder / "contract.json").read_text()), load_file(run / "supernet.safetensors")
    embedding = 4 * exporter.finisher.task.sizes["vocab_size"] * exporter.finisher.family.space.smallest().size("width")
    assert contract["shared_weights"]["weight_bytes"] - contract["shared_weights"]["stored_bytes"] >= embedding
    assert (folder / "weights.bin").stat().st_size == contract["shared_weights"]["stored_bytes"]
    for n in contract["networks"]:
        assert n["parity"]["equal_decisions"] == 1
        assert n["parity"]["max_abs_difference"] <= 1e-4
        assert n["latency_ms"]["quiet"] > 0
        assert n["trained"] == "as a part of the supernet, and no further"
        own = json.loads((run / f"shortlist/{n['id']}.json").read_text())["error_percent"]
        assert n["inherited"]["own_validation_error_percent"] == pytest.approx(own)
        assert f"trained on its own | {own:.2f} %" in (folder / "card.md").read_text()
        for name, value in load_file(run / f"shortlist/{n['id']}.inherited.safetensors").items():
            assert torch.equal(value, weights[name][tuple(slice(size) for size in value.shape)]), name
        done = ask(folder, "Guten Tag", "--network", n["id"], "--within", f"{n['latency_ms']['quiet'] * 1.001}ms")
        assert json.loads(done.stdout)["label"]
    assert all(path.read_bytes() == content for path, content in before.items()), "what was trained on its own stays"
    assert "% validation error with inherited weights, " in capsys.readouterr().out.replace("\n", " ")


def test_a_family_that_learns_together_stays_one(run, exporter, tmp_path):
    """A training of all that was stopped goes on to the same weights."""
    archs = [exporter.finisher.family.space.canonical(n.arch) for n, _ in picks(exporter.results.networks, "fast,best")]
    supernet = exporter.finisher.family.supernet()
    begun = {name: value.clone() for name, value in supernet.state_dict().items()}
    learned = []
    for stop in (None, 3):
        supernet.load_state_dict(begun)
        job = replace(exporter.finisher, checkpoint_seconds=0.0)
        for arch in archs:
            (run / f"shortlist/{arch.id}.inherited.json").unlink(missing_ok=True)
        step = torch.optim.AdamW.step
        taken = count()

        def stopped(optimizer, *arguments, taken=taken, stop=stop, step=step):
            if next(taken) == stop:
                raise KeyboardInterrupt
            return step(optimizer, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", stopped)
            with nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
                inheriting(job, archs, supernet, steps=5, distillation=0.5, report=Reporter(quiet=True))
        if stop is not None:
            supernet.load_state_dict(begun)
            job = inheriting(job, archs, supernet, steps=5, distillation=0.5, report=Reporter(quiet=True))
            assert job.files.stages(archs[0]) == {"ships": "inherited", "stages": []}
        learned.append([load_file(run / f"shortlist/{arch.id}.inherited.safetensors") for arch in archs])
    assert not (run / "inherited.ckpt").exists()
    for whole, again in zip(*learned, strict=True):
        assert all(torch.equal(whole[name], again[name]) for name in whole)
    small, large = sorted(learned[0], key=lambda state: sum(value.numel() for value in state.values()))
    for name in small.keys() & large.keys():
        both = tuple(slice(min(sizes)) for sizes in zip(small[name].shape, large[name].shape, strict=True))
        assert torch.equal(small[name][both], large[name][both]), f"{name} is one weight"
        changed = not torch.equal(small[name], begun[name][tuple(slice(size) for size in small[name].shape)])
        assert changed, f"{name} has learned"


def test_the_smallest_of_a_family_answers_before_the_rest_is_there(family, tmp_path):
    """As if the file of weights were on its way: it ends behind what the smallest network needs. The largest is made the best."""
    folder = tmp_path / "folder"
    shutil.copytree(family.folder, folder)
    contract = json.loads((folder / "contract.json").read_text())
    shared = contract["shared_weights"]
    smallest, *_, best = sorted(contract["networks"], key=lambda n: shared["parts"][n["answers"]]["bytes"])
    part = shared["parts"][smallest["answers"]]["bytes"]
    assert part < shared["stored_bytes"] == shared["parts"][best["answers"]]["bytes"]
    best["validation_error_percent"] = 0.0
    seal(folder, contract)
    whole = Predictor(folder, Options(at_once=True))
    assert whole.network["id"] == smallest["id"]
    assert whole.loading() is None
    [answer] = whole(b"Guten Tag")
    assert answer["network"] == best["id"]
    [expected] = Predictor(folder, Options(network=smallest["id"]))(b"Guten Tag")
    with (folder / "weights.bin").open("rb+") as file:
        file.truncate(part)
    done = ask(folder, "Guten Tag", "--at-once")
    assert json.loads(done.stdout) == {**expected, "network": smallest["id"]}
    said = "predict.py: weights.bin: is not the file that was exported, its checksum differs from the one in contract.json"
    assert (done.returncode, done.stderr.decode().strip()) == (1, f"{said}; {smallest['id']} answered")
    with pytest.raises(Refused, match=r"weights\.bin: is not the file that was exported"):
        Predictor(folder, Options())
    with (folder / "weights.bin").open("rb+") as file:
        file.truncate(part - 1)
    with pytest.raises(Refused, match=r"weights\.bin: is not the file that was exported"):
        Predictor(folder, Options(at_once=True))


def test_the_best_that_fits_is_taken():
    def network(name: str, error: float, ms: float | None) -> dict[str, object]:
        return {"id": name, "names": [], "validation_error_percent": error, "latency_ms": ms and {"quiet": ms, "p90": 9 * ms}}

    family = {"judged_by": "quiet", "networks": [network("a", 9, 1.0), network("b", 5, 4.0), network("c", 3, 9.0)]}
    assert [chosen(family, within=w, name=None)[0]["id"] for w in ("1ms", "8.5 ms", "100", None)] == ["a", "b", "c", "c"]
    with pytest.raises(Refused, match=r"no network answers within 0\.5 ms, the fastest takes 1 ms \(quiet\)"):
        chosen(family, within="0.5", name=None)
    with pytest.raises(Refused, match="no latency was measured"):
        chosen({"networks": [network("a", 9, None)]}, within="8", name=None)


class Layers(torch.nn.Module):
    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, x):
        for weight in self.weights:
            x = x @ weight
        return x


def test_the_corner_of_a_matrix_is_stored_with_it(tmp_path):
    torch.manual_seed(0)
    first, second = torch.randn(48, 40), torch.randn(40, 24)
    networks = {"large.onnx": [first, second], "small.onnx": [first[:32, :20], second[:20, :24]], "thin.onnx": [first[:, :20]]}
    (tmp_path / "shared").mkdir()
    for name, weights in networks.items():
        x = torch.randn(2, len(weights[0]))
        export_onnx(Layers([w.contiguous() for w in weights]), {"x": x}, tmp_path / name)
    shared = share_weights({name: tmp_path / name for name in networks}, tmp_path / "shared", data="weights.bin")
    assert shared.stored_bytes == 4 * (48 * 40 + 40 * 24)
    for name, (weight, *_) in networks.items():
        x = {"x": np.ones((1, len(weight)), np.float32)}
        expected, actual = (open_session(path / name).run(None, x)[0] for path in (tmp_path, tmp_path / "shared"))
        np.testing.assert_array_equal(actual, expected)
        ran = {found["operator"] for found in operators(tmp_path / "shared" / name, x, Placement(CPU, 1, "all"))}
        assert ran <= {"MatMul", "FusedMatMul"}, "columns are cut off when the file is opened"


def test_equal_weights_are_stored_once(tmp_path):
    torch.manual_seed(0)
    first, second, rows = torch.randn(32, 32), torch.randn(32, 32), torch.randn(48, 32)
    x = torch.randn(2, 32)
    networks = {"a.onnx": [first, second], "b.onnx": [second], "c.onnx": [first, rows[:32]], "d.onnx": [rows.T.contiguous()]}
    (tmp_path / "shared").mkdir()
    for name, weights in networks.items():
        export_onnx(Layers(weights), {"x": x}, tmp_path / name)
    shared = share_weights({name: tmp_path / name for name in networks}, tmp_path / "shared", data="weights.bin")
    assert shared.weight_bytes == 4 * (5 * 32 * 32 + 48 * 32)
    assert shared.stored_bytes == 4 * (3 * 32 * 32 + 48 * 32), "three squares and the long one"
    for name in networks:
        expected, actual = (open_session(path / name).run(None, {"x": x.numpy()})[0] for path in (tmp_path, tmp_path / "shared"))
        np.testing.assert_array_equal(actual, expected)


def test_each_file_needs_a_beginning_of_the_weights(tmp_path):
    sizes = {"large.onnx": [48, 40, 24], "small.onnx": [32], "middle.onnx": [32, 40]}
    (tmp_path / "shared").mkdir()
    for name, rows in sizes.items():
        export_onnx(
            Layers([torch.randn(a, b) for a, b in pairwise([*rows, 16])]), {"x": torch.randn(2, rows[0])}, tmp_path / name
        )
    shared = share_weights({name: tmp_path / name for name in sizes}, tmp_path / "shared", data="weights.bin")
    needed = [shared.needed_bytes[name] for name in ("small.onnx", "middle.onnx", "large.onnx")]
    assert needed[0] == 4 * 32 * 16
    assert needed == sorted(needed)
    assert needed[-1] == shared.stored_bytes
    large = onnx.load(tmp_path / "shared/large.onnx", load_external_data=False)
    places = {t.name: int(next(e.value for e in t.external_data if e.key == "offset")) for t in large.graph.initializer}
    used = [places[name] for node in large.graph.node for name in node.input if name in places]
    assert used == sorted(used), "in the order in which they are used"
    (tmp_path / "shared/weights.bin").write_bytes((tmp_path / "shared/weights.bin").read_bytes()[: needed[0]])
    x = {"x": np.ones((1, 32), np.float32)}
    expected, actual = (open_session(folder / "small.onnx").run(None, x)[0] for folder in (tmp_path, tmp_path / "shared"))
    np.testing.assert_array_equal(actual, expected)


def test_the_beginning_of_a_weight_is_shared(tmp_path):
    large = torch.randn(48, 32)
    x, longer = torch.randn(1, 32), torch.randn(1, 48)
    export_onnx(Layers([large]), {"x": longer}, tmp_path / "large.onnx")
    export_onnx(Layers([large[:32]]), {"x": x}, tmp_path / "small.onnx")
    (tmp_path / "shared").mkdir()
    shared = share_weights({n: tmp_path / n for n in ("small.onnx", "large.onnx")}, tmp_path / "shared", data="weights.bin")
    assert shared.stored_bytes == 4 * 48 * 32
    assert shared.shared_percent == pytest.approx(40)
    [answer] = open_session(tmp_path / "shared/small.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answer, x @ large[:32], atol=1e-5)


def tiny_folder(folder: Path, network: torch.nn.Module, example: dict[str, torch.Tensor], **given) -> Path:
    """As much of an export as `predict.py` reads."""
    export_onnx(network, example, folder / "model.onnx")
    (folder / "labels.json").write_text('["no", "yes"]')
    given = {"answer": "label", **given}
    facts = {
        "id": "n", "names": [], "files": ["model.onnx"], "answers": "model.onnx", "validation_error_percent": 1.0,
        "latency_ms": None, "run": {"provider": "ElsewhereExecutionProvider", "threads": 1, "graph_optimization": "all"},
    }  # fmt: skip
    files = {path.name: {"sha256": checksum(path)} for path in folder.iterdir()}
    seal(folder, {"format": "onnx", "networks": [facts], "files": files, "input": given})
    return folder


def seal(folder: Path, contract: Mapping[str, Any]) -> None:
    """Writes a contract with its own checksum."""
    (folder / "contract.json").write_text(json.dumps({**contract, "sha256": checksum_of(contract)}))


@dataclass
class Options:
    within: str | None = None
    network: str | None = None
    top: int = 1
    at_once: bool = False


def answers(predictor: Predictor, *given: bytes) -> list[str]:
    """Labels, or why there is none."""
    found = []
    for one in given:
        try:
            found += [answer["label"] for answer in predictor(one)]
        except Refused as refused:
            found.append(str(refused))
    return found


def test_images_and_signals_are_answered(tmp_path, capsys):
    class Bright(torch.nn.Module):
        def forward(self, image):
            mean = image.mean(dim=(1, 2, 3))
            return torch.stack([100 - mean, mean - 100], dim=1)

    example = {"image": torch.zeros(1, 1, 2, 3)}
    predictor = Predictor(
        tiny_folder(tmp_path, Bright(), example, kind="values", name="image", shape=[1, 2, 3], pictures=False), Options()
    )
    assert "ElsewhereExecutionProvider is not on this machine; CPUExecutionProvider answers" in capsys.readouterr().err
    arrays = {"one": np.full((1, 2, 3), 200), "two": np.stack([np.zeros((1, 2, 3)), np.full((1, 2, 3), 150.0)])}
    far, complex_ = np.full((1, 2, 3), 1e300), np.full((1, 2, 3), 1 + 2j)
    bad = {
        "far": far,
        "complex": complex_,
        "none": np.zeros((0, 1, 2, 3)),
        "other": np.zeros((3, 2)),
        "nan": np.full((1, 2, 3), np.nan),
        "words": np.full((1, 2, 3), "a"),
    }
    for name, values in {**arrays, **bad}.items():
        np.save(tmp_path / f"{name}.npy", values)
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**45,)})
    (tmp_path / "broken.npy").write_bytes(b"PK\x03\x04 no archive")
    huge, broken, deep = answers(predictor, *(str(tmp_path / f"{n}.npy").encode() for n in ("huge", "broken")), b"[" * 20_000)
    assert huge.startswith("is neither a JSON array nor an .npy file (Unable to allocate 256. TiB")
    assert broken.startswith("is neither a JSON array nor an .npy file (the magic string is not correct")
    assert deep.startswith("is neither a JSON array nor an .npy file (maximum recursion depth exceeded")
    paths = [str(tmp_path / f"{name}.npy").encode() for name in (*arrays, *bad)]
    assert answers(predictor, *paths, b"[[[1,2,3],[4,5,6]]]", b"[1,", b"", b"\xff", b"nowhere.npy", b"digit.png") == [
        "yes", "no", "yes",
        "holds a number beyond those of float32 (up to 3.4e+38)", "holds complex numbers, the network takes real ones",
        "holds no example",
        "has the shape (3, 2), the network takes (1, 2, 3)", "holds what is no finite number",
        "holds values of the type <U1, the network takes numbers",
        "no", "is neither a JSON array nor an .npy file (Expecting value: line 1 column 4 (char 3))", "is empty",
        "is not valid UTF-8 (byte 0)",
        "is neither a JSON array nor an .npy file ([Errno 2] No such file or directory: 'nowhere.npy')",
        "is a picture, with values from 0 to 255; contract.json says which values this network takes, as .npy",
    ]  # fmt: skip


def test_an_answer_that_is_no_number_is_none(tmp_path):
    class Square(torch.nn.Module):
        def forward(self, image):
            square = (image * image).sum(dim=(1, 2, 3))
            return torch.stack([square, -square], dim=1)

    example = {"image": torch.zeros(1, 1, 1, 1)}
    given = {"kind": "values", "name": "image", "shape": [1, 1, 1], "pictures": False}
    predictor = Predictor(tiny_folder(tmp_path, Square(), example, **given), Options())
    assert answers(predictor, b"[[[2]]]", b"[[[3e38]]]") == ["no", "is answered with numbers that are not finite"]


def test_a_picture_is_read_where_pillow_is_installed(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

    class Red(torch.nn.Module):
        def forward(self, image):
            red, green, _ = image.mean(dim=(2, 3)).unbind(1)
            return torch.stack([green - red, red - green], dim=1)

    example = {"image": torch.zeros(1, 3, 4, 4)}
    predictor = Predictor(
        tiny_folder(tmp_path, Red(), example, kind="values", name="image", shape=[3, 4, 4], pictures=True), Options()
    )
    image.new("RGB", (9, 5), (250, 3, 0)).save(tmp_path / "red.png")
    image.new("RGB", (4, 4), (3, 250, 0)).save(tmp_path / "green.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    image.new("I;16", (4, 4), 60_000).save(tmp_path / "deep.png")
    names = ("red", "green", "broken", "deep")
    red, green, broken, deep = answers(predictor, *(str(tmp_path / f"{n}.png").encode() for n in names))
    assert (red, green) == ("yes", "no")
    assert deep == "cannot be read as a picture (mode I;16 holds more than 8 bits a channel)"
    assert broken.startswith("cannot be read as a picture")


class Counts(torch.nn.Module):
    """Of each token: how far it is above 2, and below."""

    def forward(self, token_ids, attention_mask):
        above = ((token_ids - 2) * attention_mask).float()
        return torch.stack([-above, above], dim=2)


@pytest.fixture
def words(tmp_path) -> Path:
    """A folder with a tokenizer of words: a is 1, b is 2, and "low" two tokens, 3 and 4."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2, "l": 3, "##ow": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tags_are_answered_word_by_word(words):
    ids = torch.ones(1, 3, dtype=torch.int64)
    given = {"kind": "text", "answer": "tags", "max_tokens": 4, "num_ids": 5}
    predictor = Predictor(tiny_folder(words, Counts(), {"token_ids": ids, "attention_mask": ids}, **given), Options())
    assert list(predictor(b"a low  b")) == [{"tags": [["a", "no"], ["low", "yes"], ["b", "no"]], "tokens": 4, "cut": False}]
    assert list(predictor(b"a a a a low")) == [{"tags": [["a", "no"]] * 4, "tokens": 4, "cut": True}]
    with pytest.raises(Refused, match="is empty"):
        next(predictor(b"  "))


def test_a_number_is_answered_in_its_unit(words):
    class Mean(torch.nn.Module):
        def forward(self, token_ids, attention_mask):
            return (token_ids * attention_mask).float().mean(dim=1, keepdim=True)

    ids = torch.ones(1, 3, dtype=torch.int64)
    (words / "target.json").write_text('{"unit": "euros", "mean": 10.0, "std": 4.0}')
    given = {"kind": "text", "answer": "number", "max_tokens": 4, "num_ids": 5}
    predictor = Predictor(tiny_folder(words, Mean(), {"token_ids": ids, "attention_mask": ids}, **given), Options())
    assert list(predictor(b"a b b a")) == [{"number": 16.0, "tokens": 4, "cut": False}]


def test_token_ids_are_answered_without_a_tokenizer(tmp_path):
    class Sum(torch.nn.Module):
        def forward(self, token_ids, attention_mask):
            total = (token_ids * attention_mask).sum(1).float()
            return torch.stack([10 - total, total - 10], dim=1)

    ids = torch.ones(1, 3, dtype=torch.int64)
    example = {"token_ids": ids, "attention_mask": ids}
    given = {"kind": "token ids", "max_tokens": 4, "num_ids": 20}
    predictor = Predictor(tiny_folder(tmp_path, Sum(), example, **given), Options())
    row = "and not a row of 1 to 4 token ids"
    assert answers(predictor, b"[1, 2]", b"[9,9]", b"[1,2,3,4,5]", b"[1,20]", b"[]", b"[0.5]") == [
        "no", "yes",
        f"is int64 of shape (5,), {row}", "holds the token id 20, which is not in 0 to 19",
        f"is float64 of shape (0,), {row}", f"is float64 of shape (1,), {row}",
    ]  # fmt: skip


def test_the_way_to_open_a_file_is_tried(folder, monkeypatch):
    ids = np.arange(8)[None]
    inputs = {"token_ids": ids, "attention_mask": np.ones_like(ids)}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU, "CUDAExecutionProvider", "AzureExecutionProvider"])
    own = Placement(CPU, 1, "none")
    best, trials = tune(folder / "model.onnx", inputs, own, tolerance=1e-4, rounds=1)
    assert trials[0].placement == own
    assert {t.placement.graph_optimization for t in trials} == {"none", "all", "extended", "basic"}
    assert best in [t.placement for t in trials if t.equal]
    [absent] = [t for t in trials if t.placement.provider != CPU]
    assert absent.placement.provider == "CUDAExecutionProvider"
    assert absent.latency_ms is None
    assert not absent.equal
    assert absent.refused
    ran = operators(folder / "model.onnx", inputs, own)
    assert {o["operator"] for o in ran} >= {"MatMul", "LayerNormalization"}
    assert all(o["provider"] == CPU and o["count"] >= 1 for o in ran)


def test_another_answer_is_never_the_fastest(folder, monkeypatch):
    """A way that is quicker and wrong is tried, told of, and not taken."""
    own, quick = Placement(CPU, 1, "all"), Placement(CPU, 1, "basic")
    logits = np.array([[1.0, 2.0]])
    visits = {own: ([logits], 5.0), quick: ([logits[:, ::-1]], 1.0)}
    monkeypatch.setattr(placement, "candidates", lambda _: [own, quick])
    monkeypatch.setattr(placement, "_visit", lambda path, feed, way: visits[way])
    best, trials = tune(folder, {}, own, tolerance=10.0)
    assert best == own
    assert [(t.latency_ms, t.equal) for t in trials] == [(5.0, True), (1.0, False)]
    visits[quick] = ([logits], 4.9)
    assert tune(folder, {}, own, tolerance=0.0)[0] == own, "not clearly faster"
    visits[quick] = ([logits], 4.0)
    assert tune(folder, {}, own, tolerance=0.0)[0] == quick


def test_another_file_of_a_network_is_tried_and_never_the_fastest(folder, monkeypatch):
    own, other = Placement(CPU, 1, "all"), folder / "other.onnx"
    logits = np.array([[1.0, 2.0]])
    monkeypatch.setattr(placement, "candidates", lambda _: [own])
    monkeypatch.setattr(placement, "_visit", lambda path, feed, way: ([logits], 1.0 if path == other else 5.0))
    best, trials = tune(folder, {}, own, tolerance=0.0, others={"written otherwise": other})
    assert best == own
    assert [(t.file, t.latency_ms, t.equal) for t in trials] == [("", 5.0, True), ("written otherwise", 1.0, True)]
    assert [t.to_json().get("file") for t in trials] == [None, "written otherwise"]


def test_an_interrupted_operator_is_not_the_slowest():
    def answer(attention_us: int, matmul_us: int) -> list[dict[str, Any]]:
        return [{"name": "attention", "dur": attention_us}, {"name": "matmul", "dur": matmul_us}]

    calls = [answer(9, 900), answer(3, 1), answer(700, 1), answer(2, 1), answer(4, 1)]
    assert placement.quieter(list(chain(*calls)), answers=5) == [calls[3], calls[1], calls[4]]


def test_memory_is_that_of_a_fresh_process(folder):
    ids = np.ones((1, 32), np.int64)
    memory = peak_memory(folder / "model.onnx", {"token_ids": ids, "attention_mask": ids}, Placement())
    if memory is None:
        pytest.skip("this system does not say how much memory a process had")
    assert 20 < memory["process_mib"] < 200, "torch is not in it"


def shipped_as(
    kind: str,
    device: Device,
    exporter: Exporter,
    folder: Path,
    *,
    limits: Limits = Limits(tolerance=1e-4),  # noqa: B008
) -> Shipped:
    """The fastest network in another format, timed by its own device."""
    finisher = replace(exporter.finisher, device=device)
    own = replace(exporter, finisher=finisher, kind=kind, variant=kind, folder=folder)
    shipment = own.shipment(pick(exporter.results.networks, "fastest_within:100%"), ["fast"])
    return ship(finisher, [shipment], Terms("again", limits, kind=kind, variant=kind))


def test_a_device_that_runs_another_format_is_proven_by_its_own_file(run, exporter):
    """The ONNX file ships, and the file that the device was timed with has the test error beside it."""
    finisher = replace(exporter.finisher, device=LocalTorch())
    shipment = exporter.shipment(pick(exporter.results.networks, "fastest_within:100%"), ["fast"])
    shipped = ship(finisher, [shipment], Terms("again", Limits(tolerance=1e-4), variant="timed_by_torch"))
    [facts] = shipped.networks
    assert not facts["parity"]["runtime_is_timed"]
    on_device = facts["on_device"]
    assert (on_device["device"], on_device["format"]) == ("local_torch", "torchscript")
    assert on_device["equal_decisions"] == 1
    assert on_device["max_abs_difference"] < 1e-4
    assert on_device["validation_error_percent"] == facts["torch_validation_error_percent"]
    assert on_device["test"] == facts["test"]
    key = f"{facts['id']}.timed_by_torch"
    assert {key, f"{key} on local_torch"} <= set(json.loads((run / "test.json").read_text()))
    card = (shipped.folder / "card.md").read_text()
    assert "timed with a file in the format `torchscript`, decides 100.00 % of " in card
    assert "its own answers were not compared" not in card
    facts["on_device"]["validation_error_percent"] += 5
    assert lost_sentence(facts).startswith("The file that ships is not as good as its network")


def test_another_format_has_the_same_contract(run, exporter, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    shipped = shipped_as("openvino", OpenVino(), exporter, tmp_path)
    [facts] = shipped.networks
    assert shipped.folder.name == f"{facts['id']}.openvino"
    assert facts["files"] == ["model.xml", "model.bin"]
    assert facts["parity"]["equal_decisions"] == 1
    assert facts["latency_ms"]["p99"] > 0
    assert facts["environment"]["openvino"]
    assert {"FullyConnected", "Gather"} <= {o["operator"] for o in facts["operators"]}
    assert sum(o["percent"] for o in facts["operators"]) == pytest.approx(100, abs=1)
    assert all(o["provider"] == "reference kernels of OpenVINO's CPU plugin" for o in facts["fallbacks"])
    assert facts["memory"]["peak"]["network_mib"] > 0
    assert "beside its runtime | " in (shipped.folder / "card.md").read_text()
    assert facts["parity"]["runtime"].startswith(f"openvino {shipped.contract['versions']['openvino']} ")
    tests = json.loads((run / "test.json").read_text())
    assert tests[f"{facts['id']}.openvino"]["error_percent"] == facts["test"]["error_percent"]
    assert not (shipped.folder / "predict.py").exists()
    assert "its runtime opens it" in (shipped.folder / "card.md").read_text()


def test_an_executorch_file_says_what_its_delegate_left_to_others(exporter, tmp_path):
    pytest.importorskip("executorch", reason="executorch is not installed")
    shipped = shipped_as("pte", ExecuTorch(), exporter, tmp_path)
    [facts] = shipped.networks
    assert facts["files"] == ["model.pte"]
    assert facts["parity"]["equal_decisions"] == 1
    assert facts["latency_ms"]["p99"] > 0
    assert facts["sizes"] == {"token_ids": [1, 32], "attention_mask": [1, 32]}
    assert {o["operator"] for o in facts["fallbacks"]} < {o["operator"] for o in facts["operators"]}
    card = (shipped.folder / "card.md").read_text()
    assert "embedding.out (portable kernels)" in card
    assert "This file takes `token_ids`, int64 [1, 32] and `attention_mask`, int64 [1, 32], and nothing of another size." in card
    assert shipped.contract["versions"]["executorch"] in facts["parity"]["runtime"]


@pytest.mark.slow  # an emulated answer takes some 20 ms
def test_a_file_for_an_npu_that_is_emulated_has_all_but_a_latency(exporter, tmp_path):
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    shipped = shipped_as("qnn-sm8650", Qnn(), exporter, tmp_path, limits=Limits(max_drop=1.0))
    [facts] = shipped.networks
    assert facts["files"] == ["model.qnn.onnx"]
    assert facts["parity"]["equal_decisions"] > 0.99
    assert 0 < facts["parity"]["max_abs_difference"] < 0.05
    emulation = "Qualcomm's emulation of the NPU of sm8650 on this machine's CPU"
    assert facts["parity"]["runtime"] == f"onnxruntime-qnn {shipped.contract['versions']['onnxruntime-qnn']}, {emulation}"
    assert facts["latency_ms"] is None
    assert facts["verdict"].startswith("PREDICTED, NOT MEASURED (qnn is emulated on this machine): ")
    assert facts["sizes"] == {"token_ids": [1, 32], "attention_mask": [1, 32]}
    assert {"Gemm", "Gather"} <= {o["operator"] for o in facts["operators"]}
    assert not facts["fallbacks"]
    assert facts["memory"]["peak"] is None
    card = (shipped.folder / "card.md").read_text()
    assert "on qnn | NOT MEASURED: it is emulated on this machine, which says nothing of its speed |" in card
    assert "| who runs it | QNNExecutionProvider; no operator falls back |" in card


@pytest.mark.parametrize("kind", ["pt2", "torchscript"])
def test_a_file_of_torch_says_which_operators_ran(exporter, tmp_path, kind):
    shipped = shipped_as(kind, LocalTorch(), exporter, tmp_path)
    [facts] = shipped.networks
    assert {"addmm", "embedding"} <= {o["operator"] for o in facts["operators"]}
    assert all(o["provider"] == "torch" and o["count"] >= 1 for o in facts["operators"])
    assert not facts["fallbacks"]
    assert facts["memory"]["peak"]["network_mib"] > 0
    assert "| who runs it | torch; no operator falls back |" in (shipped.folder / "card.md").read_text()


def test_a_litert_file_is_scored_on_whole_batches(exporter, tmp_path):
    pytest.importorskip("litert_torch", reason="litert-torch is not installed")
    shipped = shipped_as("tflite", LiteRt(), exporter, tmp_path)
    [facts] = shipped.networks
    assert facts["files"] == ["model.tflite"]
    assert facts["parity"]["equal_decisions"] == 1
    assert facts["validation_error_percent"] == facts["torch_validation_error_percent"]
    assert facts["sizes"] == {"token_ids": [1, 32], "attention_mask": [1, 32]}
    card = (shipped.folder / "card.md").read_text()
    assert facts["types"] == {"token_ids": "int32", "attention_mask": "int32"}
    assert ("FULLY_CONNECTED", "XNNPACK") in {(o["operator"], o["provider"]) for o in facts["operators"]}
    assert ("EMBEDDING_LOOKUP", "LiteRT's own kernels") in {(o["operator"], o["provider"]) for o in facts["fallbacks"]}
    assert "EMBEDDING_LOOKUP (LiteRT's own kernels)" in card
    assert facts["memory"]["peak"]["network_mib"] > 0
    assert "This file takes `attention_mask`, int32 [1, 32] and `token_ids`, int32 [1, 32], and nothing of another size." in card
    assert shipped.contract["versions"]["ai-edge-litert"] in facts["parity"]["runtime"]
    assert shipped.contract["versions"]["litert-torch"][0].isdigit()


def test_a_file_of_one_size_answers_any_batch_of_at_most_that_many_tokens():
    asked = []

    def execute(values):
        ids, mask = values
        asked.append(tuple(ids.shape))
        return [(ids * mask).float().cumsum(1)[..., None].numpy(), (ids * mask).sum(1, keepdim=True).numpy()]

    answers = FixedSizes("model", {"token_ids": (2, 4), "attention_mask": (2, 4)}, execute)
    ids = torch.arange(1, 16).reshape(5, 3)
    by_token, by_example = answers({"token_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert asked == [(2, 4)] * 3
    assert np.array_equal(by_token, ids.float().cumsum(1)[..., None])
    assert np.array_equal(by_example, ids.sum(1, keepdim=True))
    too_long = torch.ones(1, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"model: token_ids is of the size \(1, 5\), the file takes at most \(2, 4\)"):
        answers({"token_ids": too_long, "attention_mask": too_long})
