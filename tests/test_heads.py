"""Answers other than one class: a tag for each token and a number, from the loss to the file that ships."""

import json

import numpy as np
import pytest
import torch

from experiments.build import build, family_of_task
from experiments.config import composed
from experiments.finishing import Finisher
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from experiments.tasks.answers import Regression, Tagging
from experiments.tasks.tagging import TextTagging
from experiments.tasks.text import TextRegression
from nas.compute import Compute
from nas.encoding import Encoding
from nas.export import compare, export_onnx
from nas.finish.teaching import Lesson, teach
from nas.formats import ExportError
from nas.protocols import IGNORED, SPLITS, TaskWithMetrics
from nas.supernet import cut_out, distance, error_percent, sandwich, sandwich_step
from nas.training import TrainConfig
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from tests.support.networks import trained

COMPUTE = Compute()
WORDS = {"noun": ("cat", "dog", "sun"), "verb": ("sees", "eats", "likes")}


def sentences(count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    rng = np.random.default_rng(seed)
    tags = [["noun", "verb"] * int(rng.integers(1, 4)) for _ in range(count)]
    return [([*(str(rng.choice(WORDS[tag])) for tag in row), f"no{i}"], [*row, "other"]) for i, row in enumerate(tags)]


def tagging(**changes) -> TextTagging:
    splits = {split: sentences(40, seed) for seed, split in enumerate(SPLITS)}
    return TextTagging("toy", **{"splits": splits, "vocab_size": 100, "max_tokens": 12} | changes)


def regression(**changes) -> TextRegression:
    """How often a text says good."""
    rng = np.random.default_rng(0)
    counts = {split: rng.integers(0, 5, size=60).tolist() for split in SPLITS}
    splits = {split: [(f"{'good ' * n} day {i}", 10.0 * n) for i, n in enumerate(counts[split])] for split in SPLITS}
    return TextRegression("toy", **{"splits": splits, "unit": "euros", "vocab_size": 100, "max_tokens": 12} | changes)


def family_of(task) -> EncoderFamily:
    space = encoder_space(width=(8, 16), depth=(1, 2), heads=(1, 2), ffn=(8, 16), attention=("full", "window", "none"))
    return EncoderFamily(space, head_size=4, window=2, **task.sizes)


# Tags


def test_a_word_s_tag_is_at_its_first_token():
    task = tagging()
    [batch] = task.batches("test", tokens_per_batch=10**4, seed=None)
    (ids, mask), targets = batch
    assert targets.shape == ids.shape
    assert torch.all(targets[mask == 0] == IGNORED)
    asked = sorted([task.labels[t] for t in row.tolist() if t != IGNORED] for row in targets)
    assert asked == sorted(tags for _, tags in sentences(40, 3)), "every word once, and not for each of its tokens"
    assert mask.sum() > (targets != IGNORED).sum(), "no7 is several tokens"


def test_words_past_the_longest_example_are_not_asked_for():
    short = tagging(max_tokens=3)
    [(_, targets)] = short.batches("test", tokens_per_batch=10**4, seed=None)
    assert (targets != IGNORED).sum(dim=1).max() <= 3
    assert short.fingerprint != tagging().fingerprint == tagging().fingerprint


def test_loss_error_and_f1_of_tags_by_hand():
    task = tagging()
    targets = torch.tensor([[0, 1, IGNORED], [1, IGNORED, IGNORED]])
    logits = torch.zeros(2, 3, 3)
    logits[:, :, 1] = 2.0
    right, wrong = (float(np.log(np.exp(2) + 2)) - x for x in (2, 0))
    assert float(task.loss(logits, targets)) == pytest.approx((2 * right + wrong) / 3)
    assert task.error(logits, targets) == pytest.approx(0.5 + 0.0), "shares of the sentences are added up"
    metrics = task.metrics(task.totals(logits, targets))
    assert metrics == {"accuracy of a word's tag": pytest.approx(2 / 3), "macro F1": pytest.approx((0 + 4 / 5) / 2)}
    assert isinstance(task, TaskWithMetrics)


def test_baselines_of_tags():
    baselines = tagging().trivial_baselines()
    assert 40 < baselines["most frequent tag"] < 80
    assert baselines["most frequent tag of a word"] == 0
    assert baselines["word and neighbours, logistic regression"] == 0


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ((["cat"], ["noun", "verb"]), r"^test\[0\]: 1 words have 2 tags$"),
        (([], []), r"^test\[0\]: 0 words have 0 tags$"),
        ((["cat"], ["new"]), "^labels: class 'new' has no examples in 'train'$"),
    ],
)
def test_sentences_that_cannot_be_learned_are_refused(sentence, said):
    splits = {split: sentences(40, seed) for seed, split in enumerate(SPLITS)}
    with pytest.raises(ValueError, match=said):
        tagging(splits={**splits, "test": [sentence]})


# Numbers


def test_numbers_are_standardised_and_come_back(tmp_path):
    task = regression()
    [(_, targets)] = task.batches("train", tokens_per_batch=10**4, seed=None)
    assert targets.dtype == torch.float32
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(targets.std(correction=0)) == pytest.approx(1)
    task.save_preprocessing(tmp_path)
    saved = json.loads((tmp_path / "target.json").read_text())
    back = saved["mean"] + saved["std"] * targets.double().numpy()
    assert set(np.round(back, 4).tolist()) == {0.0, 10.0, 20.0, 30.0, 40.0}
    assert saved["unit"] == "euros"


def test_loss_error_and_r2_of_numbers_by_hand():
    task = regression()
    targets, outputs = torch.tensor([1.0, -1.0, 0.5, 0.0]), torch.tensor([[1.0], [0.0], [0.5], [-1.0]])
    assert float(task.loss(outputs, targets)) == pytest.approx(0.5)
    assert task.error(outputs, targets) == pytest.approx(2.0)
    metrics = task.metrics(task.totals(outputs, targets))
    assert metrics["R²"] == pytest.approx(1 - 2 / float(((targets - targets.mean()) ** 2).sum()))
    assert metrics["root mean square error"] == pytest.approx(task.std * 0.5**0.5)
    assert metrics["mean absolute error"] == pytest.approx(task.std * 0.5)


def test_the_mean_s_error_is_100_percent_and_linear_models_are_better():
    baselines = regression().trivial_baselines()
    assert baselines["mean"] == pytest.approx(100, abs=30)
    assert baselines["character 1-4-grams, ridge regression"] < 25


def test_numbers_that_cannot_be_learned_are_refused():
    splits = {split: [("a", 1.0), ("b", 2.0)] for split in SPLITS}
    for part, said in (
        ({"train": [("a", 3.0), ("b", 3.0)]}, "^numbers: all of 'train' are 3, there is nothing to learn$"),
        ({"test": [("a", 1.0), ("b", float("nan"))]}, "^numbers: example 1 of 'test' is not finite$"),
        ({"test": []}, "^splits: 'test' has no examples$"),
    ):
        with pytest.raises(ValueError, match=said):
            regression(splits={**splits, **part})


# Networks


@pytest.fixture(params=["tags", "number"])
def task(request):
    return tagging() if request.param == "tags" else regression()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    token_ids = torch.randint(50, (4, 12))
    mask = torch.ones_like(token_ids)
    mask[1, 7:] = 0
    mask[2, 1:] = 0
    return token_ids, mask


@pytest.mark.parametrize("seed", range(3))
def test_one_hot_masks_equal_the_cut_out_network(task, inputs, seed):
    family = family_of(task)
    supernet, arch = trained(family.supernet()), family.space.sample(np.random.default_rng(seed))
    masked = supernet(*inputs, masks=family.masks(Encoding(family.space, torch.as_tensor(family.space.encode([arch])[0]))))
    torch.testing.assert_close(masked, cut_out(family, supernet, arch, COMPUTE).double()(*inputs), rtol=1e-10, atol=1e-10)


def test_padding_changes_no_tag(inputs):
    family = family_of(tagging())
    network = trained(family.network(family.space.largest()))
    alone = network(inputs[0][1:2, :7], inputs[1][1:2, :7])
    torch.testing.assert_close(network(*inputs)[1, :7], alone[0], rtol=1e-10, atol=1e-10)


def test_the_file_takes_any_batch_and_length(task, tmp_path):
    family = family_of(task)
    without_attention = {"depth": 1, "layer1.attention": "none"}.items()
    for arch in (family.space.largest(), next(a for a in draws(family) if without_attention <= a.to_json().items())):
        network = family.network(arch, backend="blocks").eval()
        others = [{**family.example_input(Workload(3, tokens))} for tokens in (1, 5)]
        report = export_onnx(network, family.example_input(Workload(tokens=12)), tmp_path / "m.onnx", check_on=others)
        assert report.equal_decisions == 1


def draws(family):
    rng = np.random.default_rng(0)
    while True:
        yield family.space.sample(rng)


def test_numbers_that_differ_are_no_equal_decisions(tmp_path):
    family = family_of(regression())
    network = family.network(family.space.smallest()).eval()
    example = family.example_input(Workload(4, 6))
    export_onnx(network, example, tmp_path / "m.onnx")
    network.classifier.bias.data += 0.02
    assert compare(network, tmp_path / "m.onnx", [example]) == (pytest.approx(0.02, abs=1e-4), 0, 4)
    with pytest.raises(ExportError, match="outputs differ by"):
        export_onnx(_Unlike(), {"x": torch.ones(2, 3)}, tmp_path / "u.onnx")


class _Unlike(torch.nn.Module):
    """Answers otherwise every time that it is called."""

    calls = 0

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x_BT.sum(dim=1, keepdim=True) + float(self.calls)


def test_a_head_s_cost_counts_every_answer():
    of_token, of_sequence = (EncoderFamily(encoder_space(), 60, 7, per_token=each) for each in (True, False))
    workload, encoding = Workload(2, 9), Encoding.of(of_token.space, [of_token.space.largest()])
    heads = [next(o for o in f.operators(encoding, workload) if o.kind == "head") for f in (of_token, of_sequence)]
    assert heads[0].flops == 9 * heads[1].flops
    assert heads[0].parameters == heads[1].parameters
    assert of_token.signature != of_sequence.signature


def test_small_networks_learn_from_the_largest_s_answers(task):
    """What is not asked for is not learned, and a single number is no distribution."""
    family = family_of(task)
    batch = next(task.batches("train", tokens_per_batch=200, seed=0))
    supernet = trained(family.supernet()).float()
    outputs, answers = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    targets = torch.tensor([[1, IGNORED, 2, 0]] * 3)
    asked = targets != IGNORED
    expected = torch.nn.functional.kl_div(
        outputs[asked].log_softmax(-1), answers[asked].softmax(-1), reduction="batchmean"
    )  # fmt: skip
    torch.testing.assert_close(distance(outputs, answers, targets), expected)
    torch.testing.assert_close(distance(outputs[..., :1], answers[..., :1], targets), ((outputs - answers)[..., 0] ** 2).mean())
    archs = sandwich(family.space, np.random.default_rng(0), num_random=0)
    only = sandwich_step(family, supernet, archs[:1], batch, task, COMPUTE, distillation=1.0)
    first = supernet.classifier.weight.grad.clone()
    supernet.zero_grad()
    assert sandwich_step(family, supernet, archs, batch, task, COMPUTE, distillation=1.0) == only
    assert torch.all(supernet.classifier.weight.grad[:, :8] != first[:, :8]), "the smallest has learned something"


def test_it_is_learned_and_the_file_scores_as_the_network(task, tmp_path):
    family = family_of(task)
    torch.manual_seed(0)
    network = family.network(family.space.largest())
    config = TrainConfig(150, tokens_per_batch=300, learning_rate=0.01)
    teach(network, task, config, Lesson(), compute=COMPUTE, seed=0)
    batches = list(task.batches("test", tokens_per_batch=1000, seed=None))
    error = error_percent(network.eval(), batches, task, COMPUTE)
    assert error < (5 if isinstance(task, Tagging) else 40)
    run = RunDirectory(tmp_path)
    finisher = Finisher(family, task, None, Workload(tokens=12), COMPUTE, FinishSettings(), 0, run)  # type: ignore[arg-type]
    arch = family.space.largest()
    (tmp_path / "shortlist").mkdir()
    export_onnx(network, family.example_input(Workload(tokens=12)), finisher.files.onnx_path(arch))
    scores = finisher.scores.of(arch, "test")
    assert scores["error_percent"] == pytest.approx(error, rel=1e-4, abs=1e-4)
    if isinstance(task, Regression):
        assert scores["metrics"]["R²"] > 0.6
    else:
        assert scores["metrics"]["macro F1"] > 0.95


def test_the_task_s_sizes_make_the_head(tmp_path):
    (tmp_path / "toy.conll").write_text("".join("a X\nb Y\n" + f"w{i} X\n\n" for i in range(40)))
    words = ("task=tag_table", f"task.path={tmp_path / 'toy.conll'}", "task.words='1'", "task.tags='-1'", "space=encoder_tiny")
    _, family = family_of_task(composed(*words, "run=unused", "task.vocab_size=64"))
    assert isinstance(family, EncoderFamily)
    assert family.per_token
    with pytest.raises(ValueError, match="toy does not go with the space decoder; it gives vocab_size, num_classes"):
        build(composed(*words[:-1], "space=decoder", f"run={tmp_path / 'run'}"), report=Reporter(quiet=True))
