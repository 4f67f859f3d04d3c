"""Additions before layer norms in files for ONNX Runtime: none becomes its slow operator, and the answers stay."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nas.export import export_onnx
from nas.finish.precision import quantised
from nas.formats import open_session
from nas.runtime_norms import with_sums
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.full_attention import FAMILIES, SIZES, tokens

SLOW = "SkipLayerNormalization"


def as_it_runs(model, folder):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def with_additions(model):
    for node in model.graph.node:
        node.op_type = "Add" if node.op_type == "Sum" else node.op_type
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_no_file_has_the_slow_operator_when_it_runs(name, tmp_path):
    family, picks, inputs = FAMILIES[name]
    arch = family.space.canonical({**family.space.largest().as_dict, **picks})
    path = tmp_path / "model.onnx"
    export_onnx(family.network(arch, backend="blocks"), inputs(3, 7), path)
    fewer = quantised(onnx.load(path), "dynamic")
    for model in (onnx.load(path), fewer):
        assert SLOW not in as_it_runs(model, tmp_path)
    if "means" not in name:
        assert SLOW in as_it_runs(with_additions(fewer), tmp_path), "ONNX Runtime no longer makes it: what avoids it can go"


def test_layers_whose_precision_was_chosen_have_none_either(tmp_path):
    family = EncoderFamily(encoder_space(**{**SIZES, "attention": ("full",), "precision": ("int8",)}), 50, 5, 40, 8, norm="post")
    path = tmp_path / "model.onnx"
    export_onnx(family.network(family.space.largest(), backend="blocks"), tokens(3, 7), path)
    assert SLOW not in as_it_runs(onnx.load(path), tmp_path)


def test_sums_answer_as_additions_do_and_others_stay(tmp_path):
    torch.manual_seed(0)
    family, _, _ = FAMILIES["encoder, post-norm"]
    path = tmp_path / "model.onnx"
    export_onnx(family.network(family.space.largest(), backend="blocks"), tokens(3, 7), path, kind="onnx")
    model = onnx.load(path)
    before = [node.op_type for node in model.graph.node]
    assert "Sum" not in before, "other runtimes get additions"
    feed = {key: value.numpy() for key, value in tokens(5, 2).items()}
    [expected] = open_session(model.SerializeToString(), threads=1).run(None, feed)
    changed = with_sums(model)
    after = [node.op_type for node in changed.graph.node]
    assert after.count("Sum") == after.count("LayerNormalization") > 0
    assert ["Add" if op == "Sum" else op for op in after] == before
    assert "Add" in after, "biases and positions"
    [actual] = open_session(changed.SerializeToString(), threads=1).run(None, feed)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
