"""Full attention as one operator of ONNX Runtime: the same answers, where it fits, in every precision."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from hardware.local_cpu import LocalCpu
from hardware.local_torch import LocalTorch
from nas.attention import Attention
from nas.export import export_onnx, form_of, format_of, runs_onnx
from nas.finish.precision import quantised
from nas.formats import open_session
from nas.runtime_attention import RuntimeAttention, graphs, with_runtime_attention
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.full_attention import FAMILIES, SIZES, decoder, encoder, tokens

OWN = "com.microsoft"


def network_of(name):
    torch.manual_seed(0)
    family, picks, inputs = FAMILIES[name]
    arch = family.space.canonical({**family.space.largest().as_dict, **picks})
    network = family.network(arch, backend="blocks").eval()
    for part in network.modules():
        if isinstance(part, Attention):
            for projection in (part.query, part.key, part.value):
                torch.nn.init.normal_(projection.weight, std=0.3)  # so that it matters where one looks
                torch.nn.init.normal_(projection.bias)
    return network, inputs


def kinds_of(path):
    return Counter(node.op_type for graph in graphs(onnx.load(path).graph) for node in graph.node)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_has_one_operator_and_the_same_answers_at_any_size(name, tmp_path):
    network, inputs = network_of(name)
    others = [inputs(*lengths) for lengths in ((1,), (24,), (5, 40, 17), (7, 7))]
    export_onnx(network, inputs(24), tmp_path / "own.onnx", check_on=others)
    assert kinds_of(tmp_path / "own.onnx")["Attention"] == 2
    assert kinds_of(tmp_path / "own.onnx")["Softmax"] == 0


@pytest.mark.parametrize("kind", ["dynamic", "static", "int4", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_its_weights_are_in_fewer_bits_too(name, kind, tmp_path):
    network, inputs = network_of(name)
    example = inputs(5, 24, 17)
    feed = {key: value.numpy() for key, value in example.items()}
    export_onnx(network, example, tmp_path / "own.onnx")
    onnx.save(quantised(onnx.load(tmp_path / "own.onnx"), kind, feeds=[feed]), tmp_path / "less.onnx")
    expected, actual = (open_session(tmp_path / file).run(None, feed)[0] for file in ("own.onnx", "less.onnx"))
    actual, expected = (x[feed["attention_mask"] > 0] if name == "decoder" else x for x in (actual, expected))
    assert 0 < np.abs(actual - expected).max() < {"fp16": 0.02, "int4": 2.0}.get(kind, 0.3) * np.abs(expected).max()
    matrices = [t for t in onnx.load(tmp_path / "less.onnx").graph.initializer if len(t.dims) == 2 and t.dims[-1] == 3 * 16]
    assert all(tensor.data_type != onnx.TensorProto.FLOAT for tensor in matrices), "queries, keys and values"
    kinds = kinds_of(tmp_path / "less.onnx")
    if kind == "dynamic":
        assert kinds["QAttention"] + kinds["MultiHeadAttention"] == 2
        assert bool(kinds["MultiHeadAttention"]) == (name == "encoder of means"), "QAttention takes no shares"


def test_what_it_cannot_do_stays_written_out(tmp_path):
    grouped = EncoderFamily(encoder_space(**{**SIZES, "attention": ("full",), "kv_heads": (1,)}), 50, 5, 40, 8)
    windows = encoder(attention=("window",))
    rotary = decoder(positions="rotary")
    scored = encoder(keep=(50, 100), keep_after=1)
    for family, count in ((grouped, 0), (windows, 0), (rotary, 0), (scored, 1)):
        arch = family.space.largest()
        if family is scored:
            arch = family.space.canonical({**arch.as_dict, "keep_after_1": 50})
        network = family.network(arch, backend="blocks").eval()
        export_onnx(network, tokens(24), tmp_path / "m.onnx", check_on=[tokens(3, 9)], tolerance=1e-5)
        assert kinds_of(tmp_path / "m.onnx")["Attention"] == count


def test_steps_with_a_past_and_what_they_hand_on(tmp_path, capfd):
    network, _ = network_of("decoder")
    for workload, others in (
        (Workload(2, 8, "prefill"), [Workload(1, 3, "prefill")]),
        (Workload(2, 1, "decode", 8), [Workload(3, 1, "decode", 0), Workload(1, 1, "decode", 30)]),
    ):
        form, example = form_of(decoder(), network, workload)
        checks = [form_of(decoder(), network, other)[1] for other in others]
        export_onnx(form, example, tmp_path / "m.onnx", check_on=checks)
        kinds = kinds_of(tmp_path / "m.onnx")
        assert (kinds["MultiHeadAttention"], kinds["Softmax"]) == (2, 0)
        feed = {name: value.numpy() for name, value in example.items()}
        onnx.save(quantised(onnx.load(tmp_path / "m.onnx"), "dynamic"), tmp_path / "int8.onnx")
        exact, int8 = (open_session(tmp_path / f"{name}.onnx").run(None, feed) for name in ("m", "int8"))
        for ours, theirs in zip(exact, int8, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=0.1 * np.abs(ours).max())
    assert capfd.readouterr().err == "", "the exporter knows every shape"


def test_the_network_stays_as_it_is():
    network, inputs = network_of("encoder")
    copied = with_runtime_attention(network)
    assert not any(isinstance(part, RuntimeAttention) for part in network.modules())
    assert sum(isinstance(part, RuntimeAttention) for part in copied.modules()) == 2
    example = inputs(5, 24)
    torch.testing.assert_close(copied(*example.values()), network(*example.values()))
    windows = encoder(attention=("window",))
    untouched = windows.network(windows.space.largest())
    assert with_runtime_attention(untouched) is untouched


@pytest.mark.parametrize("name", FAMILIES)
def test_other_runtimes_get_operators_of_the_standard(name, tmp_path):
    network, inputs = network_of(name)
    export_onnx(network, inputs(24), tmp_path / "m.onnx", kind="onnx", check_on=[inputs(5, 17)])
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for graph in graphs(model.graph) for node in graph.node} == {""}
    onnx.checker.check_model(model)


def test_a_device_says_which_files_it_runs():
    class Own:
        name = "own"

    devices = LocalCpu(), LocalCpu(fused_attention=False), Own()
    assert [format_of(device) for device in devices] == [
        "onnxruntime",
        "onnx",
        "onnx",
    ]
    assert LocalCpu().fingerprint != LocalCpu(fused_attention=False).fingerprint
    assert runs_onnx(LocalCpu())
    assert not runs_onnx(LocalTorch())
