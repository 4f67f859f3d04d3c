"""`paretoformer generate export=DIR prompt="def " tokens=100 [temperature=0.8 seed=0]`: a text goes on.

Only the exported folder is used: `decode.onnx`, run by ONNX Runtime, and `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from tokenizers import Tokenizer

from experiments.arguments import parse
from experiments.predict import CPU, Decoder, continued, open_session

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
    session = open_session(folder / "decode.onnx", {"provider": CPU, "threads": 1, "graph_optimization": "all"})
    answers = continued(Decoder(session), ids, longest=longest, temperature=temperature, seed=seed)
    text: str = tokenizer.decode([*ids, *(next(answers) for _ in range(tokens))])
    return text
