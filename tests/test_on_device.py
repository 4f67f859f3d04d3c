"""What was timed is also asked: its answers, under its own runtime, are torch's, or nothing ships."""

import base64
import contextlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.card import device_sentence
from experiments.contract import BrokenPromiseError, Limits, proven_also, proven_on_device
from experiments.on_device import answers_elsewhere
from hardware import agent, answers, cuda
from hardware.answers import logits_of
from hardware.cuda import Cuda
from hardware.executorch_device import ExecuTorch
from hardware.litert import LiteRt
from hardware.local_cpu import LocalCpu
from hardware.local_torch import LocalTorch
from hardware.openvino_device import OpenVino
from hardware.placement import CPU
from hardware.ssh import Ssh
from nas.formats import ExportError
from nas.protocols import DeviceError
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.boards import PYTHON, SSH, executable
from tests.support.stages import Scale, finisher_of

SPACE = encoder_space(width=(16,), depth=(1,), heads=(1,), ffn=(16,), attention=("full",))
LIMITS = Limits(tolerance=1e-4, max_drop=0.0)
RUNTIMES = {LocalTorch: "torch", OpenVino: "openvino", LiteRt: "litert_torch", ExecuTorch: "executorch"}
# A board whose ONNX Runtime is broken: {wrong} of the outputs.
BROKEN = """import onnxruntime
class Session(onnxruntime.InferenceSession):
    def run(self, *of):
        return [{wrong} for x in super().run(*of)]
onnxruntime.InferenceSession = Session
"""


@pytest.fixture
def finished(tmp_path):
    """A finished network of one run."""
    torch.manual_seed(0)
    family = EncoderFamily(SPACE, 20, 3, max_tokens=8, head_size=8)
    finisher = finisher_of(family, tmp_path / "run", Scale(constant=True))
    finisher.finish(SPACE.largest(), family.supernet())
    return finisher


@pytest.fixture
def board(tmp_path):
    """Makes a board, sound or with something wrong in its runtime."""
    made = []

    def make(wrong="x", *, before="", **options):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken/sitecustomize.py").write_text(BROKEN.format(wrong=wrong))
        command = executable(tmp_path / "ssh", SSH.format(log=tmp_path / "log", before=before))
        python = PYTHON.replace("env ", f"env PYTHONPATH={tmp_path}/broken ")
        made.append(Ssh("board", ssh=command, python=python, folder=str(tmp_path / "board"), retries=0, **options))
        return made[-1]

    yield make
    for device in made:
        device.close()


def proven(finisher, device, limits=LIMITS):
    network = finisher.files.network(SPACE.largest())
    error = finisher.scores.of_answers(lambda inputs: [network(*inputs.values()).detach().numpy()], "validation")
    own = replace(finisher, device=device)
    return proven_on_device(own, SPACE.largest(), limits, torch_error=error["error_percent"]), error["error_percent"]


@pytest.mark.parametrize("device", RUNTIMES)
def test_another_runtime_is_compared_and_scored_by_its_own_file(device, finished):
    pytest.importorskip(RUNTIMES[device], reason=f"{RUNTIMES[device]} is not installed")
    assert answers_elsewhere(device())
    facts, torch_error = proven(finished, device())
    assert facts["device"] == device.name
    assert facts["equal_decisions"] == 1
    assert facts["max_abs_difference"] < 1e-4
    assert facts["num_decisions"] == 1024, "four batches of 2048 tokens"
    assert facts["validation_error_percent"] == torch_error


@pytest.fixture
def gpu(monkeypatch):
    """Makes a GPU that is this machine's CPU: the way to its answers, but for CUDA itself."""

    def make(runtime, precision="fp32"):
        monkeypatch.setattr(Cuda, "_nvml", ("NVML", "GPU"))
        monkeypatch.setattr(Cuda, "environment", {"precision": precision, "torch": torch.__version__})
        monkeypatch.setattr(Cuda, "_place", "cpu")
        monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
        monkeypatch.setattr(Cuda, "_providers", lambda self: [(CPU, {})])
        monkeypatch.setitem(cuda.PROVIDERS, "cuda", CPU)
        return Cuda(runtime=runtime, precision=precision)

    return make


@pytest.mark.parametrize("runtime", ["cuda", "torch"])
def test_a_gpu_is_asked_by_the_runtime_that_times_it(runtime, gpu, finished, monkeypatch):
    device = gpu(runtime)
    assert answers_elsewhere(device)
    facts, torch_error = proven(finished, device)
    assert (facts["device"], facts["precision"], facts["num_decisions"]) == ("cuda", "fp32", 1024)
    assert facts["equal_decisions"] == 1
    assert facts["validation_error_percent"] == torch_error
    sound = Cuda.opened
    monkeypatch.setattr(Cuda, "opened", lambda self, path: lambda x: [sound(self, path)(x)[0] + 0.01])
    with pytest.raises(BrokenPromiseError, match=r"on the device cuda \(.* has 0\.01, promised is at most 0\.0001"):
        proven(finished, device)


def test_a_gpu_answers_in_the_precision_that_is_timed(gpu, finished):
    facts, _ = proven(finished, gpu("torch", "fp16"), Limits(tolerance=1e-9, max_drop=100.0))
    assert facts["precision"] == "fp16"
    assert 0 < facts["max_abs_difference"] < 0.1


def test_a_gpu_that_is_lost_while_it_answers_leaves_that_unknown(gpu, finished, monkeypatch):
    def lost(*rest):
        raise torch.OutOfMemoryError("out of memory")

    device = gpu("torch")
    monkeypatch.setattr(Cuda, "_tensors", lost)
    facts, _ = proven(finished, device)
    assert "torch failed: out of memory" in facts["unknown"]
    monkeypatch.undo()
    if not torch.cuda.is_available():
        facts, _ = proven(finished, Cuda(runtime="torch"))
        assert set(facts) == {"device", "unknown"}


def test_further_devices_are_asked_too(finished, monkeypatch):
    also = {"here": LocalCpu(), "quantised": LocalCpu(precision="int8"), "silent": Scale()}
    finisher, no_limit = replace(finished, also=also), Limits()
    found = proven_also(finisher, SPACE.largest(), no_limit, torch_error=0.0)
    assert {name: facts.get("num_decisions") for name, facts in found.items()} == {
        "here": 1024,
        "quantised": 1024,
        "silent": None,
    }
    assert found["here"]["max_abs_difference"] < 1e-4 < found["quantised"]["max_abs_difference"]
    assert "NOT COMPARED with torch's: it tells times alone" in device_sentence(found["silent"])
    sound = LocalCpu.opened
    monkeypatch.setattr(LocalCpu, "opened", lambda self, path: lambda x: [sound(self, path)(x)[0] + 0.01])
    with pytest.raises(
        BrokenPromiseError, match=r"on the device local_cpu .* has 0\.01, promised is at most 0\.0001; nothing was"
    ):
        proven_also(finisher, SPACE.largest(), no_limit, torch_error=0.0)


def test_what_onnx_runtime_answers_here_needs_no_second_look():
    assert not answers_elsewhere(LocalCpu())
    assert not answers_elsewhere(Scale()), "it has no answers"


@pytest.mark.parametrize("device", RUNTIMES)
def test_a_runtime_that_answers_wrongly_is_refused(device, finished, monkeypatch):
    pytest.importorskip(RUNTIMES[device], reason=f"{RUNTIMES[device]} is not installed")
    sound = device.opened
    for wrong, message in (
        (lambda logits: logits + 0.01, r"tolerance: .* on the device .* has 0\.01, promised is at most 0\.0001; nothing was"),
        (lambda logits: logits * math.nan, "numbers that are not finite"),
    ):
        monkeypatch.setattr(device, "opened", lambda self, path: lambda x: [wrong(sound(self, path)(x)[0])])  # noqa: B023
        with pytest.raises(BrokenPromiseError, match=message):
            proven(finished, device())


def test_in_another_precision_the_error_counts(finished, monkeypatch):
    pytest.importorskip("openvino", reason="openvino is not installed")
    device = OpenVino(precision="bf16")
    facts, torch_error = proven(finished, device, Limits(tolerance=1e-9, max_drop=100.0))
    assert facts["precision"] == "bf16"
    monkeypatch.setattr(OpenVino, "opened", lambda self, path: lambda inputs: [np.eye(3)[[0] * len(inputs["token_ids"])]])
    facts, _ = proven(finished, device, Limits(max_drop=100.0))
    with pytest.raises(BrokenPromiseError, match=r"max_drop: .* on the device openvino"):
        proven(finished, device, Limits(max_drop=facts["validation_error_percent"] - torch_error - 1))


def test_a_sound_board_is_compared_on_a_few_inputs(finished, board):
    facts, _ = proven(finished, board())
    assert facts["max_abs_difference"] < 1e-4
    assert (facts["equal_decisions"], facts["num_decisions"], facts["inputs"]) == (1, 16, "test split")
    assert facts["runtime"].startswith("onnxruntime ")
    assert "validation_error_percent" not in facts


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("x + 0.01", r"tolerance: .* on the device ssh \(onnxruntime .*\) has 0\.01, promised is at most 0\.0001; nothing was"),
        ("x * float('nan')", "on the device ssh .* numbers that are not finite"),
        ("x[:-1]", r"answers with logits \[15, 3\], the network with \[16, 3\]"),
    ],
)
def test_a_board_that_answers_wrongly_is_refused(wrong, message, finished, board):
    with pytest.raises((BrokenPromiseError, ExportError), match=message):
        proven(finished, board(wrong))


def test_a_board_in_int8_decides_as_the_same_file_does_here(finished, board):
    facts, _ = proven(finished, board(precision="int8"))
    assert facts["max_abs_difference"] > 0
    with pytest.raises(BrokenPromiseError, match=r"0 % of its decisions are those of the same file on this machine, .* 80 %"):
        proven(finished, board("-x", precision="int8"))


def test_a_board_that_is_lost_leaves_its_answers_unknown(finished, board):
    facts, _ = proven(finished, board(before="echo 'No route to host' >&2; exit 255"))
    assert facts["device"] == "ssh"
    assert "No route to host" in facts["unknown"]


def test_an_answer_is_cut_off_at_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "MAX_NUMBERS", 10)
    monkeypatch.setattr(answers, "MAX_NUMBERS", 10)

    class Session:
        def run(self, *_):
            return [np.arange(24).reshape(2, 3, 4)]

    monkeypatch.setattr(agent, "opened", lambda *_: (Session(), {}))
    monkeypatch.setattr(agent, "with_files", lambda request, work: work("", ""))
    found = json.loads(json.dumps(agent.answer({})))
    assert found["shape"] == [2, 3, 4]
    assert np.array_equal(logits_of(found), np.arange(8).reshape(2, 4))


NUMBERS = base64.b64encode(np.ones(6, dtype="<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "without the shape of its logits: None"),
        ({"shape": [], "numbers": NUMBERS}, r"without the shape of its logits: \[\]"),
        ({"shape": [2, -3], "numbers": NUMBERS}, "without the shape"),
        ({"shape": [2, True], "numbers": NUMBERS}, "without the shape"),
        ({"shape": [2, 3]}, r"an answer of 0 numbers, its logits are \[2, 3\]"),
        ({"shape": [2, 4], "numbers": NUMBERS}, r"an answer of 6 numbers, its logits are \[2, 4\]"),
        ({"shape": [2, 3], "numbers": "ä"}, "an answer without logits: ä"),
        ({"shape": [2, 3], "numbers": NUMBERS[4:]}, "an answer without logits|an answer of"),
        ({"shape": [2, 10**9], "numbers": NUMBERS}, "an answer of 6 numbers"),
    ],
)
def test_logits_that_are_none_are_refused(answer, message):
    assert np.array_equal(logits_of({"shape": [2, 3], "numbers": NUMBERS}), np.ones((2, 3)))
    with pytest.raises(DeviceError, match=message):
        logits_of(answer)
