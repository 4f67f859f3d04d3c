"""Kinds of feed-forward, activations, norms and shared weights, in every family: the law of the supernet, files and costs."""

import json
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx
from nas.feed_forward import ACTIVATIONS, FFN_KINDS, _MixedActivation
from nas.layers import _MixedWeights, _RMSNorm
from nas.supernet import call, cut_out, fixed, skeleton
from nas.types import Workload
from search_spaces.common import NORM_KINDS, SHARING
from search_spaces.decoder import DecoderFamily
from search_spaces.encoder import encoder_space
from tests.support.decoding import decoded
from tests.support.families import FAMILIES, SIZES, family_of, inputs_of, workload_of
from tests.support.networks import picked, trained

COMPUTE = Compute()


@pytest.fixture(params=FAMILIES)
def family(request):
    return family_of(request.param)


COMBINATIONS = [
    {"ffn_kind": kind, "sharing": sharing, "norm_kind": norm, "depth": 4}
    for kind, sharing, norm in [
        *product(FFN_KINDS, SHARING[:1], NORM_KINDS[:1]),
        *product(("glu", "lowrank"), SHARING[1:], NORM_KINDS),
    ]
]


@pytest.mark.parametrize("seed", range(16))
def test_one_hot_masks_equal_the_cut_out_network(family, seed):
    supernet, inputs = trained(family.supernet()), inputs_of(family)
    arch = picked(family, seed, **COMBINATIONS[seed] if seed < len(COMBINATIONS) else {})
    masked = supernet(*inputs, masks=family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))))
    network = cut_out(family, supernet, arch, COMPUTE).double()
    padding = inputs[1] == 0 if "decoder" in family.space.name else torch.zeros(len(masked), dtype=torch.bool)
    torch.testing.assert_close(masked[~padding], network(*inputs)[~padding], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(network(*inputs), call(supernet, skeleton(family, arch, COMPUTE), inputs), rtol=1e-10, atol=1e-10)


def test_every_logit_receives_a_gradient(family):
    supernet, space = trained(family.supernet()), family.space
    logits = torch.zeros(space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in space.offsets.values()])
    supernet(*inputs_of(family), masks=family.masks(Encoding(space, probabilities))).square().sum().backward()
    assert torch.all(logits.grad != 0)
    assert all(torch.any(p.grad != 0) for p in supernet.parameters() if p.requires_grad)


@pytest.mark.parametrize("learning", ["all", "logits", "nothing"])
def test_a_relaxed_pass_in_bfloat16_is_that_in_float32(family, learning):
    supernet, space = trained(family.supernet()).float(), family.space
    inputs = [x.float() if x.is_floating_point() else x for x in inputs_of(family)]
    logits = torch.zeros(space.encoding_size, requires_grad=learning != "nothing")
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in space.offsets.values()])
    weights = fixed(supernet) if learning == "logits" else dict(supernet.named_parameters())

    def outputs(compute):
        with compute.autocast(), torch.set_grad_enabled(learning != "nothing"):
            return functional_call(supernet, weights, tuple(inputs), {"masks": family.masks(Encoding(space, probabilities))})

    actual, expected = outputs(Compute(precision="bfloat16")), outputs(COMPUTE)
    assert torch.linalg.vector_norm(actual.float() - expected) < 0.05 * torch.linalg.vector_norm(expected)
    if learning != "nothing":
        (gradient,) = torch.autograd.grad(actual.float().square().mean(), [logits])
        assert torch.all(torch.isfinite(gradient))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"ffn_kind": ("lowrank",), "norm_kind": ("rms",), "sharing": ("all",), "activation": ("relu",)},
        {"ffn_kind": ("lowrank", "none"), "sharing": ("pairs", "all"), "activation": ("silu", "relu"), "norm_kind": ("layer",)},
        {"ffn_kind": ("mlp",), "rank": (), "sharing": ("none",), "activation": ("hardswish",), "norm_kind": ("rms",)},
    ],
)
def test_fixed_kinds_are_no_choice(name, options):
    family = family_of(name, **options)
    supernet, inputs = trained(family.supernet()), inputs_of(family)
    for seed in range(3):
        arch = family.space.sample(np.random.default_rng(seed))
        encoding = Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))
        masked, network = supernet(*inputs, masks=family.masks(encoding)), cut_out(family, supernet, arch, COMPUTE).double()
        rows = inputs[1] > 0 if name == "decoder" else slice(None)
        torch.testing.assert_close(masked[rows], network(*inputs)[rows], rtol=1e-10, atol=1e-10)


def test_a_default_alone_makes_no_choice():
    defaults = {"ffn_kind": ("mlp",), "rank": (), "activation": ("gelu",), "norm_kind": ("layer",), "sharing": ("none",)}
    assert encoder_space(**SIZES, **defaults) == encoder_space(**SIZES)


def test_an_architecture_survives_encoding_and_json(family):
    for seed in range(10):
        arch = family.space.sample(np.random.default_rng(seed))
        assert decoded(family.space, family.space.encode([arch])[0]) == arch
        assert family.space.canonical(json.loads(json.dumps(arch.to_json()))) == arch


@pytest.mark.parametrize("seed", range(3))
def test_the_exported_file_computes_the_same_and_holds_shared_weights_once(family, seed, tmp_path):
    picks = [{"sharing": "all", "ffn_kind": "lowrank", "norm_kind": "rms"}, {"sharing": "pairs", "ffn_kind": "glu"}, {}][seed]
    arch = picked(family, seed, **{"depth": 4, **picks})
    network = trained(family.network(arch, backend="blocks")).float()  # equal tensors, as of new norms, would be held once too
    report = export_onnx(network, family.example_input(workload_of(family)), tmp_path / "m.onnx")
    held = sum(int(np.prod(t.dims)) for t in onnx.load(tmp_path / "m.onnx").graph.initializer)
    twice = network.embedding.weight.numel() if isinstance(family, DecoderFamily) else 0  # a tied table lies there transposed too
    assert report.num_parameters <= held - twice < report.num_parameters + 300, "beside the weights shapes and small constants"


@pytest.mark.parametrize("seed", range(16))
def test_counted_parameters_and_products_are_the_network_s(family, seed):
    arch = picked(
        family, seed, **{"attention": "full", **COMBINATIONS[seed]} if seed < len(COMBINATIONS) else {"attention": "full"}
    )
    network, workload = family.network(arch), workload_of(family)
    operators = family.operators(Encoding.of(family.space, [arch]), workload)
    assert sum(float(np.sum(o.parameters)) for o in operators) == pytest.approx(sum(p.numel() for p in network.parameters()))
    with FlopCounterMode(display=False) as counter:
        network(*family.example_input(workload).values())
    products = [o for o in operators if o.kind != "standard" and "norm" not in o.kind and "activation" not in o.kind]
    assert sum(float(np.sum(o.flops)) for o in products) == pytest.approx(counter.get_total_flops())


def test_shared_weights_are_held_once_and_run_in_every_layer():
    family, workload = family_of("encoder", ffn_kind=("mlp",), rank=()), Workload(tokens=9)
    counts = {"none": (4, 4), "pairs": (2, 4), "all": (1, 4)}  # blocks of weights and layers
    for sharing, (blocks, layers) in counts.items():
        arch = picked(family, 0, sharing=sharing, attention="full", depth=4)
        stack = family.network(arch).stack
        assert (len(stack.blocks), len(stack.layers)) == (blocks, layers)
        assert len({name.partition(".")[0] for name in arch.as_dict if name.startswith("layer")}) == blocks
        operators = family.operators(Encoding.of(family.space, [arch]), workload)
        assert sum(float(np.sum(o.count)) for o in operators if o.kind == "ffn") == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ffn_kind": ("lowrank", "conv")}, r"ffn_kind: \('lowrank', 'conv'\) are not some of"),
        ({"ffn_kind": ("none",), "rank": ()}, r"ffn_kind: \('none',\) needs at least one of"),
        ({"rank": ()}, r"rank: \(\) belongs to the ffn_kind 'lowrank'"),
        ({"ffn_kind": ("mlp",)}, r"rank: \(2, 5\) belongs to the ffn_kind 'lowrank', and \('mlp',\)"),
        ({"activation": ("swish",)}, r"activation: \('swish',\) are not some of \('gelu', 'gelu_tanh', 'silu'"),
        ({"norm_kind": ()}, r"norm_kind: \(\) are not some of"),
        ({"sharing": ("triples",)}, r"sharing: \('triples',\) are not some of"),
        ({"rank": (2, 13)}, r"rank: 13 is more than 12, the smaller one of width and feed-forward size"),
        ({"rank": (5, 2)}, r"layer1.rank: options \(5, 2\) must be positive and ascending"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        family_of("encoder", **options)


def test_gradients_of_what_is_written_here():
    torch.manual_seed(0)

    def double(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, w: _MixedActivation.apply(x, w, tuple(ACTIVATIONS)), (double(2, 3, 4), double(len(ACTIVATIONS))))
        assert check(lambda x, w, b: _RMSNorm.apply(x, w, b, 1e-5), (double(2, 3, 4), double(4), double(4)))
        assert check(_MixedWeights.apply, (double(2), double(2, 3), double(4), double(2, 3), double(4)))
