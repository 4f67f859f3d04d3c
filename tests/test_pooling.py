"""Neighbouring tokens that become one: what is averaged, the law of the supernet, files and costs."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latency_models.memory import memory_of
from nas.attention_kinds import padding_bias
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx
from nas.finish.exits import Exits, Head
from nas.reduction import mean_token, merged, spread
from nas.supernet import call, cut_out, skeleton
from nas.types import MIB, Workload
from search_spaces.attention import ATTENTION_KINDS
from search_spaces.encoder import EncoderFamily, encoder, encoder_space
from tests.support.fewer_tokens import inputs_of, logit_gradients
from tests.support.liveness import alive
from tests.support.networks import picked, trained

KINDS = [kind for kind in ATTENTION_KINDS if kind != "topk"]
SIZES = {"width": (8, 12), "depth": (1, 3), "heads": (1, 2), "ffn": (8, 16), "attention": KINDS, "sharing": ("none", "all")}


def family_of(norm="pre", **changes) -> EncoderFamily:
    space = encoder_space(**{**SIZES, "pool": (1, 2, 3), **changes})
    return EncoderFamily(space, 50, 5, max_tokens=24, head_size=4, window=2, norm=norm)


FAMILIES = {norm: family_of(norm) for norm in ("pre", "post")}
FAMILY = FAMILIES["pre"]


def masked(family: EncoderFamily, supernet, arch, inputs) -> torch.Tensor:
    one_hot = Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))
    return supernet(*inputs, masks=family.masks(one_hot))


# --- what is averaged


def test_neighbours_become_their_mean_without_padding_and_count_as_many_as_they_are():
    x = torch.arange(14.0).view(2, 7, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0]])
    means, bias = merged(x, padding_bias(mask, x.dtype), 3)
    torch.testing.assert_close(means[..., 0], torch.tensor([[1.0, 4.0, 6.0], [8.5, 10.0, 0.0]]))
    torch.testing.assert_close(bias[:, 0, 0].exp(), torch.tensor([[3, 3, 1], [2, 1, 0]]) / 3)
    torch.testing.assert_close(mean_token(means, bias)[:, 0], torch.tensor([3.0, 9.0]), msg="of all tokens")
    places = spread(x, padding_bias(mask, x.dtype), 3)[..., 0]
    torch.testing.assert_close(places, torch.tensor([[1, 1, 1, 4, 4, 4, 6], [8.5, 8.5, 8.5, 10, 10, 10, 0]]))


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("backend", ["matmul", "fused", "blocks"])
def test_padding_changes_no_answer(kind, backend):
    network = trained(FAMILY.network(picked(FAMILY, 3, depth=3, pool="3", attention=kind), backend=backend))
    ids = torch.randint(50, (2, 11))
    longer = torch.nn.functional.pad(ids, (0, 8)), torch.nn.functional.pad(torch.ones_like(ids), (0, 8))
    torch.testing.assert_close(network(*longer), network(ids, torch.ones_like(ids)), rtol=1e-10, atol=1e-10)


# --- the law


@pytest.mark.parametrize("norm", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["2", "3"])
def test_one_hot_masks_equal_the_cut_out_network(norm, kind, pool):
    family, seed = FAMILIES[norm], KINDS.index(kind)
    supernet, inputs = trained(family.supernet()), inputs_of(FAMILY)
    arch = picked(family, seed, pool=pool, attention=kind, depth=(1, 3)[seed % 2])
    answer = masked(family, supernet, arch, inputs)
    network = cut_out(family, supernet, arch, Compute(backend="blocks")).double()
    whole = cut_out(family, supernet, family.space.canonical({**arch.as_dict, "pool": "1"}), Compute()).double()
    torch.testing.assert_close(answer, network(*inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(answer, call(supernet, skeleton(family, arch, Compute()), inputs), rtol=1e-10, atol=1e-10)
    assert (answer - whole(*inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_one_hot_masks_of_layers_in_integers(precision, kind):
    """The ranges that are rounded to are those of the means, too; no query sees nothing but padding, which may widen a range."""
    family = family_of(precision=("fp32", "int8", "int4"), attention=(kind, "none"))
    ids = torch.randint(50, (4, 19), generator=torch.Generator().manual_seed(1))
    supernet, inputs = trained(family.supernet()), [ids, torch.ones_like(ids)]
    inputs[1][1, -2:] = 0
    arch = picked(family, 1, pool="2", attention=kind, depth=3, precision=precision)
    network = cut_out(family, supernet, arch, Compute()).double()
    torch.testing.assert_close(masked(family, supernet, arch, inputs), network(*inputs), rtol=1e-10, atol=1e-10)


def test_every_logit_receives_a_gradient():
    gradients = logit_gradients(FAMILY)
    assert torch.all(torch.isfinite(gradients))
    assert torch.all(gradients != 0)


def test_without_masks_the_supernet_is_the_largest_network():
    supernet, inputs = trained(FAMILY.supernet()), inputs_of(FAMILY)
    assert FAMILY.space.largest()["pool"] == "1"
    largest = cut_out(FAMILY, supernet, FAMILY.space.largest(), Compute()).double()
    torch.testing.assert_close(supernet(*inputs), largest(*inputs), rtol=1e-10, atol=1e-10)


def test_a_single_size_is_no_question_and_still_pools():
    family = family_of(pool=(2,), attention=("full", "lowrank"))
    supernet, inputs = trained(family.supernet()), inputs_of(FAMILY)
    arch = family.space.largest()
    network = cut_out(family, supernet, arch, Compute()).double()
    torch.testing.assert_close(masked(family, supernet, arch, inputs), network(*inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(supernet(*inputs), network(*inputs), rtol=1e-10, atol=1e-10)


# --- files and costs


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_the_file_answers_like_the_network_for_any_length(kind, tmp_path):
    network = trained(FAMILY.network(picked(FAMILY, 5, depth=3, pool="2", attention=kind), backend="blocks")).float()
    others = [FAMILY.example_input(Workload(batch=b, tokens=t)) for b, t in ((3, 1), (2, 2), (1, 7), (2, 24))]
    padded = dict(zip(("token_ids", "attention_mask"), inputs_of(FAMILY), strict=True))
    report = export_onnx(network, FAMILY.example_input(Workload(tokens=9)), tmp_path / "m.onnx", check_on=[*others, padded])
    assert (report.num_examples, report.equal_decisions) == (13, 1.0)


@pytest.mark.parametrize(("pool", "layers"), [("1", 24), ("2", 12), ("3", 8)])
def test_layers_cost_what_their_tokens_do(pool, layers):
    arch, workload = picked(FAMILY, 0, depth=3, pool=pool, attention="full", sharing="none"), Workload(batch=3, tokens=24)
    network = FAMILY.network(arch)
    operators = FAMILY.operators(Encoding.of(FAMILY.space, [arch]), workload)
    assert sum(float(np.sum(o.parameters)) for o in operators) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(*FAMILY.example_input(workload).values())
    products = [o for o in operators if o.kind != "pool" and not o.kind.endswith("norm")]
    assert sum(float(np.sum(o.flops)) for o in products) == pytest.approx(counter.get_total_flops())
    heads = sum(arch.size(f"layer{n}.heads") for n in (1, 2, 3))
    assert sum(float(np.sum(o.flops)) for o in operators if o.kind == "attention.full") == 4 * 3 * layers**2 * 4 * heads


def test_costs_are_linear_in_the_probability():
    space, workload, arch = FAMILY.space, Workload(tokens=24), picked(FAMILY, 2, depth=3, sharing="none", attention="full")
    rows = space.encode([space.canonical({**arch.as_dict, "pool": option}) for option in ("1", "2", "3")])
    share = np.array([0.2, 0.3, 0.5])
    for cost in ("count", "flops", "bytes", "parameters"):
        whole, *means = found = [sum(getattr(o, cost)[i] for o in _operators(rows, workload)) for i in range(3)]
        assert cost in ("count", "parameters") or max(means) < whole
        expected = sum(np.sum(getattr(o, cost)) for o in _operators((share @ rows)[None], workload))
        np.testing.assert_allclose(expected, found @ share, rtol=1e-12)


def _operators(rows: np.ndarray, workload: Workload):
    ones = np.ones(len(rows))
    costs = ("count", "flops", "bytes", "parameters")
    return [
        type(o)(o.kind, *(getattr(o, cost) * ones for cost in costs))
        for o in FAMILY.operators(Encoding(FAMILY.space, rows), workload)
    ]


@pytest.mark.parametrize("pool", ["1", "2"])
def test_memory_is_the_liveness_of_the_exported_file(pool, tmp_path):
    chosen = {"width": (64,), "depth": (2,), "heads": (2,), "ffn": (256,), "attention": ("full",)}
    family = EncoderFamily(encoder_space(**chosen, pool=(1, 2)), 100, 5, max_tokens=200, head_size=32)
    workload = Workload(batch=2, tokens=120)
    example, arch = family.example_input(workload), family.space.canonical({**family.space.largest().as_dict, "pool": pool})
    export_onnx(family.network(arch, backend="blocks"), example, tmp_path / "m.onnx")
    there = alive(tmp_path / "m.onnx", {name: value.numpy() for name, value in example.items()})
    [counted] = memory_of(family, [arch], workload)
    shares = 4 * 2 * 60 * 60 if pool == "2" else 0  # of each key, for every query; they are not counted
    assert counted.activations_mib * MIB == pytest.approx(there - shares, rel=0.05)


def test_an_early_answer_is_of_means(tmp_path):
    network = trained(FAMILY.network(picked(FAMILY, 4, depth=3, pool="2", attention="full"), backend="blocks")).float()
    exits = Exits(network, {1: Head(network.embedding.embedding_dim, 5)}, threshold=0.5).eval()
    example = dict(zip(("token_ids", "attention_mask"), inputs_of(FAMILY), strict=True))
    assert export_onnx(exits, example, tmp_path / "m.onnx").max_abs_difference < 1e-4


# --- the choice


def test_one_token_alone_is_no_choice():
    assert encoder_space(**SIZES, pool=(1,)) == encoder_space(**SIZES)
    assert FAMILY.space.by_name["pool"].options == ("1", "2", "3"), "the most tokens first"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": (2, 1)}, r"pool: options \(2, 1\) must be positive and ascending"),
        ({"pool": ("two",)}, r"pool: \('two',\) are not numbers of tokens"),
        ({"attention": ("full", "topk8")}, r"pool: \(1, 2, 3\) do not go with the attention 'topk8'"),
        ({"keep": (50, 100), "keep_after": 1}, r"pool: \(1, 2, 3\) do not go with keep: \(50, 100\)"),
    ],
)
def test_what_could_not_be_exact_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        family_of(**changes)


def test_a_task_that_asks_for_each_token_has_them_all():
    sizes = {"vocab_size": 50, "num_classes": 5, "max_tokens": 24, "head_size": 4, "window": 2, "per_token": True}
    assert encoder(**sizes, **SIZES, pool=(1, 2)).space == encoder_space(**SIZES)
    with pytest.raises(ValueError, match=r"pool: \(2,\) tokens are one"):
        encoder(**sizes, **SIZES, pool=(2,))
    with pytest.raises(ValueError, match=r"pool: \(1, 2, 3\) tokens are one, and the task asks for each \(space.pool=\[1\]\)"):
        EncoderFamily(FAMILY.space, 50, 5, per_token=True)
