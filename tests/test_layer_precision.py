"""A precision for each layer: one meaning in the supernet, in a network, in its file, in what it costs and in the finisher."""

import json

import numpy as np
import onnx
import pytest
import torch

from experiments.costing import check_precisions
from experiments.stages import check_stages
from hardware.file_memory import memory_of_file
from hardware.local_cpu import LocalCpu
from latency_models.additive import AdditiveLatency
from latency_models.memory import memory_of
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import HALF_TOLERANCE, INTEGER_TOLERANCE, compare, export_onnx, form_of
from nas.fewer_bits import with_fewer_bits
from nas.finish.exits import Exits, Head
from nas.finish.fake_quant import rounding
from nas.finish.low_rank import LowRank
from nas.finish.precision import blocks, quantised
from nas.finish.quantise import Quantise
from nas.finish.shapes import linear_layers
from nas.formats import open_session
from nas.layers import Linear, with_precision
from nas.rounding import mixed_input, mixed_weight, round_weight, round_weight_blocks
from nas.supernet import call, cut_out, skeleton
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.decoding import decoded
from tests.support.families import FAMILIES, family_of, inputs_of, workload_of
from tests.support.networks import picked, trained
from tests.support.stages import FAST, Sum, finisher_of, operators, through

COMPUTE = Compute()
PRECISIONS = ("fp32", "fp16", "int8", "int4")
FEWER, INTEGERS = PRECISIONS[1:], PRECISIONS[2:]
QKV = ("query", "key", "value")
OPERATORS = {"fp16": "MatMul", "int8": "MatMulInteger", "int4": "MatMulNBits"}


def mixed_family(name: str, **options):
    return family_of(name, **{"ffn_kind": ("glu", "mlp"), "rank": (), "precision": PRECISIONS, **options})


@pytest.fixture(params=FAMILIES)
def family(request):
    return mixed_family(request.param)


@pytest.fixture(scope="module")
def encoders() -> EncoderFamily:
    space = encoder_space(width=(32, 64), depth=(1, 2, 3), heads=(1, 2), ffn=(32, 64), precision=PRECISIONS)
    return EncoderFamily(space, 500, 4, max_tokens=32, head_size=16)


def in_precisions(family, *precisions: str):
    """The largest network, its layers in these precisions."""
    picks = {f"layer{n}.precision": precision for n, precision in enumerate(precisions, 1)}
    return family.space.canonical({**family.space.largest().as_dict, **picks})


# --- the law of the supernet


@pytest.mark.parametrize("seed", range(5))
def test_one_hot_masks_equal_the_cut_out_network(family, seed):
    supernet, inputs = trained(family.supernet()), inputs_of(family)
    picks = [{}, {"precision": "int8"}, {"precision": "int4"}, {"precision": "int8", "sharing": "none"}, {"precision": "fp16"}][
        seed
    ]
    arch = picked(family, seed, **picks)
    masked = supernet(*inputs, masks=family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))))
    network = cut_out(family, supernet, arch, COMPUTE).double()
    torch.testing.assert_close(masked, network(*inputs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(*inputs), call(supernet, skeleton(family, arch, COMPUTE), inputs), rtol=1e-9, atol=1e-9)
    if picks:
        assert (with_precision(network, "")(*inputs) - masked).abs().max() > 1e-6, "integers are not fp32"


def test_with_fewer_heads_of_keys_and_values_too():
    family = mixed_family("encoder", heads=(2, 4), kv_heads=(1, 2))
    supernet, inputs = trained(family.supernet()), inputs_of(family)
    for seed in range(4):
        arch = picked(family, seed, precision=INTEGERS[seed % 2], attention="full")
        encoding = Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))
        network = cut_out(family, supernet, arch, COMPUTE).double()
        torch.testing.assert_close(supernet(*inputs, masks=family.masks(encoding)), network(*inputs), rtol=1e-9, atol=1e-9)


def test_every_logit_receives_a_gradient(family):
    supernet, space = trained(family.supernet()), family.space
    logits = torch.zeros(space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in space.offsets.values()])
    supernet(*inputs_of(family), masks=family.masks(Encoding(space, probabilities))).square().sum().backward()
    assert torch.all(logits.grad != 0)
    assert all(torch.any(p.grad != 0) for p in supernet.parameters() if p.requires_grad)


def test_a_mixture_is_that_of_both_and_what_is_not_there_does_not_widen_a_range():
    weight, seen = torch.tensor([[1.0, -0.3, 9.0], [0.2, 0.7, -9.0]]).double(), torch.tensor([1.0, 1.0, 0.0])
    p, q = torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True)
    mixture = mixed_weight(weight, {"int8": p, "int4": q}, seen)
    eight, four = (
        torch.cat([rounded(weight[:, :2]), torch.zeros(2, 1)], dim=1) for rounded in (round_weight, round_weight_blocks)
    )
    torch.testing.assert_close(mixture, 0.25 * weight * seen + 0.25 * eight + 0.5 * four)
    found = torch.autograd.grad((mixture * weight).sum(), (p, q))
    for gradient, rounded in zip(found, (eight, four), strict=True):
        torch.testing.assert_close(gradient, ((rounded - weight * seen) * weight).sum())
    assert mixed_input(weight, {}, seen) is weight


def test_an_architecture_survives_encoding_and_json(family):
    for seed in range(10):
        arch = family.space.sample(np.random.default_rng(seed))
        assert decoded(family.space, family.space.encode([arch])[0]) == arch
        assert family.space.canonical(json.loads(json.dumps(arch.to_json()))) == arch
    assert set(family.space.largest().as_dict.values()).isdisjoint(FEWER)


@pytest.mark.parametrize("precision", FEWER)
def test_fp32_alone_makes_no_choice_and_another_alone_fixes_it(precision):
    assert encoder_space(precision=("fp32",)) == encoder_space()
    family = mixed_family("encoder", precision=(precision,))
    assert all(layer.precision == precision for _, layer in linear_layers(family.network(family.space.largest())))
    arch, supernet, inputs = family.space.largest(), trained(family.supernet()), inputs_of(family)
    encoding = Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))
    network = cut_out(family, supernet, arch, COMPUTE).double()
    torch.testing.assert_close(supernet(*inputs, masks=family.masks(encoding)), network(*inputs), rtol=1e-9, atol=1e-9)


# --- the file


def chosen_weights(path, precision="int8") -> set[str]:
    """Modules whose weights are numbers of a precision, by name; an attention whose weights are one matrix has three."""
    types = {"fp16": (onnx.TensorProto.FLOAT16, 2), "int8": (onnx.TensorProto.INT8, 2), "int4": (onnx.TensorProto.UINT8, 3)}
    kind, dims = types[precision]
    found = [t for t in onnx.load(path).graph.initializer if t.data_type == kind and len(t.dims) == dims]
    names = {t.name.removesuffix(".weight").replace(".attention.layer.", ".attention.") for t in found}
    return {f"{n}.{part}" if part else n for n in names for part in (QKV if n.endswith(".attention") else ("",))}


@pytest.mark.parametrize("precision", FEWER)
@pytest.mark.parametrize("name", FAMILIES)
def test_exactly_the_chosen_layers_are_in_fewer_bits_in_every_form(name, precision, tmp_path):
    torch.manual_seed(0)
    family = mixed_family(name, sharing=("none", "pairs"))
    arch = family.space.canonical({**in_precisions(family, precision, "fp32", precision).as_dict, "sharing": "none"})
    network = trained(family.network(arch, backend="blocks")).float()
    wanted = {n for n, part in network.named_modules() if isinstance(part, Linear) and part.precision == precision}
    assert {n.split(".")[2] for n in wanted} == {"0", "2"}
    assert len(wanted) == 2 * (4 + 3)
    whole = workload_of(family)
    forms = [whole]
    if name == "decoder":
        forms += [Workload(2, 8, "prefill"), Workload(2, 1, "decode", 8)]
    for workload in forms:
        form, example = form_of(family, network, workload)
        report = export_onnx(form, example, tmp_path / "m.onnx")
        assert {n.removeprefix("decoder.") for n in chosen_weights(tmp_path / "m.onnx", precision)} == wanted
        count = operators(tmp_path / "m.onnx")
        assert precision == "fp16" or count[OPERATORS[precision]] + 3 * count["QAttention"] == len(wanted)
        assert report.max_abs_difference <= report.tolerance < 1


def test_weights_that_layers_share_are_integers_once(tmp_path):
    family = mixed_family("encoder", sharing=("all",))
    arch = in_precisions(family, "int8")
    export_onnx(family.network(arch, backend="blocks"), family.example_input(workload_of(family)), tmp_path / "m.onnx")
    assert len(chosen_weights(tmp_path / "m.onnx")) == 7
    count = operators(tmp_path / "m.onnx")
    assert count["MatMulInteger"] == 4 * arch.size("depth")
    assert count["QAttention"] == arch.size("depth")


@pytest.mark.parametrize(("precision", "kind"), [("int8", "dynamic"), ("int4", "int4")])
def test_the_file_is_what_the_quantiser_makes_of_these_layers(encoders, precision, kind, tmp_path):
    """Of the same network in float, when all blocks of its layers but the chosen ones are kept."""
    network = trained(encoders.network(in_precisions(encoders, precision, "fp32", precision), backend="blocks")).float()
    example = encoders.example_input(Workload(3, 32))
    export_onnx(network, example, tmp_path / "ours.onnx")
    export_onnx(with_precision(network, ""), example, tmp_path / "fp32.onnx")
    plain = onnx.load(tmp_path / "fp32.onnx")
    keep = [block for block in blocks(plain, kind) if "blocks.0" not in block and "blocks.2" not in block]
    onnx.save(quantised(plain, kind, keep=keep), tmp_path / "quantised.onnx")
    feed = {name: value.numpy() for name, value in example.items()}
    ours, theirs, fp32 = (open_session(tmp_path / f"{name}.onnx").run(None, feed)[0] for name in ("ours", "quantised", "fp32"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - fp32).max() > 1e-3
    ours, theirs = (operators(tmp_path / f"{name}.onnx") for name in ("ours", "quantised"))
    if precision == "int8":
        assert [count["QAttention"] for count in (ours, theirs)] == [2, 2]
        assert [count["MatMulInteger"] for count in (ours, theirs)] == [2 * 3, 2 * 3]
    else:  # the quantiser takes three matrices as one
        assert [count["MatMulNBits"] for count in (ours, theirs)] == [2 * 6, 2 * 4]


@pytest.mark.parametrize("precision", FEWER)
def test_network_and_file_decide_alike(encoders, precision, tmp_path):
    network = trained(encoders.network(in_precisions(encoders, *[precision] * 3), backend="blocks")).float().eval()
    export_onnx(network, encoders.example_input(Workload(1, 32)), tmp_path / "m.onnx")
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for length in (32, 20, 7):
        ids = torch.randint(500, (200, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (200, 1), generator=generator)).long()
        inputs.append({"token_ids": ids * mask, "attention_mask": mask})
    difference, equal, total = compare(network, tmp_path / "m.onnx", inputs)
    assert total == 600
    assert equal >= 0.99 * total
    with torch.no_grad():
        largest = max(float(network(*example.values()).abs().max()) for example in inputs)
    assert difference <= {"fp16": HALF_TOLERANCE}.get(precision, INTEGER_TOLERANCE) * largest


def test_a_file_that_stops_early_has_them_too(encoders, tmp_path):
    network = encoders.network(in_precisions(encoders, "int8", "int8", "fp32"), backend="blocks")
    exits = Exits(network, {1: Head(64, 4)}, threshold=0.25).eval()
    export_onnx(exits, encoders.example_input(Workload(1, 32)), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    [branch] = [a.g for node in graph.node for a in node.attribute if a.g.name == "goes_on"]
    for part in (graph, branch):
        kinds = [node.op_type for node in part.node]
        assert (kinds.count("MatMulInteger"), kinds.count("QAttention")) == (3, 1)


def test_the_form_of_a_file_answers_like_the_network(encoders):
    inputs = list(encoders.example_input(Workload(2, 32)).values())
    for precisions in (("int8", "fp32", "int4"), ("fp16", "fp32", "fp16")):
        network = trained(encoders.network(in_precisions(encoders, *precisions))).float()
        close = {"rtol": 0.0, "atol": 0.02} if "fp16" in precisions else {}  # fp16 rounds what comes out, too
        torch.testing.assert_close(with_fewer_bits(network)(*inputs), network(*inputs), **close)
    assert with_fewer_bits(with_precision(network, "")) is network, "nothing to change"


# --- what it costs


def test_a_weight_in_int8_is_a_byte_and_in_int4_half_of_it_and_in_fp16_it_is_held_twice(encoders, tmp_path):
    example, workload = encoders.example_input(Workload(1, 32)), Workload(1, 32)
    feed = {name: value.numpy() for name, value in example.items()}
    sizes = {}
    for precision in PRECISIONS:
        arch = in_precisions(encoders, *[precision] * 3)
        export_onnx(encoders.network(arch, backend="blocks"), example, tmp_path / "m.onnx")
        [counted] = memory_of(encoders, [arch], workload)
        found = memory_of_file(tmp_path / "m.onnx", feed)
        assert precision == "fp16" or found.weights_mib == pytest.approx(counted.weights_mib, rel=0.02)
        assert found.peak_mib < counted.upper_mib
        sizes[precision] = counted.weights_mib
    table = 4 * 64 * (500 + 32) / 2**20
    shares = [(sizes[precision] - table) / (sizes["fp32"] - table) for precision in FEWER]
    assert shares == pytest.approx([1.5, 0.29, 0.18], abs=0.03)


def test_the_latency_model_tells_precisions_apart(encoders):
    """Of a device on which fp16 and int8 are faster than fp32, and int4 slower."""
    workload, archs = Workload(1, 32), [encoders.space.sample(np.random.default_rng(seed)) for seed in range(80)]
    price = {"fp16": 0.7, "int8": 0.4, "int4": 1.5}

    def law(arch):
        found = encoders.operators(Encoding.of(encoders.space, [arch]), workload)
        costs = [price.get(op.kind[-4:], 1.0) * (0.002 * op.count + 1e-8 * op.flops) for op in found]
        return 0.05 + float(np.sum(sum(costs)))

    measured = [Measurement(a, "invented", workload, ((law(a),),), ((1.0,),), 1.0, {}) for a in archs]
    model = AdditiveLatency(ridge=1e-8).fit(encoders, measured)
    alike = [in_precisions(encoders, *[precision] * 3) for precision in PRECISIONS]
    predicted = model.predict(alike).mean_ms
    assert predicted == pytest.approx([law(arch) for arch in alike], rel=0.02)
    fp32, fp16, int8, int4 = predicted
    assert int8 < 0.95 * fp16 < 0.9 * fp32 < 0.8 * int4
    mean = Encoding(encoders.space, torch.as_tensor(encoders.space.encode(alike).mean(axis=0)))
    assert model.expected_ms(mean).item() == pytest.approx(predicted.mean())


# --- training and finishing


def test_what_is_scored_is_the_file_and_stages_keep_precisions(tmp_path):
    torch.manual_seed(0)
    space = encoder_space(width=(32,), depth=(2,), heads=(2,), ffn=(32,), attention=("full",), precision=PRECISIONS)
    family = EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)
    largest = in_precisions(family, "fp32", "int8")
    finisher = finisher_of(family, tmp_path)
    finisher.finish(largest, family.supernet())
    found = finisher.scores.of(largest, "validation", tag="")["error_percent"]
    assert finisher.files.record(largest)["error_percent"] == found
    assert {name.split(".")[2] for name in chosen_weights(finisher.files.onnx_path(largest, tag=""))} == {"1"}
    stages = {"low_rank": LowRank(train=FAST, energy=0.3), "quantise": Quantise(train=FAST, aware=True)}
    low_rank, quantise = through(finisher, stages, largest)
    assert low_rank.after.num_parameters < low_rank.before.num_parameters
    network = finisher.files.network(largest, tag="low_rank")
    assert {layer.precision for name, layer in linear_layers(network) if "blocks.0" in name} == {"fp32"}
    assert {layer.precision for name, layer in linear_layers(network) if "blocks.1" in name} == {"int8"}
    assert quantise.facts["kept_blocks"] == []
    graph = onnx.load(finisher.files.onnx_path(largest, tag="quantise")).graph
    weights = {tensor.name for tensor in graph.initializer}
    kinds = [node.op_type for node in graph.node if "MatMul" in node.op_type and weights & set(node.input)]
    assert set(kinds) == {"MatMul", "MatMulInteger"}
    assert kinds == sorted(kinds), "the first layer is in float"
    chosen = operators(finisher.files.onnx_path(largest, tag="low_rank"))["MatMulInteger"]
    assert kinds.count("MatMulInteger") == chosen + 1, "the classifier is in no layer: it is the stage's"


def test_training_under_rounding_leaves_chosen_layers_alone(encoders):
    network = trained(encoders.network(in_precisions(encoders, "fp32", "int8", "fp32"))).float()
    inputs = list(encoders.example_input(Workload(2, 32)).values())
    outside = [module for module in network.modules() if isinstance(module, Linear) and not module.precision]
    assert outside == [network.classifier]
    with rounding(network) as state:
        network(*inputs)
        assert len(state.errors) == len(outside)


def test_gradients_reach_every_weight_through_the_rounding(encoders):
    network = encoders.network(in_precisions(encoders, "int8", "int4", "fp16"))
    inputs = list(encoders.example_input(Workload(2, 32)).values())
    for compute in (Compute(), Compute(precision="bfloat16")):
        network.zero_grad()
        with compute.autocast():
            network(*inputs).float().square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        assert all(torch.any(p.grad != 0) for _, layer in linear_layers(network) for p in (layer.weight,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ("int2",)}, r"precision: \('int2',\) are not some of \('fp32', 'fp16', 'int8', 'int4'\)"),
        ({"precision": ()}, r"precision: \(\) are not some of"),
        (
            {"ffn_kind": ("mlp", "lowrank"), "rank": (2,)},
            r"precision: \('fp32', 'fp16', 'int8', 'int4'\) go with the ffn_kind 'glu' and 'mlp'",
        ),
        ({"ffn_kind": ("mlp", "none")}, r"and \('mlp', 'none'\) are chosen"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixed_family("encoder", **options)


def test_what_cannot_keep_a_precision_is_refused(encoders):
    with pytest.raises(ValueError, match=r"space.precision: layers choose theirs .* local_cpu runs files in int8"):
        check_precisions(encoders, LocalCpu(precision="int8"))
    check_precisions(encoders, LocalCpu())
    check_precisions(family_of("encoder"), LocalCpu(precision="int8"))
    fp16 = {"quantise": Quantise(kind="fp16", aware=False)}
    with pytest.raises(ValueError, match=r"stages.quantise.kind: the space encoder chooses the precision of layers, and 'fp16'"):
        check_stages(fp16, task=Sum(), family=encoders, device=LocalCpu())
    with pytest.raises(ValueError, match=r"stages.quantise: the space decoder .* of a decoder nothing else is quantised"):
        check_stages({"quantise": Quantise()}, task=Sum(), family=mixed_family("decoder"), device=LocalCpu())
