"""Texts that are already split, with a class or a number for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tasks.answers import Regression, TokenClassification, tokens_in_words
from experiments.tasks.baselines import linear_error, majority_error, ridge_error, unseen_logs
from experiments.tasks.checks import check_complete, check_splits
from experiments.tasks.files import save_labels
from experiments.tasks.ragged import Ragged
from experiments.tasks.tokenizing import TextTokenizer
from nas.protocols import SPLITS

NGRAMS, WORDS = "character 1-4-grams", "TF-IDF of words"
LOGISTIC = ", logistic regression"


class TextClassification(TokenClassification):
    """Texts with one label each, as a task.

    `splits` maps each of the four splits to (text, label) pairs; for the other arguments see `TextTokenizer`.

    Raises:
        ValueError: other splits than the four, an empty one, fewer than 2 classes, a class without examples in `train`, or what
            `TextTokenizer` refuses.
    """

    able_to_teach = (NGRAMS + LOGISTIC, WORDS + LOGISTIC)

    def __init__(
        self, name: str, *, splits: Mapping[str, Sequence[tuple[str, str]]], vocab_size: int, max_tokens: int,
        tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.name, self.max_tokens = name, max_tokens
        self.labels = tuple(sorted({label for examples in splits.values() for _, label in examples}))
        classes = {label: index for index, label in enumerate(self.labels)}
        targets = {split: [classes[label] for _, label in examples] for split, examples in splits.items()}
        check_splits(targets, self.labels)
        self._texts = texts_of(splits)
        self._tokenizer = TextTokenizer(self._texts["train"], vocab_size=vocab_size, max_tokens=max_tokens, path=tokenizer)
        self.vocab_size = self._tokenizer.vocab_size
        self._splits = {s: Ragged.of(self._tokenizer.ids(self._texts[s]), targets[s]) for s in SPLITS}
        self.fingerprint = fingerprint(splits, self._tokenizer)

    def texts(self, split: str) -> tuple[str, ...]:
        """The texts of a split as they were given, in the order in which they were given."""
        self.split(split)
        return self._texts[split]

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent."""
        train, validation = (self._splits[split].targets for split in ("train", "validation"))
        baselines = {"majority class": majority_error(train, validation)}
        for name, (of_train, of_validation) in linear_features(self._texts).items():
            baselines[f"{name}{LOGISTIC}"] = linear_error((of_train, train), (of_validation, validation))
        return baselines

    def unseen_answers(self, baseline: str) -> tuple[list[np.ndarray], np.ndarray]:
        """See `nas.protocols.TaskWithAnswers`."""
        train, texts = self._splits["train"], self._texts["train"]
        features = READERS[baseline.removesuffix(LOGISTIC)](texts).transform(texts)
        return train.sequences, unseen_logs(features, train.targets, num_classes=len(self.labels))

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `labels.json` and `tokenizer.json`."""
        self._tokenizer.save(folder)
        save_labels(self.labels, folder)


class TextRegression(Regression):
    """Texts with one number each, as a task.

    `splits` maps each of the four splits to (text, number) pairs, `unit` says what the numbers are; for the other arguments see
    `TextTokenizer`.

    Raises:
        ValueError: other splits than the four, an empty one, numbers that are not finite, or in `train` all the same, or what
            `TextTokenizer` refuses.
    """

    def __init__(
        self, name: str, *, splits: Mapping[str, Sequence[tuple[str, float]]], unit: str, vocab_size: int, max_tokens: int,
        tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_complete(splits)
        self.name, self.max_tokens, self.unit = name, max_tokens, unit
        numbers = {split: np.array([number for _, number in splits[split]], dtype=np.float64) for split in SPLITS}
        self.mean, self.std = float(numbers["train"].mean()), float(numbers["train"].std())
        for split, values in numbers.items():
            if not np.isfinite(values).all():
                raise ValueError(f"numbers: example {int(np.isfinite(values).argmin())} of {split!r} is not finite")
        if np.ptp(numbers["train"]) == 0:
            raise ValueError(f"numbers: all of 'train' are {self.mean:g}, there is nothing to learn")
        self._texts = texts_of(splits)
        self._tokenizer = TextTokenizer(self._texts["train"], vocab_size=vocab_size, max_tokens=max_tokens, path=tokenizer)
        self._splits: dict[str, Ragged] = {
            s: Ragged.of(self._tokenizer.ids(self._texts[s]), ((numbers[s] - self.mean) / self.std).astype(np.float32))
            for s in SPLITS
        }
        self.fingerprint = fingerprint(splits, self._tokenizer)

    @property
    def sizes(self) -> dict[str, object]:
        return {"vocab_size": self._tokenizer.vocab_size, "num_classes": 1, "max_tokens": self.max_tokens}

    @property
    def interface(self) -> str:
        return (
            f"{tokens_in_words(self.max_tokens)}; `logits`, float32 [batch, 1]: {self.unit}, standardised. `target.json` holds "
            "`mean` and `std`: the number is mean + std * logit."
        )

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent."""
        train, validation = (self._splits[split].targets for split in ("train", "validation"))
        baselines = {"mean": 100 * float(np.mean((validation - train.mean()) ** 2))}
        for name, (of_train, of_validation) in linear_features(self._texts).items():
            baselines[f"{name}, ridge regression"] = ridge_error((of_train, train), (of_validation, validation))
        return baselines

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `target.json` and `tokenizer.json`."""
        self._tokenizer.save(folder)
        (folder / "target.json").write_text(json.dumps({"unit": self.unit, "mean": self.mean, "std": self.std}), encoding="utf-8")


def texts_of(splits: Mapping[str, Sequence[tuple[str, Any]]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(text for text, _ in splits[split]) for split in SPLITS}


def fingerprint(splits: Mapping[str, Sequence[tuple[Any, Any]]], tokenizer: TextTokenizer) -> str:
    """Of everything that the networks read."""
    identity = [[[list(example) for example in splits[split]] for split in SPLITS], *tokenizer.identity]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def linear_features(texts: Mapping[str, Sequence[str]]) -> dict[str, tuple[Any, Any]]:
    """What linear models read, by name: sparse features [N, F] of `train` and `validation` with rows of norm 1."""
    features = {name: reader(texts["train"]) for name, reader in READERS.items()}
    return {name: (f.transform(texts["train"]), f.transform(texts["validation"])) for name, f in features.items()}


def _ngrams(train: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=2**18, alternate_sign=False).fit(train)


def _words(train: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit(train)


READERS = {NGRAMS: _ngrams, WORDS: _words}
"""What makes features [N, F] of texts, fitted to those of `train`."""
