"""A Qualcomm NPU through ONNX Runtime's plugin: emulated here, so answers and operators count, and times do not."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from experiments.contract import BrokenPromiseError, Files, Limits, proven
from experiments.costing import check_real
from experiments.devices import state
from experiments.measured import Timed, said
from hardware.placement import offered
from hardware.qnn import Qnn
from hardware.timing import Exported, measure
from nas import qnn_file
from nas.export import export_for, write_as
from nas.formats import FORMATS, ExportError
from nas.protocols import Batch, DeviceError
from nas.space import Architecture
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.stages import Scale, Sum, finisher_of

SPACE = encoder_space(width=(32,), depth=(1,), heads=(1,), ffn=(32,), attention=("full",))
QUICK = {"warmup_seconds": 0.01, "visit_seconds": 0.01, "min_samples": 2, "max_samples": 3}


@pytest.fixture
def here():
    """Skips where the plugin is not installed."""
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EncoderFamily(SPACE, 50, 3, max_tokens=8, head_size=32).network(SPACE.largest()).eval()


@pytest.fixture
def example():
    return {"token_ids": torch.randint(2, 50, (1, 8)), "attention_mask": torch.ones(1, 8, dtype=torch.int64)}


class WithErf(torch.nn.Module):
    """Something that the NPU takes, and an error function, which it does not."""

    def forward(self, values):
        return values.relu() @ values.transpose(1, 2) + torch.erf(values)


def few_batches(self, split, *, tokens_per_batch, seed):
    ids = torch.randint(20, (8, 8), generator=torch.Generator().manual_seed(len(split)))
    yield Batch((ids, torch.ones_like(ids)), (ids % 3).mode(dim=1).values)


def arrays(example):
    return {name: value.numpy() for name, value in example.items()}


# --- without the plugin


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soc": "sm1"}, r"soc: 'sm1' is not one of \('auto', 'sm8450', .*nor Qualcomm's number of a chip"),
        ({"performance_mode": "fast"}, r"performance_mode: 'fast' is not one of \('default', 'burst', "),
        ({"threads": 0}, "threads: 0 is not between 1 and"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        Qnn(**options)


def test_the_plugin_is_named_with_its_extra(monkeypatch, tmp_path, network, example):
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    qnn_file.plugin.cache_clear()
    sentence = r"onnxruntime.qnn is not installed: pip install 'paretoformer\[qnn\]'"
    for use in (lambda: Qnn().environment, lambda: Qnn().run(tmp_path / "any", {}), lambda: Qnn().opened(tmp_path / "any")):
        with pytest.raises(DeviceError, match=sentence):
            use()
    with pytest.raises(ValueError, match=sentence):
        write_as("qnn-sm8650", network, [example], tmp_path / "model.qnn.onnx", tolerance=1e-4)
    assert not list(tmp_path.iterdir())


def test_each_format_names_its_chip():
    assert {f"qnn-{soc}" for soc in qnn_file.SOCS} == {kind for kind in FORMATS if kind.startswith("qnn")}
    assert {FORMATS[kind].precision for kind in qnn_file.FORMATS} == {"fp16"}


def test_sizes_are_fixed_and_others_refused(network, example, tmp_path):
    path = export_for(Scale(), network, example, tmp_path / "network")
    model = onnx.load_from_string(qnn_file.with_fixed_sizes(path, {"token_ids": (2, 8), "attention_mask": (2, 8)}))
    for port, size in (*zip(model.graph.input, [[2, 8]] * 2, strict=True), (model.graph.output[0], [2, 3])):
        assert [axis.dim_value for axis in port.type.tensor_type.shape.dim] == size
    path.write_bytes(model.SerializeToString())
    for sizes, message in (
        ({"token_ids": (2, 8)}, r"inputs: \['token_ids'\] are given, the file takes"),
        ({"token_ids": (2, 9), "attention_mask": (2, 9)}, r"token_ids: has the size \(2, 9\), the file takes \(2, 8\)"),
        ({"token_ids": (8,), "attention_mask": (8,)}, r"token_ids: has the size \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            qnn_file.with_fixed_sizes(path, sizes)


def test_a_search_refuses_an_emulated_npu_and_takes_a_real_one(monkeypatch):
    monkeypatch.setattr(Qnn, "is_emulated", True)
    with pytest.raises(ValueError, match=r"device: qnn is emulated on this machine, .* `paretoformer measure` shows them"):
        check_real(Qnn())
    monkeypatch.setattr(Qnn, "is_emulated", False)
    check_real(Qnn())


@pytest.mark.parametrize(
    ("machine", "kind", "emulated"),
    [("x86_64", "NPU", True), ("x86_64", "CPU", True), ("aarch64", "NPU", False), ("ARM64", "NPU", False)],
)
def test_an_npu_is_qualcomms_on_an_arm_machine(machine, kind, emulated, monkeypatch):
    class Offered:
        class device:  # noqa: N801
            type = getattr(onnxruntime.OrtHardwareDeviceType, kind)

    monkeypatch.setattr(qnn_file, "plugin", Offered)
    monkeypatch.setattr(qnn_file.platform, "machine", lambda: machine)
    assert qnn_file.is_emulated() is emulated


# --- with it


def test_answers_are_torchs_within_fp16_for_any_size(here, network, example, tmp_path):
    path = export_for(device := Qnn(**QUICK), network, example, tmp_path / "network")
    answer = device.opened(path)
    more = {"token_ids": torch.randint(2, 50, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.int64)}
    for inputs in (example, more):
        expected = network(*inputs.values()).detach().numpy()
        [logits] = answer(inputs)
        assert 0 < np.abs(logits - expected).max() < 0.01
        assert (logits.argmax(-1) == expected.argmax(-1)).all()


def test_times_are_called_emulated_and_operators_told(here, network, example, tmp_path):
    path = export_for(device := Qnn(**QUICK), network, example, tmp_path / "network")
    assert device.environment["emulated"]
    assert (device.environment["precision"], device.environment["soc"]) == ("fp16", "sm8650")
    one = Exported(Architecture((("file", "network"),)), path, arrays(example))
    [measured] = measure(device, [one], sentinel=one, workload=Workload(1, 8), rounds=1)
    words = [line for line in said([Timed("network", one, measured)]) if isinstance(line, str)]
    assert "These times are emulated: they are no latencies of a real device." in words
    total = sum(ran["count"] for ran in measured.environment["operators"])
    assert f"network: {total} of {total} operators on QNNExecutionProvider; none falls back." in words
    json.dumps(dict(measured.environment))


def test_what_the_npu_does_not_take_is_named(here, tmp_path):
    values = {"values": torch.randn(1, 4, 4)}
    path = export_for(device := Qnn(**QUICK), WithErf(), values, tmp_path / "network")
    ran = device.operators(path, arrays(values))
    assert {"MatMul", "Relu"} <= {one["operator"] for one in ran if one["provider"] == "QNNExecutionProvider"}
    assert "Erf" in {one["operator"] for one in ran if one["provider"] == "CPUExecutionProvider"}
    compiled = tmp_path / "model.qnn.onnx"
    write_as("qnn-sm8650", WithErf(), [values], compiled, tolerance=1e-4)
    assert qnn_file.record_of(compiled) == ran, "operators and fallbacks are known of the compiled file"


def test_a_compiled_file_answers_in_its_size_and_says_what_it_holds(here, network, example, tmp_path):
    path = tmp_path / "model.qnn.onnx"
    difference, equal, total = write_as("qnn-sm8550", network, [example], path, tolerance=1e-4)
    assert 0 < difference < 0.01
    assert equal == total == 1
    assert [node.op_type for node in onnx.load(path).graph.node] == ["EPContext"]
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    answer = FORMATS["qnn-sm8550"].open(path)
    assert answer.sizes == {"token_ids": (1, 8), "attention_mask": (1, 8)}
    assert answer.types == {"token_ids": "int64", "attention_mask": "int64"}
    device = Qnn(soc="sm8550", **QUICK)
    assert len(device.run(path, arrays(example))) >= 2
    assert {one["provider"] for one in device.operators(path, arrays(example))} == {"QNNExecutionProvider"}
    with pytest.raises(DeviceError, match=r"model.qnn.onnx: QNN failed: token_ids: has the size \(1, 4\), the file takes"):
        device.run(path, {name: value.numpy()[:, :4] for name, value in example.items()})


def test_an_unknown_chip_is_an_error_of_the_export(here, network, example, tmp_path, monkeypatch):
    monkeypatch.setitem(qnn_file.SOCS, "sm8650", 30)  # of the SM8350, for which no network in float compiles
    with pytest.raises(ExportError, match=r"model.qnn.onnx: the network cannot be compiled for sm8650: "):
        write_as("qnn-sm8650", network, [example], tmp_path / "model.qnn.onnx", tolerance=1e-4)
    assert not list(tmp_path.iterdir())


def test_the_contract_has_all_but_a_latency(here, tmp_path, monkeypatch):
    monkeypatch.setattr(Sum, "batches", few_batches)
    monkeypatch.setattr("experiments.contract.PARITY_EXAMPLES", 8)
    family = EncoderFamily(SPACE, 20, 3, max_tokens=8, head_size=32)
    finisher = replace(finisher_of(family, tmp_path / "run", Scale(constant=True)), device=Qnn(**QUICK))
    arch = SPACE.largest()
    finisher.finish(arch, family.supernet())
    path = tmp_path / "model.qnn.onnx"
    write_as("qnn-sm8650", finisher.files.network(arch), [family.example_input(Workload(1, 8))], path, tolerance=1e-4)
    files = Files((path.name,), path, path)
    facts = proven(finisher, arch, files, None, kind="qnn-sm8650", limits=Limits(max_drop=100.0))
    assert 0 < facts["parity"]["max_abs_difference"] < 0.05
    assert facts["parity"]["runtime"].endswith(", Qualcomm's emulation of the NPU of sm8650 on this machine's CPU")
    assert facts["latency_ms"] is None
    assert facts["sizes"] == {"token_ids": [1, 8], "attention_mask": [1, 8]}
    assert {"Gemm", "Gather", "Softmax"} <= {ran["operator"] for ran in facts["operators"]}
    assert facts["fallbacks"] == []
    assert facts["memory"] == {"peak": None}
    with pytest.raises(BrokenPromiseError, match=r"budget_ms: .* was not measured, 100 is promised"):
        proven(finisher, arch, files, None, kind="qnn-sm8650", limits=Limits(budget_ms=100.0))


def test_auto_needs_a_chip(here):
    with pytest.raises(DeviceError, match="soc: auto needs a Qualcomm NPU, this machine has none; emulated are sm8450, "):
        _ = Qnn(soc="auto").environment


def test_the_list_of_devices_says_that_it_is_emulated(here):
    assert state((Path(__file__).parent.parent / "conf/device/qnn.yaml").read_text()) == "here, emulated"


def test_what_ships_for_the_cpu_is_not_tried_on_it(here):
    assert qnn_file.plugin()
    assert "QNNExecutionProvider" not in offered()
