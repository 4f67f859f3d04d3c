"""What comes next? Language models of bytes, or of byte-level BPE tokens, of one long text.

Shapes: N windows, B windows of a batch, T tokens of each, V words.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from experiments.tasks.answers import Divided
from experiments.tasks.checks import check_at_least
from experiments.tasks.django_source import python_files
from experiments.tasks.files import read_text
from experiments.tasks.ragged import equal_groups
from experiments.tasks.splits import checked
from experiments.tasks.tokenizing import read_tokenizer
from nas.protocols import SPLITS, Batch

if TYPE_CHECKING:
    import torch

BYTES = 256
BACKOFF = 10.0  # how many times the unigram counts beside what the bigram has seen


@dataclass(frozen=True, eq=False)
class Windows:
    """Tokens in a row, cut into windows of T; after each of a window's tokens the next one is asked for. A rest is not used."""

    ids: np.ndarray
    size: int

    def __len__(self) -> int:
        return max(len(self.ids) - 1, 0) // self.size  # the tokens of an empty text are none

    @property
    def inputs(self) -> np.ndarray:
        """[N, T]"""
        return self.ids[: len(self) * self.size].reshape(-1, self.size)

    @property
    def targets(self) -> np.ndarray:
        """[N, T], the token after each."""
        return self.ids[1 : len(self) * self.size + 1].reshape(-1, self.size)

    def batches(self, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]:
        """See `equal_groups`."""
        groups = equal_groups(len(self), tokens=self.size, tokens_per_batch=tokens_per_batch, seed=seed)
        return (self._batch(group) for group in groups)

    def _batch(self, indices: np.ndarray) -> Batch:
        import torch

        ids_BT, targets_BT = (torch.from_numpy(rows[indices]) for rows in (self.inputs, self.targets))
        return Batch((ids_BT, torch.ones_like(ids_BT)), targets_BT)


class LanguageModel(Divided):
    """One text as a task; an answer is the next token, at every token of a window.

    The splits are blocks of the text one after the other, train first; no window reaches into another block. With 256 words a
    token is a byte, with more a byte-level BPE (Sennrich et al., arXiv:1508.07909) is trained on `train`; `vocab_size` is the
    wanted number, the attribute the actual one.

    Args:
        tokenizer: a tokenizer.json, such as a checkpoint's, to use instead; the vocabulary is then its own.

    Raises:
        ValueError: a size or fraction out of bounds, a text with less than one window in a split, or a file that is no byte-level
            tokenizer.
    """

    error_means = "wrong tokens"
    _splits: Mapping[str, Windows]

    def __init__(
        self, name: str, text: str, *, vocab_size: int = BYTES, max_tokens: int = 128, architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1, test_fraction: float = 0.1, tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_at_least(BYTES, vocab_size=vocab_size)
        check_at_least(1, max_tokens=max_tokens)
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction, test=test_fraction)
        self.name, self.max_tokens = name, max_tokens
        shares = np.array([1 - sum(fractions.values()), *(fractions[split] for split in SPLITS[1:])])
        ends = np.round(np.cumsum(shares) * len(text)).astype(int)
        blocks = {split: text[start:end] for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False)}
        self._are_bytes = tokenizer is None and vocab_size == BYTES
        if tokenizer is not None:
            self._tokenizer = read_byte_level(tokenizer, max_tokens=max_tokens)
        elif self._are_bytes:
            self._tokenizer = byte_tokenizer()
        else:
            self._tokenizer = train_byte_tokenizer(blocks["train"], vocab_size=vocab_size)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self._splits = {split: Windows(self._encode(block), max_tokens) for split, block in blocks.items()}
        for split, windows in self._splits.items():
            if not len(windows):
                raise ValueError(
                    f"text: of {len(text)} characters {len(windows.ids)} tokens are {split!r}, less than a window of "
                    f"{max_tokens} and the token after it; a longer text or a smaller max_tokens is needed"
                )
        words = self._tokenizer.get_vocab()
        ordered = sorted(words, key=words.__getitem__)
        self._word_bytes = np.array([len(word) for word in ordered])  # of a byte-level token every character stands for a byte
        identity = hashlib.sha256(json.dumps([max_tokens, ordered]).encode())
        for windows in self._splits.values():
            identity.update(windows.ids.tobytes())
        self.fingerprint = identity.hexdigest()[:16]

    def _encode(self, text: str) -> np.ndarray:
        if self._are_bytes:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        return np.array(self._tokenizer.encode(text).ids, dtype=np.int64)

    @property
    def sizes(self) -> dict[str, int]:
        return {"vocab_size": self.vocab_size, "max_tokens": self.max_tokens}

    @property
    def interface(self) -> str:
        return (
            f"`token_ids` and `attention_mask`, int64 [batch, sequence] with at most {self.max_tokens} tokens; `logits`, float32 "
            f"[batch, sequence, {self.vocab_size}], of the token after each. `tokenizer.json` holds the "
            f"{'256 bytes, each by its own number' if self._are_bytes else 'byte-level BPE'}."
        )

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a token, in nats, of logits [B, T, V] and tokens [B, T]."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def error(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Sum over the windows of the share of their tokens that is not the most probable one."""
        return float((outputs.argmax(dim=-1) != targets).double().mean(dim=-1).sum())

    def totals(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        num_bytes = self._word_bytes[targets.cpu().numpy()].sum()
        nats = float(self.loss(outputs.float(), targets)) * targets.numel()
        return {"nats": nats, "tokens": targets.numel(), "bytes": float(num_bytes)}

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte, which compares any two vocabularies, and perplexity of a token."""
        return {
            "bits per byte": totals["nats"] / math.log(2) / totals["bytes"],
            "perplexity": math.exp(totals["nats"] / totals["tokens"]),
        }

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent; the names say bits per byte too."""
        from scipy.sparse import coo_matrix

        V, train, validation = self.vocab_size, self._splits["train"].ids, self._splits["validation"]
        before, after = validation.inputs.ravel(), validation.targets.ravel()
        counts_V = np.bincount(train, minlength=V) + 1.0
        p_V = counts_V / counts_V.sum()
        pairs = coo_matrix((np.ones(len(train) - 1), (train[:-1], train[1:])), shape=(V, V)).tocsr()
        seen_V = np.asarray(pairs.sum(axis=1)).ravel()
        p_after = (np.asarray(pairs[before, after]).ravel() + BACKOFF * p_V[after]) / (seen_V[before] + BACKOFF)
        best_V = np.where(seen_V > 0, np.asarray(pairs.argmax(axis=1)).ravel(), p_V.argmax())
        bits = {name: -np.log2(p).sum() / self._word_bytes[after].sum() for name, p in (("one", p_V[after]), ("two", p_after))}
        return {
            f"most frequent token ({bits['one']:.2f} bits per byte)": 100 * float(np.mean(after != p_V.argmax())),
            f"bigram ({bits['two']:.2f} bits per byte)": 100 * float(np.mean(after != best_V[before])),
        }

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `tokenizer.json`, which cuts after `max_tokens`."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.save(str(folder / "tokenizer.json"))


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, with its own number."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # each stands for itself
    others = iter(range(BYTES, 2 * BYTES))
    names = [chr(byte if byte in printable else next(others)) for byte in range(BYTES)]
    assert set(names) == set(level.alphabet())
    return _byte_level(models.BPE(vocab={name: byte for byte, name in enumerate(names)}, merges=[]), level)


def train_byte_tokenizer(text: str, *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = _byte_level(models.BPE(), level)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(level.alphabet()), show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def read_byte_level(path: str | Path, *, max_tokens: int) -> Tokenizer:
    """A `tokenizer.json`, for texts of any length. Raises ValueError like `read_tokenizer`, or if it is not byte-level."""
    tokenizer = read_tokenizer(path, max_tokens=max_tokens)
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        raise ValueError(f"tokenizer: {path} is not byte-level, its tokens do not tell how many bytes they stand for")
    tokenizer.no_truncation()
    return tokenizer


def _byte_level(model: models.BPE, level: pre_tokenizers.ByteLevel) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class TextFile(LanguageModel):
    """A plain text file of the user, UTF-8.

    Raises:
        ValueError: no such file, another encoding, or what `LanguageModel` refuses.
    """

    def __init__(
        self, path: str | Path, *, vocab_size: int = BYTES, max_tokens: int = 128, architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1, test_fraction: float = 0.1, tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        path = Path(path)
        super().__init__(
            path.stem, read_text(path), vocab_size=vocab_size, max_tokens=max_tokens, architecture_fraction=architecture_fraction,
            validation_fraction=validation_fraction, test_fraction=test_fraction, tokenizer=tokenizer,
        )  # fmt: skip


class PythonSource(LanguageModel):
    """The Python files of the pinned package Django, in the order of the hashes of their paths, at most `max_characters` of them.

    Raises:
        ValueError: django is not installed, or in another version; or what `LanguageModel` refuses.
    """

    def __init__(
        self, *, vocab_size: int = BYTES, max_tokens: int = 128, max_characters: int = 2_000_000, held_out: float = 0.05,
        tokenizer: str | Path | None = None,
    ) -> None:  # fmt: skip
        check_at_least(1, max_characters=max_characters)
        text = "".join(python_files("python_source"))[:max_characters]
        super().__init__(
            "python_source", text, vocab_size=vocab_size, max_tokens=max_tokens,
            architecture_fraction=held_out, validation_fraction=held_out, test_fraction=held_out, tokenizer=tokenizer,
        )  # fmt: skip
