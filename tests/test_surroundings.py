"""Threads and precision as choices of the study: the same network in several surroundings, each measured, none trained twice."""

import json
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from experiments import scoring
from experiments.build import build
from experiments.config import composed
from experiments.costing import Costing
from experiments.exploring import Explorer
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from experiments.settings import Settings
from hardware.local_cpu import LocalCpu
from hardware.placement import CPU
from hardware.store import MeasurementStore
from hardware.surroundings import Surrounded, device_of
from hardware.timing import Exported, measure
from latency_models.additive import AdditiveLatency
from latency_models.surroundings import AnySurroundings, PerSurroundings
from nas.compute import Compute
from nas.encoding import Encoding
from nas.finish.fake_quant import rounding
from nas.protocols import DeviceError, DifferentiableLatencyModel, DoubtfulLatencyModel, UncertainLatencyModel
from nas.supernet import in_precision, skeleton
from nas.surroundings import all_surroundings, answering, bare, everywhere, network_of, surrounded, surroundings_of
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.commands import command
from tests.support.exploring import lines
from tests.support.stages import finisher_of

OPTIONS = {"threads": [1, 2], "precision": ["fp32", "int8"]}
SPACE = surrounded(encoder_space(width=(16, 32), depth=(1, 2), heads=(1, 2), ffn=(16, 32), attention=("full",)), OPTIONS)
WORKLOAD = Workload(1, 8)
INSTALLED = onnxruntime.get_available_providers()


@pytest.fixture
def family():
    torch.manual_seed(0)
    return EncoderFamily(SPACE, 20, 3, max_tokens=8, head_size=8)


class Scale:
    """Takes the longer the more bytes of weights a file has, less with more threads."""

    name = "scale"

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        self.threads, self.precision = threads, precision
        self.environment = {"threads": threads, "precision": precision, "place": "here"}
        self.fingerprint = f"{threads} {precision}"

    def run(self, onnx_path, inputs):
        weights = sum(len(w.raw_data) for w in onnx.load(self.deployed(onnx_path)).graph.initializer)
        return (weights / self.threads / (4 if self.precision == "int8" else 1),) * 3

    def deployed(self, path: Path) -> Path:
        return path if self.precision == "fp32" else path.with_name("quantised.onnx")


def device() -> Surrounded:
    return Surrounded(lambda picks: Scale(**cast(Any, picks)), all_surroundings(SPACE))


def within(arch, threads, precision):
    return SPACE.canonical({**arch.as_dict, "device.threads": threads, "device.precision": precision})


def test_surroundings_are_choices_and_no_part_of_the_network():
    arch = within(SPACE.largest(), 1, "int8")
    assert surroundings_of(arch) == {"threads": 1, "precision": "int8"}
    assert "device.threads" not in network_of(arch)
    all_of_it = everywhere(SPACE, [arch, within(arch, 2, "fp32")])
    assert len(all_of_it) == len(all_surroundings(SPACE)) == 4
    assert {network_of(a) for a in all_of_it} == {network_of(arch)}
    assert len({answering(a).id for a in all_of_it}) == 2, "threads change no answer"
    plain = encoder_space()
    assert surrounded(plain, {}) == plain
    assert everywhere(plain, [plain.largest()]) == [plain.largest()]
    assert all_surroundings(plain) == [{}]


def test_each_file_runs_in_its_own_surroundings(tmp_path, family):
    archs = everywhere(SPACE, [SPACE.largest()])
    for name, bytes_ in (("file.onnx", 4000), ("quantised.onnx", 4000)):
        weights = onnx.helper.make_tensor("w", onnx.TensorProto.INT8, [bytes_], bytes(bytes_), raw=True)
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weights])), tmp_path / name)
    networks = [Exported(arch, tmp_path / "file.onnx", {}) for arch in archs]
    measured = measure(device(), networks, sentinel=networks[0], workload=WORKLOAD, rounds=2)
    for arch, m in zip(archs, measured, strict=True):
        picks = surroundings_of(arch)
        assert {name: m.environment[name] for name in picks} == picks
        assert m.latency_ms == pytest.approx(4000 / picks["threads"] / (4 if picks["precision"] == "int8" else 1))
    both = device()
    assert both.environment == {"threads": [1, 2], "precision": ["fp32", "int8"], "place": "here"}
    assert both.format == "onnx"
    assert device_of(both, archs[-1]).environment["threads"] == 2
    store = MeasurementStore(tmp_path / "store")
    store.append(measured, device=both, signature=family.signature)
    found, notes = store.load(SPACE, both, family.signature, WORKLOAD)
    assert set(found) == {a.id for a in archs}
    assert notes == []


def test_a_refused_value_is_named():
    for override, message in {
        "surroundings.precision=[fp32,int9]": r"device: precision: 'int9' is not one of \('fp32', 'int8'\)",
        "surroundings.provider=[CPUExecutionProvider,Own]": r"device: provider: 'Own' is not one of \('CPUExecutionProvider',",
        "surroundings.provider=[AzureExecutionProvider]": r"device: provider: 'AzureExecutionProvider' is not one of \('CPU",
        "device=openvino surroundings.provider=[CPUExecutionProvider]": "surroundings.provider: the device .* has no provider",
        "surroundings.threads=[2,1]": r"device.threads: options \(2, 1\) must be positive and ascending",
        "device=cuda surroundings.threads=[1,2]": "surroundings.threads: the device .* has no threads to choose",
    }.items():
        with pytest.raises(ValueError, match=message):
            build(composed("experiment=smoke", "run=unused", *override.split()), report=Reporter(quiet=True))


def test_execution_providers_are_chosen_like_threads(monkeypatch, tmp_path):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU, "CUDAExecutionProvider"])
    words = f"surroundings.provider=[{CPU},CUDAExecutionProvider]"
    made = build(composed("experiment=smoke", f"run={tmp_path}", words), report=Reporter(quiet=True))
    space, device = made.family.space, made.device
    one, other = (device_of(device, arch) for arch in everywhere(space, [space.largest()]))
    assert [one.provider, other.provider] == device.environment["provider"] == [CPU, "CUDAExecutionProvider"]
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == LocalCpu().fingerprint != device.fingerprint

    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [value("x", 1, [2])], [value("y", 1, [2])])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "neg.onnx"
    )
    inputs = {"x": np.ones(2, np.float32)}
    assert one.run(tmp_path / "neg.onnx", inputs)
    if "CUDAExecutionProvider" not in INSTALLED:  # it is offered here by a lie
        with pytest.raises(DeviceError, match="CUDAExecutionProvider"), warnings.catch_warnings(action="ignore"):
            other.run(tmp_path / "neg.onnx", inputs)


# --- prediction


def law_ms(arch):
    """Threads halve what the feed-forward costs, and int8 everything by an eighth of it, but for a launch."""
    picks = surroundings_of(arch)
    network = arch.size("width") * sum(
        16 + arch.size(f"layer{i}.ffn") / picks["threads"] for i in range(1, 1 + arch.size("depth"))
    )
    return 0.02 + 1e-4 * network / (8 if picks["precision"] == "int8" else 1)


@pytest.fixture
def fitted(family):
    rng = np.random.default_rng(0)
    archs = everywhere(SPACE, [SPACE.sample(rng) for _ in range(30)])
    known = [Measurement(a, "law", WORKLOAD, ((law_ms(a),),), ((1.0,),), 1.0, {}) for a in archs]
    return PerSurroundings(AdditiveLatency()).fit(family, known)


def test_each_of_the_surroundings_has_its_own_prices(family, fitted):
    assert isinstance(fitted, UncertainLatencyModel)
    archs = [SPACE.sample(np.random.default_rng([1, i])) for i in range(40)]
    prediction = fitted.predict(archs)
    truth = np.array([law_ms(a) for a in archs])
    assert np.abs(prediction.mean_ms / truth - 1).max() < 0.1
    assert (prediction.upper_ms >= prediction.mean_ms).all()
    assert fitted.disagreement(archs).shape == (40,)
    assert len(fitted.predict([])) == 0
    for i, arch in enumerate(archs):
        one_hot = Encoding(SPACE, torch.as_tensor(SPACE.encode([arch])[0]))
        assert float(fitted.expected_ms(one_hot)) == pytest.approx(prediction.mean_ms[i])


def test_the_expected_latency_is_that_of_the_mixture_and_has_a_gradient(fitted):
    arch = SPACE.largest()
    ms = {(t, p): fitted.predict([within(arch, t, p)]).mean_ms[0] for t in (1, 2) for p in ("fp32", "int8")}
    values = torch.as_tensor(SPACE.encode([arch])[0])
    shares = {"device.threads": (0.3, 0.7), "device.precision": (0.6, 0.4)}
    for name, share in shares.items():
        values[SPACE.offsets[name]] = torch.tensor(share, dtype=values.dtype)
    values.requires_grad_()
    expected = fitted.expected_ms(Encoding(SPACE, values))
    mixed = sum(
        a * b * ms[t, p]
        for t, a in zip((1, 2), (0.3, 0.7), strict=True)
        for p, b in zip(("fp32", "int8"), (0.6, 0.4), strict=True)
    )
    assert expected.item() == pytest.approx(mixed)
    expected.backward()
    assert all(bool((values.grad[SPACE.offsets[name]] != 0).all()) for name in shares)


def test_a_device_that_the_surroundings_are_not_of_takes_the_same_in_all(family):
    alone, rng = replace(family, space=bare(SPACE)), np.random.default_rng(0)
    assert not all_surroundings(alone.space)[0]
    archs = [network_of(SPACE.sample(rng)) for _ in range(30)]
    known = [Measurement(a, "law", WORKLOAD, ((0.01 * a.size("width") * a.size("depth"),),), ((1.0,),), 1.0, {}) for a in archs]
    model = AnySurroundings(AdditiveLatency()).fit(alone, known)
    assert isinstance(model, DifferentiableLatencyModel)
    assert isinstance(model, DoubtfulLatencyModel)
    four = everywhere(SPACE, [SPACE.largest()])
    [expected] = model.model.predict([bare(SPACE).largest()]).upper_ms
    assert model.predict(four).upper_ms.tolist() == [expected] * 4
    assert expected == pytest.approx(model.upper_factor() * model.predict(four).mean_ms[0])
    values = torch.as_tensor(SPACE.encode(four[:1])[0]).requires_grad_()
    mean_ms = model.expected_ms(Encoding(SPACE, values))
    assert mean_ms.item() == pytest.approx(model.predict(four).mean_ms[0])
    mean_ms.backward()
    assert bool((values.grad[SPACE.offsets["width"]] != 0).any())
    assert not values.grad[SPACE.offsets["device.threads"]].any()
    model.doubt(0.1)
    assert model.predict(four).upper_ms[0] > expected


# --- evaluation and training


def test_int8_answers_as_its_rounding_does_and_threads_change_nothing(family):
    supernet, tokens = family.supernet(), torch.randint(20, (4, 8))
    inputs = (tokens, torch.ones_like(tokens))
    weights = dict(supernet.named_parameters())

    def answers(threads, precision):
        arch = within(SPACE.largest(), threads, precision)
        network = skeleton(family, arch, Compute())
        with in_precision(network, arch):
            return torch.func.functional_call(network, weights, inputs)

    with rounding(supernet):
        rounded = supernet(*inputs)
    torch.testing.assert_close(answers(1, "int8"), rounded)
    torch.testing.assert_close(answers(2, "fp32"), supernet(*inputs))
    assert not torch.allclose(answers(1, "fp32"), rounded)


def test_networks_that_answer_alike_are_scored_once(family, fitted, monkeypatch, tmp_path):
    scored: Counter[str] = Counter()

    def count(family, supernet, arch, *rest):
        scored[answering(arch).id] += 1
        return 50.0

    monkeypatch.setattr(scoring, "inherited_error", count)
    task = SimpleNamespace(batches=lambda *args, **more: [])
    rest = cast(Any, (None, Settings(), RunDirectory(tmp_path), None))
    costing = Costing(family, WORKLOAD, ("error", "latency_ms"), fitted)
    explorer = Explorer(family, cast(Any, task), family.supernet(), Compute(), cast(Any, None), costing, *rest)
    evaluate = explorer._evaluation("search")
    candidates = [evaluate(arch) for arch in everywhere(SPACE, [SPACE.largest(), SPACE.smallest()])]
    assert len(scored) == 4
    assert set(scored.values()) == {1}
    assert len({c.objectives["latency_ms"] for c in candidates}) == 8


def test_a_network_is_trained_once_for_all_its_surroundings(tmp_path, family, monkeypatch):
    finisher = finisher_of(family, tmp_path, device())
    trained = []
    monkeypatch.setattr("experiments.finishing.teach", lambda network, *rest, **more: trained.append(network))
    one, other = (within(SPACE.smallest(), threads, "fp32") for threads in (1, 2))
    for arch in (one, other):
        finisher.finish(arch, family.supernet())
    assert len(trained) == 1
    assert finisher.files.record(one)["error_percent"] == finisher.files.record(other)["error_percent"]
    for name, weight in finisher.files.network(one).state_dict().items():
        assert torch.equal(weight, finisher.files.network(other).state_dict()[name])


@pytest.mark.slow
def test_a_search_chooses_threads_and_precision(tmp_path):
    words = ["experiment=smoke", "surroundings.threads=[1,2]", "surroundings.precision=[fp32,int8]", "finish.rungs=[0.5]"]
    words += ["searcher.evaluations=16", "also={two: {device: local_cpu, graph_optimization: basic, budget_ms: 50}}"]
    words += [f"run={tmp_path / 'run'}", f"store={tmp_path / 'store'}", "torch_threads=1"]
    done = command("search", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    candidates = [json.loads(line) for line in (run / "candidates.jsonl").read_text().splitlines()]
    assert len({(c["arch"]["device.threads"], c["arch"]["device.precision"]) for c in candidates}) == 4
    results = json.loads((run / "results.json").read_text())
    picked = next(n for n in results["networks"] if n["id"] == results["picked_id"])
    threads, precision = picked["arch"]["device.threads"], picked["arch"]["device.precision"]
    assert results["elsewhere"]["two"]["kept"], results["elsewhere"]
    [there] = [m for m in lines(run / "measurements.jsonl") if m["phase"].startswith("two: ")]
    assert there["environment"]["graph_optimization"] == "basic"
    assert there["environment"]["precision"] == "fp32"
    assert not any("device.threads" in m["arch"] for m in lines(run / "also" / "two" / "measurements.jsonl"))
    assert f"{threads} thread{'s' * (threads > 1)}, {precision}" in results["device"]
    contract = json.loads((run / f"export/{picked['id']}/contract.json").read_text())
    [network] = contract["networks"]
    assert (network["environment"]["threads"], network["environment"]["precision"]) == (threads, precision)
    again = command("search", *words)
    assert again.returncode == 0, again.stderr
    exported = command("export", f"run={run}", "pick=best")
    assert exported.returncode == 0, exported.stderr
