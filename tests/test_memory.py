"""Memory: closed formulas beside the liveness of exported files, and both beside what ONNX Runtime asks its arena for."""

import statistics
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from hardware.arena import activations_mib
from hardware.file_memory import ALIGNMENT, buffers, memory_of_file, planned
from latency_models.memory import GAPS, expected_memory, memory_of
from nas.encoding import Encoding
from nas.export import export_onnx
from nas.protocols import DeviceError
from nas.types import MIB, Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.liveness import alive, living

FAMILY = EncoderFamily(encoder_space(), vocab_size=500, num_classes=8, max_tokens=128)
RNG = np.random.default_rng(0)
ARCHS = [FAMILY.space.largest(), FAMILY.space.smallest(), *(FAMILY.space.sample(RNG) for _ in range(10))]
WORKLOADS = (Workload(batch=1, tokens=64), Workload(batch=4, tokens=128))


def ones(workload):
    value = np.ones((workload.batch, workload.tokens), dtype=np.int64)
    return {"token_ids": value, "attention_mask": value}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    example = FAMILY.example_input(WORKLOADS[0])
    for arch in ARCHS:
        export_onnx(FAMILY.network(arch, backend="blocks"), example, folder / f"{arch.id}.onnx")
    return {arch: folder / f"{arch.id}.onnx" for arch in ARCHS}


# --- architectures


def test_weights_are_exact():
    for arch, counted in zip(ARCHS, memory_of(FAMILY, ARCHS, WORKLOADS[0]), strict=True):
        assert counted.weights_mib * MIB == 4 * sum(p.numel() for p in FAMILY.network(arch).parameters())
        assert counted.peak_mib == counted.weights_mib + counted.activations_mib


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_formula_is_the_liveness_of_the_exported_file(files, workload):
    for arch, counted in zip(ARCHS, memory_of(FAMILY, ARCHS, workload), strict=True):
        there = alive(files[arch], ones(workload))
        assert counted.activations_mib * MIB == pytest.approx(there, rel=0.015), arch


def test_a_file_s_weights_are_the_network_s(files):
    """But for the positions that are not reached, which ONNX Runtime keeps, and constants of a few bytes."""
    for arch, path in files.items():
        [counted] = memory_of(FAMILY, [arch], WORKLOADS[0])
        assert memory_of_file(path, ones(WORKLOADS[0])).weights_mib == pytest.approx(counted.weights_mib, rel=0.01)


def test_the_arena_of_onnx_runtime_agrees(files):
    errors = []
    for arch, path in files.items():
        plan = memory_of_file(path, ones(WORKLOADS[0])).activations_mib * MIB
        arena = activations_mib(path, ones(WORKLOADS[0])) * MIB
        [formula] = memory_of(FAMILY, [arch], WORKLOADS[0])
        errors.append(abs(plan / arena - 1.0))
        assert 0.48 < formula.activations_mib * MIB / arena < 1.02, "the formula is what an allocator without gaps needs"
        assert formula.upper_mib > formula.weights_mib + arena / MIB
    assert len(errors) >= 10
    assert statistics.median(errors) < 0.1
    assert max(errors) < 0.35


def test_the_bound_holds_for_a_network_of_a_few_kilobytes(tmp_path):
    """Where what an arena rounds up counts."""
    space, workload = encoder_space(width=(16,), depth=(3,), heads=(2,), ffn=(64, 128)), Workload(tokens=32)
    family = EncoderFamily(space, vocab_size=1000, num_classes=8, max_tokens=32, head_size=16)
    kinds = {"layer1.attention": "full", "layer2.attention": "none", "layer3.attention": "window"}
    arch = space.canonical({**space.largest().as_dict, **kinds, "layer1.ffn": 64})
    path = tmp_path / "tiny.onnx"
    export_onnx(family.network(arch, backend="blocks"), family.example_input(workload), path)
    [counted] = memory_of(family, [arch], workload)
    arena_mib = activations_mib(path, ones(workload))
    assert GAPS * counted.activations_mib < arena_mib < counted.upper_mib - counted.weights_mib


def test_a_file_whose_memory_cannot_be_measured_is_named(tmp_path):
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no network at all")
    with pytest.raises(DeviceError, match=r"garbage\.onnx: the memory of this network could not be measured"):
        activations_mib(garbage, {})


def test_a_relaxed_architecture_has_an_expectation_with_a_gradient():
    encoding = Encoding.of(FAMILY.space, ARCHS)
    weights, activations = expected_memory(FAMILY, encoding, WORKLOADS[0])
    for index, arch in enumerate(ARCHS):
        values = torch.tensor(encoding.values[index], dtype=torch.float64, requires_grad=True)
        both = expected_memory(FAMILY, Encoding(FAMILY.space, values), WORKLOADS[0])
        assert [part.item() for part in both] == pytest.approx([weights[index], activations[index]]), arch
        for part in both:
            [gradient] = torch.autograd.grad(part, values, retain_graph=True)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0


def test_a_family_that_does_not_say_what_is_alive_is_refused():
    silent = SimpleNamespace(space=FAMILY.space, operators=lambda encoding, workload: [])
    with pytest.raises(ValueError, match="space: encoder does not say which activations are alive together"):
        memory_of(silent, ARCHS, WORKLOADS[0])


# --- files


def graph_of(*nodes):
    outputs = [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)]
    return onnx.helper.make_graph([onnx.helper.make_node(kind, list(i), list(o)) for kind, i, o in nodes], "g", [], outputs)


def test_a_tensor_lives_from_who_writes_it_to_its_last_reader():
    graph = graph_of(("MatMul", ["x", "w"], ["a"]), ("Relu", ["a"], ["b"]), ("Tanh", ["b"], ["c"]), ("Add", ["c", "a"], ["out"]))
    spans = buffers(graph, {"a": 100, "b": 10, "c": 1})
    assert spans == [(0, 3, 100), (1, 2, 10), (2, 3, 1)]
    assert living(spans) == 111
    assert living([]) == planned([]) == 0


def test_a_reshape_shares_the_memory_of_its_input():
    graph = graph_of(("Relu", ["x"], ["a"]), ("Reshape", ["a", "s"], ["b"]), ("Relu", ["b"], ["c"]), ("Relu", ["c"], ["out"]))
    assert buffers(graph, {"a": 8, "b": 8, "c": 4}) == [(0, 2, 8), (2, 3, 4)]


def test_best_fit_takes_the_smallest_gap_and_grows_only_if_there_is_none():
    unit = ALIGNMENT
    pinned = [(0, 1, 3 * unit), (0, 9, unit), (0, 1, 2 * unit), (0, 9, unit)]  # gaps of 3 and 2 units from the second operator on
    assert planned(pinned) == 7 * unit
    assert planned([*pinned, (2, 9, 2 * unit), (2, 9, 3 * unit)]) == 7 * unit, "the 2 go where 3 would not fit"
    assert planned([*pinned, (2, 9, 4 * unit)]) == 11 * unit
    assert planned([(0, 0, 1)]) == unit


def test_what_is_no_network_or_not_its_input_is_refused(files, tmp_path):
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no network at all")
    for path in (garbage, tmp_path / "missing.onnx"):
        with pytest.raises(ValueError, match=f"{path.name}: ONNX Runtime refuses"):
            memory_of_file(path, ones(WORKLOADS[0]))
    path = files[ARCHS[1]]
    with pytest.raises(ValueError, match=f"{path.name}: ONNX Runtime refuses the file or the inputs"):
        memory_of_file(path, {"token_ids": np.ones((1, 4), dtype=np.int64)})
