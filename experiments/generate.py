"""`paretoformer generate export=DIR prompt="def " tokens=100 [temperature=0.8 seed=0]`: a text goes on.

Only the exported folder is used: `decode.onnx`, run by ONNX Runtime, and `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from omegaconf import MISSING
from tokenizers import Tokenizer

from experiments.arguments import parse

PROMPT = "prompt="


@dataclass
class Words:
    """What the command takes, beside the prompt, which is taken as it is written."""

    export: str = MISSING  # the folder of an exported decoder
    tokens: int = 100  # how many are added
    temperature: float = 0.0  # 0: always the most probable token
    seed: int = 0


def main(words: Sequence[str]) -> int:
    """Raises ValueError: no such folder, an empty prompt, or a number outside its range."""
    prompts = [word.removeprefix(PROMPT) for word in words if word.startswith(PROMPT)]
    given = parse(Words, [word for word in words if not word.startswith(PROMPT)])
    print(generate(Path(given.export), (prompts or [""])[-1], given.tokens, temperature=given.temperature, seed=given.seed))
    return 0


def generate(folder: Path, prompt: str, tokens: int, *, temperature: float = 0.0, seed: int = 0) -> str:
    """The prompt and what follows it. Raises ValueError like `main`."""
    for name in ("decode.onnx", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(f"export: {str(folder)!r} holds no {name}; it is not the folder of an exported decoder")
    if tokens < 1:
        raise ValueError(f"tokens: {tokens} is not at least 1")
    if not temperature >= 0:
        raise ValueError(f"temperature: {temperature} is negative")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tokenizer.truncation is None:
        raise ValueError(f"export: tokenizer.json of {str(folder)!r} does not say how many tokens the network takes")
    longest = int(tokenizer.truncation["max_length"])
    tokenizer.no_truncation()
    ids: list[int] = tokenizer.encode(prompt).ids
    if not ids:
        raise ValueError(f"{PROMPT}…: {prompt!r} has no token to go on from")
    answers = continued(ExportedDecoder(folder / "decode.onnx"), ids, longest=longest, temperature=temperature, seed=seed)
    text: str = tokenizer.decode([*ids, *(next(answers) for _ in range(tokens))])
    return text


def continued(decoder: ExportedDecoder, ids: Sequence[int], *, longest: int, temperature: float, seed: int) -> Iterator[int]:
    """Endless next tokens. When all positions are taken, the later half of the text is read again from the first position on."""
    rng = np.random.default_rng(seed)
    text, unread = list(ids), list(ids)[-longest:]
    while True:
        if decoder.position + len(unread) > longest:
            decoder.forget()
            unread = text[-max(1, longest // 2) :]
        for token in unread:
            logits = decoder.read(token)
        token = draw(logits, temperature, rng)
        text.append(token)
        unread = [token]
        yield token


def draw(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """A token by its probability, the logits divided by the temperature, or the most probable one."""
    if temperature == 0:
        return int(logits.argmax())
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


class ExportedDecoder:
    """A `decode.onnx` with its cache, for one sequence."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.caches = [node for node in self.session.get_inputs() if node.name.startswith("past_key_values.")]
        self.forget()

    def forget(self) -> None:
        """Begins a text."""
        self.position = 0
        self.past = [np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in self.caches]

    def read(self, token: int) -> np.ndarray:
        """Reads the next token; logits of the one after it, [words]."""
        feed = {"token_ids": np.array([[token]]), "position_ids": np.array([[self.position]])}
        feed.update(zip((node.name for node in self.caches), self.past, strict=True))
        logits, *self.past = self.session.run(None, feed)
        self.position += 1
        answer: np.ndarray = logits[0, 0]
        return answer
