"""Fewer tokens after a layer: what is kept, the law of the supernet, files and costs."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments import space as space_command
from hardware.file_memory import optimized
from latency_models.additive import AdditiveLatency
from latency_models.memory import memory_of
from nas import mixed_attention as mixing
from nas.attention_kinds import BLOCKED, padding_bias
from nas.compute import Compute
from nas.constraints import within_ms
from nas.encoding import Encoding
from nas.export import export_onnx
from nas.finish.exits import Exits, Head
from nas.mixed_attention import mixed_attention
from nas.projection import discretise
from nas.reduction import hidden, keeps, mean_token, num_kept, reduced, visible
from nas.supernet import call, cut_out, skeleton
from nas.types import MIB, Interval, Workload
from search_spaces.attention import ATTENTION_KINDS
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space
from tests.support.decoding import decoded
from tests.support.fewer_tokens import inputs_of, logit_gradients
from tests.support.liveness import alive
from tests.support.networks import picked, trained

SIZES = {"width": (8, 12), "depth": (1, 3, 4), "heads": (1, 2), "kv_heads": (1, 2), "ffn": (8, 16)}
KINDS = {
    "attention": ATTENTION_KINDS,
    "ffn_kind": ("mlp", "none"),
    "norm_kind": ("layer", "rms"),
    "sharing": ("none", "pairs", "all"),
}
KEEP = {"keep": (30, 50, 100), "keep_after": 2}


def family_of(name: str, **changes):
    chosen = {**SIZES, **KINDS, **KEEP, **changes}
    if name == "vision":
        return VisionFamily(vision_space(patch=(3, 8), **chosen), (1, 24), 5, (0.0,), (1.0,), head_size=4, window=2)
    space = encoder_space(**chosen)
    return EncoderFamily(space, 50, 5, max_tokens=24, head_size=4, window=2, norm="post" if "post" in name else "pre")


FAMILIES = {name: family_of(name) for name in ("encoder", "encoder, post-norm", "vision")}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


# --- what is kept


@pytest.mark.parametrize("percent", [1, 30, 50, 99])
def test_the_best_tokens_stay_in_their_order(percent):
    torch.manual_seed(percent)
    x, scores = torch.randn(3, 9, 2), torch.rand(3, 9)
    mask = torch.ones(3, 9)
    mask[1, 4:] = 0
    mask[2, [0, 3]] = 0
    kept, bias = reduced(x, padding_bias(mask, x.dtype), scores, percent)
    assert kept.shape == (3, num_kept(9, percent), 2)
    for row in range(3):
        real = [i for i in range(9) if mask[row, i]]
        best = sorted(sorted(real, key=lambda i, row=row: -scores[row, i])[: -(-percent * len(real) // 100)])
        assert torch.equal(kept[row, : len(best)], x[row, best])
        assert bias[row, 0, 0].tolist() == [0.0] * len(best) + [BLOCKED] * (kept.shape[1] - len(best))
        assert keeps(padding_bias(mask, x.dtype), scores, [percent])[0, row].nonzero()[:, 0].tolist() == best
    torch.testing.assert_close(mean_token(kept, bias)[0], kept[0].mean(dim=0))


def test_a_mixture_hides_tokens_by_the_probability_that_they_are_gone():
    scores = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).double()
    bias = padding_bias(torch.ones(1, 4), torch.float64)
    mixed = hidden(bias, keeps(bias, scores, [25, 50]), torch.tensor([0.2, 0.3]).double())
    torch.testing.assert_close(visible(mixed)[0, :, 0], torch.tensor([1.0, 0.5, 0.8, 0.5]).double())


@pytest.mark.parametrize("backend", ["matmul", "fused", "blocks"])
@pytest.mark.parametrize("kind", ATTENTION_KINDS[:-1])
def test_padding_changes_no_answer(kind, backend):
    family = FAMILIES["encoder"]
    network = trained(family.network(picked(family, 3, depth=4, keep_after_2=30, attention=kind), backend=backend))
    ids = torch.randint(50, (2, 11))
    longer = torch.nn.functional.pad(ids, (0, 8)), torch.nn.functional.pad(torch.ones_like(ids), (0, 8))
    torch.testing.assert_close(network(*longer), network(ids, torch.ones_like(ids)), rtol=1e-10, atol=1e-10)


def test_scores_are_the_attention_of_the_mean_token():
    family = FAMILIES["encoder"]
    network = trained(family.network(picked(family, 0, attention="full", heads=2, kv_heads_of_2=1, depth=3)))
    attention, x = network.stack.layers[0].attention, torch.randn(1, 5, network.embedding.embedding_dim).double()
    bias = padding_bias(torch.tensor([[1, 1, 1, 1, 0]]), x.dtype)
    q, k = attention.query(x[:, :4].mean(dim=1))[0].view(2, 4), attention.key(x)[0]
    expected = (q @ k[:4].T).softmax(dim=-1).sum(dim=0)
    torch.testing.assert_close(attention.received(x, bias)[0], torch.cat([expected, torch.zeros(1).double()]))


# --- the law


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
@pytest.mark.parametrize("keep", [30, 50])
def test_one_hot_masks_equal_the_cut_out_network(family, kind, keep):
    supernet, inputs, seed = trained(family.supernet()), inputs_of(family), ATTENTION_KINDS.index(kind) + keep
    picks = {f"layer{n}.attention": kind for n in (3, 4)}  # behind the reduction
    if family.space.name == "vision":
        picks["patch"] = "3"
    arch = picked(family, seed, depth=(3, 4)[seed % 2], keep_after_2=keep, sharing="none")
    arch = family.space.canonical({**family.space.complete(arch, np.random.default_rng(0)), **picks})
    masked = supernet(*inputs, masks=family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))))
    network = cut_out(family, supernet, arch, Compute(backend="blocks")).double()
    whole = cut_out(family, supernet, family.space.canonical({**arch.as_dict, "keep_after_2": 100}), Compute()).double()
    torch.testing.assert_close(masked, network(*inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(masked, call(supernet, skeleton(family, arch, Compute()), inputs), rtol=1e-10, atol=1e-10)
    assert (masked - whole(*inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(12))
def test_one_hot_masks_of_any_architecture(family, seed):
    """Also where layers share weights, where all is kept, and where no layer is behind."""
    supernet, inputs = trained(family.supernet()), inputs_of(family)
    arch = picked(family, seed, **({"sharing": ("pairs", "all")[seed % 2], "depth": 4, "keep_after_2": 50} if seed < 6 else {}))
    masked = supernet(*inputs, masks=family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))))
    torch.testing.assert_close(masked, cut_out(family, supernet, arch, Compute()).double()(*inputs), rtol=1e-10, atol=1e-10)


def test_the_supernet_without_masks_is_the_largest_network(family):
    supernet, inputs = trained(family.supernet()), inputs_of(family)
    largest = cut_out(family, supernet, family.space.largest(), Compute()).double()
    torch.testing.assert_close(supernet(*inputs), largest(*inputs), rtol=1e-10, atol=1e-10)


def test_every_logit_receives_a_gradient(family):
    gradients = logit_gradients(family)
    assert torch.all(torch.isfinite(gradients))
    assert torch.all(gradients != 0)


def test_a_drawn_share_gives_finite_gradients(family):
    """One-hot forward with a soft gradient, as `gumbel` draws: also by tokens that are not there."""
    supernet, space = trained(family.supernet()), family.space
    soft = torch.cat([torch.full((len(c.options),), 1 / len(c.options)) for c in space]).double().requires_grad_()
    hard = torch.as_tensor(space.encode([picked(family, 0, depth=4, keep_after_2=30)])[0])
    masks = family.masks(Encoding(space, hard + soft - soft.detach()))
    [gradient] = torch.autograd.grad(supernet(*inputs_of(family), masks=masks).square().sum(), [soft])
    assert torch.isfinite(gradient).all()
    assert gradient[space.offsets["keep_after_2"]][:2].abs().min() > 0


@pytest.mark.parametrize("cache_bytes", [1, 1 << 19])
@pytest.mark.parametrize("rows", [1, 4])
def test_mixed_attention_has_the_right_gradient_by_its_bias(monkeypatch, cache_bytes, rows):
    monkeypatch.setattr(mixing, "CACHE_BYTES", cache_bytes)
    torch.manual_seed(0)
    seen = torch.rand(2, 2, 1, 4, 4).double()
    seen[0, :, :, 0, 1] = 0.0
    weights = torch.tensor([[0.3, 0.5, -0.2, 0.7], [0.6, 0.0, 0.4, -0.1]]).T
    arguments = [*torch.randn(3, 2, 2, 4, 3), torch.rand(2, 1, rows, 4), weights]
    arguments = [a.double().requires_grad_() for a in arguments]
    assert torch.autograd.gradcheck(lambda *a: mixed_attention(*a, seen, top=2), arguments)
    assert torch.autograd.gradgradcheck(lambda *a: mixed_attention(*a, seen, top=2), arguments)


def test_an_architecture_survives_encoding_and_json(family):
    for seed in range(10):
        arch = family.space.sample(np.random.default_rng(seed))
        assert decoded(family.space, family.space.encode([arch])[0]) == arch
        assert family.space.canonical(json.loads(json.dumps(arch.to_json()))) == arch
        assert ("keep_after_2" in arch) == (arch.size("depth") > 2)


# --- files and costs


@pytest.mark.parametrize("kind", ["full", "window", "block", "strided", "lowrank"])
def test_the_file_answers_like_the_network_for_any_length(kind, tmp_path):
    family = FAMILIES["encoder"]
    network = trained(family.network(picked(family, 5, depth=4, keep_after_2=30, attention=kind), backend="blocks")).float()
    others = [family.example_input(Workload(batch=b, tokens=t)) for b, t in ((3, 1), (2, 2), (1, 7), (2, 24))]
    padded = dict(zip(("token_ids", "attention_mask"), inputs_of(family), strict=True))
    report = export_onnx(network, family.example_input(Workload(tokens=9)), tmp_path / "m.onnx", check_on=[*others, padded])
    assert (report.num_examples, report.equal_decisions) == (13, 1.0)


def test_the_file_of_an_image_takes_any_batch(tmp_path):
    family = FAMILIES["vision"]
    network = trained(family.network(picked(family, 1, depth=3, keep_after_2=50, patch="3"), backend="blocks")).float()
    first, second = (family.example_input(Workload(batch=batch, tokens=24)) for batch in (1, 5))
    assert export_onnx(network, first, tmp_path / "m.onnx", check_on=[second]).equal_decisions == 1.0


PLAIN = {"attention": "full", "ffn_kind": "mlp", "sharing": "none", "norm_kind": "layer", "depth": 4}


@pytest.mark.parametrize(("sharing", "seed"), [("none", 0), ("none", 1), ("pairs", 2), ("all", 3)])
@pytest.mark.parametrize("name", ["encoder", "vision"])
def test_costs_are_those_of_the_network(name, sharing, seed):
    family = FAMILIES[name]
    arch = picked(family, seed, **{**PLAIN, "sharing": sharing, "keep_after_2": 30})
    network, workload = family.network(arch), Workload(batch=3, tokens=24)
    operators = family.operators(Encoding.of(family.space, [arch]), workload)
    assert sum(float(np.sum(o.parameters)) for o in operators) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(*family.example_input(workload).values())
    products = [o for o in operators if o.kind != "standard" and not o.kind.endswith("norm")]
    key, tokens = (
        network.stack.layers[1].attention.key,
        24 if name == "encoder" else network.patches[str(arch["patch"])].num_tokens,
    )
    again = 2 * 3 * tokens * key.weight.numel()  # keys that a file computes once: see below
    assert sum(float(np.sum(o.flops)) for o in products) == pytest.approx(counter.get_total_flops() - again)


def test_a_file_computes_the_keys_of_the_scores_once(tmp_path):
    family, products = FAMILIES["encoder"], {}
    for keep in (50, 100):
        network = family.network(picked(family, 0, **{**PLAIN, "keep_after_2": keep}), backend="blocks")
        export_onnx(network, family.example_input(Workload(tokens=9)), tmp_path / "m.onnx")
        of_operator = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "Attention": 5}
        products[keep] = sum(of_operator.get(node.op_type, 0) for node in optimized(tmp_path / "m.onnx").graph.node)
    assert products[50] == products[100] + 3, "the mean token, its queries and the scores"


@pytest.mark.parametrize("keep", [30, 50])
def test_memory_is_the_liveness_of_the_exported_file(keep, tmp_path):
    chosen = {"width": (64,), "depth": (3,), "heads": (2,), "ffn": (32, 256), "attention": ("full",)}
    family = EncoderFamily(encoder_space(**chosen, keep=(30, 50, 100)), 100, 5, max_tokens=200, head_size=32)
    workload = Workload(batch=2, tokens=120)
    example = family.example_input(workload)
    for ffn in (32, 256):
        arch = picked(family, 0, keep_after_1=keep, ffn=ffn)
        export_onnx(family.network(arch, backend="blocks"), example, tmp_path / "m.onnx")
        there = alive(tmp_path / "m.onnx", {name: value.numpy() for name, value in example.items()})
        [counted] = memory_of(family, [arch], workload)
        assert counted.activations_mib * MIB == pytest.approx(there, rel=0.05), ffn


def test_costs_rise_with_what_is_kept_and_are_linear_in_its_share(family):
    workload, space = Workload(tokens=24), family.space
    options = space.by_name["keep_after_2"].options
    arch = picked(family, 2, depth=4, sharing="none")
    rows = space.encode([space.canonical({**arch.as_dict, "keep_after_2": option}) for option in options])

    def totals(values, cost):
        return sum(getattr(o, cost) for o in family.operators(Encoding(space, values), workload))

    for cost in ("flops", "bytes", "parameters"):
        found = totals(rows, cost)
        assert list(found) == sorted(found)
        assert (found[0] < found[-1]) == (cost != "parameters")
        share = np.array([0.2, 0.3, 0.5])
        np.testing.assert_allclose(totals(share @ rows, cost), found @ share, rtol=1e-12)


def test_an_additive_latency_model_prices_it_and_a_budget_buys_it():
    family = family_of("encoder", ffn_kind=("mlp",), norm_kind=("layer",), sharing=("none",))
    space, model = family.space, AdditiveLatency(costs=("flops",), pooled=True)
    model.family_, model.workload_ = family, Workload(tokens=24)
    model.prices_, model.interval_ = np.array([1.0]), Interval(0.0, 1.0, 1.0)  # a device that takes 1 us a MFLOP
    values = torch.cat([torch.full((len(c.options),), 1 / len(c.options)) for c in space]).double().requires_grad_()
    model.expected_ms(Encoding(space, values)).backward()
    gradient = values.grad[space.offsets["keep_after_2"]]
    assert gradient.tolist() == sorted(gradient.tolist())
    [whole, half] = model.predict([picked(family, 0, **PLAIN, keep_after_2=keep) for keep in (100, 50)]).mean_ms
    likely = np.log(np.clip(space.encode([picked(family, 0, **PLAIN, keep_after_2=100)])[0], 1e-9, 1.0))
    likely[space.offsets["keep_after_2"]] = np.log([0.3, 0.3, 0.4])
    assert half < whole
    assert discretise(space, likely, [within_ms(model, half)])["keep_after_2"] == 50


def test_an_early_answer_behind_the_reduction_is_of_what_is_left(tmp_path):
    family = FAMILIES["encoder"]
    network = trained(family.network(picked(family, 4, depth=4, keep_after_2=50), backend="blocks")).float()
    exits = Exits(network, {3: Head(network.embedding.embedding_dim, 5)}, threshold=0.5).eval()
    ids, mask = inputs_of(family)
    longer = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    for answer, same in zip(exits.answers(ids, mask), exits.answers(*longer), strict=True):
        torch.testing.assert_close(answer, same)
    example = {"token_ids": ids, "attention_mask": mask}
    assert export_onnx(exits, example, tmp_path / "m.onnx").max_abs_difference < 1e-4


# --- the choice


def test_it_exists_where_a_layer_is_behind_and_scores_come_from_one_that_attends():
    space = encoder_space(**{**SIZES, **KINDS, **KEEP})
    rows = {name: (options, exists) for name, options, exists in space_command.choices(space)[1:]}
    assert rows["keep_after_2"] == ("30 50 100", "depth >= 3")
    attending = {c.name for c in space if c.name.endswith(".attention") and "none" not in c.options}
    assert attending == {"layer1.attention", "layer2.attention"}, "layer 2, and 1 whose weights it may use"
    assert encoder_space(**SIZES) == encoder_space(**SIZES, keep=(100,), keep_after=1)
    assert FAMILIES["encoder"].space.largest()["keep_after_2"] == 100
    assert family_of("encoder", keep=(50,), depth=(3,)).space.by_name["keep_after_2"].requires == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": (50, 101)}, r"keep: \(50, 101\) are not percentages of 1 to 100"),
        ({"keep": (50, 30)}, r"keep_after_2: options \(50, 30\) must be positive and ascending"),
        ({"keep": (0.5, 1.0)}, r"keep_after_2: options \(0.5, 1.0\) must be all integers or all strings"),
        ({"keep_after": 4}, r"keep_after: 4 is not one of the layers 1 to 3, which have one behind them"),
        ({"keep_after": 0}, r"keep_after: 0 is not one of the layers 1 to 3"),
        ({"precision": ("fp32", "int8")}, r"keep: \(30, 50, 100\) goes with the precision 'fp32' alone, and \('fp32', 'int8'\)"),
    ],
)
def test_bad_choices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        family_of("encoder", **changes)


def test_a_first_token_that_is_read_is_not_left_out():
    with pytest.raises(ValueError, match=r"keep: a first token that the classifier reads might not be kept; pooling=mean"):
        VisionFamily(vision_space(patch=(3,), keep=(50, 100)), (1, 24), 5, (0.0,), (1.0,), pooling="token")


def test_each_token_s_answer_needs_each_token():
    with pytest.raises(
        ValueError, match=r"keep: \[50\] % of the tokens are too few for a task that asks for each \(space\.keep=\[\]\)"
    ):
        EncoderFamily(encoder_space(keep=(50, 100)), 50, 5, per_token=True)
