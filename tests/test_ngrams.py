"""Hashed n-grams: the law of the supernet, what is looked up, files and costs."""

import itertools

import numpy as np
import onnxruntime
import pytest
import torch

from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import export_onnx, write_as
from nas.formats import FORMATS
from nas.supernet import call, cut_out, skeleton
from nas.types import Workload
from search_spaces.compact import inside
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.ngrams import NGrams

SIZES = {"width": (8, 16), "depth": (1, 2), "heads": (1, 2), "ffn": (8, 16)}
FAMILY = EncoderFamily(
    encoder_space(**SIZES, ngrams=(1, 2, 3)), vocab_size=50, num_classes=5, max_tokens=12, head_size=8, ngram_buckets=64
)


def trained(network):
    """With weights that all matter, the tables' too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return network.double()


def inputs():
    ids = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[2, 4:], mask[2, 4:] = 0, 0
    return ids, mask


def picked(seed, **picks):
    sampled = FAMILY.space.sample(np.random.default_rng(seed)).as_dict
    return FAMILY.space.canonical({**sampled, **picks})


# --- the law


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_one_hot_masks_equal_the_cut_out_network(length, seed):
    supernet, arch = trained(FAMILY.supernet()), picked(seed, ngrams=length)
    masks = FAMILY.masks(Encoding(FAMILY.space, torch.as_tensor(FAMILY.space.encode([arch])[0])))
    masked = supernet(*inputs(), masks=masks)
    torch.testing.assert_close(masked, cut_out(FAMILY, supernet, arch, Compute()).double()(*inputs()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(masked, call(supernet, skeleton(FAMILY, arch, Compute()), inputs()), rtol=1e-10, atol=1e-10)


def test_lengths_are_different_networks():
    supernet = trained(FAMILY.supernet())
    answers = [cut_out(FAMILY, supernet, picked(0, ngrams=n), Compute()).double()(*inputs()) for n in (1, 2, 3)]
    assert min((a - b).abs().max() for a, b in itertools.pairwise(answers)) > 1e-3


def test_every_length_receives_a_gradient():
    supernet, space = trained(FAMILY.supernet()), FAMILY.space
    logits = torch.zeros(space.encoding_size, dtype=torch.float64, requires_grad=True)
    probabilities = torch.cat([torch.softmax(logits[s], dim=0) for s in space.offsets.values()])
    supernet(*inputs(), masks=FAMILY.masks(Encoding(space, probabilities))).square().sum().backward()
    assert torch.all(logits.grad[space.offsets["ngrams"]] != 0)


# --- what is looked up


def test_a_row_is_that_of_a_token_and_those_before_it():
    with torch.device("meta"):
        tables = NGrams(3, 1 << 40, 1, vocab_size=50)  # so many rows that none is shared; nothing is looked up
    one, other = (tables.rows(torch.tensor([ids])) for ids in ([3, 4, 5, 4, 5], [9, 4, 5, 4, 5]))
    of_two, of_three = one[0][0].tolist(), one[1][0].tolist()
    assert of_two[2] == of_two[4], "4 5 stands twice"
    assert of_three[2] != of_three[4], "after a 3 and after a 5"
    assert len({*of_two[:4], *of_three}) == 9
    assert [bool(same) for same in (one[0] == other[0])[0]] == [False, False, True, True, True]
    assert [bool(same) for same in (one[1] == other[1])[0]] == [False, False, False, True, True]
    assert tables.rows(torch.tensor([[0, 3]]))[0][0, 1] == one[0][0, 0], "before the first token stands padding"


def test_frequent_pairs_are_spread_over_all_rows():
    ids = torch.arange(100)
    pairs = torch.stack([ids.repeat_interleave(100), ids.repeat(100)], dim=1)
    rows = NGrams(2, 16_384, 1, vocab_size=100).rows(pairs)[0][:, 1]
    assert rows.min() >= 0
    assert rows.max() < 16_384
    assert len(rows.unique()) > 0.9 * 16_384 * (1 - np.exp(-10_000 / 16_384)), "about as many as at random, at least"


@pytest.mark.parametrize("buckets", [1, 2, 63, 16_384, 65_536, 99_991, (1 << 20) - 1, 1 << 20])
@pytest.mark.parametrize("vocab_size", [50, 30_522, 262_144, 2_000_000])
def test_rows_are_those_of_any_integers_and_32_bits_hold_them(buckets, vocab_size):
    """The tables are those that were trained, whatever a runtime computes with."""
    torch.manual_seed(0)
    ids = torch.cat([torch.randint(vocab_size, (3, 50)), torch.full((3, 5), vocab_size - 1)], dim=1)
    with torch.device("meta"):
        tables = NGrams(4, buckets, 1, vocab_size=vocab_size)
    rows = [[*line] for line in ids.tolist()]
    expected = []
    for n in (1, 2, 3):
        rows = [
            [(row * 2654435761 + (line[t - n] if t >= n else 0)) % buckets for t, row in enumerate(found)]
            for found, line in zip(rows, ids.tolist(), strict=True)
        ]
        expected.append(rows)
    assert [found.tolist() for found in tables.rows(ids)] == expected
    assert [found.tolist() for found in tables.rows(ids.int())] == expected


def test_padding_behind_a_text_changes_nothing():
    network, (ids, mask) = trained(FAMILY.network(picked(0, ngrams=3))), inputs()
    alone = network(ids[2:3, :4], mask[2:3, :4])
    torch.testing.assert_close(network(ids, mask)[2:3], alone, rtol=1e-10, atol=1e-10)


def test_new_tables_change_no_answer():
    torch.manual_seed(0)
    supernet = FAMILY.supernet()
    answers = [cut_out(FAMILY, supernet, picked(0, ngrams=n), Compute())(*inputs()) for n in (1, 3)]
    assert torch.equal(*answers)


# --- files and costs


def test_a_file_looks_up_the_same_at_any_length(tmp_path):
    network = trained(FAMILY.network(picked(3, ngrams=3, depth=1), backend="blocks")).float().eval()
    export_onnx(network, FAMILY.example_input(Workload(tokens=9)), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for length in (1, 2, 12):
        ids = torch.randint(50, (3, length))
        [logits] = session.run(None, {"token_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())})
        np.testing.assert_allclose(logits, network(ids, torch.ones_like(ids)).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("buckets", [16_384, 99_991])
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_file_of_large_ids_looks_up_the_same(tmp_path, kind, buckets):
    if kind == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    space = encoder_space(**SIZES, ngrams=(1, 2, 3))
    family = EncoderFamily(space, vocab_size=150_000, num_classes=5, max_tokens=12, head_size=8, ngram_buckets=buckets)
    network = trained(family.network(space.canonical({**space.smallest().as_dict, "ngrams": 3}), backend="blocks")).float().eval()
    ids = torch.randint(100_000, 150_000, (3, 7))
    inputs = [family.example_input(Workload(tokens=9)), {"token_ids": ids, "attention_mask": torch.ones_like(ids)}]
    difference, _, _ = write_as(kind, network, inputs, tmp_path / f"m{FORMATS[kind].suffix}", tolerance=1e-4)
    assert difference <= 1e-4


def test_tables_are_counted_as_weights_and_their_costs_are_linear_in_the_probability():
    space, workload = FAMILY.space, Workload(tokens=9)
    archs = [picked(5, ngrams=n) for n in (1, 2, 3)]

    def totals(values, cost):
        return sum(getattr(o, cost) for o in FAMILY.operators(Encoding(space, values), workload))

    rows, share = space.encode(archs), np.array([0.2, 0.3, 0.5])
    weights = [sum(p.numel() for p in FAMILY.network(arch).parameters()) for arch in archs]
    assert totals(rows, "parameters").tolist() == weights
    for cost in ("count", "bytes", "parameters"):
        found = totals(rows, cost)
        assert found[0] < found[1] < found[2]
        np.testing.assert_allclose(totals(share @ rows, cost), found @ share, rtol=1e-12)


# --- the choice


def test_one_token_alone_is_no_choice():
    assert encoder_space(**SIZES, ngrams=()) == encoder_space(**SIZES, ngrams=(1,))
    assert "ngrams" not in encoder_space(**SIZES, ngrams=()).by_name
    plain = EncoderFamily(encoder_space(**SIZES, ngrams=()), vocab_size=50, num_classes=5)
    assert plain.network(plain.space.largest()).ngrams is None
    assert plain.signature == EncoderFamily(plain.space, vocab_size=50, num_classes=5, ngram_buckets=9).signature
    assert FAMILY.signature != EncoderFamily(FAMILY.space, 50, 5, 12, 8, ngram_buckets=32).signature


def test_published_encoders_have_none():
    sizes = {"width": (128,), "depth": (2,), "heads": (2,), "ffn": (512,), "attention": ("full",)}
    assert inside(encoder_space(**sizes, ngrams=(1, 2)), head_size=64)["BERT-tiny"]["ngrams"] == 1
    assert inside(encoder_space(**sizes, ngrams=(2,)), head_size=64) == {}


@pytest.mark.parametrize(
    ("ngrams", "message"),
    [
        ((0, 1), r"ngrams: options \(0, 1\) must be positive and ascending"),
        ((3, 2), r"ngrams: options \(3, 2\) must be positive and ascending"),
        (("two",), r"ngrams: \('two',\) are not numbers of tokens"),
    ],
)
def test_other_lengths_are_refused(ngrams, message):
    with pytest.raises(ValueError, match=message):
        encoder_space(ngrams=ngrams)


def test_a_table_has_rows():
    with pytest.raises(ValueError, match="ngram_buckets: 0 is not at least 1"):
        EncoderFamily(encoder_space(ngrams=(1, 2)), 50, 5, ngram_buckets=0)
