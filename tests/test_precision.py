"""What ships is what was measured: a device of another precision ships the file that it ran, and layers in integers stay so."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from nas.export import INTEGER_TOLERANCE
from tests.support.commands import command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    words = ("experiment=smoke", "device.precision=int8", f"run={folder / 'run'}", f"store={folder / 'store'}", "torch_threads=1")
    done = command("search", *words)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_int8_file_ships_and_is_what_was_scored(run):
    results = json.loads((run / "results.json").read_text())
    [folder] = (run / "export").iterdir()
    kinds = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds
    plain = run / f"shortlist/{folder.name}.onnx"
    assert (folder / "model.onnx").stat().st_size < 0.9 * plain.stat().st_size
    ids = np.arange(2, 22)[None]
    feed = {"token_ids": ids, "attention_mask": np.ones_like(ids)}
    int8, fp32 = (onnxruntime.InferenceSession(path).run(None, feed)[0] for path in (folder / "model.onnx", plain))
    assert 0 < np.abs(int8 - fp32).max() < 1
    assert results["parity"]["max_abs_difference"] > 1e-4, "parity is that of the file that ships"
    assert 0.5 < results["parity"]["equal_decisions"] <= 1
    assert "int8" in results["device"]


@pytest.mark.slow
def test_a_search_whose_layers_are_all_in_integers_ships_that(tmp_path):
    words = (
        "experiment=smoke",
        "space.precision=[int8,int4]",
        f"run={tmp_path / 'run'}",
        f"store={tmp_path / 'store'}",
        "torch_threads=1",
    )
    done = command("search", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    [folder] = (tmp_path / "run/export").iterdir()
    facts = json.loads((folder / "contract.json").read_text())["networks"][0]
    depth = facts["architecture"]["depth"]
    chosen = [facts["architecture"][f"layer{n}.precision"] for n in range(1, depth + 1)]
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert ("MatMulInteger" in kinds, "MatMulNBits" in kinds) == ("int8" in chosen, "int4" in chosen)
    assert results["parity"]["max_abs_difference"] <= INTEGER_TOLERANCE
    assert results["parity"]["equal_decisions"] >= 0.99
    assert facts["validation_error_percent"] == pytest.approx(facts["torch_validation_error_percent"], abs=1.0)
