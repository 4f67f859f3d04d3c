"""A trivial baseline that is better than the network teaches it, by answers to what it has not seen."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDClassifier

from experiments.baseline_teachers import BaselineTeachers
from experiments.tasks import baselines
from experiments.tasks.baselines import linear_error, unseen_logs
from experiments.tasks.languages import Languages
from experiments.tasks.text import TextClassification
from nas.finish.losses import soft_labels
from nas.finish.remembered import Remembered, Remembering
from nas.protocols import SPLITS, TaskWithAnswers
from tests.support.stages import Sum

BEST = "character 1-4-grams, logistic regression"


@pytest.fixture(scope="module")
def task() -> TextClassification:
    words = {"even": ("zwei vier", "sechs acht", "zehn zwölf"), "odd": ("eins drei", "fünf sieben", "neun elf")}
    texts = [(f"{text} {number}", label) for label, own in words.items() for text in own for number in range(20)]
    return TextClassification("numbers", splits=dict.fromkeys(SPLITS, texts), vocab_size=64, max_tokens=16)


def test_sequences_are_looked_up_whatever_their_padding():
    teacher = Remembered("n-grams", [np.array([5, 6]), np.array([7])], np.array([[1.0, 2.0], [3.0, 4.0]]))
    ids, mask = torch.tensor([[7, 0, 0], [5, 6, 0]]), torch.tensor([[1, 0, 0], [1, 1, 0]])
    assert teacher(ids, mask).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    with pytest.raises(KeyError):
        teacher(ids[:, :1], mask[:1, :1] * 0)


class Counting(torch.nn.Module):
    """The number of tokens, once for each class; of token ids alone, one for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = []

    def forward(self, ids, *mask):
        self.asked += ids.tolist()
        return mask[0].sum(dim=1, keepdim=True).repeat(1, 2).float() if mask else ids[..., None].float()


def test_a_teacher_is_asked_once_for_each_example():
    counting = Counting()
    teacher = Remembering(counting)
    ids, mask = torch.tensor([[7, 0, 0], [5, 6, 0]]), torch.tensor([[1, 0, 0], [1, 1, 0]])
    assert teacher(ids, mask).tolist() == [[1.0, 1.0], [2.0, 2.0]]
    longer = torch.tensor([[5, 6], [5, 5], [5, 0]]), torch.tensor([[1, 1], [1, 1], [1, 1]])
    assert teacher(*longer).tolist() == [[2.0, 2.0]] * 3
    assert counting.asked == [[7, 0, 0], [5, 6, 0], [5, 5], [5, 0]]
    images = torch.rand(2, 1, 2, 2)
    pixels = Remembering(torch.nn.Flatten())
    torch.testing.assert_close(pixels(images), images.flatten(1))
    torch.testing.assert_close(pixels(images.flip(0)), images.flip(0).flatten(1))


def test_answers_of_tokens_are_remembered_whatever_they_are_padded_to():
    counting = Counting()
    teacher = Remembering(counting)
    assert teacher(torch.tensor([[3, 4], [5, 0]]))[..., 0].tolist() == [[3, 4], [5, 0]]
    again = teacher(torch.tensor([[5, 0, 0, 0], [3, 4, 0, 0], [6, 7, 8, 0]]))
    assert again[..., 0].tolist() == [[5, 0, 0, 0], [3, 4, 0, 0], [6, 7, 8, 0]]
    assert counting.asked == [[3, 4], [5, 0], [6, 7, 8, 0]]


def test_no_fit_has_seen_what_it_answers():
    """Each example has a feature of its own: who has seen it knows its class, and others know nothing."""
    targets = np.random.default_rng(0).integers(2, size=400)
    logs = unseen_logs(np.eye(400), targets, num_classes=3)
    assert np.mean(logs.argmax(axis=1) == targets) < 0.6
    assert (np.exp(logs[:, 2]) < 1e-5).all(), "a class without examples"
    telling = unseen_logs(np.eye(3)[targets], targets, num_classes=3)
    assert (telling.argmax(axis=1) == targets).all()


def test_what_never_occurs_is_not_fitted(monkeypatch):
    """And changes no answer: of hashed n-grams most columns are of no text."""
    targets = np.random.default_rng(0).integers(2, size=40)
    features = np.random.default_rng(1).random((40, 5))
    wide = np.zeros((40, 9))
    wide[:, 2:7] = features
    fitted = []

    class Linear(SGDClassifier):
        def fit(self, X, y):
            fitted.append(X.shape[1])
            return super().fit(X, y)

    monkeypatch.setattr(baselines, "logistic", lambda: Linear(loss="log_loss", max_iter=5, tol=None, random_state=0))
    assert np.array_equal(unseen_logs(wide, targets, num_classes=2), unseen_logs(features, targets, num_classes=2))
    assert linear_error((wide[:30], targets[:30]), (wide[30:], targets[30:])) == linear_error(
        (features[:30], targets[:30]), (features[30:], targets[30:])
    )
    assert set(fitted) == {5}


def test_a_single_class_in_a_fold_is_all_that_it_knows():
    logs = unseen_logs(np.eye(4), np.array([0, 0, 0, 1]), num_classes=2)
    assert np.isfinite(logs).all()


def test_each_example_of_train_has_an_answer(task):
    assert isinstance(task, TaskWithAnswers)
    assert issubclass(Languages, TextClassification)
    teacher = Remembered(BEST, *task.unseen_answers(BEST))
    wrong = 0.0
    for batch in task.batches("train", tokens_per_batch=64, seed=3):
        answers = teacher(*batch.inputs)
        assert answers.shape == (len(batch.targets), 2)
        wrong += task.error(answers, batch.targets)
        assert torch.isfinite(soft_labels(torch.zeros_like(answers), [answers], batch.targets, 2.0))
    assert wrong / task.num_examples("train") < 0.2


def test_only_a_better_baseline_teaches_and_is_asked_once(task):
    trivial = {BEST: 10.0, "TF-IDF of words, logistic regression": 30.0, "majority class": 5.0}
    baselines = BaselineTeachers(task, trivial)
    assert baselines.better_than(12.0) == BEST
    assert baselines.teacher(BEST) is baselines.teacher(BEST)
    assert baselines.teacher(BEST).name == BEST
    assert baselines.better_than(9.0) is None
    assert BaselineTeachers(Sum(), trivial).better_than(12.0) is None


def test_a_run_says_who_taught_its_short_list(finished):
    """With a few steps no network is as good as the baseline."""
    results = json.loads((finished / "results.json").read_text())
    assert f"Trained networks learned from the targets and from answers of {BEST}." in results["notes"]
    records = [json.loads(path.read_text()) for path in (finished / "shortlist").glob("*.json") if "." not in path.stem]
    assert {tuple(record["taught_by"]) for record in records} == {(BEST,)}
