"""Classification of texts that are already split, with a WordPiece tokenizer that is trained on `train` alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from experiments.tasks.baselines import linear_error, majority_error
from experiments.tasks.classification import TokenClassification
from experiments.tasks.ragged import PAD_ID, Ragged, check_at_least, check_splits
from nas.protocols import SPLITS

if TYPE_CHECKING:
    pass

PAD, UNKNOWN = "[PAD]", "[UNK]"
UNKNOWN_ID = 1
SMALLEST_VOCAB = 64
NORMALIZER = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def comparable(text: str) -> str:
    """The same for texts that are the same to the tokenizer: NFC, lower case, single spaces."""
    return " ".join(NORMALIZER.normalize_str(text).split())


def check_sizes(*, vocab_size: int, max_tokens: int) -> None:
    """Raises ValueError for a vocabulary of fewer than 64 or texts of fewer than 1 token."""
    check_at_least(SMALLEST_VOCAB, vocab_size=vocab_size)
    check_at_least(1, max_tokens=max_tokens)


def train_tokenizer(texts: Sequence[str], *, vocab_size: int) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer in every process.

    At most half of the vocabulary are single characters, the most frequent ones, as a word's first and as a later character.
    """
    counts = Counter(character for text in texts for character in NORMALIZER.normalize_str(text) if not character.isspace())
    alphabet = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[: vocab_size // 4]
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers later characters in the order of a hash table that is seeded anew in every process, and ties between
        # merges are broken by number. As special tokens they are numbered in this order instead.
        special_tokens=[PAD, UNKNOWN, *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A new tokenizer without special tokens: "[PAD]" in a text is three ordinary tokens and not padding.
    trained = Tokenizer(models.WordPiece(vocab=tokenizer.get_vocab(), unk_token=UNKNOWN))
    trained.normalizer = tokenizer.normalizer
    trained.pre_tokenizer = tokenizer.pre_tokenizer
    return trained


def read_tokenizer(path: str | Path, *, max_tokens: int) -> Tokenizer:
    """A `tokenizer.json` as it is, special tokens included, but without padding.

    Raises:
        ValueError: a file that is none, or `max_tokens` that its special tokens alone fill.
    """
    if not Path(path).is_file():
        raise ValueError(f"tokenizer: {str(path)!r} is not a file")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # its own have no base class of their own
        raise ValueError(f"tokenizer: {path} is not a tokenizer.json ({error})") from error
    if max_tokens <= (special := tokenizer.num_special_tokens_to_add(False)):
        raise ValueError(f"max_tokens: {max_tokens} leaves nothing beside the {special} special tokens of {path}")
    tokenizer.no_padding()
    return tokenizer


class TextClassification(TokenClassification):
    """Texts with one label each, as a task.

    `splits` maps each of the four splits to (text, label) pairs. `vocab_size` is the wanted number of tokens, the attribute the
    actual one, at most as many. A text is cut after `max_tokens`; a text without any token counts as one unknown token.
    `tokenizer` is the path of a tokenizer.json, such as a checkpoint's, to use instead of one that is trained on `train`; the
    vocabulary is then its own, whatever its size.

    Raises:
        ValueError: other splits than the four, an empty one, fewer than 2 classes, a class without examples in `train`, a
            `vocab_size` under 64 or `max_tokens` under 1, or a `tokenizer` that is none.
    """

    def __init__(
        self, name: str, *, splits: Mapping[str, Sequence[tuple[str, str]]], vocab_size: int, max_tokens: int,
        tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        self.name = name
        self.labels = tuple(sorted({label for examples in splits.values() for _, label in examples}))
        self.max_tokens = max_tokens
        classes = {label: index for index, label in enumerate(self.labels)}
        targets = {split: [classes[label] for _, label in examples] for split, examples in splits.items()}
        check_splits(targets, self.labels)
        self._texts = {split: tuple(text for text, _ in splits[split]) for split in SPLITS}
        if tokenizer is None:
            self._tokenizer = train_tokenizer(self._texts["train"], vocab_size=vocab_size)
        else:
            self._tokenizer = read_tokenizer(tokenizer, max_tokens=max_tokens)
        self._tokenizer.enable_truncation(max_tokens)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self._splits = {}
        for split in SPLITS:
            encodings = self._tokenizer.encode_batch(self._texts[split])
            self._splits[split] = Ragged.of([encoding.ids or [UNKNOWN_ID] for encoding in encodings], targets[split])
        vocabulary = self._tokenizer.get_vocab()
        identity = [
            [[list(example) for example in splits[split]] for split in SPLITS],
            [vocab_size, max_tokens],
            sorted(vocabulary, key=vocabulary.__getitem__),
            *([] if tokenizer is None else [self._tokenizer.to_str()]),
        ]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def texts(self, split: str) -> tuple[str, ...]:
        """The texts of a split as they were given, in the order in which they were given."""
        self.split(split)
        return self._texts[split]

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent."""
        from sklearn.feature_extraction.text import HashingVectorizer

        ngrams = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=2**18, alternate_sign=False)
        train, validation = (
            (ngrams.transform(self._texts[split]), self._splits[split].targets) for split in ("train", "validation")
        )
        return {
            "majority class": majority_error(train[1], validation[1]),
            "character 1-4-grams, logistic regression": linear_error(train, validation),
        }

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `labels.json` and `tokenizer.json`, which cuts after `max_tokens` and pads to the longest of a batch.

        For a text without any token it returns no ids, where the network was trained with one unknown token (id 1).
        """
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_padding(pad_id=PAD_ID, pad_token=PAD)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "labels.json").write_text(json.dumps(self.labels, ensure_ascii=False, indent=0), encoding="utf-8")
