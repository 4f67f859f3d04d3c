"""A fine-tuned checkpoint of somebody's as a teacher of a task's networks: of the same classes, by the same tokenizer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from nas.protocols import Task
from search_spaces.text_teacher import TextTeacher

TOKENIZER, LABELS = "tokenizer.json", "labels.json"
OURS = ("truncation", "padding")  # parts of a tokenizer that are the task's to choose


def checkpoint_teacher(folder: Path, task: Task) -> TextTeacher:
    """The classifier in a folder in the form of Hugging Face, with the tokenizer.json beside it.

    Raises:
        ValueError: a task that does not classify whole texts, another tokenizer than the task's, or what `TextTeacher` refuses.
    """
    with tempfile.TemporaryDirectory() as name:
        task.save_preprocessing(Path(name))
        files = {file: Path(name) / file for file in (TOKENIZER, LABELS)}
        if task.sizes.get("per_token") or not all(path.is_file() for path in files.values()):
            raise ValueError(f"the checkpoint {folder} classifies whole texts, the task {task.name} does not")
        own, labels = _tokenizer(files[TOKENIZER]), json.loads(files[LABELS].read_text(encoding="utf-8"))
    path = folder / TOKENIZER
    if not path.is_file():
        raise ValueError(f"the checkpoint {folder} has no {TOKENIZER}, by which its words could be compared with the task's")
    if _tokenizer(path) != own:
        raise ValueError(f"the tokenizer of the task {task.name} is not that of {folder}; task.tokenizer={path} makes it that")
    return TextTeacher(folder, labels=labels, vocab_size=task.sizes["vocab_size"], max_tokens=task.max_tokens)


def _tokenizer(path: Path) -> dict[str, Any]:
    """What a tokenizer.json does to a text, but for what the task chooses. Raises ValueError for what is none."""
    try:
        parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: part for name, part in parts.items() if name not in OURS}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a {TOKENIZER} ({error})") from error
