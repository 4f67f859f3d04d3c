"""`paretoformer generate export=DIR prompt="def " tokens=100 [temperature=0.8 seed=0]`: a text goes on.

Only the exported folder is used, as its own `predict.py` does: its files must have the checksums of `contract.json`.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from experiments.arguments import parse
from experiments.predict import Predictor, Refused, read_contract

PROMPT = "prompt="


@dataclass
class Words:
    """What the command takes, beside the prompt, which is taken as it is written."""

    export: str = MISSING  # the folder of an exported decoder
    tokens: int = 100  # how many are added
    temperature: float = 0.0  # 0: always the most probable token
    seed: int = 0


def main(words: Sequence[str]) -> int:
    """Raises ValueError: no such folder, a changed file in it, an empty prompt, or a number outside its range."""
    prompts = [word.removeprefix(PROMPT) for word in words if word.startswith(PROMPT)]
    given = parse(Words, [word for word in words if not word.startswith(PROMPT)])
    print(generate(Path(given.export), (prompts or [""])[-1], given.tokens, temperature=given.temperature, seed=given.seed))
    return 0


def generate(folder: Path, prompt: str, tokens: int, *, temperature: float = 0.0, seed: int = 0) -> str:
    """The prompt and what follows it. Raises ValueError like `main`."""
    if tokens < 1:
        raise ValueError(f"tokens: {tokens} is not at least 1")
    for name, value in {"temperature": temperature, "seed": seed}.items():
        if not value >= 0:
            raise ValueError(f"{name}: {value} is not 0 or more")
    options = Namespace(within=None, network=None, at_once=False, tokens=tokens, temperature=temperature, seed=seed)
    try:
        kind = read_contract(folder)["input"]["kind"]
        if kind != "language model":
            raise ValueError(f"export: {folder} holds a network for {kind}, and no decoder")
        predictor = Predictor(folder, options)
    except Refused as refused:
        raise ValueError(f"export: {folder}: {refused}") from refused
    try:
        text: str = predictor.continuation(os.fsencode(prompt))["text"]
    except Refused as refused:
        raise ValueError(f"{PROMPT}…: {refused}") from refused
    return text
