"""How a text becomes token ids: by a tokenizer that is trained on `train` alone, or one of the user's.

BPE, the default, and WordPiece over the same vocabulary give about as many tokens. On `languages` the same network, trained alike
with two seeds, had 15.5 and 15.4 % error with BPE, 16.9 and 17.0 % with WordPiece; on English news they were level (6.3 and 6.8 %
on r52, 11.5 and 10.9 % on newsgroups).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, trainers

from experiments.tasks.checks import check_at_least
from experiments.tasks.ragged import PAD_ID

PAD, UNKNOWN, LATER = "[PAD]", "[UNK]", "##"  # LATER begins a token that does not begin a word
BPE, WORDPIECE = "bpe", "wordpiece"
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


def train_tokenizer(texts: Sequence[str], *, vocab_size: int, kind: str = BPE) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, parts of words; the same texts give the same tokenizer in every process.

    BPE merges characters as often as it did in training (Sennrich et al., arXiv:1508.07909), WordPiece takes the longest token of
    the same vocabulary that fits, from the left. At most half of the vocabulary are single characters, the most frequent ones, as
    a word's first and as a later character.
    """
    counts = Counter(character for text in texts for character in NORMALIZER.normalize_str(text) if not character.isspace())
    alphabet = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[: vocab_size // 4]
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, continuing_subword_prefix=LATER))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # The trainer numbers later characters in the order of a hash table that is seeded anew in every process, and ties between
        # merges are broken by number. As special tokens they are numbered in this order instead.
        special_tokens=[PAD, UNKNOWN, *(f"{LATER}{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=LATER,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    model: models.Model = models.WordPiece(vocabulary, unk_token=UNKNOWN)
    if kind == BPE:
        model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, continuing_subword_prefix=LATER, fuse_unk=True)
    # A new tokenizer without special tokens: "[PAD]" in a text is three ordinary tokens and not padding.
    trained = Tokenizer(model)
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


class TextTokenizer:
    """The tokenizer of a task; it cuts after `max_tokens`.

    Args:
        texts: what it is trained on.
        vocab_size: the wanted number of tokens; the attribute is the actual one, at most as many.
        path: of a tokenizer.json, such as a checkpoint's, to use instead; the vocabulary is then its own, whatever its size. Or
            "wordpiece", to train one of that kind.

    Raises:
        ValueError: a `vocab_size` under 64 or `max_tokens` under 1, or a file that is no tokenizer.
    """

    def __init__(self, texts: Sequence[str], *, vocab_size: int, max_tokens: int, path: str | Path | None) -> None:
        check_sizes(vocab_size=vocab_size, max_tokens=max_tokens)
        if path in (None, WORDPIECE):
            trained = train_tokenizer(texts, vocab_size=vocab_size, kind=BPE if path is None else WORDPIECE)
        else:
            trained = read_tokenizer(path, max_tokens=max_tokens)
        trained.enable_truncation(max_tokens)
        vocabulary = trained.get_vocab()
        self._tokenizer = trained
        self.vocab_size = trained.get_vocab_size()
        self.identity = [
            [vocab_size, max_tokens],
            sorted(vocabulary, key=vocabulary.__getitem__),
            *([] if path == WORDPIECE else [trained.to_str()]),  # which its vocabulary says all of
        ]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; a text without any token counts as one unknown token."""
        return [encoding.ids or [UNKNOWN_ID] for encoding in self._tokenizer.encode_batch(texts)]

    def of_words(self, sentences: Sequence[Sequence[str]]) -> list[Encoding]:
        """The tokens of sentences that are already words; an encoding's `word_ids` says which one each token is part of."""
        encodings: list[Encoding] = self._tokenizer.encode_batch(sentences, is_pretokenized=True)
        return encodings

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, which cuts after `max_tokens` and pads to the longest of a batch.

        For a text without any token it returns no ids, where the network was trained with one unknown token (id 1).
        """
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_padding(pad_id=PAD_ID, pad_token=PAD)
        tokenizer.save(str(folder / "tokenizer.json"))
