"""Quantised files without what they need not say: small, none with ONNX Runtime's slow operator, and the same answers."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.numpy_helper import to_array

from nas.export import export_onnx
from nas.finish import precision
from nas.finish.precision import KINDS, quantised
from nas.formats import open_session
from nas.runtime_attention import graphs
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


@pytest.fixture
def as_quantised(monkeypatch):
    """What ONNX Runtime's own quantiser makes of a model."""

    def made(model, *args, **options):
        with monkeypatch.context() as patched:
            patched.setattr(precision, "lean", lambda model: model)
            return quantised(model, *args, **options)

    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_no_file_has_the_slow_operator_when_it_runs(name, tmp_path, as_quantised):
    family, picks, inputs = FAMILIES[name]
    arch = family.space.canonical({**family.space.largest().as_dict, **picks})
    path = tmp_path / "model.onnx"
    export_onnx(family.network(arch, backend="blocks"), inputs(3, 7), path)
    plain = onnx.load(path)
    for model in (plain, quantised(plain, "dynamic")):
        assert SLOW not in as_it_runs(model, tmp_path)
    if "means" not in name:
        slow = as_it_runs(as_quantised(plain, "dynamic"), tmp_path)
        assert SLOW in slow, "ONNX Runtime no longer makes it: quantised files may say their shapes"


def test_layers_whose_precision_was_chosen_have_none_either(tmp_path):
    family = EncoderFamily(encoder_space(**{**SIZES, "attention": ("full",), "precision": ("int8",)}), 50, 5, 40, 8, norm="post")
    path = tmp_path / "model.onnx"
    export_onnx(family.network(family.space.largest(), backend="blocks"), tokens(3, 7), path)
    assert SLOW not in as_it_runs(onnx.load(path), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_short_names_answer_alike_in_a_smaller_file(kind, tmp_path, as_quantised):
    torch.manual_seed(0)
    family, _, _ = FAMILIES["encoder"]
    path = tmp_path / "model.onnx"
    export_onnx(family.network(family.space.largest(), backend="blocks"), tokens(3, 7), path)
    plain, feed = onnx.load(path), {key: value.numpy() for key, value in tokens(5, 2).items()}
    long, short = (made(plain, kind, feeds=[feed]) for made in (as_quantised, quantised))
    answers = [open_session(model.SerializeToString(), threads=1).run(None, feed)[0] for model in (long, short)]
    np.testing.assert_allclose(*answers, atol=1e-6)
    beside_weights = [
        model.ByteSize() - sum(len(to_array(t).tobytes()) for t in model.graph.initializer) for model in (long, short)
    ]
    assert beside_weights[1] < 0.5 * beside_weights[0]
    assert short.graph.input == plain.graph.input
    assert short.graph.output == plain.graph.output
    assert not any(node.name for graph in graphs(short.graph) for node in graph.node)
