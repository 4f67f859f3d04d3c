"""The ideas behind the stages, each against an independent reference."""

import copy
import dataclasses
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from nas.compute import Compute
from nas.export import export_onnx
from nas.finish.cut import Cut, Plan, added_by_layers, cuttable, importance, passing_by, smaller
from nas.finish.fake_quant import rounding
from nas.finish.losses import Seen, hidden_states, matched, recorded, relations, soft_labels
from nas.finish.low_rank import NUM_BATCHES, LowRank, added_loss, by_latency, cheapest, factor, rank_of, truncated
from nas.finish.precision import CALIBRATIONS, KINDS, blocks, quantised
from nas.finish.prune import PATTERNS, SCORES, Prune, cubic, keeps, kept, masked, matrices, told
from nas.finish.quantise import Quantise, order
from nas.finish.shapes import linear_layers, with_weights, without_blocks
from nas.finish.stage import NothingToDoError
from nas.finish.teaching import Lesson, teach
from nas.formats import open_session
from nas.protocols import IGNORED, Batch
from nas.rounding import round_input, round_weight
from nas.space import Choice, Condition, SearchSpace
from nas.supernet import state_of
from nas.training import TrainConfig, Trainer, stream
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space
from tests.support.stages import FAST, Sum, school


@pytest.fixture
def family():
    torch.manual_seed(0)
    space = encoder_space(width=(16, 32), depth=(1, 2), heads=(1, 2, 4), ffn=(16, 32), attention=("full", "window", "none"))
    return EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)


@pytest.fixture
def network(family):
    return family.network(family.space.largest())


def exported(family, network, path):
    example = family.example_input(Workload(2, 8))
    export_onnx(network, example, path)
    return onnx.load(path), {name: value.numpy() for name, value in example.items()}


def test_soft_labels_are_hintons():
    student, teachers, asked = torch.randn(5, 4), torch.randn(2, 5, 4), torch.zeros(5, dtype=torch.int64)
    p = (np.exp(teachers.numpy() / 3) / np.exp(teachers.numpy() / 3).sum(-1, keepdims=True)).mean(0)
    q = np.exp(student.numpy() / 3) / np.exp(student.numpy() / 3).sum(-1, keepdims=True)
    assert float(soft_labels(student, list(teachers), asked, 3.0)) == pytest.approx(9 * (p * np.log(p / q)).sum() / 5, rel=1e-4)
    assert float(soft_labels(student, [student], asked, 2.0)) == pytest.approx(0, abs=1e-6)


def test_answers_that_nobody_asks_for_and_numbers():
    student, teacher, some = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([[1, 0, IGNORED], [IGNORED] * 3])
    whole = torch.zeros(1, 2, dtype=torch.int64)
    expected = soft_labels(student[:1, :2], [teacher[:1, :2]], whole, 2.0)
    torch.testing.assert_close(soft_labels(student, [teacher], some, 2.0), expected)
    numbers = soft_labels(torch.tensor([[1.0], [2.0]]), [torch.tensor([[2.0], [2.0]]), torch.tensor([[4.0], [2.0]])], whole, 2.0)
    assert float(numbers) == 2.0


def test_relations_compare_tokens_and_not_widths():
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    student, teacher = ([torch.randn(2, 3, channels) for _ in range(3)] for channels in (4, 6))
    total = 0.0
    for a, b in ((0, 1), (2, 2)):
        for row, tokens in ((0, 3), (1, 2)):
            probabilities = []
            for parts in (student, teacher):
                x, y = parts[a][row, :tokens].numpy(), parts[b][row, :tokens].numpy()
                e = np.exp(x @ y.T / math.sqrt(x.shape[1]))
                probabilities.append(e / e.sum(-1, keepdims=True))
            q, p = probabilities
            total += (p * np.log(p / q)).sum() / 5 / 2
    assert float(relations(student, teacher, mask, heads=1)) == pytest.approx(total, rel=1e-4)
    assert float(relations(student, student, mask, heads=2)) == pytest.approx(0, abs=1e-6)


def test_hidden_states_leave_padding_out():
    x, y, mask = torch.randn(1, 3, 4), torch.randn(1, 3, 4), torch.tensor([[1.0, 1, 0]])
    assert float(hidden_states(x, 3 * x + 1, mask)) == pytest.approx(0, abs=1e-5)
    y[:, :2] = x[:, :2]
    assert float(hidden_states(x, y, mask)) == pytest.approx(0, abs=1e-6)
    assert float(hidden_states(x, y, torch.ones(1, 3))) > 0.01


@pytest.mark.parametrize("match", [["answers"], ["hidden"], ["relations"], ["answers", "hidden", "relations"]])
def test_a_student_of_another_width_learns_from_a_teacher(family, match):
    student, teacher = family.network(family.space.smallest()), family.network(family.space.largest())
    before = state_of(student)
    teach(student, Sum(), FAST, Lesson(alpha=(0, 0), beta=(1, 1), match=match), teachers=[teacher], compute=Compute(), seed=0)
    assert student.stack.layers[0].ffn.up.weight.grad is not None
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert "embedding.weight" in changed


def test_hooks_are_gone_after_recording(network):
    with recorded(network) as seen:
        network(*(torch.ones(2, 8, dtype=torch.int64),) * 2)
    assert seen.hidden.shape == (2, 8, 32)
    assert seen.qkv["query"].shape == (2, 8, 32)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("lesson", "message"),
    [
        ({"beta": (1,)}, r"beta: \[1\] is not a first and a last weight"),
        ({"gamma": (0, -1)}, r"gamma: \[0, -1\] is not a first and a last weight, both at least 0"),
        ({"match": ("logits",)}, r"match: 'logits' is not one of \('answers', 'hidden', 'relations'\)"),
        ({"teacher": "me"}, r"teacher: 'me' is not one of \('largest', 'front', 'itself', 'baseline'\)"),
        ({"teacher": "front", "match": ("hidden",)}, r"match: \['hidden'\] of the teacher 'front' is not \['answers'\]"),
        ({"temperature": 0}, "temperature: 0 is not positive"),
        ({"patience": 0}, "check_every, patience: 0, 0 are not at least 0 and 1"),
    ],
)
def test_lessons_that_make_no_sense_are_refused(lesson, message):
    with pytest.raises(ValueError, match=message):
        Lesson(**lesson)


def test_weights_of_a_lesson_go_linearly():
    assert Lesson(alpha=(0, 1), beta=(2, 0)).weights(0.25) == (0.25, 1.5, 0.0)


def test_class_weights_count_classes_alike(network):
    seen = []

    class Uneven(Sum):
        def batches(self, split, *, tokens_per_batch, seed):
            yield Batch((torch.ones(4, 8, dtype=torch.int64),) * 2, torch.tensor([0, 0, 0, 1]))
            yield Batch((torch.ones(4, 8, dtype=torch.int64),) * 2, torch.tensor([0, 0, 1, 2]))

    config = TrainConfig(steps=1, tokens_per_batch=32, learning_rate=1e-9)
    task, counts = Uneven(), torch.tensor([5.0, 2, 1])
    teach(network, task, config, Lesson(class_weights=True), compute=Compute(), seed=0, on_step=seen.append)
    batch = next(iter(task.batches("train", tokens_per_batch=32, seed=0)))
    weights = (8 / (3 * counts))[batch.targets]
    losses = F.cross_entropy(network(*batch.inputs), batch.targets, reduction="none")
    network.zero_grad()
    expected = torch.autograd.grad((weights * losses).sum() / weights.sum(), network.classifier.weight)[0]
    gradients = []
    teach(
        network, task, config, Lesson(class_weights=True), compute=Compute(), seed=0,
        on_step=lambda _: gradients.append(network.classifier.weight.grad.clone()),
    )  # fmt: skip
    [got] = gradients
    torch.testing.assert_close(got / got.norm(), expected / expected.norm(), rtol=1e-3, atol=1e-4)
    assert seen == [1]
    task.sizes = {"vocab_size": 20}
    with pytest.raises(ValueError, match="class_weights: the task sum has no classes"):
        teach(network, task, config, Lesson(class_weights=True), compute=Compute(), seed=0)


def trained(config, gradient, steps=None):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    trainer = Trainer(module, config, lambda number: gradient(module, number))
    trainer.run(enough=lambda step: step == steps)
    return module, trainer


def test_accumulated_gradients_are_those_of_one_large_batch():
    x = torch.randn(8, 3)

    def gradient(module, rows):
        loss = module(x[rows]).square().mean()
        loss.backward()
        return float(loss.detach())

    whole, _ = trained(TrainConfig(steps=3), lambda module, _: gradient(module, slice(None)))
    halves, _ = trained(TrainConfig(steps=3, accumulate=2), lambda m, n: gradient(m, slice(4 * (n % 2), 4 * (n % 2) + 4)))
    torch.testing.assert_close(halves.weight, whole.weight)


def test_the_moving_average_takes_the_place_of_the_weights_also_after_a_stop():
    x, seen = torch.randn(8, 3), []

    def gradient(module, _):
        seen.append(module.weight.detach().clone())
        loss = module(x).square().mean()
        loss.backward()
        return float(loss.detach())

    config = TrainConfig(steps=6, ema=0.5, learning_rate=0.1)
    averaged, trainer = trained(config, gradient)
    last = trainer.average[0]  # exchanged
    mean = seen[0]
    for step, weight in enumerate([*seen[1 : config.steps], last], 1):
        decay = min(0.5, step / (step + 9))
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(averaged.weight, mean)

    module = nn.Linear(3, 1)
    torch.manual_seed(0)
    first = Trainer(nn.Linear(3, 1), config, lambda n: gradient(first.module, n))

    def stop(step, _):
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        first.run(on_step=stop)
    again = Trainer(module, config, lambda n: gradient(module, n))
    again.load_state_dict(first.state_dict())
    again.run()
    torch.testing.assert_close(module.weight, averaged.weight)


def test_training_ends_early_with_the_best_weights(network):
    states, looked = [], []

    class Worse(Sum):
        def error(self, outputs, targets):
            looked.append(state_of(network))
            return float(len(looked))

    lesson = Lesson(check_every=2, patience=2)
    config = TrainConfig(steps=50, tokens_per_batch=64)
    teach(network, Worse(), config, lesson, compute=Compute(), seed=0, on_step=states.append)
    assert states[-1] == 6
    assert all(torch.equal(value, looked[0][name]) for name, value in network.state_dict().items())


def test_rounding_is_onnx_runtimes(family, network, tmp_path):
    model, feed = exported(family, network, tmp_path / "float.onnx")
    onnx.save(quantised(model, "dynamic"), tmp_path / "int8.onnx")
    [actual] = open_session(tmp_path / "int8.onnx").run(None, feed)
    inputs = [torch.from_numpy(value) for value in feed.values()]
    with torch.no_grad(), rounding(network) as state:
        rounded = network(*inputs).numpy()
        error = float(state.error())
    assert np.abs(actual - rounded).max() < 1e-5 < np.abs(actual - network(*inputs).detach().numpy()).max()
    weights = [layer.weight.detach() for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert error == pytest.approx(np.mean([float((w - round_weight(w)).square().sum() / w.square().sum()) for w in weights]))


@pytest.mark.parametrize("stem", ["patches", "conv"])
def test_of_images_too_and_convolutions_stay_float(stem, tmp_path):
    torch.manual_seed(0)
    space = vision_space(patch=(2,), stem=(stem,), width=(16,), depth=(2,), heads=(2,), ffn=(32,), attention=("full",))
    family = VisionFamily(space, (1, 8, 8), 3, (0.0,), (1.0,), head_size=8)
    network, images = family.network(space.largest()).eval(), torch.randn(1, 1, 8, 8)
    export_onnx(network, {"image": images}, tmp_path / "float.onnx")
    model = quantised(onnx.load(tmp_path / "float.onnx"), "dynamic")
    [actual] = open_session(model.SerializeToString(), threads=1).run(None, {"image": images.numpy()})
    with torch.no_grad(), rounding(network):
        np.testing.assert_allclose(actual, network(images).numpy(), atol=1e-5)
    kinds = [node.op_type for node in model.graph.node]
    assert ("Conv" in kinds) == (stem == "conv")
    assert "ConvInteger" not in kinds


def test_gradients_pass_the_rounding():
    x = torch.randn(4, 6, requires_grad=True)
    for rounded in (round_weight(x), round_input(x)):
        assert not torch.equal(rounded, x)
        [grad] = torch.autograd.grad(rounded.sum(), x)
        assert torch.equal(grad, torch.ones_like(x))


def test_quantisation_aware_training_comes_closer_to_the_grid(family, network):
    lesson = Lesson(alpha=(0, 0), gamma=(1, 1))
    before = sum(float((w := m.weight.detach()).sub(round_weight(w)).square().sum()) for _, m in linear_layers(network))
    Quantise(train=TrainConfig(steps=20, tokens_per_batch=64, weight_decay=0), lesson=lesson).apply(network, school(family))
    after = sum(float((w := m.weight.detach()).sub(round_weight(w)).square().sum()) for _, m in linear_layers(network))
    assert after < 0.9 * before
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize(
    ("kind", "calibration"), [(k, c) for k in KINDS for c in (CALIBRATIONS if k == "static" else ["minmax"])]
)
def test_every_kind_gives_a_model_that_answers_alike(family, network, tmp_path, kind, calibration):
    model, feed = exported(family, network, tmp_path / "float.onnx")
    [expected] = open_session(tmp_path / "float.onnx").run(None, feed)
    onnx.save(quantised(model, kind, calibration=calibration, feeds=[feed]), tmp_path / "less.onnx")
    [actual] = open_session(tmp_path / "less.onnx").run(None, feed)
    assert 0 < np.abs(actual - expected).max() < {"fp16": 0.01, "int4": 1.0}.get(kind, 0.1)


def ranges(model):
    """Of activations, in the order in which they are quantised."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = [node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {number: 255 * float(numpy_helper.to_array(constants[name])) for number, name in enumerate(scales)}


def test_batches_of_several_lengths_calibrate_as_one_would(family, network, tmp_path):
    model, _ = exported(family, network, tmp_path / "float.onnx")

    def feed(examples, tokens):
        ids = np.random.default_rng(tokens).integers(20, size=(examples, tokens))
        return {"token_ids": ids, "attention_mask": np.ones_like(ids)}

    ragged = [feed(40, 5), feed(50, 8), feed(30, 3)]
    found = {name: ranges(quantised(model, "static", calibration=name, feeds=ragged)) for name in CALIBRATIONS}
    assert ranges(quantised(model, "static", feeds=ragged[::-1])) == found["minmax"]
    for name in ("entropy", "percentile"):
        assert all(0.3 * found["minmax"][key] < found[name][key] <= 1.001 * found["minmax"][key] for key in found["minmax"])
    halves = [{name: value[half] for name, value in ragged[1].items()} for half in (slice(25), slice(25, None))]
    for name, within in (("minmax", 1e-6), ("percentile", 0.01)):
        whole, parts = (ranges(quantised(model, "static", calibration=name, feeds=feeds)) for feeds in (ragged[1:2], halves))
        assert parts == pytest.approx(whole, rel=within)


def test_blocks_that_are_kept_stay_float(family, network, tmp_path):
    model, _ = exported(family, network, tmp_path / "float.onnx")
    names = blocks(model, "dynamic")
    layers = {f"/stack/blocks.{i}/{part}" for i in (0, 1) for part in ("attention", "ffn")}
    assert set(names) == {*layers, "/embedding", "/classifier"}
    for keep, count, attending in (
        ([], 7, 2), (["/stack/blocks.1/ffn"], 5, 2), (["/classifier"], 6, 2), (["/stack/blocks.0/attention"], 6, 1),
    ):  # fmt: skip
        kinds = [n.op_type for n in quantised(model, "dynamic", keep=keep).graph.node]
        assert (kinds.count("MatMulInteger"), kinds.count("QAttention")) == (count, attending)
    assert quantised(model, "dynamic", keep=list(names)) == model


def test_calibration_inputs_are_checked(family, network, tmp_path):
    model, feed = exported(family, network, tmp_path / "float.onnx")
    with pytest.raises(ValueError, match="feeds: there are no inputs to calibrate with"):
        quantised(model, "static")
    with pytest.raises(ValueError, match=r"feeds: inputs \['pixels'\] are not the model's \['attention_mask', 'token_ids'\]"):
        quantised(model, "static", feeds=[{"pixels": feed["token_ids"]}])
    ids = feed["token_ids"]
    of_longs = r"; allowed is int64 \[batch, sequence\]"
    for wrong, message in (
        ((ids[0], ids[0]), r"feeds: token_ids is int64 \[8\]" + of_longs),
        ((ids, ids.astype(np.float32)), r"feeds: attention_mask is float32 \[2, 8\]; allowed is int64 \[2, 8\]"),
        ((ids, ids[:, :5]), r"feeds: attention_mask is int64 \[2, 5\]; allowed is int64 \[2, 8\]"),
        ((np.tile(ids, 3),) * 2, r"feeds: the model does not run on inputs of the shapes {'token_ids': \[2, 24\], "),
    ):
        with pytest.raises(ValueError, match=message):
            quantised(model, "static", feeds=[feed, dict(zip(feed, wrong, strict=True))])
    with pytest.raises(ValueError, match=r"kind: 'int2' is not one of \('dynamic', 'static', 'fp16', 'int4'\)"):
        quantised(model, "int2")


def test_blocks_are_quantised_by_error_for_each_ms():
    assert order(["a", "b", "c", "d"], {"a": 3, "b": 1, "c": 0.1, "d": -1}, {"a": 1, "b": 1, "c": -1, "d": 1}) == ["d", "b", "a"]


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.2, 0.0), (0.4, 0.8 * (1 - 0.5**3)), (0.6, 0.8), (1.0, 0.8)])
def test_sparsity_grows_by_the_cubic_schedule(progress, expected):
    assert cubic(progress, begin=0.2, end=0.6, final=0.8) == pytest.approx(expected)


def test_patterns_keep_what_scores_most():
    scores = torch.tensor([[4.0, 3, 2, 1, 0, 19, 18, 5], [6, 7, 8, 9, 14, 15, 16, 17]])
    two = kept(scores, Prune(pattern="2:4"), 0.5)
    assert two.tolist() == [[1, 1, 0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1, 1]]
    half = kept(scores, Prune(pattern="2:4"), 0.25)
    assert half.tolist() == [[1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1]], "the fours that lose most stay whole"
    squares = kept(scores, Prune(pattern="block", block=2), 0.5)
    assert squares.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2
    single = kept(scores, Prune(), 0.5)
    assert single.tolist() == [[0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("score", SCORES)
def test_pruned_networks_keep_their_pattern_to_the_exported_file(family, network, tmp_path, pattern, score):
    prune = Prune(train=TrainConfig(steps=5, tokens_per_batch=64), pattern=pattern, score=score)
    prune.apply(network, school(family))
    teach(network, Sum(), FAST, Lesson(), compute=Compute(), seed=0)  # what is zero stays zero
    model, _ = exported(family, network, tmp_path / "float.onnx")
    facts = prune.facts_of(model)
    assert facts["sparsity_percent"] == pytest.approx(50, abs=0.1)
    assert facts["num_sparse_matrices"] == 8  # queries, keys and values have one
    assert facts["pattern_kept"]
    assert told({**facts, "undivided": []}).startswith("50.0 % of the weights of 8 matrices are zero")
    dense = next(iter(matrices(model).values())).copy()
    dense[0, :4] = 1.0
    assert keeps(dense, prune) == (pattern == "single")
    assert keeps(np.zeros((4, 6)), prune) == (pattern == "single"), "which the others do not divide"


def test_maps_that_a_pattern_does_not_divide_stay_whole_and_are_named(family, network, tmp_path):
    factor(network, dict.fromkeys(("stack.blocks.0.ffn.up", "stack.blocks.1.ffn.down"), 6))
    prune, teacher = Prune(train=FAST, pattern="2:4"), school(family)
    prune.apply(network, teacher)
    undivided = ["stack.blocks.0.ffn.up.1", "stack.blocks.1.ffn.down.1"]
    facts = {**teacher.facts, **prune.facts_of(exported(family, network, tmp_path / "float.onnx")[0])}
    assert facts["undivided"] == undivided
    assert facts["pattern_kept"]
    words = "50.0 % of the weights of 8 matrices are zero in the pattern 2:4, which does not divide " + ", ".join(undivided)
    assert told(facts) == words
    with pytest.raises(NothingToDoError, match="the pattern block divides no map of the network"):
        Prune(train=FAST, pattern="block", block=64).apply(network, school(family))


@pytest.mark.parametrize("lesson", [Lesson(), Lesson(check_every=1, patience=9)], ids=["last", "best"])
def test_zeros_stay_zero_in_the_moving_average_and_in_the_best_weights(family, network, lesson):
    prune = Prune(train=FAST, pattern="2:4")
    prune.apply(network, school(family))
    zeros = {name: layer.weight == 0 for name, layer in linear_layers(network)}
    config = TrainConfig(steps=5, tokens_per_batch=64, ema=0.9)
    teach(network, Sum(), config, lesson, compute=Compute(), seed=0)
    for name, layer in linear_layers(network):
        assert torch.equal(layer.weight == 0, zeros[name])
        assert float(zeros[name].float().mean()) == 0.5


def test_movement_keeps_weights_that_move_away_from_zero():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    block = nn.ModuleDict({"blocks": nn.ModuleList([layer])})
    weight = layer.weight
    with masked(block, Prune(score="movement")) as [mask]:
        layer.weight.sum().backward()
        torch.testing.assert_close(mask.scores.grad, weight.detach())
        assert torch.equal(weight.grad, torch.ones(4, 4))
    assert layer.weight is weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "1:2"}, r"pattern: '1:2' is not one of"),
        ({"pattern": "2:4", "sparsity": 0.7}, "sparsity: 0.7 is not 0.5, which the pattern 2:4 means"),
        ({"begin": 0.9}, r"begin, end: 0.9 and 0.6 are not ascending in \[0, 1\]"),
        ({"lesson": Lesson(check_every=5)}, "check_every: 5 is not 0"),
    ],
)
def test_prune_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Prune(**settings)


def test_the_smallest_rank_that_keeps_the_energy():
    weight = torch.linalg.svd(torch.randn(6, 9)).U @ torch.diag(torch.tensor([4.0, 2, 1, 0.5, 0.2, 0.1])) @ torch.eye(6, 9)
    squares = np.array([16, 4, 1, 0.25, 0.04, 0.01])
    for energy, rank in ((0.7, 1), (0.9, 2), (0.99, 4), (1.0, 6)):
        first, second = truncated(weight, rank_of(weight, energy=energy))
        assert first.shape == (rank, 9)
        lost = float((weight - second @ first).square().sum())
        assert lost == pytest.approx(squares[rank:].sum(), abs=1e-5)


def test_factored_networks_are_read_again_and_exported(family, network, tmp_path):
    LowRank(train=FAST, energy=0.6, most_flops=0.9).apply(network, school(family))
    state = state_of(network)
    assert "stack.blocks.0.ffn.up.1.weight" in state
    again = with_weights(family.network(family.space.largest(), backend="blocks"), state).eval()
    example = family.example_input(Workload(2, 8)).values()
    torch.testing.assert_close(again(*example), network.eval()(*example))
    exported(family, again, tmp_path / "float.onnx")


def test_ranks_cost_the_least_loss_for_what_they_save():
    options = {"a": {8: (1.0, 0.1), 4: (2.0, 0.9)}, "b": {8: (1.0, 0.4), 4: (1.5, 0.5)}, "c": {8: (3.0, 9.0)}}
    assert cheapest(options, save=1.0) == {"a": 8}
    assert cheapest(options, save=2.4) == {"a": 8, "b": 4}
    assert cheapest(options, save=3.0) == {"a": 4, "b": 4}
    assert cheapest(options, save=99.0) == {"a": 4, "b": 4, "c": 8}


def test_maps_are_factored_where_the_device_is_faster_for_it():
    """On a device on which attention costs nothing, its maps stay whole."""
    torch.manual_seed(0)
    space = encoder_space(width=(32,), depth=(1, 2), heads=(4,), ffn=(64,), attention=("full",))
    family = EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)
    network = family.network(space.largest()).eval()

    def size(network):
        return sum(w.numel() for name, w in network.named_parameters() if ".ffn." in name)

    teacher = school(family, saved=lambda network, others: [1 - size(n) / size(network) for n in others])
    before = state_of(network)
    ranks = by_latency(network, teacher, faster=0.3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name.rpartition(".")[2] for name in ranks} <= {"up", "down"}
    assert teacher.facts["not_faster"] == ["32 x 32"]
    assert size(factor(copy.deepcopy(network), ranks)) <= 0.7 * size(network)
    name, rank = next(iter(ranks.items()))
    added = added_loss(network, teacher, {name: [rank]})[name, rank]
    source = stream(Sum(), "architecture", tokens_per_batch=2048, seed=0)
    batches = [next(source) for _ in range(NUM_BATCHES)]
    with torch.no_grad():
        both = [network, factor(copy.deepcopy(network), {name: rank})]
        first, after = (sum(Sum.loss(n(*b.inputs), b.targets) for b in batches) / NUM_BATCHES for n in both)
    assert added == pytest.approx(float(after - first), abs=1e-6)


def test_no_map_is_factored_where_none_is_faster(family, network):
    with pytest.raises(NothingToDoError, match=r"no map is clearly faster in factors on the device \(tried: 32 x 32\)"):
        LowRank(train=FAST, by="latency").apply(network, school(family))
    least = r"no map keeps 99.9 % of its energy in factors of at most 10 % of its FLOPs \(the least is \d+ %\)"
    with pytest.raises(NothingToDoError, match=least):
        LowRank(train=FAST, energy=0.999, most_flops=0.1).apply(network, school(family))
    with pytest.raises(ValueError, match="by: 'rank' is not one of"):
        LowRank(by="rank")


def test_cuts_leave_what_matters(family, network):
    """Neurons and heads that write nothing go first, and the network answers as before."""
    silent = network.stack.layers[0]
    with torch.no_grad():
        silent.ffn.down.weight[:, ::2] = 0
        silent.attention.out.weight[:, 8:24] = 0
    layers = cuttable(network, family.space)
    assert set(layers) == {f"layer{i}.{part}" for i in (1, 2) for part in ("heads", "ffn")}
    teacher = school(family, predict_ms=lambda archs: [a.size("layer1.ffn") + 8.0 * a.size("layer1.heads") for a in archs])
    scores = importance(network, layers, teacher)
    assert scores["layer1.heads"].argsort()[:2].sort().values.tolist() == [1, 2]
    target = smaller(teacher, scores, {}, faster=0.49)
    assert (target.size("layer1.heads"), target.size("layer1.ffn")) == (2, 16)
    assert (target.size("layer2.heads"), target.size("layer2.ffn")) == (4, 32), "nothing is saved there"

    example = family.example_input(Workload(2, 8)).values()
    before = network.eval()(*example)
    cut = Cut(train=TrainConfig(steps=1, learning_rate=1e-12, weight_decay=0), faster=0.49).apply(network, teacher).eval()
    torch.testing.assert_close(cut(*example), before)
    again = with_weights(family.network(family.space.largest(), backend="blocks"), state_of(cut)).eval()
    torch.testing.assert_close(again(*example), before)
    assert again.stack.layers[0].attention.heads == 2


def deep(**choices):
    torch.manual_seed(0)
    space = encoder_space(
        **{"width": (16,), "depth": (2, 3, 4), "heads": (1, 2), "ffn": (16, 32), "attention": ("full",), **choices}
    )
    return EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_layer_goes_where_it_matters_least(norm, tmp_path):
    """The network without it answers as one that passes it by, and that, if it is pre-norm, as one whose layer adds nothing."""
    family = dataclasses.replace(deep(), norm=norm)
    network = family.network(family.space.largest()).eval()
    example = list(family.example_input(Workload(2, 8)).values())
    idle = network.stack.layers[1]
    if norm == "pre":
        with torch.no_grad():
            for writer in (idle.attention.out, idle.ffn.down):
                writer.weight.zero_(), writer.bias.zero_()
    whole = network(*example)
    with passing_by(idle):
        passed = network(*example)
    assert torch.allclose(passed, whole) == (norm == "pre")

    teacher = school(family, predict_ms=lambda archs: [2.0 + a.size("depth") for a in archs])
    added = added_by_layers(network, teacher)
    if norm == "pre":
        assert added[2] == pytest.approx(0, abs=1e-6)
        assert min(abs(added[n]) for n in (1, 3, 4)) > 1e-6
    added = {1: 0.4, 2: 0.1, 3: 0.2, 4: 0.3}
    scores = importance(network, cuttable(network, family.space), teacher)
    assert smaller(teacher, scores, added, faster=0.1).layers == (1, 3, 4)
    assert smaller(teacher, scores, added, faster=0.3).layers == (1, 4)
    assert smaller(teacher, scores, added, faster=0.9).layers == (1, 4), "the space has no single layer"
    assert smaller(teacher, scores, {}, faster=0.9).layers == (1, 2, 3, 4)

    without_blocks(network, {"1"})
    torch.testing.assert_close(network(*example), passed)
    again = with_weights(family.network(family.space.largest(), backend="blocks"), state_of(network)).eval()
    assert len(again.stack.layers) == 3
    torch.testing.assert_close(again(*example), passed)
    assert exported(family, again, tmp_path / "float.onnx")


def test_layers_heads_and_neurons_go_together():
    family = deep()
    network = family.network(family.space.largest())
    with torch.no_grad():
        for layer in (network.stack.layers[0], network.stack.layers[2]):
            for writer in (layer.attention.out, layer.ffn.down):
                writer.weight.zero_(), writer.bias.zero_()
        network.stack.layers[3].ffn.down.weight[:, ::2] = 0
    example = family.example_input(Workload(2, 8)).values()
    before = network.eval()(*example)
    first_ms = sum((10, 32, 10, 32, 10, 32, 10, 32))

    def predict_ms(archs):
        return [sum(10 + a.size(f"layer{n}.ffn") for n in range(1, a.size("depth") + 1)) for a in archs]

    teacher = school(family, predict_ms=predict_ms)
    train = TrainConfig(steps=1, learning_rate=1e-12, weight_decay=0)
    cut = Cut(train=train, faster=1 - 68.5 / first_ms).apply(network, teacher).eval()
    assert teacher.facts["layers_gone"] == [1, 3]
    assert [layer.ffn.down.in_features for layer in cut.stack.layers] == [32, 16]
    torch.testing.assert_close(cut(*example), before)
    again = with_weights(family.network(family.space.largest()), state_of(cut)).eval()
    torch.testing.assert_close(again(*example), before)
    with pytest.raises(
        NothingToDoError, match="no option of the space with fewer heads, neurons or layers is predicted to be faster"
    ):
        Cut(train=FAST).apply(family.network(family.space.largest()), school(family))


def test_layers_go_only_where_the_space_has_what_is_left():
    there = (Condition("depth", (2,)),)
    depth, first, second = Choice("depth", (1, 2)), Choice("layer1.ffn", (16,)), Choice("layer2.ffn", (16, 32), there)
    space = SearchSpace("odd", (depth, first, second))
    whole = Plan(space.largest(), (1, 2))
    assert whole.without([1], space) == [], "the first layer has no 32 neurons"
    [alone] = whole.without([2], space)
    assert (alone.layers, alone.arch.as_dict) == ((1,), {"depth": 1, "layer1.ffn": 16})
    [of_16] = Plan(space.canonical({**space.largest().as_dict, "layer2.ffn": 16}), (1, 2)).without([1], space)
    assert (of_16.layers, of_16.size("layer2.ffn"), of_16.size("layer1.ffn")) == ((2,), 16, 0)
    shared = deep(sharing=("all",))
    assert added_by_layers(shared.network(shared.space.largest()), school(shared)) == {}
    few = deep(keep=(50,), keep_after=1)
    assert added_by_layers(few.network(few.space.largest()), school(few)) == {}


def test_a_cut_wants_whole_matrices(family, network):
    LowRank(train=FAST, energy=0.5, most_flops=1.0).apply(network, school(family))
    with pytest.raises(ValueError, match=r"cut: stack.blocks.0.attention is no layer whose size is the choice layer1.heads"):
        Cut(train=FAST).apply(network, school(family))


def test_a_network_whose_tokens_are_others_cannot_be_matched():
    student, teacher = Seen(torch.zeros(1, 4, 2)), Seen(torch.zeros(1, 9, 2))
    with pytest.raises(ValueError, match="match: the student sees 4 tokens and the teacher 9"):
        matched(["hidden"], student, teacher, nn.Identity(), [])


@pytest.mark.parametrize("pools", [(1, 4), (2, 4), (4, 4), (1, 16)])
def test_means_of_tokens_learn_from_the_means_of_the_teacher_s(pools):
    mask, (theirs, ours) = torch.tensor([[1] * 7, [1] * 5 + [0] * 2]), pools
    num_tokens, size = -(-7 // theirs), ours // theirs
    teacher = Seen(torch.randn(2, num_tokens, 6), {name: torch.randn(2, num_tokens, 4) for name in "qkv"}, 2, theirs)
    whole = F.pad(mask, (0, -7 % theirs)).unflatten(1, (-1, theirs)).any(dim=2)  # teacher's tokens that are there

    def means(x):
        groups = [[x[row, i : i + size][whole[row, i : i + size]] for i in range(0, num_tokens, size)] for row in (0, 1)]
        return torch.stack([torch.stack([g.mean(dim=0) if len(g) else torch.randn(x.shape[-1]) for g in row]) for row in groups])

    student = Seen(means(teacher.hidden), {name: means(x) for name, x in teacher.qkv.items()}, 2, ours)
    inputs = [torch.ones(2, 7, dtype=torch.int64), mask]
    for name in ("hidden", "relations"):
        assert float(matched([name], student, teacher, nn.Identity(), inputs)) == pytest.approx(0, abs=1e-6)
        other = Seen(student.hidden + torch.randn(6), {k: x + torch.randn(4) for k, x in student.qkv.items()}, 2, ours)
        if name == "hidden" or ours < 7:
            assert float(matched([name], other, teacher, nn.Identity(), inputs)) > 1e-3


@pytest.mark.parametrize("match", [["hidden"], ["answers", "relations"]])
def test_a_pooled_student_learns_from_what_a_teacher_makes_of_batches_of_whole_examples(match):
    class Long(Sum):
        def batches(self, split, *, tokens_per_batch, seed):
            assert tokens_per_batch >= 8, "of the longest example"
            return super().batches(split, tokens_per_batch=tokens_per_batch, seed=seed)

    space = encoder_space(width=(16, 32), depth=(1,), heads=(1, 2), ffn=(16,), attention=("full",), pool=(1, 3))
    family = EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)
    student, teacher = (family.network(space.canonical({**arch.as_dict, "pool": pool})) for arch, pool in (
        (space.smallest(), "3"), (space.largest(), "1"),
    ))  # fmt: skip
    before = state_of(student)
    lesson = Lesson(alpha=(0, 0), beta=(1, 1), match=match)
    teach(student, Long(), FAST, lesson, teachers=[teacher], compute=Compute(), seed=0)
    assert not torch.equal(student.embedding.weight, before["embedding.weight"])
