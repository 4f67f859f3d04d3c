"""Tasks: splits that never mix, batches that hold everything once, preprocessing that can be repeated, and errors that help."""

import importlib
import inspect
import json
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import Tokenizer

from experiments.config import composed
from experiments.tasks import django_source, languages
from experiments.tasks.dataset import DatasetTask
from experiments.tasks.languages import Languages
from experiments.tasks.own_text import TextTable
from experiments.tasks.ragged import PAD_ID, Ragged
from experiments.tasks.text import TextClassification
from experiments.tasks.tokenizing import BPE, WORDPIECE, comparable, train_tokenizer
from nas.protocols import SPLITS

CONF = Path(__file__).parent.parent / "conf" / "task"
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")


def sentences(count, seed=0, words=WORDS):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=rng.integers(2, 12))) + f" {i}" for i in range(count)]


def toy_splits():
    """Two classes that share no word."""
    return {
        split: [(text, "greek") for text in sentences(20, seed)]
        + [(text, "latin") for text in sentences(20, seed, ("unus", "duo", "tres"))]
        for seed, split in enumerate(SPLITS)
    }


def toy_task(**changes):
    return TextClassification("toy", **{"splits": toy_splits(), "vocab_size": 200, "max_tokens": 8} | changes)


@pytest.fixture(scope="module")
def small_languages():
    return Languages(max_examples=3000, vocab_size=2000)


@pytest.fixture(scope="module")
def catalogues():
    return languages.read_catalogues()


def rows_of(batches):
    """(ids without padding, target) of every example, in the order of the batches."""
    return [
        (tuple(ids[mask.bool()].tolist()), int(target))
        for (token_ids, attention_mask), targets in batches
        for ids, mask, target in zip(token_ids, attention_mask, targets, strict=True)
    ]


# Batches


@pytest.fixture
def ragged():
    """The first id of every example is its index + 1, so that examples are distinct and no id is the padding's."""
    rng = np.random.default_rng(0)
    return Ragged.of([[i + 1] * rng.integers(1, 64) for i in range(1000)], rng.integers(0, 5, size=1000).tolist())


def ids_of(ragged):
    return np.split(ragged.ids, ragged.offsets[1:-1])


@pytest.mark.parametrize("tokens_per_batch", [64, 500, 10**6])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_batches_hold_every_example_once(ragged, seed, tokens_per_batch):
    batches = list(ragged.batches(tokens_per_batch=tokens_per_batch, seed=seed))
    expected = [(tuple(ids.tolist()), int(t)) for ids, t in zip(ids_of(ragged), ragged.targets, strict=True)]
    assert sorted(rows_of(batches)) == sorted(expected)
    assert max(batch.num_tokens for batch in batches) <= tokens_per_batch


@pytest.mark.parametrize("seed", [None, 3])
def test_padding_follows_the_tokens_and_is_masked(ragged, seed):
    for (token_ids, mask), targets in ragged.batches(tokens_per_batch=500, seed=seed):
        assert token_ids.shape == mask.shape
        assert {x.dtype for x in (token_ids, mask, targets)} == {torch.int64}
        assert torch.equal(mask, (token_ids != PAD_ID).long())
        assert torch.all(mask.diff(dim=1) <= 0)
        assert mask.sum(dim=1).max() == mask.shape[1]


def test_batches_are_determined_by_the_seed(ragged):
    def order(seed):
        return rows_of(ragged.batches(tokens_per_batch=500, seed=seed))

    assert order(0) == order(0) != order(1)
    assert order(None) == order(None)
    assert [len(ids) for ids, _ in order(None)] == sorted(ragged.lengths)


def test_shuffled_batches_hold_little_padding(ragged):
    batches = list(ragged.batches(tokens_per_batch=500, seed=0))
    assert len(ragged.ids) / sum(batch.num_tokens for batch in batches) > 0.85


def test_a_pass_over_many_examples_is_fast():
    lengths = np.random.default_rng(0).integers(1, 64, size=38_000)
    ragged = Ragged.of([np.ones(n, dtype=np.int64) for n in lengths], np.zeros(38_000, dtype=np.int64))
    begin = time.perf_counter()
    assert sum(len(batch.targets) for batch in ragged.batches(tokens_per_batch=4096, seed=0)) == 38_000
    assert time.perf_counter() - begin < 0.5


def test_batches_refuse_a_size_under_the_longest_example(ragged):
    with pytest.raises(ValueError, match="tokens_per_batch: 62 is less than the 63 tokens of the longest example"):
        ragged.batches(tokens_per_batch=62, seed=0)


# Texts


def test_text_task_answers_the_protocol():
    task = toy_task()
    assert task.labels == ("greek", "latin")
    assert task.vocab_size <= 200
    assert [task.num_examples(split) for split in SPLITS] == [40] * 4
    assert task.texts("test") == tuple(text for text, _ in toy_splits()["test"])
    for split in SPLITS:
        (token_ids, _), targets = next(task.batches(split, tokens_per_batch=10**4, seed=None))
        assert token_ids.shape == (40, 8)
        assert token_ids.max() < task.vocab_size
        assert targets.bincount().tolist() == [20, 20]
    baselines = task.trivial_baselines()
    assert baselines == {
        "majority class": 50.0,
        "character 1-4-grams, logistic regression": 0.0,
        "TF-IDF of words, logistic regression": 0.0,
    }


def test_loss_and_error():
    task = toy_task()
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    wrong, right = np.log1p(np.exp(2)), np.log1p(np.exp(-2))
    assert task.loss(outputs, targets).item() == pytest.approx((2 * right + wrong) / 3)
    assert task.error(outputs, targets) == 1.0


def test_fingerprint_is_of_the_data_and_its_preprocessing():
    changed = toy_splits()
    changed["test"][0] = ("another text", "greek")
    tasks = [toy_task(), toy_task(splits=changed), toy_task(vocab_size=100), toy_task(max_tokens=9)]
    assert len({task.fingerprint for task in tasks}) == 4
    assert toy_task().fingerprint == tasks[0].fingerprint


def test_tokenizer_is_saved_ready_to_use(small_languages, tmp_path):
    small_languages.save_preprocessing(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = small_languages.texts("test")
    [(inputs, targets)] = small_languages.batches("test", tokens_per_batch=10**6, seed=None)
    encodings = tokenizer.encode_batch(texts)
    assert sorted(encoding.ids for encoding in encodings) == sorted(inputs[0].tolist())
    assert sorted(encoding.attention_mask for encoding in encodings) == sorted(inputs[1].tolist())
    alone = [tuple(tokenizer.encode(text).ids) for text in texts]
    assert sorted(alone) == sorted(ids for ids, _ in rows_of([(inputs, targets)]))
    assert max(map(len, alone)) <= small_languages.max_tokens == max(len(tokenizer.encode("a " * n).ids) for n in (64, 65, 200))
    assert tuple(json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))) == small_languages.labels


@pytest.mark.parametrize("kind", [BPE, WORDPIECE])
@pytest.mark.parametrize("vocab_size", [64, 100, 1000])
def test_vocabulary_is_never_larger_than_wanted(small_languages, vocab_size, kind):
    tokenizer = train_tokenizer(small_languages.texts("train"), vocab_size=vocab_size, kind=kind)
    assert tokenizer.get_vocab_size() == vocab_size
    assert (tokenizer.token_to_id("[PAD]"), tokenizer.token_to_id("[UNK]")) == (0, 1)


def test_bpe_merges_in_the_order_of_training_and_wordpiece_takes_the_longest():
    texts = ["xbc"] * 30 + ["ab"] * 20
    split = {kind: train_tokenizer(texts, vocab_size=64, kind=kind).encode("abc").tokens for kind in (BPE, WORDPIECE)}
    assert split == {BPE: ["a", "##bc"], WORDPIECE: ["ab", "##c"]}


def test_characters_that_training_never_saw_are_one_unknown_token():
    tokenizer = train_tokenizer(["ab", "abc"], vocab_size=64)
    assert tokenizer.encode("abΩΩΩ ab").tokens == ["ab", "[UNK]", "ab"]


def test_a_text_cannot_write_padding():
    tokenizer = train_tokenizer(["[PAD] [UNK] ##a a", "pad unk"], vocab_size=64)
    assert not {0, 1} & set(tokenizer.encode("[PAD] [UNK] ##a").ids)


def test_a_text_without_tokens_is_one_unknown_token():
    splits = toy_splits()
    splits["test"] = [(" \n", "greek")]
    [((token_ids, mask), _)] = toy_task(splits=splits).batches("test", tokens_per_batch=100, seed=None)
    assert token_ids.tolist() == mask.tolist() == [[1]]


def test_text_task_refuses_what_it_cannot_learn_from():
    splits = toy_splits()
    only_test = splits | {"test": [*splits["test"], ("salve", "old latin")]}
    one_class = {split: [(text, "greek") for text, _ in examples] for split, examples in splits.items()}
    for changes, message in (
        ({"splits": splits | {"validation": []}}, "splits: 'validation' has no examples"),
        (
            {"splits": {"train": splits["train"]}},
            r"splits: \('train',\) are not \('train', 'architecture', 'validation', 'test'\)",
        ),
        ({"splits": one_class}, r"labels: \('greek',\) are fewer than 2 classes"),
        ({"splits": only_test}, "labels: class 'old latin' has no examples in 'train'"),
        ({"vocab_size": 63}, "vocab_size: 63 is not an integer of at least 64"),
        ({"vocab_size": 80.5}, "vocab_size: 80.5 is not an integer of at least 64"),
        ({"max_tokens": 0}, "max_tokens: 0 is not an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            toy_task(**changes)
    task = toy_task()
    for method in (task.num_examples, task.texts, lambda split: task.batches(split, tokens_per_batch=100, seed=0)):
        with pytest.raises(ValueError, match=r"^split: 'val' is not one of \('train', 'architecture', 'validation', 'test'\)$"):
            method("val")


# Languages


def test_languages_split_messages_and_repeat_no_text(catalogues):
    examples = languages.identifiable(catalogues)
    splits = languages.split_by_message(examples)
    assert sum(map(len, splits.values())) == len(examples) == 50_204
    message_of = {(example.text, example.language): example.message for example in examples}
    messages = [{message_of[pair] for pair in pairs} for pairs in splits.values()]
    assert sum(map(len, messages)) == len(set.union(*messages))
    texts = [comparable(text) for pairs in splits.values() for text, _ in pairs]
    assert len(texts) == len(set(texts))
    classes = [{label for _, label in pairs} for pairs in splits.values()]
    assert all(part == classes[0] and len(part) == 76 for part in classes)
    assert "en" not in classes[0]
    assert 0.68 < len(splits["train"]) / len(examples) < 0.72


def test_subsample_keeps_whole_messages(catalogues):
    examples = languages.identifiable(catalogues)
    small, large = (languages.first_messages(examples, size) for size in (1000, 3000))
    assert 800 < len(small) <= 1000
    assert 2500 < len(large) <= 3000
    assert set(small) < set(large)
    kept = {e.message for e in large}
    assert len([e for e in examples if e.message in kept]) == len(large)


def test_languages_beat_the_majority_class(small_languages):
    baselines = small_languages.trivial_baselines()
    linear = baselines["character 1-4-grams, logistic regression"]
    assert 5 < linear < 60 < 90 < baselines["majority class"] < 100


def test_languages_are_the_same_in_every_process_and_import_little(small_languages):
    program = (
        "import sys; from experiments.tasks.languages import Languages; early = {*sys.modules};"
        "task = Languages(max_examples=3000, vocab_size=2000);"
        "print(task.fingerprint, 'django' in sys.modules, *sorted({'torch', 'sklearn', 'polib'} & early))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CONF.parent.parent)
    assert answer.stdout.split() == [small_languages.fingerprint, "False"]


def test_languages_need_their_packages(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(django_source, "distribution", missing)
    sentence = r"^task: 'languages' needs django==5.2.19 and polib; pip install 'paretoformer\[demo\]'$"
    with pytest.raises(ValueError, match=sentence):
        Languages()
    monkeypatch.setattr(django_source, "distribution", lambda name: SimpleNamespace(version="6.0", files=[]))
    with pytest.raises(ValueError, match=r"^django: version 6.0 is not 5.2.19, .*; pip install 'paretoformer\[demo\]'$"):
        Languages()
    monkeypatch.setattr(django_source, "distribution", lambda name: SimpleNamespace(version="5.2.19", files=None))
    with pytest.raises(ValueError, match=r"^django: version 5.2.19 is installed without its translations; "):
        Languages()
    monkeypatch.setitem(sys.modules, "polib", None)
    with pytest.raises(ValueError, match=sentence):
        Languages()


def test_languages_check_their_arguments_before_they_read(monkeypatch):
    monkeypatch.setattr(languages, "read_catalogues", lambda: pytest.fail("read too early"))
    for arguments in ({"vocab_size": 10}, {"max_tokens": 0}, {"max_examples": 0}):
        [(name, value)] = arguments.items()
        with pytest.raises(ValueError, match=f"^{name}: {value} is not an integer of at least"):
            Languages(**arguments)


def test_too_few_examples_leave_no_language(monkeypatch, catalogues):
    monkeypatch.setattr(languages, "read_catalogues", lambda: catalogues)
    with pytest.raises(ValueError, match=r"^max_examples: 50 leaves no two languages with examples in all of "):
        Languages(max_examples=50)


# CSV files


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "mails.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def csv_text(rows, separator=","):
    return "".join(separator.join(row) + "\n" for row in [("kind", "body"), *rows])


GOOD_ROWS = [("spam", text) for text in sentences(40, 1)] + [("ham", text) for text in sentences(20, 2, ("unus", "duo"))]


def open_csv(path, **changes):
    return TextTable(path, **{"text": "body", "label": "kind", "vocab_size": 100} | changes)


def test_csv_splits_are_stratified_and_complete(write):
    task = open_csv(write(csv_text(GOOD_ROWS)), validation_fraction=0.25)
    assert task.name == "mails"
    assert task.labels == ("ham", "spam")
    assert [task.num_examples(split) for split in SPLITS] == [33, 6, 15, 6]
    assert sorted(text for split in SPLITS for text in task.texts(split)) == sorted(text for _, text in GOOD_ROWS)
    [(_, targets)] = task.batches("validation", tokens_per_batch=10**4, seed=None)
    assert targets.bincount().tolist() == [5, 10]


def test_csv_splits_are_determined_by_the_seed(write):
    path = write(csv_text(GOOD_ROWS))
    assert open_csv(path).fingerprint == open_csv(path, seed=0).fingerprint != open_csv(path, seed=1).fingerprint


@pytest.mark.parametrize("seed", range(5))
def test_csv_duplicates_are_in_one_split(write, seed):
    again = [(kind, text.upper().replace(" ", "  ")) for kind, text in GOOD_ROWS] + [("ham", GOOD_ROWS[0][1])]
    task = open_csv(write(csv_text(GOOD_ROWS + again)), seed=seed)
    texts = [{comparable(text) for text in task.texts(split)} for split in SPLITS]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 60
    assert sum(task.num_examples(split) for split in SPLITS) == 121


def test_csv_reads_what_spreadsheets_write(write):
    plain = open_csv(write(csv_text(GOOD_ROWS)))
    quoted = [(kind, f'"{text}"') for kind, text in GOOD_ROWS]
    excel = open_csv(write(b"\xef\xbb\xbf" + (csv_text(quoted, ";") + "\n").replace("\n", "\r\n").encode()), separator=";")
    assert excel.fingerprint == plain.fingerprint
    tabs = open_csv(write(csv_text(GOOD_ROWS, "\t")), separator="tab")
    assert tabs.fingerprint == plain.fingerprint
    several_lines = open_csv(write(csv_text([*GOOD_ROWS, ("spam", '"one ""x"",\ntwo"')])))
    assert any('one "x",\ntwo' in several_lines.texts(split) for split in SPLITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"kind,body\nspam,caf\xe9\n", r"path: .*mails.csv is not UTF-8 text \(byte 18\)"),
        ("", "path: .*mails.csv is empty, it has no header row"),
        ("kind,text\n", r"text: 'body' is not one of the columns \['kind', 'text'\] of .*mails.csv"),
        ("class,body\n", r"label: 'kind' is not one of the columns \['class', 'body'\] of .*mails.csv"),
        ("kind,body,body\n", r"text: 'body' is not one of the columns .*"),
        (
            "kind;body\nspam;a\n",
            r"text: 'body' is not one of the columns \['kind;body'\] of .*mails.csv; if its .*, add \"task.separator=';'\"",
        ),
        ("kind\tbody\nspam\ta\n", r"text: 'body' is not one of the columns .*; if its .*, add task.separator=tab"),
        ("kind,body\n", "path: .*mails.csv has no rows"),
        ("kind,body\nspam,a\nham,b,c\n", "path: row 3 of .*mails.csv has 3 fields, the header has 2"),
        ("kind,body\n\nspam\n", "path: row 3 of .*mails.csv has 1 fields, the header has 2"),
        ("kind,body\nspam, \n", "path: row 2 of .*mails.csv has nothing in column 'body'"),
        ("kind,body\nspam,a\n,b\n", "path: row 3 of .*mails.csv has nothing in column 'kind'"),
        ('kind,body\nspam,"a\n', r"path: line 2 of .*mails.csv is not CSV \(unexpected end of data\)"),
        (csv_text(GOOD_ROWS[:40]), r"labels: \('spam',\) are fewer than 2 classes"),
        (
            csv_text([*GOOD_ROWS, ("odd", "a"), ("odd", "b"), ("odd", "c"), ("odd", "C ")]),
            "label: class 'odd' has 3 distinct texts, fewer than 4, one for each split",
        ),
        (
            csv_text([(f"{i / 7}", f"text {i}") for i in range(9)]),
            "label: class '0.0' has 1 distinct texts, .*; numbers are guessed with task=number_table task.number=kind",
        ),
    ],
)
def test_csv_refuses_a_broken_file(write, content, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        open_csv(write(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "body"}, "text: 'body' is the column of label too"),
        ({"separator": "::"}, "separator: '::' is not one character that can stand between fields"),
        ({"test_fraction": 0.0}, "test_fraction: 0.0 is not more than 0 and at most 0.3"),
        ({"validation_fraction": 0.5}, "validation_fraction: 0.5 is not more than 0 and at most 0.3"),
        ({"vocab_size": 1}, "vocab_size: 1 is not an integer of at least 64"),
    ],
)
def test_csv_refuses_a_broken_argument(write, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        open_csv(write(csv_text(GOOD_ROWS)), **changes)


def test_csv_refuses_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"^path: '.*none.csv' is not a file$"):
        open_csv(tmp_path / "none.csv")


@pytest.mark.parametrize("num_texts", [4, 5, 7, 10, 33])
def test_csv_smallest_classes_are_in_every_split(write, num_texts):
    rows = [(kind, f"{kind} {i}") for kind in ("a", "b") for i in range(num_texts)]
    fractions = dict.fromkeys(("architecture_fraction", "validation_fraction", "test_fraction"), 0.3)
    task = open_csv(write(csv_text(rows)), **fractions)
    for split in SPLITS:
        assert {text[0] for text in task.texts(split)} == {"a", "b"}


# Datasets


class Numbers(torch.utils.data.Dataset):
    """Sequences of small or of large ids."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.items = [(torch.as_tensor(rng.integers(25, size=rng.integers(3, 9)) + 25 * (i % 2)), i % 2) for i in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def numbers_task(**changes):
    arguments = {
        "train": Numbers(400, 0),
        "test": Numbers(50, 1),
        "labels": ("small", "large"),
        "vocab_size": 50,
        "max_tokens": 8,
    }
    return DatasetTask("numbers", **arguments | changes)


def test_dataset_task_answers_the_protocol(tmp_path):
    task = numbers_task()
    sizes = {split: task.num_examples(split) for split in SPLITS}
    assert sizes["train"] + sizes["architecture"] + sizes["validation"] == 400
    assert 290 < sizes["train"] < 350
    assert sizes["test"] == 50
    everything = [row for split in SPLITS[:3] for row in rows_of(task.batches(split, tokens_per_batch=64, seed=1))]
    assert sorted(everything) == sorted((tuple(ids.tolist()), target) for ids, target in Numbers(400, 0).items)
    baselines = task.trivial_baselines()
    assert baselines["bag of tokens, logistic regression"] == 0.0
    assert 30 < baselines["majority class"] < 70
    task.save_preprocessing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]
    assert json.loads((tmp_path / "labels.json").read_text()) == ["small", "large"]
    assert task.fingerprint == numbers_task().fingerprint != numbers_task(train=Numbers(400, 5)).fingerprint


def test_dataset_duplicates_are_in_one_split():
    once, twice = numbers_task(), numbers_task(train=torch.utils.data.ConcatDataset([Numbers(400, 0), Numbers(400, 0)]))
    for split in SPLITS[:3]:
        assert twice.num_examples(split) == 2 * once.num_examples(split)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (([3, 50], 0), r"test\[2\]: token id 50 is not in 0 to 49"),
        (([-1], 0), r"test\[2\]: token id -1 is not in 0 to 49"),
        (([], 0), r"test\[2\]: token ids of shape \(0,\) are not a row of 1 to 8"),
        (([1] * 9, 0), r"test\[2\]: token ids of shape \(9,\) are not a row of 1 to 8"),
        (([[1]], 0), r"test\[2\]: token ids of shape \(1, 1\) are not a row of 1 to 8"),
        (([0.5], 0), r"test\[2\]: token ids of type float64 are not integers"),
        (([1], 2), r"test\[2\]: class 2 is not in 0 to 1"),
        (([1], 0.5), r"test\[2\]: class 0.5 is not in 0 to 1"),
    ],
)
def test_dataset_refuses_a_broken_item(item, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        numbers_task(test=[([1], 0), ([1], 1), item])


def test_dataset_refuses_what_it_cannot_learn_from():
    for changes, message in (
        ({"train": Numbers(2, 0)}, "splits: .* has no examples"),
        ({"labels": ("a", "b", "c")}, "labels: class 'c' has no examples in 'train'"),
        ({"vocab_size": 1}, "vocab_size: 1 is not an integer of at least 2"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            numbers_task(**changes)


# Configuration


WHOLE = sorted(path for path in CONF.glob("*.yaml") if "defaults:" not in path.read_text())


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_yaml_lists_every_argument_with_its_default(path):
    config = composed(f"task={path.stem}", "run=unused").task
    module, _, name = config._target_.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    defaults = {name: "???" if p.default is p.empty else p.default for name, p in parameters.items()}
    written = OmegaConf.to_container(config)
    assert written == {"_target_": config._target_} | defaults
    assert path.read_text().startswith("# ")


def test_csv_yaml_builds(write):
    config = composed("task=csv", "run=unused").task
    task = instantiate(config, path=str(write(csv_text(GOOD_ROWS))), text="body", label="kind")
    assert task.num_examples("train") == 42
