"""Decoders with rotary positions: the definition, the law of the supernet, and a cache that changes nothing."""

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx, form_of
from nas.formats import open_session
from nas.rotary import Rotary
from nas.space import Architecture
from nas.supernet import call, cut_out, skeleton
from nas.types import Workload
from search_spaces.decoder import Decode, DecoderFamily, Prefill, decoder_space
from tests.support.decoders import assert_same_where_it_counts, generated
from tests.support.networks import trained

COMPUTE = Compute()
WORDS, LONGEST = 50, 24
KINDS = ("full", "window", "block", "strided", "topk", "none")


@pytest.fixture(scope="module")
def family() -> DecoderFamily:
    space = decoder_space(
        width=(8, 12, 16), depth=(1, 2, 3), heads=(2, 4), kv_heads=(1, 2), ffn=(8, 16), attention=KINDS, ffn_kind=("glu",),
        activation=("silu",), norm_kind=("rms",),
    )  # fmt: skip
    return DecoderFamily(space, WORDS, LONGEST, head_size=4, window=3, positions="rotary", rotary_base=50.0, tied=False)


def with_kinds(family, *kinds: str) -> Architecture:
    layers = {f"layer{i}.attention": kind for i, kind in enumerate(kinds, start=1)}
    return family.space.canonical({**family.space.largest().as_dict, "width": 12, "depth": len(kinds), **layers})


def inputs(tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(WORDS, (3, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


def test_a_rotation_is_a_product_of_complex_numbers():
    """Each pair of channels is one number that is multiplied by exp(i position base^(-2 k / K)), as the paper writes it."""
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(9, 8, 100.0).double()
    numbers = torch.complex(x[..., :4], x[..., 4:])
    frequencies = torch.tensor([100.0 ** (-2 * k / 8) for k in range(4)], dtype=torch.float64)
    expected = numbers * torch.exp(1j * torch.arange(9)[:, None] * frequencies)
    turned = rotary.first(9).turn(x)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1), rtol=1e-6, atol=1e-6)
    positions = torch.tensor([[4, 0], [8, 3]])
    some, their = (torch.stack([rows[b][:, positions[b]] for b in range(2)]) for rows in (x, turned))
    torch.testing.assert_close(rotary.at(positions).turn(some), their)
    assert torch.equal(turned[:, :, 0], x[:, :, 0]), "the first token is not turned"


def test_a_score_tells_the_distance_alone():
    rotary = Rotary(32, 8, 10000.0).double()
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rotation = rotary.first(32)
    scores = rotation.turn(q.expand(1, 32, 8))[0] @ rotation.turn(k.expand(1, 32, 8))[0].T
    for distance in (-5, 0, 3):
        same = scores.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-5, atol=1e-5)
    assert (scores[0, 3] - scores[0, 0]).abs() > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_one_hot_masks_equal_the_cut_out_network(family, seed):
    ids, mask = inputs()
    supernet = trained(family.supernet())
    arch = family.space.sample(np.random.default_rng(seed))
    masked = supernet(ids, mask, masks=family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))))
    network = cut_out(family, supernet, arch, COMPUTE).double()
    assert_same_where_it_counts(masked, network(ids, mask), mask)
    assert_same_where_it_counts(masked, call(supernet, skeleton(family, arch, COMPUTE), (ids, mask)), mask)


def test_every_logit_receives_a_gradient(family):
    ids, mask = inputs()
    supernet = trained(family.supernet())
    logits = torch.zeros(family.space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in family.space.offsets.values()])
    outputs = supernet(ids, mask, masks=family.masks(Encoding(family.space, probabilities)))
    torch.nn.functional.cross_entropy(outputs.flatten(0, 1), ids.flatten()).backward()
    chosen = [logits.grad[s] for s in family.space.offsets.values() if s.stop - s.start > 1]
    assert torch.all(torch.cat(chosen) != 0)
    assert supernet.positions.cos.grad is None


@pytest.mark.parametrize("kinds", [("full", "window", "none"), ("block", "strided", "topk")], ids=str)
def test_a_cache_changes_nothing(family, kinds):
    network = trained(family.network(with_kinds(family, *kinds), backend="blocks"))
    for tokens in (1, 5, 12):
        ids = inputs(tokens)[0]
        logits, *past = Prefill(network)(ids)
        for position in range(tokens, LONGEST):
            torch.testing.assert_close(logits, network(ids, torch.ones_like(ids))[:, -1:], rtol=1e-10, atol=1e-10)
            ids = torch.cat([ids, logits.argmax(-1)], dim=1)
            logits, *past = Decode(network)(ids[:, -1:], torch.full((3, 1), position), *past)


def test_exported_graphs_generate_what_the_network_does(family, tmp_path):
    """To the last position, and not beyond."""
    network = trained(family.network(with_kinds(family, "full", "window", "none"), backend="blocks")).float()
    sessions = []
    for workload in (Workload(tokens=6), Workload(tokens=6, mode="prefill"), Workload(tokens=1, mode="decode", past=7)):
        form, example = form_of(family, network, workload)
        assert export_onnx(form, example, tmp_path / "model.onnx").max_abs_difference <= 1e-4
        sessions.append(open_session(tmp_path / "model.onnx"))
    _, prefill, decode = sessions
    names = [node.name for node in decode.get_inputs()]
    ids = prompt = inputs(5)[0].numpy()
    logits, *past = prefill.run(None, {"token_ids": prompt})
    for position in range(5, LONGEST):
        answer = logits.argmax(-1)
        ids = np.concatenate([ids, answer], axis=1)
        feed = {"token_ids": answer, "position_ids": np.full((3, 1), position)}
        logits, *past = decode.run(None, feed | dict(zip(names[2:], past, strict=True)))
    assert np.array_equal(ids, generated(network, torch.from_numpy(prompt), LONGEST - 5).numpy())
    feed = {"token_ids": answer, "position_ids": np.full((3, 1), LONGEST)}
    with pytest.raises(InvalidArgument, match="out of"):
        decode.run(None, feed | dict(zip(names[2:], past, strict=True)))


@pytest.mark.parametrize("workload", [Workload(2, 10), Workload(2, 1, "decode", 9)], ids=lambda w: w.mode)
def test_costs_are_those_of_what_runs(family, workload):
    arch = with_kinds(family, "full", "none", "full")
    operators = family.operators(Encoding.of(family.space, [arch]), workload)
    heads, kv_heads = 4, 2
    turned = sum(float(np.sum(o.flops)) for o in operators if o.kind == "rotary")
    assert turned == 2 * 3 * 2 * workload.tokens * (heads + kv_heads) * 4
    assert sum(float(np.sum(o.parameters)) for o in operators) == sum(p.numel() for p in family.network(arch).parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_size": 5}, "head_size: 5 is odd, rotary positions turn pairs of channels"),
        ({"positions": "sinusoidal"}, r"positions: 'sinusoidal' is not one of \('learned', 'rotary'\)"),
        ({"rotary_base": 0.0}, "rotary_base: 0.0 is not positive"),
        ({"norm_eps": 0.0}, "norm_eps: 0.0 is not positive"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderFamily(decoder_space(), 50, **{"positions": "rotary", **changes})
