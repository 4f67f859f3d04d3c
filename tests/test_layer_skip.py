"""Layers that run for difficult inputs only: the network, its file, the gate and the stage."""

from dataclasses import replace
from typing import Any, cast

import onnx
import onnxruntime
import pytest
import torch

from experiments.card import _expected
from experiments.early_exits import ExitFile
from experiments.stages import check_stages
from nas.export import compare, export_onnx
from nas.finish.early_exit import EarlyExit
from nas.finish.exits import NEVER, deciding, going_on
from nas.finish.layer_skip import LayerSkip, features, logistic
from nas.finish.quantise import Quantise
from nas.finish.shapes import with_weights
from nas.finish.skips import Gate, Skips
from nas.finish.stage import NothingToDoError
from nas.protocols import Batch
from nas.supernet import state_of
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space
from tests.support.answers import inputs_of, products, rows
from tests.support.stages import FAST, Scale, Sum, finisher_of, school, through

SIZES = {"width": (16,), "depth": (2, 4), "heads": (2,), "ffn": (16,), "attention": ("full",)}


class Watch(Scale):
    """Takes 3 ms for all layers of what may skip some, and 1 ms for the others."""

    environment = {"precision": "fp32"}  # noqa: RUF012

    def run(self, onnx_path, inputs):
        model = onnx.load(onnx_path)
        if not any(node.op_type == "If" for node in model.graph.node):
            return (3.0,) * 3
        easy = onnxruntime.InferenceSession(deciding(model).SerializeToString()).run(None, inputs)[0]
        return (1.0 if easy.all() else 3.0,) * 3


@pytest.fixture
def family():
    torch.manual_seed(0)
    return EncoderFamily(encoder_space(**SIZES, sharing=("none", "all")), 20, 3, max_tokens=8, head_size=8)


@pytest.fixture
def skips(family):
    return Skips(family.network(family.space.largest()), Gate(16), after=1, until=3).eval()


def balanced(skips):
    """A threshold that half of the inputs are above, and the inputs of either kind."""
    inputs = inputs_of()
    with torch.no_grad():
        easy = torch.sigmoid(skips.gate.linear(skips.features(*inputs.values())))[:, 0]
    ordered = easy.sort().values
    skips.threshold.fill_(float(ordered[31] + ordered[32]) / 2)
    return inputs, rows(inputs, easy > skips.threshold), rows(inputs, easy <= skips.threshold)


@pytest.mark.parametrize("sharing", ["none", "all"])
def test_the_short_way_is_the_network_without_its_middle_layers(family, sharing):
    arch = family.space.canonical({**family.space.largest().as_dict, "sharing": sharing})
    skips = Skips(family.network(arch), Gate(16), after=1, until=3).eval()
    short = family.network(family.space.canonical({**arch.as_dict, "depth": 2}))
    state = {name.replace("blocks.3.", "blocks.1."): w for name, w in skips.network.state_dict().items()}
    short.load_state_dict({name: state[name] for name in short.state_dict()})
    if sharing == "none":
        short.stack.blocks["1"].load_state_dict(skips.network.stack.blocks["3"].state_dict())
    inputs, easy, difficult = balanced(skips)
    for got, network in zip(skips.answers(*inputs.values()), (short, skips.network), strict=True):
        torch.testing.assert_close(got, network(*inputs.values()))
    torch.testing.assert_close(skips(*easy.values()), short(*easy.values()))
    torch.testing.assert_close(skips(*difficult.values()), skips.network(*difficult.values()))
    skips.threshold.fill_(NEVER)
    torch.testing.assert_close(skips(*inputs.values()), skips.network(*inputs.values()))


def test_the_file_gives_the_network_s_answers_both_ways(family, skips, tmp_path):
    inputs, easy, difficult = balanced(skips)
    report = export_onnx(skips, rows(inputs, slice(0, 1)), tmp_path / "a.onnx", check_on=[inputs, easy, difficult])
    assert report.max_abs_difference < 1e-5
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["token_ids", "attention_mask", "logits"]
    onnx.save(going_on(model), tmp_path / "all.onnx")
    assert compare(skips, tmp_path / "all.onnx", [inputs, difficult])[0] < 1e-5
    back = with_weights(family.network(family.space.largest()), state_of(skips))
    torch.testing.assert_close(back.eval()(*inputs.values()), skips(*inputs.values()))


def test_the_file_really_skips(skips, tmp_path):
    """The middle layers are in a branch, which does not run for those that are easy; the last layer runs for all."""
    _, easy, difficult = balanced(skips)
    export_onnx(skips, easy, tmp_path / "a.onnx")

    skipped, all_layers, one = (products(tmp_path / "a.onnx", x) for x in (easy, difficult, rows(difficult, slice(0, 1))))
    assert all_layers == one
    assert 0 < all_layers - skipped == 2 * (all_layers - skipped) // 2 > skipped / 2


def test_images_skip_too(tmp_path):
    family = VisionFamily(vision_space(patch=(7,), **SIZES), (1, 14, 14), 3, (0.0,), (1.0,), head_size=16)
    skips = Skips(family.network(family.space.largest()), Gate(16), after=2, until=3).eval()
    images = torch.randn(9, 1, 14, 14)
    with torch.no_grad():
        skips.threshold.fill_(float(torch.sigmoid(skips.gate.linear(skips.features(images))).mean()))
    [name] = family.example_input(Workload(tokens=family.num_positions))
    report = export_onnx(skips, {name: images[:1]}, tmp_path / "a.onnx", check_on=[{name: images}, {name: images[1:2]}])
    assert report.max_abs_difference < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_rate_and_inputs_are_the_file_s(skips, tmp_path, batch):
    inputs, _, _ = balanced(skips)
    export_onnx(skips, inputs, tmp_path / "a.onnx")
    task, workload = Sum(), Workload(batch, 6)

    def feed(batch: Batch):
        return {name: value.numpy() for name, value in zip(inputs, batch.inputs, strict=True)}

    file = ExitFile(tmp_path / "a.onnx", cast(Any, task), workload, feed)
    assert 0 < file.rate() < 1
    for stops in (True, False):
        found = {name: torch.from_numpy(value) for name, value in file.inputs(stops=stops).items()}
        assert found["token_ids"].shape == (batch, 6)
        easy = torch.sigmoid(skips.gate.linear(skips.features(*found.values()))) > skips.threshold
        assert (easy == stops).all()


def test_the_gate_is_a_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    x = 3 + 5 * torch.randn(400, 3, generator=generator).double()
    y = (x[:, 0] - x[:, 1] + torch.randn(400, generator=generator) > 0).double()
    weight, bias = logistic(x, y)
    from_ends = weight[0] * x.std(dim=0)
    assert from_ends[0] > 1
    assert from_ends[1] < -1
    assert abs(from_ends[2]) < 0.2
    easy = torch.sigmoid(x @ weight[0] + bias) > 0.5
    assert (easy == (y > 0.5)).double().mean() > 0.9
    standard = (x - x.mean(dim=0)) / x.std(dim=0)
    residual = torch.sigmoid(x @ weight[0] + bias) - y
    torch.testing.assert_close(standard.T @ residual / 400, -2 * 0.01 * from_ends, rtol=1e-3, atol=1e-4)
    assert residual.mean().abs() < 1e-4


def test_the_stage_trains_both_ways_and_a_gate(family):
    where, largest = replace(school(family), most_points_lost=100.0), family.space.largest()
    network = family.network(largest)
    before = network.stack.blocks["3"].ffn.up.weight.detach().clone()
    found = cast(Skips, LayerSkip(train=replace(FAST, steps=10)).apply(network, where))
    assert (found.after, found.until, found.skipped.tolist()) == (1, 3, [1, 3])
    assert 0 < float(found.threshold) < NEVER
    assert not torch.equal(network.stack.blocks["3"].ffn.up.weight, before)
    easy = torch.sigmoid(found.gate.linear(features(found, where).float())) > found.threshold
    assert 0.5 < easy.double().mean() <= 1


def test_what_cannot_skip(family):
    largest, where = family.space.largest(), school(family)
    shallow = family.network(family.space.canonical({**largest.as_dict, "depth": 2}))
    with pytest.raises(NothingToDoError, match="there is no layer between layer 1 and the last, layer 2"):
        LayerSkip().apply(shallow, where)
    with pytest.raises(NothingToDoError, match="no example may skip a layer, at -100 points"):
        LayerSkip(train=FAST).apply(family.network(largest), replace(where, most_points_lost=-100.0))
    with pytest.raises(ValueError, match="after: 0 is not at least 1"):
        LayerSkip(after=0)


def test_tokens_that_are_left_out_behind_the_gate_are_not_brought_back():
    family = EncoderFamily(encoder_space(**SIZES, keep=(50, 100), keep_after=2), 20, 3, max_tokens=8, head_size=8)
    network = family.network(family.space.canonical({**family.space.largest().as_dict, "keep_after_2": 50}))
    with pytest.raises(NothingToDoError, match="behind layer 1 tokens are left out, which the layers behind them would miss"):
        LayerSkip(train=FAST).apply(network, school(family))
    found = LayerSkip(train=FAST, after=2).apply(network, replace(school(family), most_points_lost=100.0))
    assert isinstance(found, Skips)


def test_the_stage_expects_by_rate_and_is_read_again(family, tmp_path):
    finisher, stages = finisher_of(family, tmp_path, Watch()), {"layer_skip": LayerSkip(train=FAST)}
    [report] = through(finisher, stages)
    facts, arch = report.facts, family.space.largest()
    assert report.kept, report.sentence
    assert 0 < facts["exit_rate"] <= 1
    assert report.after.latency_ms == facts["expected_ms"] == pytest.approx(3 - 2 * facts["exit_rate"])
    assert "skip the layers 2 to 3 of 4" in report.sentence
    assert finisher.times.verdict(arch, reference_ms=None).latency_ms == pytest.approx(3), "the promise is kept for every input"
    [(_, words)] = _expected({"stages": [report.to_json()]})
    assert words in report.sentence
    assert through(finisher, stages) == [report]
    assert finisher.scores.parity(arch, num_examples=8)["max_abs_difference"] < 1e-5


def test_what_is_refused_before_any_work(family):
    task, stages = cast(Any, Sum()), {"layer_skip": LayerSkip()}
    check_stages({**stages, "quantise": Quantise()}, task=task, family=family, device=Scale())
    with pytest.raises(ValueError, match=r"stages.quantise.kind: 'fp16' does not go with layer_skip; allowed is 'dynamic'"):
        check_stages({**stages, "quantise": Quantise(kind="fp16", aware=False)}, task=task, family=family, device=Scale())
    with pytest.raises(ValueError, match=r"stages: \['early_exit', 'layer_skip'\] do not go together"):
        check_stages({"early_exit": EarlyExit(), **stages}, task=task, family=family, device=Scale())
