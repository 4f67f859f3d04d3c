"""Sentences that are already split, of words with a tag each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tasks.answers import Tagging, tokens_in_words
from experiments.tasks.baselines import logistic
from experiments.tasks.checks import check_complete, check_splits
from experiments.tasks.files import save_labels
from experiments.tasks.ragged import RaggedTags
from experiments.tasks.text import fingerprint
from experiments.tasks.tokenizing import TextTokenizer
from nas.protocols import IGNORED, SPLITS

Sentence = tuple[Sequence[str], Sequence[str]]
"""Words, and their tags."""


class TextTagging(Tagging):
    """Sentences whose words have a tag each, as a task.

    `splits` maps each of the four splits to (words, tags) pairs; for the other arguments see `TextTokenizer`. A word's tag is
    asked for at its first token; words that begin after `max_tokens` tokens are not asked for.

    Raises:
        ValueError: other splits than the four, an empty one, a sentence without words or with another number of tags, fewer than
            2 tags, a tag that is not in `train`, or what `TextTokenizer` refuses.
    """

    def __init__(
        self, name: str, *, splits: Mapping[str, Sequence[Sentence]], vocab_size: int, max_tokens: int,
        tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_complete(splits)
        for split, sentences in splits.items():
            for number, (words, tags) in enumerate(sentences):
                if len(words) != len(tags) or not words:
                    raise ValueError(f"{split}[{number}]: {len(words)} words have {len(tags)} tags")
        self.name, self.max_tokens = name, max_tokens
        self.labels = tuple(sorted({tag for sentences in splits.values() for _, tags in sentences for tag in tags}))
        classes = {label: index for index, label in enumerate(self.labels)}
        check_splits({s: [classes[tag] for _, tags in splits[s] for tag in tags] for s in SPLITS}, self.labels)
        texts = [" ".join(words) for words, _ in splits["train"]]
        self._tokenizer = TextTokenizer(texts, vocab_size=vocab_size, max_tokens=max_tokens, path=tokenizer)
        self._splits: dict[str, RaggedTags] = {}
        self._asked: dict[str, list[Sentence]] = {}
        for split in SPLITS:
            self._splits[split], self._asked[split] = self._tokenized(split, splits[split], classes)
        self.fingerprint = fingerprint(splits, self._tokenizer)

    def _tokenized(
        self, split: str, sentences: Sequence[Sentence], classes: Mapping[str, int]
    ) -> tuple[RaggedTags, list[Sentence]]:
        """Tokens with their targets, and the words that are asked for with their tags."""
        ids: list[list[int]] = []
        targets: list[list[int]] = []
        asked: list[Sentence] = []
        encodings = self._tokenizer.of_words([list(words) for words, _ in sentences])
        for number, (encoding, (words, tags)) in enumerate(zip(encodings, sentences, strict=True)):
            of_token = encoding.word_ids
            firsts = [None if word == before else word for before, word in pairwise([None, *of_token])]
            kept = [word for word in firsts if word is not None]
            if not kept:
                raise ValueError(f"{split}[{number}]: the words {list(words)} have no token within max_tokens {self.max_tokens}")
            ids.append(encoding.ids)
            targets.append([IGNORED if word is None else classes[tags[word]] for word in firsts])
            asked.append(([words[word] for word in kept], [tags[word] for word in kept]))
        return RaggedTags.of(ids, np.array(list(chain.from_iterable(targets)))), asked

    @property
    def sizes(self) -> dict[str, object]:
        return {
            "vocab_size": self._tokenizer.vocab_size, "num_classes": len(self.labels), "max_tokens": self.max_tokens,
            "per_token": True,
        }  # fmt: skip

    @property
    def interface(self) -> str:
        return (
            f"{tokens_in_words(self.max_tokens)}; `logits`, float32 [batch, sequence, {len(self.labels)}]. `labels.json` names "
            "the tags in the order of the logits; a word's tag is answered at its first token, other tokens mean nothing."
        )

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent, means over the sentences."""
        train, validation = self._asked["train"], self._asked["validation"]
        seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for words, tags in train:
            for word, tag in zip(words, tags, strict=True):
                seen[word][tag] += 1
        majority = Counter(tag for _, tags in train for tag in tags).most_common(1)[0][0]
        best = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
        linear = neighbours_model(train)
        return {
            "most frequent tag": sentence_error([[majority] * len(words) for words, _ in validation], validation),
            "most frequent tag of a word": sentence_error(
                [[best.get(w, majority) for w in words] for words, _ in validation], validation
            ),
            "word and neighbours, logistic regression": sentence_error([linear(words) for words, _ in validation], validation),
        }

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `labels.json` and `tokenizer.json`."""
        self._tokenizer.save(folder)
        save_labels(self.labels, folder)


def sentence_error(answers: Sequence[Sequence[str]], sentences: Sequence[Sentence]) -> float:
    """Mean over the sentences of the share of wrong tags, in percent."""
    shares = [
        np.mean([a != t for a, t in zip(given, tags, strict=True)]) for given, (_, tags) in zip(answers, sentences, strict=True)
    ]
    return 100 * float(np.mean(shares))


def neighbours_model(train: Sequence[Sentence]) -> Any:
    """A logistic regression of a word's tag on the word, its last letters and the words beside it."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(n_features=2**18, input_type="string", alternate_sign=False)

    def features(words: Sequence[str]) -> Any:
        around = ["", *words, ""]
        return (
            [f"0 {word}", f"- {before}", f"+ {after}", f"end {word[-3:]}", f"case {word[:1].isupper()}"]
            for before, word, after in zip(around, words, around[2:], strict=False)
        )

    model = logistic()
    rows = chain.from_iterable(features(words) for words, _ in train)
    model.fit(hasher.transform(rows), [tag for _, tags in train for tag in tags])
    return lambda words: model.predict(hasher.transform(features(words))).tolist()
