"""Vela's estimates: what is read of what it writes, what is refused, and the whole way where its packages are installed."""

import json
import re
import sys

import pytest
import torch

from hardware.ethos_u import ACCELERATORS, Estimate, EthosU, read_estimate
from nas.export import export_for
from nas.formats import ExportError
from nas.protocols import DeviceError
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space

FAMILY = EncoderFamily(encoder_space(), vocab_size=100, num_classes=3, max_tokens=64)
EXAMPLE = FAMILY.example_input(Workload(tokens=64))
INPUTS = {name: value.numpy() for name, value in EXAMPLE.items()}
ON_CPU = {"Quantize", "Cast", "EmbeddingLookup"}

# Of Vela 5.2, the encoder's largest network with two layers; columns that are not read are left out.
SUMMARY = """\
experiment,network,accelerator_configuration,system_config,memory_mode,core_clock,inference_time,sram_memory_used,\
dram_memory_used,on_chip_flash_memory_used,off_chip_flash_memory_used,cycles_npu,cycles_total
default,network,Ethos_U55_128,Ethos_U55_High_End_Embedded,Shared_Sram,500000000.0,0.00689817,146.140625,0.0,0.0,392.921875,\
2936676,3449085
"""
PASSES = """\
Original Operator,NNG Operator,Target,Op Cycles
Cast,Passthrough,CPU,0
EmbeddingLookup,Passthrough,CPU,0
Cast,Passthrough,CPU,0
FullyConnected,FullyConnected,NPU,17680
"""


def write(folder, summary=SUMMARY, passes=PASSES):
    (folder / "network_summary_Ethos_U55_High_End_Embedded.csv").write_text(summary)
    (folder / "network_per-layer.csv").write_text(passes)
    (folder / "network_vela.tflite").write_bytes(bytes(3 * 1024))
    return folder


def installed(*modules):
    for module, package in modules:
        pytest.importorskip(module, reason=f"{package} is not installed")


def network_of(width, depth, attention="full"):
    picks = {**FAMILY.space.largest().as_dict, "width": width, "depth": depth}
    picks |= {f"layer{layer}.attention": attention for layer in range(1, depth + 1)}
    torch.manual_seed(0)
    return FAMILY.network(FAMILY.space.canonical(picks), backend="blocks")


# --- what Vela writes


def test_an_estimate_is_what_vela_wrote(tmp_path):
    estimate = read_estimate(write(tmp_path), "ethos-u55-128")
    assert estimate == Estimate(
        accelerator="ethos-u55-128", system_config="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram", clock_mhz=500.0,
        cycles=3449085, latency_ms=pytest.approx(6.89817), sram_kib=146.140625, dram_kib=0.0, flash_kib=392.921875, file_kib=3.0,
        num_passes=4, cpu_operators={"Cast": 2, "EmbeddingLookup": 1},
    )  # fmt: skip
    assert estimate.latency_ms == pytest.approx(estimate.cycles / estimate.clock_mhz / 1e3)
    assert estimate.num_on_cpu == 3


def test_its_words_say_that_it_is_one_and_what_is_not_in_it(tmp_path):
    words = str(read_estimate(write(tmp_path), "ethos-u55-128"))
    assert words.startswith("estimated 6.898 ms (3449085 cycles at 500 MHz) on ethos-u55-128")
    assert words.endswith("without 3 of 4 operators, which run on the CPU: 2 Cast, 1 EmbeddingLookup")
    assert str(read_estimate(write(tmp_path, passes=PASSES.replace("CPU", "NPU")), "ethos-u55-128")).endswith("all on the NPU")


@pytest.mark.parametrize(
    ("summary", "passes"),
    [
        (SUMMARY.replace("cycles_total", "cycles"), PASSES),
        (SUMMARY.replace("0.00689817", "soon"), PASSES),
        (SUMMARY.splitlines()[0], PASSES),
        (SUMMARY, PASSES.replace("Target", "Where")),
    ],
)
def test_what_another_vela_writes_is_refused(summary, passes, tmp_path):
    with pytest.raises(DeviceError, match="Vela wrote something else"):
        read_estimate(write(tmp_path, summary, passes), "ethos-u55-128")


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(DeviceError, match="Vela wrote something else"):
        read_estimate(tmp_path, "ethos-u55-128")


@pytest.mark.parametrize(("old", "new"), [("0.00689817", "0"), ("0.00689817", "nan"), ("3449085", "0")])
def test_a_network_that_the_cpu_runs_has_no_estimate(old, new, tmp_path):
    with pytest.raises(DeviceError, match="nothing of the network runs on ethos-u55-128"):
        read_estimate(write(tmp_path, SUMMARY.replace(old, new)), "ethos-u55-128")


# --- the device


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "ethos-u55-512"}, "accelerator: 'ethos-u55-512' is not one of"),
        ({"system_config": ""}, "system_config: '' is not a name"),
        ({"memory_mode": "--help"}, "memory_mode: '--help' is not a name"),
        ({"timeout_seconds": 0}, "timeout_seconds: 0 is not above 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: nan is not above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EthosU(**options)


@pytest.mark.parametrize(("module", "named"), [("ethosu.vela", "ethosu"), ("ai_edge_quantizer", "ai_edge_quantizer")])
def test_what_is_not_installed_is_named_with_its_extra(module, named, monkeypatch, tmp_path):
    for earlier, package in (("ethosu.vela", "ethos-u-vela"), ("ai_edge_quantizer", "ai-edge-quantizer")):
        if earlier == module:
            break
        installed((earlier, package))
    monkeypatch.setitem(sys.modules, module, None)
    for ask in (lambda: EthosU().environment, lambda: EthosU().run(tmp_path / "any.tflite", INPUTS)):
        with pytest.raises(DeviceError, match=rf"{named} is not installed: pip install 'paretoformer\[ethos-u\]'"):
            ask()


@pytest.fixture
def vela():
    installed(("ethosu.vela", "ethos-u-vela"), ("ai_edge_quantizer", "ai-edge-quantizer"))


@pytest.mark.usefixtures("vela")
def test_the_environment_says_that_it_estimates():
    device = EthosU()
    assert device.environment["estimated"] is True
    assert json.loads(json.dumps(device.environment)) == device.environment
    assert EthosU().fingerprint == EthosU(timeout_seconds=7.0).fingerprint == device.fingerprint
    others = {EthosU(accelerator=name).fingerprint for name in ACCELERATORS} | {EthosU(memory_mode="Sram_Only").fingerprint}
    assert len(others) == len(ACCELERATORS) + 1


@pytest.mark.usefixtures("vela")
def test_our_accelerators_are_vela_s():
    from ethosu.vela.architecture_features import Accelerator

    assert set(ACCELERATORS) == set(Accelerator.member_list())


@pytest.mark.usefixtures("vela")
def test_what_is_no_network_is_a_device_error_that_names_the_file(tmp_path):
    garbage = tmp_path / "garbage.tflite"
    garbage.write_bytes(b"no network at all")
    for path in (tmp_path / "missing.tflite", garbage, tmp_path):
        with pytest.raises(DeviceError, match=path.name):
            EthosU().run(path, INPUTS)


# --- the whole way


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    installed(
        ("ethosu.vela", "ethos-u-vela"), ("ai_edge_quantizer", "ai-edge-quantizer"), ("litert_torch", "litert-torch")
    )  # fmt: skip
    return export_for(EthosU(), network_of(32, 1), EXAMPLE, tmp_path_factory.mktemp("npu") / "small")


@pytest.mark.parametrize("accelerator", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_a_network_is_estimated_and_what_the_cpu_keeps_is_named(accelerator, small):
    device = EthosU(accelerator=accelerator)
    estimate = device.estimate(small, INPUTS)
    assert device.run(small, INPUTS) == (estimate.latency_ms,)
    assert EthosU(accelerator=accelerator).run(small, INPUTS) == (estimate.latency_ms,), "a compiler says the same every time"
    assert estimate.latency_ms == pytest.approx(estimate.cycles / estimate.clock_mhz / 1e3)
    assert set(estimate.cpu_operators) >= ON_CPU
    assert 0 < estimate.num_on_cpu < estimate.num_passes
    assert estimate.sram_kib > 0
    assert estimate.file_kib > estimate.flash_kib


def test_a_larger_network_takes_longer_and_needs_more(small, tmp_path):
    large = export_for(EthosU(), network_of(128, 2), EXAMPLE, tmp_path / "large")
    little, much = (EthosU().estimate(path, INPUTS) for path in (small, large))
    assert much.latency_ms > 1.5 * little.latency_ms
    assert much.flash_kib > little.flash_kib
    assert much.sram_kib > little.sram_kib


def test_inputs_and_configurations_that_do_not_fit_are_device_errors(small):
    first = next(iter(INPUTS))
    wrong = (
        {first: INPUTS[first]},
        {**INPUTS, first: INPUTS[first][:, :7]},
        {**INPUTS, first: INPUTS[first].astype(complex)},
    )
    for inputs in wrong:
        with pytest.raises(DeviceError, match=small.name):
            EthosU().run(small, inputs)
    with pytest.raises(DeviceError, match=r"Vela refuses the network: .*No_Such_Board"):
        EthosU(system_config="No_Such_Board").run(small, INPUTS)
    with pytest.raises(DeviceError, match=re.escape("timeout_seconds, 0.001")):
        EthosU(timeout_seconds=0.001).run(small, INPUTS)


class MultiQuery(torch.nn.Module):
    """Four heads of queries that share one of keys and values, which is repeated."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(100, 128)
        self.query, self.key, self.value = (torch.nn.Linear(128, channels) for channels in (128, 32, 32))

    def forward(self, token_ids, attention_mask):
        x = self.table(token_ids) * attention_mask[:, :, None].float()
        B, T, _ = x.shape
        q = self.query(x).view(B, T, 4, 32).transpose(1, 2)
        k, v = (project(x)[:, None].repeat_interleave(4, dim=1) for project in (self.key, self.value))
        return (torch.softmax(q @ k.transpose(-1, -2) / 6, dim=-1) @ v).transpose(1, 2).reshape(B, T, 128).amax(dim=1)


@pytest.mark.usefixtures("small")
def test_a_conversion_that_goes_wrong_is_refused(tmp_path):
    """litert-torch 0.10 converts heads that are repeated wrongly and says nothing."""
    torch.manual_seed(0)
    with pytest.raises(ExportError, match="outputs differ by"):
        export_for(EthosU(), MultiQuery(), EXAMPLE, tmp_path / "shared")
    assert not list(tmp_path.iterdir())
