"""The device contract, on every device of `conf/device` that this machine has, and what is special about each of them."""

import gc
import json
import math
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import onnx
import psutil
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

from experiments.finishing import Finisher
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from hardware import cuda
from hardware.cuda import Cuda, energy_per_run
from hardware.executorch_device import ExecuTorch, operators
from hardware.litert import LiteRt
from hardware.local_cpu import LocalCpu
from hardware.local_torch import LocalTorch, load, move_constants, to_half
from hardware.openvino_device import OpenVino
from hardware.timing import HasConditions
from nas.compute import Compute
from nas.export import export_for, format_of, write_as
from nas.formats import FORMATS, ExportError
from nas.protocols import DeviceError
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, which litert-torch imports
DEVICES = sorted(path.stem for path in (Path(__file__).parent.parent / "conf" / "device").glob("*.yaml"))
EVERYWHERE = ("local_cpu", "local_torch")  # that need nothing that can be absent
OTHER_PRECISION = {"local_cpu": "int8", "openvino": "bf16", "cuda": "tf32"}
RUNTIMES = ("onnxruntime", "openvino", "ai_edge_litert", "executorch", "torch")
FAMILY = EncoderFamily(encoder_space(), vocab_size=100, num_classes=3, max_tokens=64)
EXAMPLE = FAMILY.example_input(Workload(tokens=64))
INPUTS = {name: value.numpy() for name, value in EXAMPLE.items()}


def arch_of(width, depth, attention="full"):
    picks = {**FAMILY.space.largest().as_dict, "width": width, "depth": depth}
    for layer in range(1, depth + 1):
        picks |= {f"layer{layer}.attention": attention, f"layer{layer}.heads": 1, f"layer{layer}.ffn": 64}
    return FAMILY.space.canonical(picks)


def network_of(*sizes):
    return FAMILY.network(arch_of(*sizes), backend="blocks")


def configured(name):
    return OmegaConf.load(Path(__file__).parent.parent / "conf" / "device" / f"{name}.yaml")


def make(name, **options):
    """A device with those of the options that it has."""
    config = configured(name)
    return instantiate(OmegaConf.merge(config, {key: value for key, value in options.items() if key in config}))


def present(name, **options):
    """A device, or the reason why the tests of it are skipped."""
    if missing := sorted(OmegaConf.missing_keys(configured(name))):
        pytest.skip(f"{name} needs a value for {missing[0]}")
    device = make(name, **options)
    try:
        assert device.environment
    except DeviceError as error:
        if name in EVERYWHERE:
            raise
        pytest.skip(f"{name}: {error}")
    return device


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What a network's file for a device is, made once for devices of one format."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def export(device, width, depth):
        key = format_of(device), width, depth
        if key not in made:
            try:
                made[key] = export_for(device, network_of(width, depth), EXAMPLE, folder / f"{width}x{depth}")
            except ValueError as error:
                pytest.skip(str(error))
        return made[key]

    return export


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    device = present(request.param)
    if device.environment.get("estimated"):
        pytest.skip(f"{request.param} estimates and times nothing; it has tests of its own")
    return device


@pytest.fixture(scope="module")
def small(device, exported):
    return exported(device, 32, 1)


# --- the contract


def test_the_environment_is_plain_and_says_who_the_device_is(device):
    assert device.name in DEVICES
    assert json.loads(json.dumps(dict(device.environment))) == device.environment
    again = make(device.name)
    assert again.environment == device.environment
    assert again.fingerprint == device.fingerprint
    assert len(device.fingerprint) == 12
    assert int(device.fingerprint, 16) >= 0
    if isinstance(device, HasConditions):
        assert not set(device.environment) & set(device.conditions())
        assert json.dumps(dict(device.conditions()))


def test_the_fingerprint_is_of_what_a_time_depends_on(device):
    others = [{"threads": 2}] if "threads" in configured(device.name) and psutil.cpu_count() > 1 else []
    others += [{"precision": OTHER_PRECISION[device.name]}] if device.name in OTHER_PRECISION else []
    known = {device.fingerprint, *(make(device.name, **other).fingerprint for other in others)}
    assert len(known) == 1 + len(others)
    assert make(device.name, max_samples=1234).fingerprint == device.fingerprint


def test_a_visit_returns_raw_times(device, small):
    samples = device.run(small, INPUTS)
    assert isinstance(samples, tuple)
    assert len(samples) >= configured(device.name).get("min_samples", 1)
    assert all(isinstance(s, float) and math.isfinite(s) and 0 < s < 1000 for s in samples)


def test_a_larger_network_takes_longer(device, small, exported):
    large = exported(device, 128, 4)
    times = {path: [] for path in (small, large)}
    for path in (small, large) * 2:
        times[path].append(np.percentile(device.run(path, INPUTS), 25))
    assert min(times[large]) > 1.5 * min(times[small])


def test_what_cannot_run_is_a_device_error_that_names_the_file(device, small, tmp_path):
    garbage = tmp_path / f"garbage{small.suffix}"
    garbage.write_bytes(b"no network at all")
    cut = tmp_path / f"cut{small.suffix}"
    cut.write_bytes(small.read_bytes()[:1000])
    for path in (tmp_path / "missing.onnx", garbage, cut, tmp_path):
        with pytest.raises(DeviceError, match=path.name):
            device.run(path, INPUTS)
    first, second = INPUTS
    wrong = (
        {first: INPUTS[first]},
        {"other": INPUTS[first], second: INPUTS[second]},
        {**INPUTS, first: INPUTS[first][0, 0]},
        {**INPUTS, first: INPUTS[first].astype(np.complex64)},
    )
    for inputs in wrong:
        with pytest.raises(DeviceError, match=small.name):
            device.run(small, inputs)
    assert device.run(small, INPUTS)


def test_no_session_stays_open(device, small):
    threads = min(2, psutil.cpu_count())  # with two an open session would keep one
    device = make(device.name, threads=threads, warmup_seconds=0.0, visit_seconds=0.001, max_samples=10)

    def what_is_open():
        types = Counter(type(o).__qualname__ for o in gc.get_objects() if str(type(o).__module__).split(".")[0] in RUNTIMES)
        return types, psutil.Process().num_threads()

    for _ in range(2):
        device.run(small, INPUTS)
    before = what_is_open()
    for _ in range(3):
        device.run(small, INPUTS)
    assert what_is_open() == before


# --- each of them


def test_int8_is_made_once_for_one_content_and_goes_with_the_device(tmp_path):
    device = LocalCpu(precision="int8")
    first = export_for(device, network_of(32, 1), EXAMPLE, tmp_path / "first")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(first.read_bytes())
    for path in (first, copy, first):
        assert device.run(path, INPUTS)
    folder = device.deployed(first).parent
    [made] = folder.iterdir()
    kinds = {node.op_type for node in onnx.load(made).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds
    written = made.stat().st_mtime_ns
    device.run(export_for(device, network_of(32, 2), EXAMPLE, tmp_path / "first"), INPUTS)  # other content, same name
    assert len(list(folder.iterdir())) == 2
    assert made.stat().st_mtime_ns == written
    del device
    gc.collect()
    assert not folder.exists()


def test_torch_leaves_its_threads_as_they_were(tmp_path):
    device = LocalTorch(threads=1)
    path = export_for(device, network_of(32, 1), EXAMPLE, tmp_path / "small")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        device.run(path, INPUTS)
        assert torch.get_num_threads() == 2
        with pytest.raises(DeviceError):
            device.run(path, {})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_torchscript_file_that_names_no_inputs_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "foreign.pt")
    with pytest.raises(DeviceError, match="does not name its inputs"):
        LocalTorch().run(tmp_path / "foreign.pt", INPUTS)


def test_new_tensors_of_a_trace_are_made_on_the_device_that_it_is_moved_to(tmp_path):
    """A sliding window makes some. Without a GPU all that can be seen is that they are elsewhere than the rest then."""
    path = export_for(LocalTorch(), network_of(32, 1, "window"), EXAMPLE, tmp_path / "window")
    module, names = load(path)
    assert names == list(EXAMPLE)
    move_constants(module, "meta")
    with pytest.raises(RuntimeError, match="meta"):
        module(*EXAMPLE.values())


@pytest.mark.parametrize("picks", [{}, {"layer1.attention": "window"}])
def test_a_trace_in_half_precision_computes_in_it_alone(picks, tmp_path):
    """On this CPU: the same answers but for what float16 rounds, without a cast that meets float32."""
    arch = FAMILY.space.canonical({**FAMILY.space.largest().as_dict, **picks})
    path = export_for(LocalTorch(), FAMILY.network(arch, backend="blocks"), EXAMPLE, tmp_path / "network")
    (exact, _), (half, _) = load(path), load(path)
    to_half(half)
    with torch.inference_mode():
        wanted, found = (module(*EXAMPLE.values()) for module in (exact, half))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted, atol=5e-3, rtol=0)
    assert not torch.equal(found.float(), wanted)


def test_openvino_names_the_plugins_that_are_present():
    present("openvino")
    for plugin in ("GPU.7", "NPU"):
        with pytest.raises(DeviceError, match=rf"plugin: {plugin} is not on this machine; OpenVINO finds .*CPU"):
            _ = OpenVino(plugin=plugin).environment


def test_openvino_runs_in_the_precision_that_was_asked_for():
    device = present("openvino")
    openvino = pytest.importorskip("openvino")
    x = openvino.opset13.parameter([1, 4], np.float32)
    model = openvino.Model([openvino.opset13.relu(x)], [x])
    compiled = device._core.compile_model(model, "CPU", device._config())
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.parametrize(
    ("make_device", "module", "extra"),
    [
        (OpenVino, "openvino", "openvino"),
        (LiteRt, "ai_edge_litert", "litert"),
        (ExecuTorch, "executorch", "executorch"),
        (Cuda, "pynvml", "cuda"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(make_device, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.interpreter", raising=False)
    sentence = rf"{module} is not installed: pip install 'paretoformer\[{extra}\]'"
    with pytest.raises(DeviceError, match=sentence):
        _ = make_device().environment
    with pytest.raises(DeviceError, match=sentence):
        make_device().run(tmp_path / "any", {})


def test_the_litert_converter_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(ValueError, match=r"litert-torch is not installed: pip install 'paretoformer\[litert\]'"):
        export_for(LiteRt(), network_of(32, 1), EXAMPLE, tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_the_executorch_converter_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "executorch", None)
    for name in [name for name in sys.modules if name.startswith("executorch.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"executorch is not installed: pip install 'paretoformer\[executorch\]'"):
        export_for(ExecuTorch(), network_of(32, 1), EXAMPLE, tmp_path / "small")
    assert not list(tmp_path.iterdir())


class Mean(torch.nn.Module):
    """Of the vectors of all tokens, without padding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.classifier = torch.nn.Embedding(100, 8), torch.nn.Linear(8, 3)

    def forward(self, token_ids, attention_mask):
        return self.classifier((self.embedding(token_ids) * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1)[:, None])


def test_a_pte_file_answers_shorter_inputs_and_says_who_runs_its_operators(tmp_path):
    present("executorch")
    network = Mean()
    path = export_for(ExecuTorch(), network, EXAMPLE, tmp_path / "mean")
    answers = FORMATS["pte"].open(path)
    ids = torch.randint(100, (3, 37))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    with torch.no_grad():
        np.testing.assert_allclose(answers({"attention_mask": mask, "token_ids": ids})[0], network(ids, mask), atol=1e-5)
    ran = {(o["operator"], o["provider"]) for o in operators(path, INPUTS)}
    assert ("embedding.out", "portable kernels") in ran
    assert ("Fully Connected (NC, F32) GEMM", "XnnpackBackend") in ran
    long = torch.ones(1, 65, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"token_ids is of the size \(1, 65\), the file takes at most \(1, 64\)"):
        answers({"token_ids": long, "attention_mask": long})


def test_without_a_gpu_one_sentence_says_so():
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for ask in (lambda: Cuda().environment, lambda: Cuda().run(Path("any.onnx"), {}), lambda: Cuda().fingerprint):
        with pytest.raises(DeviceError, match="index: there is no NVIDIA GPU 0 on this machine"):
            ask()


def test_a_gpu_s_facts_are_asked_of_nvml(monkeypatch):
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    nvml = create_autospec(pynvml)
    nvml.NVMLError, nvml.NVMLError_NotSupported = pynvml.NVMLError, pynvml.NVMLError_NotSupported
    nvml.nvmlDeviceGetName.return_value = "GPU 5"
    nvml.nvmlSystemGetDriverVersion.return_value = "580.1"
    nvml.nvmlDeviceGetMaxClockInfo.return_value = 1980
    nvml.nvmlDeviceGetClockInfo.side_effect = lambda gpu, kind: {nvml.NVML_CLOCK_SM: 1200, nvml.NVML_CLOCK_MEM: 2600}[kind]
    nvml.nvmlDeviceGetTemperature.return_value = 41
    nvml.nvmlDeviceGetPowerUsage.side_effect = pynvml.NVMLError_NotSupported
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="this ONNX Runtime has no CUDAExecutionProvider"):
        _ = Cuda(runtime="cuda").environment
    with pytest.raises(DeviceError, match=r"torch .* sees no CUDA GPU"):
        _ = Cuda(runtime="torch").environment
    monkeypatch.setattr(cuda.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    device = Cuda()
    assert device.environment["gpu"] == "GPU 5"
    assert device.environment["max_sm_mhz"] == 1980
    assert device.environment["onnxruntime"] == cuda.onnxruntime.__version__
    assert json.dumps(device.environment)
    assert device.fingerprint != Cuda(precision="tf32").fingerprint
    assert (
        device.conditions().items() >= {"sm_mhz": 1200, "memory_mhz": 2600, "temperature_celsius": 41, "power_mw": None}.items()
    )


@pytest.mark.parametrize("option", [{"cuda_graph": True}, {"precision": "fp16"}])
def test_options_go_with_the_runtime_that_auto_comes_to(option, monkeypatch):
    monkeypatch.setattr(cuda.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert Cuda(**option).chosen_runtime == "torch"
    monkeypatch.setattr(cuda.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ValueError, match="cuda, which auto is here"):
        Cuda(**option)


@pytest.mark.parametrize(("runtime", "wanted"), [("cuda", "onnxruntime"), ("tensorrt", "onnx"), ("torch", "torchscript")])
def test_the_runtime_of_a_gpu_decides_what_is_exported(runtime, wanted):
    assert format_of(Cuda(runtime=runtime, precision="tf32")) == wanted


def test_energy_is_taken_between_two_steps_of_the_counter():
    runs = iter(range(1, 10**9))
    done = 0

    def run():
        nonlocal done
        done = next(runs)

    assert energy_per_run(run, lambda: 3.0 * (done - done % 10), seconds=0.01) == 3.0
    assert done > 20


def test_a_counter_that_stands_still_is_an_error(monkeypatch):
    monkeypatch.setattr(cuda, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(DeviceError, match="counter does not move"):
        energy_per_run(lambda: None, lambda: 7.0, seconds=0.01)


@pytest.mark.parametrize(
    ("make_device", "options", "message"),
    [
        (LocalCpu, {"precision": "fp8"}, r"precision: 'fp8' is not one of \('fp32', 'int8'\)"),
        (LocalTorch, {"threads": 0}, "threads: 0 is not between 1 and "),
        (ExecuTorch, {"threads": 0}, "threads: 0 is not between 1 and "),
        (LiteRt, {"threads": 100_000}, "threads: 100000 is not between 1 and "),
        (OpenVino, {"plugin": "TPU"}, "plugin: 'TPU' is not one of"),
        (OpenVino, {"precision": "int8"}, "precision: 'int8' is not one of"),
        (Cuda, {"runtime": "triton"}, "runtime: 'triton' is not one of"),
        (Cuda, {"runtime": "tensorrt"}, r"precision: 'fp32' is not one of \('tf32', 'fp16'\)"),
        (Cuda, {"runtime": "cuda", "precision": "fp16"}, r"precision: 'fp16' is not one of \('fp32', 'tf32'\) of runtime=cuda"),
        (Cuda, {"precision": "int8"}, "precision: 'int8' is not one of"),
        (Cuda, {"runtime": "cuda", "cuda_graph": True}, "cuda_graph: needs runtime=torch, not cuda"),
        (Cuda, {"index": -1}, "index: -1 is negative"),
        (Cuda, {"energy_seconds": float("nan")}, "energy_seconds: nan is not between 0 and 60"),
        (Cuda, {"visit_seconds": 0}, "visit_seconds: 0 is not above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(make_device, options, message):
    with pytest.raises(ValueError, match=message):
        make_device(**options)


# --- the files that they run


class Fickle(torch.nn.Module):
    """Answers otherwise once it is a file, as a network that was converted wrongly does."""

    def forward(self, token_ids, attention_mask):
        is_file = torch.jit.is_tracing() or torch.compiler.is_exporting()
        return (token_ids * attention_mask).float() + 0.001 * is_file


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.precision == "fp32"])
def test_a_file_that_answers_otherwise_is_not_written(name, tmp_path):
    class Wants:
        format = name

    if name == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    if name == "pte":
        pytest.importorskip("executorch", reason="executorch is not installed")
    if name == "tflite":
        pytest.importorskip("litert_torch", reason="litert-torch is not installed")
    with pytest.raises(ExportError, match=r"network.*: outputs differ by 1.00e-03 from the network's, allowed are 1.00e-04"):
        export_for(Wants(), Fickle(), EXAMPLE, tmp_path / "network")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", ["full", "window"])
def test_torchscript_takes_any_batch_and_length(attention, tmp_path):
    network = network_of(32, 1, attention)
    module, _ = load(export_for(LocalTorch(), network, EXAMPLE, tmp_path / "network"))
    ids = torch.randint(100, (3, 37))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    with torch.no_grad():
        torch.testing.assert_close(module(ids, mask), network(ids, mask))


def test_a_pt2_file_is_timed_by_torch(tmp_path):
    class Sum(torch.nn.Module):
        def forward(self, token_ids, attention_mask):
            return (token_ids * attention_mask).float().cumsum(1)

    path = tmp_path / "sum.pt2"
    assert write_as("pt2", Sum(), [EXAMPLE], path, tolerance=0.0)[0] == 0.0
    module, names = load(path)
    assert names == list(EXAMPLE)
    ids = torch.arange(21).reshape(3, 7)
    torch.testing.assert_close(module(ids, torch.ones_like(ids)), ids.float().cumsum(1))
    assert all(time > 0 for time in LocalTorch(visit_seconds=0.001, min_samples=3).run(path, INPUTS))


@pytest.mark.parametrize("kind", ["full", "window3", "block5"])
@pytest.mark.parametrize("pool", ["1", "2", "4"])
def test_a_pt2_file_takes_texts_of_any_length(kind, pool, tmp_path):
    """Of a single block, a single mean, or what fills whole blocks, torch.export makes a guard."""
    kinds = ("full", "window3", "block5")
    space = encoder_space(width=(8,), depth=(1,), heads=(1,), ffn=(8,), attention=kinds, pool=(1, 2, 4))
    family = EncoderFamily(space, 50, 3, max_tokens=16, head_size=8)
    arch = space.canonical({**space.largest().as_dict, "layer1.attention": kind, "pool": pool})
    examples = [family.example_input(Workload(batch=2, tokens=tokens)) for tokens in (16, 1, 2, 6, 9, 15)]
    network = family.network(arch, backend="blocks")
    assert write_as("pt2", network, examples, tmp_path / "m.pt2", tolerance=1e-5)[1:] == (12, 12)


def test_a_finished_network_is_timed_in_the_format_of_its_device(tmp_path):
    device = LocalTorch(visit_seconds=0.001, min_samples=3)
    arch, run = arch_of(32, 1), RunDirectory(tmp_path / "run")
    with run.replacing(f"shortlist/{arch.id}.safetensors") as path:
        save_file(FAMILY.network(arch).state_dict(), path)
    finisher = Finisher(FAMILY, None, device, Workload(tokens=64), Compute(), FinishSettings(), 0, run)
    measured = finisher.times.measure([arch], reference_ms=1.0, phase="finalists", rounds=1)
    assert measured[arch.id].environment["torch"] == torch.__version__
    assert finisher.times.measure([arch], reference_ms=1.0, phase="finalists", rounds=1) == measured  # read, not timed again
