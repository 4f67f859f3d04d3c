"""The family over images and signals: its law, its costs, its files, and what it refuses."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.formatting import position_of
from latency_models.memory import memory_of
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx
from nas.supernet import call, cut_out, sandwich, skeleton
from nas.types import MIB, Workload
from search_spaces.vision import VisionFamily, vision_space
from tests.support.decoding import decoded
from tests.support.liveness import alive

COMPUTE = Compute()
SPACE = {"width": (8, 12, 16), "depth": (1, 2, 3), "heads": (1, 2), "ffn": (8, 16)}


def family_of(input_shape, patch, stem=("patches",), **changes):
    given = {"mean": (3.0, -1.0)[: input_shape[0]], "std": (2.0, 0.5)[: input_shape[0]], "head_size": 4, "window": 2}
    return VisionFamily(vision_space(patch=patch, stem=stem, **SPACE), input_shape, 5, **(given | changes))


BOTH = ("conv", "patches")
FAMILIES = {
    "image": family_of((2, 8, 12), (2, 4)),
    "signal": family_of((1, 24), (3, 4, 8)),
    "image, stems": family_of((2, 8, 12), (1, 2, 4), BOTH),
    "signal, stems": family_of((1, 24), (3, 4, 8), BOTH),
    "image, convolved": family_of((2, 8, 12), (2, 4), ("conv",)),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> VisionFamily:
    return FAMILIES[request.param]


def inputs_of(family, batch=3):
    return next(iter(family.example_input(Workload(batch=batch, tokens=family.num_positions)).values()))


def trained(network):
    """Moves every weight off its initial value, so that biases and norms take part."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network.double()


def one_hot(family, arch):
    return family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0])))


@pytest.mark.parametrize(("name", "words"), [("image", "96 pixels"), ("signal", "24 samples")])
def test_a_workload_counts_what_an_input_is_made_of(name, words):
    family = FAMILIES[name]
    assert Workload(tokens=family.num_positions).counting(position_of(family)) == f"batch 1, {words}, encode"


@pytest.mark.parametrize("seed", range(6))
def test_one_hot_masks_equal_the_cut_out_network(family, seed):
    supernet, x = trained(family.supernet()), inputs_of(family).double()
    arch = family.space.sample(np.random.default_rng(seed))
    masked = supernet(x, masks=one_hot(family, arch))
    torch.testing.assert_close(masked, cut_out(family, supernet, arch, COMPUTE).double()(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(masked, call(supernet, skeleton(family, arch, COMPUTE), [x]), rtol=1e-10, atol=1e-10)


def test_the_supernet_without_masks_is_the_largest_network(family):
    supernet, x = trained(family.supernet()), inputs_of(family).double()
    largest = cut_out(family, supernet, family.space.largest(), COMPUTE).double()
    torch.testing.assert_close(supernet(x), largest(x), rtol=1e-10, atol=1e-10)


def test_a_decided_patch_costs_one_pass(family):
    supernet, passes, x = family.supernet().double(), [], inputs_of(family).double()
    supernet.stack.register_forward_hook(lambda module, inputs, output: passes.append(output[0].shape[1]))
    masks = one_hot(family, family.space.smallest())
    supernet(x, masks=masks)
    assert passes == [list(supernet.patches.values())[-1].num_tokens]
    masks.patch.requires_grad_()
    supernet(x, masks=masks)
    assert len(passes) == 1 + len(supernet.patches)


def test_every_logit_receives_a_gradient(family):
    supernet = trained(family.supernet())
    logits = torch.zeros(family.space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in family.space.offsets.values()])
    outputs = supernet(inputs_of(family).double(), masks=family.masks(Encoding(family.space, probabilities)))
    torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1, 2])).backward()
    asked = torch.cat([logits.grad[family.space.offsets[c.name]] for c in family.space if len(c.options) > 1])
    assert torch.all(asked != 0)


@pytest.mark.parametrize("backend", ["fused", "blocks"])
@pytest.mark.parametrize("seed", range(3))
def test_backends_compute_the_same(family, seed, backend):
    supernet, x = trained(family.supernet()), inputs_of(family).double()
    arch = family.space.sample(np.random.default_rng(seed))
    reference = cut_out(family, supernet, arch, COMPUTE).double()
    other = cut_out(family, supernet, arch, Compute(backend=backend)).double()
    torch.testing.assert_close(other(x), reference(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["full", "window"])
def test_the_file_answers_like_the_network_for_any_batch(family, kind, tmp_path):
    kinds = {f"layer{layer}.attention": kind for layer in (1, 2, 3)}
    arch = family.space.canonical({**family.space.largest().as_dict, **kinds})
    workloads = [Workload(batch=batch, tokens=family.num_positions) for batch in (1, 5)]
    first, second = map(family.example_input, workloads)
    report = export_onnx(family.network(arch, backend="blocks"), first, tmp_path / "m.onnx", check_on=[second])
    assert (report.num_examples, report.equal_decisions) == (6, 1.0)
    [value] = onnx.load(tmp_path / "m.onnx").graph.input
    assert value.name == ("image" if len(family.input_shape) == 3 else "signal")
    sizes = [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    assert sizes == ["batch", *family.input_shape]


@pytest.mark.parametrize("seed", range(4))
def test_costs_are_those_of_the_network(family, seed):
    arch = family.space.sample(np.random.default_rng(seed))
    layers = range(1, arch.size("depth") + 1)  # a sliding window costs whole blocks, which torch does not count
    arch = family.space.canonical(
        {**family.space.largest().as_dict, **arch.as_dict, **{f"layer{n}.attention": "full" for n in layers}}
    )
    network, workload = family.network(arch), Workload(batch=3, tokens=family.num_positions)
    operators = family.operators(Encoding.of(family.space, [arch]), workload)
    assert sum(float(np.sum(o.parameters)) for o in operators) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(inputs_of(family))
    products = [o for o in operators if o.kind != "standard" and not o.kind.endswith("norm")]
    assert sum(float(np.sum(o.flops)) for o in products) == counter.get_total_flops()


def test_memory_is_the_liveness_of_the_exported_file(family, tmp_path):
    workload = Workload(batch=2, tokens=family.num_positions)
    archs = [family.space.largest(), family.space.smallest(), *(family.space.sample(np.random.default_rng(s)) for s in range(3))]
    for arch, counted in zip(archs, memory_of(family, archs, workload), strict=True):
        example = family.example_input(workload)
        export_onnx(family.network(arch, backend="blocks"), example, tmp_path / "m.onnx")
        inputs = {name: value.numpy() for name, value in example.items()}
        assert counted.activations_mib * MIB == pytest.approx(alive(tmp_path / "m.onnx", inputs), rel=0.05), arch


def test_costs_are_linear_in_the_patch(family):
    workload, space = Workload(tokens=family.num_positions), family.space
    archs = [space.canonical({**space.largest().as_dict, "patch": option}) for option in space.by_name["patch"].options]
    rows = space.encode(archs)
    share = np.arange(1.0, len(rows) + 1) / np.arange(1.0, len(rows) + 1).sum()

    def totals(values):
        operators = family.operators(Encoding(space, values), workload)
        return np.array([sum(getattr(o, cost) for o in operators) for cost in ("flops", "bytes", "parameters", "live_bytes")])

    np.testing.assert_allclose(totals(share @ rows), totals(rows) @ share, rtol=1e-12)


def test_the_finest_patch_costs_most_and_is_the_largest_network_s(family):
    space, workload = family.space, Workload(tokens=family.num_positions)
    largest, *others = sandwich(space, np.random.default_rng(0), num_random=8)
    costs = sum(o.flops for o in family.operators(Encoding.of(space, [largest, *others]), workload))
    assert costs.argmax() == 0
    assert costs.argmin() == 1
    named = family.hand_designed()
    assert list(named) == ["largest", "coarse patches", "2 layers", "1 layer"]
    assert named["largest"] == largest
    assert named["coarse patches"]["patch"] == space.by_name["patch"].options[-1]


def test_an_architecture_survives_encoding_and_json(family):
    for seed in range(5):
        arch = family.space.sample(np.random.default_rng(seed))
        assert decoded(family.space, family.space.encode([arch])[0]) == arch
        assert family.space.canonical(json.loads(json.dumps(arch.to_json()))) == arch


def test_the_network_standardises_its_input():
    raw, ready = family_of((1, 24), (4,)), family_of((1, 24), (4,), mean=(0.0,), std=(1.0,))
    arch, x = raw.space.largest(), inputs_of(raw)
    one, other = raw.network(arch), ready.network(arch)
    other.load_state_dict({**one.state_dict(), **{f"standard.{n}": other.standard.state_dict()[n] for n in ("mean", "scale")}})
    torch.testing.assert_close(one(x), other((x - 3.0) / 2.0))
    one(x).sum().backward()
    assert {name for name, p in one.named_parameters() if p.grad is None} == {"standard.mean", "standard.scale"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (8,)}, r"input_shape: \(8,\) is not \(channels, height, width\) or \(channels, length\)"),
        ({"input_shape": (1, 0)}, r"input_shape: \(1, 0\)"),
        (
            {"input_shape": (1, 30)},
            r"patch: 4 does not divide the input of 30 \(1 channels, which come first\); allowed are \[1, 2, 3, 5, 6, 10, ",
        ),
        ({"mean": (0.0, 1.0)}, r"mean: \(0.0, 1.0\) are not 1, one for each channel"),
        ({"std": (0.0,)}, r"std: \(0.0,\) are not all positive"),
        ({"num_classes": 0}, "num_classes: 0 is not at least 1"),
        ({"window": 0}, "window: 0 is not at least 1"),
        ({"pooling": "max"}, r"pooling: 'max' is not one of \('mean', 'token'\)"),
    ],
)
def test_bad_families_are_refused(changes, message):
    given = {"space": vision_space(patch=(4,), **SPACE), "input_shape": (1, 24), "num_classes": 2, "mean": (0.0,), "std": (1.0,)}
    with pytest.raises(ValueError, match=message):
        VisionFamily(**(given | changes))


@pytest.mark.parametrize(
    ("patch", "message"), [((4, 2), "ascending"), ((), "no options"), (("4",), r"patch: \('4',\) are not int")]
)
def test_bad_patches_are_refused(patch, message):
    with pytest.raises(ValueError, match=message):
        vision_space(patch=patch, **SPACE)


def test_stems_are_a_choice_where_there_are_several_or_another_one():
    assert "stem" not in FAMILIES["image"].space.by_name
    assert FAMILIES["image, stems"].space.by_name["stem"].options == BOTH
    assert FAMILIES["image, convolved"].space.by_name["stem"].options == ("conv",)
    with pytest.raises(ValueError, match=r"stem: \('pool',\) are not some of \('conv', 'patches'\)"):
        vision_space(stem=("pool",))


def test_a_workload_of_another_size_is_refused(family):
    with pytest.raises(ValueError, match=r"tokens: 7 of the workload are not the (96|24) positions of (8 x 12|24)"):
        family.example_input(Workload(tokens=7))


@pytest.mark.parametrize("seed", range(3))
def test_a_class_token_keeps_the_law_and_is_exported(seed, tmp_path):
    """It is one token more, whose answer hangs on the patches."""
    family = family_of((2, 8, 12), (2, 4), pooling="token")
    supernet, x = trained(family.supernet()), inputs_of(family).double()
    arch = family.space.sample(np.random.default_rng(seed))
    network = cut_out(family, supernet, arch, COMPUTE).double()
    torch.testing.assert_close(supernet(x, masks=one_hot(family, arch)), network(x), rtol=1e-10, atol=1e-10)
    size = int(arch["patch"])
    assert next(iter(network.patches.values())).positions.weight.shape[0] == 96 // size**2 + 1
    operators = family.operators(Encoding.of(family.space, [arch]), Workload(batch=2, tokens=96))
    assert sum(float(np.sum(o.parameters)) for o in operators) == sum(p.numel() for p in network.parameters())
    report = export_onnx(network.float(), family.example_input(Workload(tokens=96)), tmp_path / "model.onnx")
    assert report.max_abs_difference <= 1e-4
