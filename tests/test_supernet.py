"""The law of the supernet: one-hot masks = cut-out network, and every architecture logit receives a gradient."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from nas import mixed_attention as mixing
from nas.attention import AttentionMasks, Layout
from nas.attention_kinds import padding_bias, pattern
from nas.compute import Compute
from nas.encoding import Encoding
from nas.feed_forward import FeedForwardMasks
from nas.layers import Norm, Width, _written
from nas.mixed_attention import mixed_attention
from nas.protocols import Batch
from nas.relaxations import relax
from nas.supernet import call, cut_out, fixed, prefixes, sandwich, sandwich_step, skeleton
from search_spaces.attention import ATTENTION_KINDS
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.stack import LayerMasks
from tests.support.networks import trained

COMPUTE = Compute()


SIZES = ("full", "window5", "window1", "block2", "strided2", "strided5", "topk4", "lowrank2", "none")
KINDS = [("full", "window", "none"), ATTENTION_KINDS, SIZES, ("linear", "none")]


@pytest.fixture(params=[*((kinds, "pre") for kinds in KINDS), *((kinds, "post") for kinds in KINDS[:3])], ids=str)
def family(request) -> EncoderFamily:
    kinds, norm = request.param
    gated, kv_heads = (("glu", "mlp"), (1, 2)) if "linear" in kinds else (("mlp",), ())
    space = encoder_space(
        width=(8, 12, 16), depth=(1, 2, 3), heads=(1, 2), kv_heads=kv_heads, ffn=(8, 16), attention=kinds, ffn_kind=gated
    )
    return EncoderFamily(space, vocab_size=50, num_classes=5, max_tokens=24, head_size=4, window=3, norm=norm)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    token_ids = torch.randint(50, (4, 20))
    mask = torch.ones_like(token_ids)
    mask[1, 7:] = 0
    mask[2, 1:] = 0
    return token_ids, mask


@pytest.mark.parametrize("seed", range(8))
def test_one_hot_masks_equal_the_cut_out_network(family, inputs, seed):
    supernet = trained(family.supernet())
    arch = family.space.sample(np.random.default_rng(seed))
    one_hot = Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))
    masked = supernet(*inputs, masks=family.masks(one_hot))
    network = cut_out(family, supernet, arch, COMPUTE)
    torch.testing.assert_close(masked, network.double()(*inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(masked, call(supernet, skeleton(family, arch, COMPUTE), inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["fused", "blocks"])
@pytest.mark.parametrize("seed", range(4))
def test_backends_compute_the_same(family, inputs, seed, backend):
    supernet = trained(family.supernet())
    arch = family.space.sample(np.random.default_rng(seed))
    reference = cut_out(family, supernet, arch, COMPUTE).double()
    other = cut_out(family, supernet, arch, Compute(backend=backend)).double()
    for num_tokens in (1, 2, 5, 20):
        part = [x[:, :num_tokens] for x in inputs]
        torch.testing.assert_close(other(*part), reference(*part), rtol=1e-10, atol=1e-10)


def test_every_logit_receives_a_gradient(family, inputs):
    supernet = trained(family.supernet())
    logits = torch.zeros(family.space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in family.space.offsets.values()])
    outputs = supernet(*inputs, masks=family.masks(Encoding(family.space, probabilities)))
    torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1, 2, 3])).backward()
    assert torch.all(logits.grad != 0)


def test_a_masked_stream_has_mean_zero_whoever_writes():
    torch.manual_seed(0)
    width, linear = Width.of(torch.rand(16).double()), nn.Linear(5, 16).double()
    begun = width.centre(torch.randn(2, 3, 16).double())
    written = width.write(torch.randn(2, 3, 5).double(), linear.weight, linear.bias)
    torch.testing.assert_close((begun + written).sum(-1), torch.zeros(2, 3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_what_weights_that_do_not_learn_write_has_the_right_gradients(masked):
    torch.manual_seed(0)
    weight, mask = torch.randn(6, 4).double(), [torch.rand(4).double().requires_grad_()] * masked
    x, bias, of_width = (torch.rand(size).double().requires_grad_() for size in ((2, 3, 4), (6,), (6,)))

    def write(x, bias, of_width, *mask):
        return Width.of(of_width).write(x, weight, bias, *mask)

    torch.testing.assert_close(
        write(x, bias, of_width, *mask), _written(x, weight, bias, *(mask or [None]), of_width, of_width / of_width.sum())
    )
    assert torch.autograd.gradcheck(write, (x, bias, of_width, *mask))
    assert torch.autograd.gradgradcheck(write, (x, bias, of_width, *mask))


def test_logits_learn_the_same_where_the_weights_do_not(family, inputs):
    supernet, gradients = trained(family.supernet()), []
    logits = torch.randn(family.space.encoding_size, dtype=torch.float64, requires_grad=True)
    for weights in ({}, fixed(supernet)):
        masks = {"masks": family.masks(relax(family.space, logits))}
        outputs = functional_call(supernet, weights, inputs, masks)
        gradients += torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1, 2, 3])), [logits])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_the_norm_of_a_masked_stream_is_that_of_its_active_channels():
    torch.manual_seed(0)
    norm, prefix = Norm(16).double(), Norm(6).double()
    norm.weight.data, norm.bias.data = torch.randn(2, 16).double()
    prefix.weight.data, prefix.bias.data = norm.weight.data[:6], norm.bias.data[:6]
    x = torch.randn(2, 3, 16).double()
    width = Width.of((torch.arange(16) < 6).double())
    normed = norm.relaxed(width.centre(x), width)
    torch.testing.assert_close(normed[..., :6], prefix(x[..., :6]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(normed[..., 6:], torch.zeros(2, 3, 10).double(), rtol=0, atol=1e-12)


def test_a_post_norm_mixture_is_one_of_what_comes_out_of_the_norm(inputs):
    """Of attention or none: p norm(x + attention(x)) + (1 - p) x."""
    space = encoder_space(width=(16,), depth=(1,), heads=(2,), ffn=(8,), attention=("full", "none"))
    family = EncoderFamily(space, 50, 5, 24, head_size=8, norm="post")
    [block] = trained(family.supernet()).stack.layers
    x, bias, one = torch.randn(2, 3, 16).double(), torch.zeros(2, 1, 1, 3).double(), torch.ones(()).double()
    p = torch.tensor(0.3, dtype=torch.float64)
    masks = LayerMasks(AttentionMasks(p, p.expand(1, 2)), FeedForwardMasks(one, torch.ones(8).double()))
    mixed = block.relaxed(x, bias, Layout(bias.new_empty(0, 3, 3)), Width.of(torch.ones(16).double()), masks)
    y = 0.3 * block.attention_norm(x + block.attention(x, bias)) + 0.7 * x
    torch.testing.assert_close(mixed, block.ffn_norm(y + block.ffn(y)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cache_bytes", [1, 1 << 19])
@pytest.mark.parametrize(("patterns", "top"), [(("window",), 0), (("window", "block", "strided"), 2), ((), 2)])
def test_mixed_attention_has_the_right_gradient(monkeypatch, cache_bytes, patterns, top):
    monkeypatch.setattr(mixing, "CACHE_BYTES", cache_bytes)
    torch.manual_seed(0)
    padding = padding_bias(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), torch.float64)
    seen = torch.cat([padding.new_empty(0, 5, 5), *(pattern(kind, 5, 2, padding, causal=False)[None] for kind in patterns)])
    weights = torch.tensor([[0.3, 0.5, -0.2, 0.7, 0.1], [0.6, 0.0, 0.4, -0.1, 0.2]]).T
    arguments = [*torch.randn(3, 2, 2, 5, 3), weights[: 1 + len(patterns) + bool(top)]]
    arguments = [a.double().requires_grad_() for a in arguments]
    assert torch.autograd.gradcheck(lambda q, k, v, w: mixed_attention(q, k, v, padding, w, seen, top=top), arguments)
    assert torch.autograd.gradgradcheck(lambda q, k, v, w: mixed_attention(q, k, v, padding, w, seen, top=top), arguments)


def test_second_derivatives_of_mixed_attention_are_finite_where_a_window_is_all_padding():
    torch.manual_seed(0)
    padding = padding_bias(torch.tensor([[1, 1, 0, 0, 0, 0]]), torch.float32)
    inside = pattern("window", 6, 1, padding, causal=False)[None]
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 6, 3))
    weights = torch.tensor([[0.3, 0.2], [0.5, 0.6]], requires_grad=True)
    out = mixed_attention(q, k, v, padding, weights, inside, top=0)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v, weights), create_graph=True)
    for second in torch.autograd.grad(sum(g.square().sum() for g in gradients), (q, k, v, weights)):
        assert torch.isfinite(second).all()


def test_sampled_step_leaves_gradients_in_the_prefix_only(family, inputs):
    supernet = family.supernet()
    arch = family.space.smallest()
    call(supernet, skeleton(family, arch, COMPUTE), inputs).sum().backward()
    gradient = supernet.stack.layers[0].ffn.up.weight.grad
    assert torch.any(gradient[:8, :8] != 0)
    assert not torch.any(gradient[8:])
    assert not torch.any(gradient[:, 8:])


def test_prefixes_are_views(family):
    supernet = family.supernet()
    for name, view in prefixes(supernet, family.network(family.space.smallest())).items():
        assert view.data_ptr() == dict(supernet.named_parameters())[name].data_ptr()


def test_prefixes_refuse_a_larger_network(family):
    small = family.network(family.space.smallest())
    with pytest.raises(ValueError, match=r"embedding.weight: needs \(50, 16\), the supernet holds \(50, 8\)"):
        prefixes(small, family.supernet())


@pytest.mark.parametrize("distillation", [0.0, 0.4, 1.0])
def test_sandwich_step_matches_single_networks(family, inputs, distillation):
    """The gradient of a sandwich is the sum of its networks' gradients."""

    class Task:
        @staticmethod
        def loss(outputs, targets):
            return torch.nn.functional.cross_entropy(outputs, targets)

    batch = Batch(inputs, torch.tensor([0, 1, 2, 3]))
    supernet = trained(family.supernet())
    archs = sandwich(family.space, np.random.default_rng(0), num_random=2)
    assert len(archs) == 4
    loss = sandwich_step(family, supernet, archs, batch, Task, COMPUTE, distillation=distillation)
    together = {n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    largest = cut_out(family, supernet, archs[0], COMPUTE).double()
    answers = torch.log_softmax(largest(*inputs).detach(), dim=-1).float()
    assert loss == pytest.approx(Task.loss(largest(*inputs), batch.targets).item(), rel=1e-6)
    Task.loss(call(supernet, skeleton(family, archs[0], COMPUTE), inputs), batch.targets).backward()
    for arch in archs[1:]:
        outputs = torch.log_softmax(call(supernet, skeleton(family, arch, COMPUTE), inputs).float(), dim=-1)
        distilled = torch.nn.functional.kl_div(outputs, answers, reduction="batchmean", log_target=True)
        (distillation * distilled + (1 - distillation) * Task.loss(outputs, batch.targets)).backward()
    for name, gradient in together.items():
        torch.testing.assert_close(dict(supernet.named_parameters())[name].grad, gradient, rtol=1e-5, atol=1e-7)
