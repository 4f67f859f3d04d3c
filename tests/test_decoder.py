"""Decoders: the law of the supernet, causality, and answers with a cache that are those without one."""

import numpy as np
import pytest
import torch

from nas.attention_kinds import blocked_window_attention
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx, form_of
from nas.formats import open_session
from nas.space import Architecture
from nas.supernet import call, cut_out, skeleton
from nas.types import Workload
from search_spaces.decoder import Decode, DecoderFamily, Prefill, cache_names, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.decoders import assert_same_where_it_counts, generated
from tests.support.networks import trained

COMPUTE = Compute()
WORDS, LONGEST, WINDOW = 50, 24, 3


@pytest.fixture(scope="module")
def family() -> DecoderFamily:
    space = decoder_space(width=(8, 12, 16), depth=(1, 2, 3), heads=(1, 2), ffn=(8, 16))
    return DecoderFamily(space, vocab_size=WORDS, max_tokens=LONGEST, head_size=4, window=WINDOW)


@pytest.fixture(scope="module")
def mixed(family) -> Architecture:
    """Every kind of attention, one a layer, and different numbers of heads."""
    picks = {"width": 12, "depth": 3, "layer1.attention": "window", "layer1.heads": 2, "layer2.attention": "none"}
    return family.space.canonical({**family.space.largest().as_dict, **picks, "layer3.attention": "full", "layer3.heads": 1})


def inputs(tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Four sequences, two of them with padding behind."""
    ids = torch.randint(WORDS, (4, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 1:] = 0
    return ids, mask


@pytest.mark.parametrize("seed", range(8))
def test_one_hot_masks_equal_the_cut_out_network(family, seed):
    ids, mask = inputs()
    supernet = trained(family.supernet())
    arch = family.space.sample(np.random.default_rng(seed))
    masks = family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0])))
    masked = supernet(ids, mask, masks=masks)
    network = cut_out(family, supernet, arch, COMPUTE).double()
    assert masked.shape == (4, 20, WORDS)
    assert_same_where_it_counts(masked, network(ids, mask), mask)
    assert_same_where_it_counts(masked, call(supernet, skeleton(family, arch, COMPUTE), (ids, mask)), mask)


@pytest.mark.parametrize("backend", ["fused", "blocks"])
@pytest.mark.parametrize("seed", range(4))
def test_backends_compute_the_same(family, mixed, seed, backend):
    supernet = trained(family.supernet())
    arch = mixed if seed == 0 else family.space.sample(np.random.default_rng(seed))
    reference = cut_out(family, supernet, arch, COMPUTE).double()
    other = cut_out(family, supernet, arch, Compute(backend=backend)).double()
    for tokens in (1, 2, 3, 4, 5, 6, 7, 19, 20):
        ids, mask = inputs(tokens)
        assert_same_where_it_counts(other(ids, mask), reference(ids, mask), mask)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 30])
def test_blocks_of_a_causal_window_are_the_definition(window):
    """Token by token: softmax over itself and the `window` real tokens before it."""
    torch.manual_seed(window)
    for tokens in (1, 2, window, window + 1, 2 * window - 1, 2 * window, 17):
        q, k, v = torch.randn(3, 2, 2, tokens, 4).double()
        real = torch.tensor([tokens, max(1, tokens - 4)])
        padding = torch.where(torch.arange(tokens) < real[:, None], 0.0, -1e4).double()[:, None, None, :]
        blocks = blocked_window_attention(q, k, v, padding, window, causal=True)
        for b in range(2):
            for i in range(int(real[b])):
                seen = slice(max(0, i - window), i + 1)
                weights = torch.softmax(k[b, :, seen] @ q[b, :, i, :, None], dim=1)
                torch.testing.assert_close(blocks[b, :, i], (weights * v[b, :, seen]).sum(1), rtol=1e-10, atol=1e-10)


def test_every_logit_receives_a_gradient(family):
    ids, mask = inputs()
    supernet = trained(family.supernet())
    logits = torch.zeros(family.space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in family.space.offsets.values()])
    outputs = supernet(ids, mask, masks=family.masks(Encoding(family.space, probabilities)))
    torch.nn.functional.cross_entropy(outputs.flatten(0, 1), ids.flatten()).backward()
    assert torch.all(logits.grad != 0)


@pytest.mark.parametrize("kind", ["full", "window", "none"])
@pytest.mark.parametrize("backend", ["matmul", "fused", "blocks", "masks"])
def test_a_later_token_changes_no_earlier_answer(family, kind, backend):
    layers = {f"layer{i}.attention": kind for i in (1, 2, 3)}
    arch = family.space.canonical({**family.space.largest().as_dict, **layers})
    encoding = Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))
    if backend == "masks":
        network, extra = trained(family.supernet()), {"masks": family.masks(encoding)}
    else:
        network, extra = trained(family.network(arch, backend=backend)), {}
    ids, mask = inputs(11)[0], torch.ones(4, 11, dtype=torch.int64)
    before = network(ids, mask, **extra)
    for changed in (0, 4, 10):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % WORDS
        after = network(other, mask, **extra)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-12)
        last = {"none": changed, "window": min(10, changed + 3 * WINDOW), "full": 10}[kind]
        differs = (after - before).abs().amax(dim=(0, 2)) > 1e-12
        assert differs[changed : last + 1].all(), "and every answer from there on that it reaches"
        assert not differs[last + 1 :].any()


@pytest.mark.parametrize("seed", range(4))
def test_a_cache_changes_nothing(family, mixed, seed):
    arch = mixed if seed == 0 else family.space.sample(np.random.default_rng(seed))
    network = trained(family.network(arch, backend="blocks"))
    for tokens in (1, 2, 5, 12):
        ids = inputs(tokens)[0]
        logits, *past = Prefill(network)(ids)
        for position in range(tokens, LONGEST):
            expected = network(ids, torch.ones_like(ids))[:, -1:]
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
            answer = logits.argmax(-1)
            ids = torch.cat([ids, answer], dim=1)
            logits, *past = Decode(network)(answer, torch.full((4, 1), position), *past)
        assert torch.equal(ids, generated(network, inputs(tokens)[0], LONGEST - tokens))


def test_a_window_keeps_no_more_than_it_sees(family, mixed):
    network = family.network(mixed)
    names = cache_names(network, "present")
    assert names == ["present.0.key", "present.0.value", "present.2.key", "present.2.value"]
    _, *past = Prefill(network)(inputs(10)[0])
    assert [tuple(x.shape) for x in past] == [(4, 2, WINDOW, 4)] * 2 + [(4, 1, 10, 4)] * 2
    _, *past = Decode(network)(inputs(1)[0], torch.full((4, 1), 10), *past)
    assert [x.shape[2] for x in past] == [WINDOW, WINDOW, 11, 11]


def test_exported_graphs_generate_what_the_network_does(family, mixed, tmp_path):
    network = trained(family.network(mixed, backend="blocks")).float()
    sessions = {}
    for workload in (Workload(tokens=6, mode="prefill"), Workload(tokens=1, mode="decode", past=7)):
        path = tmp_path / f"{workload.mode}.onnx"
        form, example = form_of(family, network, workload)
        report = export_onnx(form, example, path)
        assert report.max_abs_difference <= 1e-4
        sessions[workload.mode] = open_session(path)
    decode = sessions["decode"]
    given, answered = [i.name for i in decode.get_inputs()], [o.name for o in decode.get_outputs()]
    assert given == ["token_ids", "position_ids", *cache_names(network, "past_key_values")]
    assert answered == ["logits", *cache_names(network, "present")]
    for tokens in (0, 1, 2, 9):  # 0: the first token is decoded with an empty past
        prompt = inputs(max(1, tokens))[0]
        expected = generated(network, prompt, LONGEST - prompt.shape[1])
        if tokens:
            logits, *past = sessions["prefill"].run(None, {"token_ids": prompt.numpy()})
        else:
            past = [np.zeros((4, *i.shape[1:2], 0, i.shape[3]), np.float32) for i in decode.get_inputs()[2:]]
            feed = {"token_ids": prompt.numpy(), "position_ids": np.zeros((4, 1), np.int64)}
            logits, *past = decode.run(None, {**feed, **dict(zip(given[2:], past, strict=True))})
        ids = prompt
        for position in range(prompt.shape[1], LONGEST):
            full = network(ids, torch.ones_like(ids))[:, -1:]
            torch.testing.assert_close(torch.from_numpy(logits), full, rtol=0, atol=1e-4)
            answer = logits.argmax(-1)
            ids = torch.cat([ids, torch.from_numpy(answer)], dim=1)
            feed = {"token_ids": answer, "position_ids": np.full((4, 1), position)}
            logits, *past = decode.run(None, {**feed, **dict(zip(given[2:], past, strict=True))})
        assert torch.equal(ids, expected)


def test_the_exported_network_takes_any_length(family, mixed, tmp_path):
    network = trained(family.network(mixed, backend="blocks")).float()
    others = [family.example_input(Workload(batch=b, tokens=t)) for b, t in ((3, 1), (2, 2), (1, 7), (2, 24))]
    report = export_onnx(network, family.example_input(Workload(tokens=9)), tmp_path / "model.onnx", check_on=others)
    assert report.equal_decisions == 1.0
    assert report.num_examples == 9


@pytest.mark.parametrize(
    "workload", [Workload(2, 10), Workload(2, 10, "prefill"), Workload(2, 1, "decode", 9)], ids=lambda w: w.mode
)
def test_costs_are_those_of_what_runs(family, mixed, workload):
    """Matrix products of one network, and what it keeps, counted by hand."""
    B, N, D, K = 2, workload.tokens, 12, 4
    operators = family.operators(Encoding.of(family.space, [mixed]), workload)
    flops = {kind: sum(float(np.sum(o.flops)) for o in operators if o.kind == kind) for kind in {o.kind for o in operators}}
    pairs = {"decode": (10, WINDOW + 1)}.get(workload.mode, (100, 4 * WINDOW * 2 * WINDOW))
    answers = B * (N if workload.mode == "encode" else 1)
    assert flops["head"] == 2 * answers * D * WORDS
    assert flops["attention.full"] == 4 * B * pairs[0] * 1 * K
    assert flops["attention.window"] == 4 * B * pairs[1] * 2 * K
    assert flops["projections"] == 8 * B * N * D * K * (1 + 2)
    assert flops["ffn"] == 4 * B * N * D * 16 * 3
    kept = sum(float(np.sum(o.bytes)) for o in operators if o.kind.startswith("cache"))
    seen = 0 if workload.mode == "encode" else 2 * K * WINDOW + 1 * K * 10
    assert kept == 16 * B * seen
    parameters = sum(float(np.sum(o.parameters)) for o in operators)
    assert parameters == sum(p.numel() for p in family.network(mixed).parameters())


def test_a_mode_that_a_family_has_not_is_refused():
    encoders = EncoderFamily(encoder_space(), vocab_size=50, num_classes=5)
    with pytest.raises(ValueError, match="mode: 'decode' is not one of"):
        encoders.example_input(Workload(1, 1, "decode", 3))
    with pytest.raises(ValueError, match="tokens: 40 of the workload are more than max_tokens 24"):
        DecoderFamily(decoder_space(), 50, max_tokens=24).example_input(Workload(1, 1, "decode", 39))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "guess"}, "mode: 'guess' is not one of"),
        ({"mode": "decode", "tokens": 2}, "tokens: 2 are not decoded in one call"),
        ({"past": 3}, "past: 3 tokens are kept for mode=decode, not for 'encode'"),
        ({"mode": "decode", "tokens": 1, "past": -1}, "past: -1 is negative"),
    ],
)
def test_impossible_workloads_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Workload(**arguments)


FORMS = [Workload(1, 5), Workload(1, 5, "prefill"), Workload(1, 1, "decode", 0)]


@pytest.mark.parametrize("workload", FORMS, ids=lambda w: w.mode)
@pytest.mark.parametrize("kind", ["none", "window"])
def test_every_form_of_every_kind_is_exported(family, kind, workload, tmp_path):
    """Without attention too, where there is no cache and a mask changes nothing; and from an empty past."""
    layers = {f"layer{i}.attention": kind for i in (1, 2, 3)}
    network = trained(family.network(family.space.canonical({**family.space.largest().as_dict, **layers}), backend="blocks"))
    form, example = form_of(family, network, workload)
    report = export_onnx(form, example, tmp_path / "model.onnx")
    assert report.max_abs_difference <= 1e-4
    assert {node.name for node in open_session(tmp_path / "model.onnx").get_inputs()} == set(example)
