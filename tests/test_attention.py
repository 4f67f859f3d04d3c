"""Kinds of attention and grouped-query heads: what they are by definition, what they cost, their files and their caches."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latency_models.memory import memory_of
from nas.attention import PATTERNS
from nas.attention_kinds import attention, interleaved, lowrank_attention, padding_bias, pattern, topk_attention
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx, form_of
from nas.space import Architecture
from nas.supernet import call, cut_out, skeleton
from nas.types import MIB, Workload
from search_spaces.attention import ATTENTION_KINDS, LOOKS_AHEAD
from search_spaces.compact import inside
from search_spaces.decoder import Decode, Decoder, DecoderFamily, Prefill, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space
from tests.support.decoding import decoded
from tests.support.liveness import alive
from tests.support.networks import trained

COMPUTE, SHIPPED = Compute(), Compute(backend="blocks")
KINDS = ATTENTION_KINDS[:-1]
CAUSAL = tuple(kind for kind in KINDS if kind not in LOOKS_AHEAD)
SIZES = {"width": (8, 12), "depth": (1, 2), "heads": (2, 4), "kv_heads": (1, 2, 4), "ffn": (8, 16)}
ENCODER = EncoderFamily(encoder_space(**SIZES, attention=KINDS), 50, 5, max_tokens=24, head_size=4, window=3)
DECODER = DecoderFamily(decoder_space(**SIZES, attention=(*CAUSAL, "none")), 50, max_tokens=24, head_size=4, window=3)
VISION = VisionFamily(
    vision_space(patch=(3, 8), **SIZES, attention=(*KINDS, "none")), (1, 24), 5, mean=(0.0,), std=(1.0,), head_size=4, window=2
)


def of_kind(family, kind: str, *, heads: int = 4, kv_heads: int = 2) -> Architecture:
    """The largest network with one kind of attention in every layer."""
    picks = {f"layer{i}.{name}": pick for i in (1, 2) for name, pick in (("attention", kind), ("heads", heads))}
    grouped = {f"layer{i}.kv_heads_of_{heads}": kv_heads for i in (1, 2)}
    return family.space.canonical({**family.space.largest().as_dict, **picks, **grouped})


def inputs(tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(50, (4, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 1:] = 0
    return ids, mask


# --- definitions


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 30])
def test_what_is_exported_is_attention_inside_the_pattern(kind, causal, window):
    torch.manual_seed(window)
    for tokens in (1, 2, window, window + 1, 2 * window, 17):
        q, k, v = torch.randn(3, 2, 2, tokens, 4).double()
        real = torch.arange(tokens) < torch.tensor([tokens, max(1, tokens - 4)])[:, None]
        padding = padding_bias(real, torch.float64)
        outside = (1.0 - pattern(kind, tokens, window, q, causal=causal)) * -1e4
        actual = PATTERNS[kind](q, k, v, padding, window, causal=causal)
        expected = attention(q, k, v, padding + outside)
        keep = real[:, None, :, None].expand_as(actual)
        torch.testing.assert_close(actual[keep], expected[keep], rtol=1e-10, atol=1e-10)


def test_patterns_are_those_of_their_papers():
    rows = {
        "window": ["11000", "11100", "01110", "00111", "00011"],
        "block": ["11111", "11000", "10110", "10110", "10001"],
        "strided": ["10101", "01010", "10101", "01010", "10101"],
    }
    for kind, expected in rows.items():
        size = 1 if kind == "window" else 2
        wanted = torch.tensor([[float(digit) for digit in row] for row in expected])
        if kind == "block":  # the first token sees all and is seen by all
            wanted[:, 0] = 1.0
        torch.testing.assert_close(pattern(kind, 5, size, wanted, causal=False), wanted)
        torch.testing.assert_close(pattern(kind, 5, size, wanted, causal=True), wanted.tril())


def test_topk_is_a_softmax_over_the_largest_scores():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4).double()
    padding = padding_bias(torch.tensor([[1] * 7, [1] * 2 + [0] * 5]), torch.float64)
    actual = topk_attention(q, k, v, padding, 3)
    for b, h, i in np.ndindex(2, 3, 7):
        scores = (k[b, h] @ q[b, h, i])[: 7 if b == 0 else 2]
        best = scores.argsort(descending=True)[:3]
        expected = torch.softmax(scores[best], 0) @ v[b, h, best]
        torch.testing.assert_close(actual[b, h, i], expected, rtol=1e-10, atol=1e-10)


def test_mixtures_begin_with_every_rth_token():
    mix_RT = interleaved(3, 12)
    assert mix_RT.shape == (3, 12)
    assert mix_RT[1].nonzero().flatten().tolist() == [1, 4, 7, 10]
    torch.testing.assert_close(mix_RT.square().sum(dim=1), torch.ones(3))
    assert interleaved(4, 2).tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_lowrank_attends_to_mixtures_of_the_real_tokens():
    torch.manual_seed(0)
    (q, k, v), mix = torch.randn(3, 1, 2, 7, 4).double(), torch.randn(3, 7).double()
    padding = padding_bias(torch.tensor([[1] * 5 + [0] * 2]), torch.float64)
    keys, values = (torch.einsum("rt,bhtk->bhrk", mix[:, :5], x[:, :, :5]) for x in (k, v))
    torch.testing.assert_close(lowrank_attention(q, k, v, padding, mix), attention(q, keys, values, None))


def test_a_query_head_sees_its_own_keys_modulo_their_number():
    torch.manual_seed(0)
    q, (k, v) = torch.randn(2, 6, 5, 4).double(), torch.randn(2, 2, 3, 5, 4).double()
    each = torch.arange(6) % 3
    torch.testing.assert_close(attention(q, k, v, None, shared=2), attention(q, k[:, each], v[:, each], None))


# --- the law, with grouped heads


@pytest.mark.parametrize("family", [ENCODER, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("seed", range(12))
def test_one_hot_masks_equal_the_cut_out_network(family, seed):
    (ids, mask), space = inputs(), family.space
    supernet, arch = trained(family.supernet()), space.sample(np.random.default_rng(seed))
    masked = supernet(ids, mask, masks=family.masks(Encoding(space, torch.as_tensor(space.encode([arch])[0]))))
    keep = mask == 1 if family is DECODER else torch.ones(4, dtype=torch.bool)
    for compute in (COMPUTE, Compute(backend="fused"), SHIPPED):
        network = cut_out(family, supernet, arch, compute).double()
        torch.testing.assert_close(masked[keep], network(ids, mask)[keep], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(masked[keep], call(supernet, skeleton(family, arch, COMPUTE), (ids, mask))[keep])


@pytest.mark.parametrize("seed", range(6))
def test_one_hot_masks_equal_the_cut_out_network_of_a_signal(seed):
    arch = VISION.space.sample(np.random.default_rng(seed))
    [x] = VISION.example_input(Workload(batch=3, tokens=24)).values()
    supernet = trained(VISION.supernet())
    masked = supernet(x.double(), masks=VISION.masks(Encoding(VISION.space, torch.as_tensor(VISION.space.encode([arch])[0]))))
    torch.testing.assert_close(masked, cut_out(VISION, supernet, arch, SHIPPED).double()(x.double()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [ENCODER, DECODER, VISION], ids=["encoder", "decoder", "vision"])
def test_every_logit_receives_a_gradient(family):
    supernet = trained(family.supernet())
    logits = torch.zeros(family.space.encoding_size, dtype=torch.float64, requires_grad=True)
    masks = family.masks(Encoding(family.space, torch.cat([torch.softmax(logits[s], 0) for s in family.space.offsets.values()])))
    x = inputs() if family is not VISION else [next(iter(VISION.example_input(Workload(batch=4, tokens=24)).values())).double()]
    outputs = supernet(*x, masks=masks)
    torch.nn.functional.cross_entropy(outputs.flatten(0, -2), torch.arange(outputs[..., 0].numel()) % 5).backward()
    assert torch.all(logits.grad != 0)


def test_undecided_heads_of_keys_are_expected_ones():
    """Head i, given that it exists: of 2 heads its own or the first, of 4 heads its own, the second or the first."""
    space = encoder_space(width=(8,), depth=(1,), heads=(2, 4), kv_heads=(1, 2, 4), ffn=(8,), attention=("full",))
    family = EncoderFamily(space, 50, 5, head_size=4)
    probabilities = torch.ones(space.encoding_size, dtype=torch.float64)
    given = {"heads": [0.4, 0.6], "kv_heads_of_2": [0.3, 0.7], "kv_heads_of_4": [0.2, 0.5, 0.3]}
    for name, values in given.items():
        probabilities[space.offsets[f"layer1.{name}"]] = torch.tensor(values, dtype=torch.float64)
    kv = family.masks(Encoding(space, probabilities)).stack.layers[0].attention.kv
    of_1 = 0.4 * 0.3 + 0.6 * 0.2
    expected = [[1, 0, 0, 0], [of_1, 1 - of_1, 0, 0], [0.7, 0, 0.3, 0], [0.2, 0.5, 0, 0.3]]
    torch.testing.assert_close(kv, torch.tensor(expected, dtype=torch.float64))


def test_a_causal_answer_depends_on_nothing_later():
    for kind in CAUSAL:
        network = trained(DECODER.network(of_kind(DECODER, kind), backend="blocks"))
        ids, mask = inputs(11)[0], torch.ones(4, 11, dtype=torch.int64)
        before = network(ids, mask)
        for changed in (0, 4, 10):
            other = ids.clone()
            other[:, changed] = (other[:, changed] + 1) % 50
            after = network(other, mask)
            torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-12)
            assert (after - before).abs()[:, changed].min() > 0


# --- files, costs and memory


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_answers_like_the_network_for_any_length(kind, tmp_path):
    network = trained(ENCODER.network(of_kind(ENCODER, kind), backend="blocks")).float()
    others = [ENCODER.example_input(Workload(batch=b, tokens=t)) for b, t in ((3, 1), (2, 2), (1, 7), (2, 24))]
    padded = dict(zip(("token_ids", "attention_mask"), inputs(), strict=True))
    report = export_onnx(network, ENCODER.example_input(Workload(tokens=9)), tmp_path / "m.onnx", check_on=[*others, padded])
    assert (report.num_examples, report.equal_decisions) == (13, 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_costs_are_those_of_the_network(kind, kv_heads):
    arch, workload = of_kind(ENCODER, kind, kv_heads=kv_heads), Workload(batch=3, tokens=20)
    network = ENCODER.network(arch, backend="blocks")
    operators = ENCODER.operators(Encoding.of(ENCODER.space, [arch]), workload)
    assert sum(float(np.sum(o.parameters)) for o in operators) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(*ENCODER.example_input(workload).values())
    products = [o for o in operators if not o.kind.endswith("norm")]
    sums = 4 * 3 * 20 * 4 * 4 * 2 / 2 if kind == "linear" else 0  # its sums of keys and of queries count as a product
    assert sum(float(np.sum(o.flops)) for o in products) == counter.get_total_flops() - sums
    assert {o.kind for o in operators if o.kind.startswith("attention.") and np.sum(o.count)} == {
        "attention.norm",
        f"attention.{kind}",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_the_liveness_of_the_exported_file(kind, tmp_path):
    space = encoder_space(width=(64,), depth=(1, 2), heads=(2, 4), kv_heads=(1, 2, 4), ffn=(32,), attention=KINDS)
    family = EncoderFamily(space, 100, 5, max_tokens=500, head_size=32)
    for kv_heads, tokens in ((4, 60), (4, 500), (1, 120)):
        arch, workload = of_kind(family, kind, kv_heads=kv_heads), Workload(batch=2, tokens=tokens)
        example = family.example_input(workload)
        export_onnx(family.network(arch, backend="blocks"), example, tmp_path / "m.onnx")
        there = alive(tmp_path / "m.onnx", {name: value.numpy() for name, value in example.items()})
        [counted] = memory_of(family, [arch], workload)
        assert counted.activations_mib * MIB == pytest.approx(there, rel=0.05 if kv_heads == 4 else 0.15), (kv_heads, tokens)


# --- the cache


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_cache_changes_nothing_and_holds_the_heads_of_keys(kind, kv_heads):
    network = trained(DECODER.network(of_kind(DECODER, kind, kv_heads=kv_heads), backend="blocks"))
    for tokens in (1, 3, 8):
        ids = inputs(24)[0]
        logits, *past = Prefill(network)(ids[:, :tokens])
        for position in range(tokens, 24):
            expected = network(ids[:, :position], torch.ones(4, position, dtype=torch.int64))[:, -1:]
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
            kept = min(position, 3) if kind == "window" else position
            assert {tuple(x.shape) for x in past} == {(4, kv_heads, kept, 4)}
            logits, *past = Decode(network)(ids[:, position : position + 1], torch.full((4, 1), position), *past)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_decode_graph_takes_any_past(kind, tmp_path):
    network: Decoder = trained(DECODER.network(of_kind(DECODER, kind), backend="blocks")).float()
    form, example = form_of(DECODER, network, Workload(tokens=1, mode="decode", past=7))
    others = [form_of(DECODER, network, Workload(batch=2, tokens=1, mode="decode", past=past))[1] for past in (0, 1, 2, 3, 9)]
    assert export_onnx(form, example, tmp_path / "decode.onnx", check_on=others).equal_decisions == 1.0
    pairs, moved = {"full": 8, "window": 4, "block": 3, "strided": 3, "topk": 5.5}[kind], 3 if kind == "window" else 8
    operators = DECODER.operators(Encoding.of(DECODER.space, [of_kind(DECODER, kind)]), Workload(tokens=1, mode="decode", past=7))
    assert sum(float(np.sum(o.flops)) for o in operators if o.kind == f"attention.{kind}") == 2 * 4 * pairs * 16
    assert sum(float(np.sum(o.bytes)) for o in operators if o.kind == f"cache.{kind}") == 2 * 16 * moved * 2 * 4


# --- choices


def test_a_kind_may_carry_its_size_and_those_that_see_more_stand_first():
    kinds = ("none", "strided8", "window4", "window16", "full", "strided2", "topk")
    space = encoder_space(width=(8,), depth=(1,), heads=(1,), ffn=(8,), attention=kinds)
    ordered = ("full", "window16", "window4", "strided2", "strided8", "topk", "none")
    assert space.by_name["layer1.attention"].options == ordered
    family = EncoderFamily(space, 50, 5, 24, head_size=4, window=3)
    sizes = {arch["layer1.attention"]: family.network(arch).stack.layers[0] for arch in space.architectures()}
    assert {kind: block.attention.kind.window for kind, block in sizes.items() if block.has_attention} == {
        "full": 3, "window16": 16, "window4": 4, "strided2": 2, "strided8": 8, "topk": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("full", "window0"), "'window0' is not one of"),
        (("full", "linear8"), "'linear8' is not one of .* nor of .* with a size, as window16"),
        (("window", "window8"), r"\('window', 'window8'\) are window twice; of .* there may be several, with a size each"),
        (("topk4", "topk8"), r"\('topk4', 'topk8'\) are topk twice"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(kinds, message):
    with pytest.raises(ValueError, match=f"attention: {message}"):
        encoder_space(attention=kinds)


def test_heads_of_keys_are_chosen_for_each_number_of_heads_that_they_divide():
    space = encoder_space(width=(8,), depth=(1,), heads=(1, 2, 4), kv_heads=(1, 2), ffn=(8,), attention=("full", "none"))
    options = {name: choice.options for name, choice in space.by_name.items() if "kv_heads" in name}
    assert options == {"layer1.kv_heads_of_2": (1, 2), "layer1.kv_heads_of_4": (1, 2)}
    assert space.num_architectures() == 1 + 2 + 2 + 1
    assert not any("kv_heads" in name for name in encoder_space().by_name)
    assert EncoderFamily(space, 50, 5).supernet().stack.layers[0].attention.key.weight.shape == (2 * 32, 8)


def test_a_compact_network_of_the_literature_shares_no_keys():
    space = encoder_space(width=(128, 256), depth=(2, 4), heads=(2, 4), kv_heads=(1, 2, 4), ffn=(512, 1024), attention=("full",))
    found = inside(space, head_size=64)
    assert [found["BERT-tiny"]["layer1.kv_heads_of_2"], found["BERT-mini"]["layer1.kv_heads_of_4"]] == [2, 4]


@pytest.mark.parametrize("seed", range(10))
def test_an_architecture_survives_its_encoding(seed):
    space = ENCODER.space
    arch = space.sample(np.random.default_rng(seed))
    assert decoded(space, space.encode([arch])[0]) == arch
    assert space.canonical(arch.to_json()) == arch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": (3,)}, r"kv_heads: none of \(3,\) divides 2 heads"),
        ({"kv_heads": (2, 1)}, "kv_heads: options"),
        ({"kv_heads": (0,)}, "kv_heads: options"),
        ({"attention": ("full", "cross")}, "attention: 'cross' is not one of"),
    ],
)
def test_bad_choices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder_space(**SIZES | changes)


@pytest.mark.parametrize("kind", LOOKS_AHEAD)
def test_a_causal_network_refuses_what_looks_ahead(kind):
    with pytest.raises(ValueError, match=f"attention: '{kind}' looks at what comes after, a causal network cannot have it"):
        DecoderFamily(decoder_space(**SIZES, attention=("full", kind)), 50)
