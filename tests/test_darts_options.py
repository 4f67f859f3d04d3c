"""Options of the differentiable search against collapse: an auxiliary skip that decays."""

import dataclasses

import numpy as np
import pytest
import torch

from nas.encoding import Encoding
from nas.relaxations import relax
from nas.skips import skip_share, skips, with_auxiliary_skip
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.tiny_search import FAMILY, darts, latency_model


@pytest.fixture(scope="module")
def latency():
    return latency_model()


def random_encoding(space, dtype=torch.float64) -> Encoding:
    logits = torch.randn(space.encoding_size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return relax(space, logits)


def test_a_choice_of_sharing_or_of_heads_has_no_skip():
    """Fewer choices hang on one head, which has no groups of them, and on shared weights; both leave nothing out."""
    space = encoder_space(
        width=(8, 16), depth=(1, 2), heads=(1, 2), kv_heads=(1, 2), ffn=(8,), sharing=("none", "all"), ffn_kind=("mlp", "none")
    )
    assert set(skips(space)) == {"depth", "layer1.attention", "layer1.ffn_kind", "layer2.attention", "layer2.ffn_kind"}
    everything = Encoding(space, space.encode([space.canonical({**space.largest().as_dict, "sharing": "all"})])[0])
    assert skip_share(everything) < 0.5
    assert not skips(encoder_space(width=(8, 16), depth=(2,), heads=(1, 2), ffn=(8, 16), attention=("full",)))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_auxiliary_skip_is_what_goes_in_beside_what_comes_out(norm):
    """(beta x + branch(x)) / (1 + beta), of a branch that may be none: the feed-forward here."""
    options = {"width": (8, 16), "depth": (2,), "heads": (1, 2), "ffn": (8, 16), "attention": ("full",)}
    space = encoder_space(**options, ffn_kind=("mlp", "none"))
    family = EncoderFamily(space, vocab_size=9, num_classes=2, max_tokens=6, head_size=4, norm=norm)
    block = family.supernet().double().stack.blocks["0"]
    encoding, beta = random_encoding(space), 0.7

    def in_and_out(relaxed: Encoding) -> tuple[torch.Tensor, torch.Tensor]:
        """What goes into the feed-forward's branch, and what comes out of the block."""
        masks, bias = family.masks(relaxed).stack, torch.zeros(3, 1, 1, 6, dtype=torch.float64)
        noise = torch.randn(3, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x_BTD, layout = masks.width.centre(noise), family.trunk.attention.layout(6, bias, [(1, 1.0)])
        layer = masks.layers[0]
        nothing = dataclasses.replace(layer.ffn, gate=0 * layer.ffn.gate, hidden=0 * layer.ffn.hidden)
        without = dataclasses.replace(layer, ffn=nothing)
        return tuple(block.relaxed(x_BTD, bias, layout, masks.width, one) for one in (without, layer))

    goes_in, comes_out = in_and_out(encoding)
    also_in, with_skip = in_and_out(with_auxiliary_skip(encoding, beta))
    torch.testing.assert_close(also_in, goes_in)
    torch.testing.assert_close(with_skip, (beta * goes_in + comes_out) / (1 + beta))


def test_no_logit_learns_from_the_auxiliary_skip():
    logits = torch.zeros(FAMILY.space.encoding_size, requires_grad=True)
    encoding = with_auxiliary_skip(relax(FAMILY.space, logits), 1.0)
    for choice in FAMILY.space:
        part = encoding.probabilities(choice.name)
        assert part.sum().item() == pytest.approx(1.0)
        has_skip = choice.name in skips(FAMILY.space)
        assert part.max().item() == pytest.approx(0.5 + 0.5 / len(part) if has_skip else 1 / len(part))
    depth = FAMILY.space.offsets["depth"]
    (gradient,) = torch.autograd.grad(encoding.probability("depth", 1), [logits])
    (plain,) = torch.autograd.grad(relax(FAMILY.space, logits).probability("depth", 1), [logits])
    torch.testing.assert_close(gradient[depth], plain[depth] / 2)


@pytest.mark.parametrize("remedy", ["", "auxiliary_skip"])
def test_the_auxiliary_skip_falls_to_nothing_within_each_budget(latency, remedy):
    search = darts(latency, auxiliary_skip=0.0 if remedy else 1.0)
    search.remedy, weights, seen = remedy, [], []

    def look(*_) -> None:
        weights.append(search.auxiliary_skip)
        seen.append(search._drawn(search.logits.detach(), 1.0, 0).values)

    for budget in (0.8, 0.7):
        search.propose(budget, steps=5, on_step=look)
    assert weights == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0] * 2)
    one_hot = [bool(((values < 1e-6) | (values > 1 - 1e-6)).all()) for values in seen]
    assert one_hot == [False, False, False, False, True] * 2, "draws with noise are, but for the skip"


def test_the_auxiliary_skip_is_no_part_of_what_is_found(latency):
    search = darts(latency, auxiliary_skip=1.0)
    proposal = search.propose(0.8, steps=4, on_step=lambda *_: None)
    search.auxiliary_skip = 1.0
    plain = relax(FAMILY.space, search.logits.detach(), temperature=0.4, kind="gumbel")
    torch.testing.assert_close(search._encoding(0.4).values, plain.values, rtol=0, atol=0)
    relaxed = Encoding(FAMILY.space, plain.values.double())
    assert proposal.relaxed_ms == pytest.approx(latency.expected_ms(relaxed).item())
    assert np.isfinite(proposal.loss)
