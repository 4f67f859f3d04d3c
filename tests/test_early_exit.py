"""A network that stops where it is sure: the threshold, the file that really stops, and what it is expected to take."""

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from experiments.card import _expected
from experiments.early_exits import ExitFile
from experiments.network_files import FOLDER
from experiments.stages import check_stages
from hardware.file_memory import memory_of_file
from nas.export import compare, export_onnx
from nas.finish.early_exit import EarlyExit, threshold
from nas.finish.exits import NEVER, Exits, Head, confidence, deciding, early_loss, going_on
from nas.finish.precision import quantised
from nas.finish.quantise import Quantise
from nas.finish.shapes import with_weights
from nas.finish.stage import NothingToDoError
from nas.protocols import Batch
from nas.supernet import evaluation_batches, state_of
from nas.types import Workload
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space
from tests.support.answers import inputs_of, products, rows
from tests.support.stages import FAST, Scale, Sum, finisher_of, school, through


class Watch:
    """Takes 1 ms where a file stops early and 3 ms where it does not; any other takes 3 ms."""

    name, fingerprint = "watch", "watch"
    environment = {"precision": "fp32"}  # noqa: RUF012

    def run(self, onnx_path, inputs):
        model = onnx.load(onnx_path)
        if model.graph.node[-1].op_type != "If":
            return (3.0,) * 3
        sure = onnxruntime.InferenceSession(deciding(model).SerializeToString()).run(None, inputs)[0]
        return (1.0 if sure.all() else 3.0,) * 3


@pytest.fixture
def family():
    torch.manual_seed(0)
    space = encoder_space(
        width=(16,), depth=(2, 3), heads=(2,), ffn=(16,), attention=("full", "window"), sharing=("none", "all"), ffn_kind=("mlp",)
    )
    return EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)


@pytest.fixture
def exits(family):
    network = family.network(family.space.largest())
    return Exits(network, {1: Head(16, 3)}, threshold=0.5).eval()


def balanced(exits):
    """A threshold that half of the inputs are above, and the inputs of either kind."""
    inputs = inputs_of()
    sure = confidence(exits.answers(*inputs.values())[0].detach())[:, 0]
    ordered = sure.sort().values
    exits.threshold.fill_(float(ordered[31] + ordered[32]) / 2)
    return inputs, rows(inputs, sure > exits.threshold), rows(inputs, sure <= exits.threshold)


@pytest.mark.parametrize(
    ("added", "allowed", "expected"),
    [
        ([0, 0, 0, 0], 0.0, (0.65, 0.75)),  # the least sure one never exits
        ([0, 0, 1, 0], 0.0, (0.75, 0.5)),
        ([1, 0, 0, 0], 0.0, (NEVER, 0.0)),
        ([0, 1, -1, 0], 0.0, (0.85, 0.25)),  # a mean of 0, and a standard error
        ([0, 1, -1, 0], math.sqrt(0.5 / 4) + 1e-9, (0.65, 0.75)),
        ([0, 0, 0, 0], -0.1, (NEVER, 0.0)),
    ],
)
def test_the_lowest_threshold_that_is_allowed(added, allowed, expected):
    order = np.array([2, 0, 3, 1])
    found = threshold(np.array([0.9, 0.8, 0.7, 0.6])[order], np.array(added)[order], allowed=allowed)
    assert found == pytest.approx(expected)


def test_who_is_as_sure_as_another_exits_with_it():
    assert threshold(np.array([0.9, 0.9, 0.6]), np.array([0, 1, 0]), allowed=0.0) == (NEVER, 0.0)


def test_an_answer_is_that_of_the_first_head_that_is_sure(family):
    exits = Exits(family.network(family.space.largest()), {1: Head(16, 3), 2: Head(16, 3)}).eval()
    inputs = inputs_of()
    first, second, last = exits.answers(*inputs.values())
    torch.testing.assert_close(last, exits.network(*inputs.values()))
    exits.threshold.fill_(float(confidence(first.detach()).median()))
    for got, *answers in zip(exits(*inputs.values()), first, second, last, strict=True):
        torch.testing.assert_close(got, next((a for a in answers[:2] if a.softmax(0).max() > exits.threshold), answers[2]))


def test_a_head_sees_the_stream_after_its_layer_without_padding(family):
    """Also where layers share a block."""
    for arch in (family.space.largest(), family.space.canonical({**family.space.largest().to_json(), "sharing": "all"})):
        exits = Exits(family.network(arch), {2: Head(16, 3)}).eval()
        ids = torch.randint(20, (3, 6))
        network, mask = cast(Any, exits.network), torch.ones_like(ids)
        x = network.embedding(ids) + network.positions.weight[:6]
        for layer in network.stack.layers[:2]:
            x = layer(x, torch.zeros(3, 1, 1, 6))
        expected = exits.heads["2"].classifier(exits.heads["2"].norm(x).mean(dim=1))
        torch.testing.assert_close(exits.answers(ids, mask)[0], expected)
        longer = (torch.nn.functional.pad(ids, (0, 2)), torch.nn.functional.pad(mask, (0, 2)))
        torch.testing.assert_close(exits.answers(*longer)[0], expected)


def test_heads_learn_from_the_last_answer_and_it_not_from_them():
    early, last = torch.randn(2, 4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    p, q = last.softmax(-1), early.softmax(-1)
    expected = 5 + (p * (p / q).log()).sum(-1).mean()
    loss = early_loss(list(early), last, [torch.tensor(4.0), torch.tensor(6.0)])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert last.grad is None
    assert early.grad is not None


def test_the_file_gives_the_network_s_answers_both_ways(family, exits, tmp_path):
    inputs, sure, unsure = balanced(exits)
    report = export_onnx(exits, rows(inputs, slice(0, 1)), tmp_path / "a.onnx", check_on=[inputs, sure, unsure])
    assert report.max_abs_difference < 1e-5
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["token_ids", "attention_mask", "logits"]
    onnx.save(going_on(model), tmp_path / "all.onnx")
    assert compare(exits, tmp_path / "all.onnx", [inputs, unsure])[0] < 1e-5
    back = with_weights(family.network(family.space.largest()), state_of(exits))
    torch.testing.assert_close(back.eval()(*inputs.values()), exits(*inputs.values()))


def test_the_file_really_stops(exits, tmp_path):
    """What only the last answer needs is in one branch, and does not run for those that are sure."""
    _, sure, unsure = balanced(exits)
    export_onnx(exits, sure, tmp_path / "a.onnx")

    stops, goes_on, whole = (products(tmp_path / "a.onnx", x) for x in (sure, unsure, rows(unsure, slice(0, 1))))
    assert goes_on == whole > 2 * stops > 0
    export_onnx(exits.network, sure, tmp_path / "plain.onnx")
    example = {name: value.numpy() for name, value in sure.items()}
    plain, own = (memory_of_file(tmp_path / f"{name}.onnx", example) for name in ("plain", "a"))
    assert plain.weights_mib < own.weights_mib < 1.2 * plain.weights_mib
    assert own.activations_mib >= plain.activations_mib


def test_both_parts_are_quantised(exits, tmp_path):
    inputs, _, _ = balanced(exits)
    export_onnx(exits, inputs, tmp_path / "a.onnx")
    model = quantised(onnx.load(tmp_path / "a.onnx"), "dynamic")
    parts = [model.graph, *(a.g for node in model.graph.node for a in node.attribute if a.g.name == "goes_on")]
    assert [sum(node.op_type == "MatMulInteger" for node in part.node) > 3 for part in parts] == [True, True]
    onnx.save(model, tmp_path / "q.onnx")
    exits.threshold.fill_(0.0)  # far from any doubt
    assert onnxruntime.InferenceSession(deciding(model).SerializeToString()).run(None, {n: v.numpy() for n, v in inputs.items()})


def test_images_stop_too(tmp_path):
    space = vision_space(patch=(7,), width=(16,), depth=(2,), heads=(1,), ffn=(16,), attention=("full",))
    family = VisionFamily(space, (1, 14, 14), 3, (0.0,), (1.0,), head_size=16)
    exits = Exits(family.network(space.largest()), {1: Head(16, 3)}).eval()
    images = torch.randn(9, 1, 14, 14)
    exits.threshold.fill_(float(confidence(exits.answers(images)[0].detach()).mean()))
    [name] = family.example_input(Workload(tokens=family.num_positions))
    report = export_onnx(exits, {name: images[:1]}, tmp_path / "a.onnx", check_on=[{name: images}, {name: images[1:2]}])
    assert report.max_abs_difference < 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_rate_and_inputs_are_the_file_s(exits, tmp_path, batch):
    inputs, _, _ = balanced(exits)
    export_onnx(exits, inputs, tmp_path / "a.onnx")
    task, workload = Sum(), Workload(batch, 6)

    def feed(batch: Batch):
        return {name: value.numpy() for name, value in zip(inputs, batch.inputs, strict=True)}

    file = ExitFile(tmp_path / "a.onnx", cast(Any, task), workload, feed)
    read = list(evaluation_batches(task, "validation"))
    sure = torch.cat([confidence(exits.answers(*b.inputs)[0])[:, 0] for b in read]) > exits.threshold
    assert file.rate() == pytest.approx(float(sure[: len(sure) // batch * batch].view(-1, batch).all(dim=1).double().mean()))
    for stops in (True, False):
        found = {name: torch.from_numpy(value) for name, value in file.inputs(stops=stops).items()}
        assert found["token_ids"].shape == (batch, 6)
        assert ((confidence(exits.answers(*found.values())[0]) > exits.threshold) == stops).all()


def test_the_stage_trains_and_keeps_one_head(family):
    where, largest = replace(school(family), most_points_lost=100.0), family.space.largest()
    found = EarlyExit(train=replace(FAST, steps=10)).apply(family.network(largest), where)
    assert isinstance(found, Exits)
    assert [*found.heads] == ["1"], "with every loss allowed the first exit leaves the least"
    assert 1 / 3 < float(found.threshold) < NEVER
    found = EarlyExit(train=FAST, after=2).apply(family.network(largest), where)
    assert [*cast(Exits, found).heads] == ["2"]


def test_what_cannot_exit(family):
    network, where = family.network(family.space.largest()), school(family)
    with pytest.raises(NothingToDoError, match="no exit after layer 3, the network has 3 layers"):
        EarlyExit(after=3).apply(network, where)
    with pytest.raises(NothingToDoError, match="no example may exit, at -100 points"):
        EarlyExit(train=FAST).apply(network, replace(where, most_points_lost=-100.0))
    with pytest.raises(ValueError, match="after: -1 is negative"):
        EarlyExit(after=-1)


def test_the_stage_expects_by_rate_and_is_read_again(family, tmp_path):
    finisher, stages = finisher_of(family, tmp_path, Watch()), {"early_exit": EarlyExit(train=FAST)}
    [report] = through(finisher, stages)
    facts, arch = report.facts, family.space.largest()
    assert report.kept, report.sentence
    assert 0 < facts["exit_rate"] <= 1
    assert (facts["exit_ms"], facts["full_ms"]) == pytest.approx((1, 3))
    assert report.after.latency_ms == facts["expected_ms"] == pytest.approx(3 - 2 * facts["exit_rate"])
    assert "stop after layer 1 of 3" in report.sentence
    assert finisher.times.verdict(arch, reference_ms=None).latency_ms == pytest.approx(3), "the promise is kept for every input"
    [(_, words)] = _expected({"stages": [report.to_json()]})
    assert words in report.sentence
    path = tmp_path / FOLDER / f"{arch.id}.early_exit.onnx"
    written = path.stat().st_mtime_ns
    assert through(finisher, stages) == [report]
    assert path.stat().st_mtime_ns == written
    assert finisher.scores.parity(arch, num_examples=8)["max_abs_difference"] < 1e-5


def test_a_budget_that_all_layers_break_is_kept(family, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.support.stages.BUDGET_MS", 3.5)
    watch = Watch()
    run = watch.run
    monkeypatch.setattr(watch, "run", lambda path, inputs: tuple(4.0 if ms == 3 and "early_exit" in path.name else ms for ms in run(path, inputs)))  # fmt: skip  # noqa: E501
    [report] = through(finisher_of(family, tmp_path, watch), {"early_exit": EarlyExit(train=FAST)})
    assert not report.kept
    assert "does not ship, all layers are over the budget of 3.5 ms" in report.sentence


def test_one_layer_has_nothing_to_exit_from(tmp_path):
    space = encoder_space(width=(16,), depth=(1,), heads=(1,), ffn=(16,), attention=("full",))
    finisher = finisher_of(EncoderFamily(space, 20, 3, max_tokens=8, head_size=8), tmp_path, Watch())
    [report] = through(finisher, {"early_exit": EarlyExit(train=FAST)})
    assert not report.kept
    assert report.sentence == "does not ship, there is nothing to exit from, the network has one layer"
    assert report.before == report.after
    assert finisher.files.onnx_path(space.largest()).name == f"{space.largest().id}.onnx"


def test_what_is_refused_before_any_work(family):
    task, stages = cast(Any, Sum()), {"early_exit": EarlyExit()}
    check_stages({**stages, "quantise": Quantise()}, task=task, family=family, device=Scale())
    with pytest.raises(ValueError, match=r"stages.quantise.kind: 'fp16' does not go with early_exit; allowed is 'dynamic'"):
        check_stages({**stages, "quantise": Quantise(kind="fp16", aware=False)}, task=task, family=family, device=Scale())
    decoder = DecoderFamily(decoder_space(width=(16,), depth=(2,), heads=(1,), ffn=(16,)), 20, 8)
    refused = r"stages.early_exit: it is for classification of whole inputs, the task sum is none"
    with pytest.raises(ValueError, match=refused):
        check_stages(stages, task=task, family=decoder, device=Scale())
    for sizes in ({"num_classes": 1}, {"num_classes": 3, "per_token": True}, {"vocab_size": 20}):
        task.sizes = sizes
        with pytest.raises(ValueError, match=refused):
            check_stages(stages, task=task, family=family, device=Scale())
    device = Scale()
    device.environment = {"precision": "int8"}
    with pytest.raises(ValueError, match=r"stages.early_exit: the device scale does not run ONNX files in float32"):
        check_stages(stages, task=cast(Any, Sum()), family=family, device=device)
