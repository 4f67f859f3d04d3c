"""What a choice buys: the same networks with one option of it, and without."""

import json

import pytest

from experiments import bench
from experiments.benchmarks.ablation import Gain, options, plain_picks
from experiments.finishing import Finisher
from search_spaces.encoder import encoder_space

SPACE = encoder_space(
    width=(48, 96), depth=(1, 2, 4), heads=(4,), kv_heads=(1, 4), ffn=(128, 192), attention=("full", "linear", "none"),
    ffn_kind=("glu", "mlp", "lowrank"), rank=(16, 32), sharing=("none", "all"), keep=(50, 100), keep_after=2, ngrams=(1, 2),
)  # fmt: skip
SIZES = ((48, 1, 128), (96, 4, 192))
PLAIN = [SPACE.canonical(plain_picks(SPACE, *sizes)) for sizes in SIZES]


def test_plain_networks_have_nothing_that_is_an_option():
    for arch, (width, depth, ffn) in zip(PLAIN, SIZES, strict=True):
        assert (arch["width"], arch["depth"], arch["layer1.ffn"]) == (width, depth, ffn)
        assert {arch[f"layer{n + 1}.attention"] for n in range(depth)} == {"full"}
        assert {arch[f"layer{n + 1}.ffn_kind"] for n in range(depth)} == {"mlp"}
        assert (arch["sharing"], arch["ngrams"], arch["layer1.kv_heads_of_4"]) == ("none", 1, 4)
    assert PLAIN[1]["keep_after_2"] == 100


def test_each_option_is_one_choice_more_in_every_layer():
    groups = options(SPACE, PLAIN)
    assert list(groups) == [
        "sharing_all", "keep_after_2_50", "attention_linear", "attention_none", "kv_heads_of_4_1", "ffn_kind_glu",
        "ffn_kind_lowrank", "ngrams_2",
    ]  # fmt: skip
    linear = groups["attention_linear"][PLAIN[1]]
    assert [linear[f"layer{n}.attention"] for n in (1, 2, 3, 4)] == ["linear"] * 4
    for group in groups.values():
        for before, after in group.items():
            assert (before["width"], before["depth"]) == (after["width"], after["depth"])
            assert before["layer1.ffn"] == after["layer1.ffn"]


def test_what_an_option_cannot_change_is_left_out():
    """A single layer has none behind it that could see fewer tokens, and has to attend."""
    groups = options(SPACE, PLAIN)
    for name in ("keep_after_2_50", "attention_none"):
        assert list(groups[name]) == [PLAIN[1]]


def test_gains_by_hand():
    """Plain (1 ms, 20 %) and (2 ms, 10 %): up to 2.2 ms and 30 % they dominate 1 x 10 + 0.2 x 20 + ... = 14 + 0."""
    plain = dict(zip(PLAIN, [(1.0, 20.0), (2.0, 10.0)], strict=True))
    nothing = Gain.of(plain, plain)
    assert (nothing.time, nothing.points, nothing.hypervolume) == (1.0, 0.0, 1.0)
    faster = Gain.of(plain, {PLAIN[1]: (1.0, 11.0)})
    assert faster.time == pytest.approx(0.5)
    assert faster.points == pytest.approx(1.0)
    before, after = 1.0 * 10 + 0.2 * 20, 1.0 * 19 + 0.2 * 20
    assert faster.hypervolume == pytest.approx(after / before)


@pytest.mark.slow
def test_ablation_ends_with_its_figures_and_trains_once(capsys, tmp_path, monkeypatch):
    words = ["ablation", "preset=tiny", f"directory={tmp_path}"]
    assert bench.main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["languages_again_hypervolume"] >= 1
    assert figures["languages_attention_linear_time"] > 0
    monkeypatch.delattr(Finisher, "finish")
    assert bench.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
