"""A fine-tuned checkpoint of somebody's as a teacher of a task's networks: of the same classes, by the same tokenizer."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.checkpoints import checksum, identity_of, loaded
from experiments.progress import Reporter
from experiments.run_directory import RunDirectory
from nas.compute import Compute
from nas.finish.remembered import Remembered
from nas.finish.teaching import Lesson
from nas.protocols import Task
from nas.supernet import evaluation_batches
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


@dataclass(frozen=True)
class CheckpointTeachers:
    """Those of one run. A checkpoint is asked once, for the whole split "train", and what it answered is read from the run's
    `teacher.<identity>.safetensors`: a run that is stopped goes on with the very same answers."""

    task: Task
    compute: Compute
    run: RunDirectory
    report: Reporter
    known: dict[str, Remembered] = field(default_factory=dict)

    def teacher(self, folder: str) -> Remembered:
        """Raises ValueError like `checkpoint_teacher`, and RunError for a damaged file of the run."""
        if folder not in self.known:
            files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors"))
            identity = identity_of([self.task.fingerprint, self.task.max_tokens, [checksum(path) for path in files]])
            name = f"teacher.{identity}.safetensors"
            if not self.run.has(name):
                self.report.say(f"{folder}, which teaches, answers each example of train once …")
                answers = self._answers(Path(folder))
                with self.run.replacing(name) as path:
                    save_file(answers, path)
            found = loaded(self.run / name, load_file)
            sequences = np.split(found["token_ids"].numpy(), found["lengths"].cumsum(0)[:-1].numpy())
            self.known[folder] = Remembered(folder, sequences, found["logits_NC"].numpy())
        return self.known[folder]

    @torch.no_grad()
    def _answers(self, folder: Path) -> dict[str, Tensor]:
        """Token ids of all texts, one after the other, the `lengths` of each, and the logits [N, C]; in float32."""
        teacher = checkpoint_teacher(folder, self.task).to(self.compute.device)
        texts, logits = list[Tensor](), list[Tensor]()
        for batch in evaluation_batches(self.task, "train"):
            ids_BT, mask_BT = batch.inputs
            texts += [ids[mask > 0] for ids, mask in zip(ids_BT, mask_BT, strict=True)]
            logits.append(teacher(*batch.to(self.compute.device).inputs).cpu())
        lengths = torch.tensor([len(text) for text in texts])
        return {"token_ids": torch.cat(texts), "lengths": lengths, "logits_NC": torch.cat(logits)}


def check_teacher(name: str, lesson: Lesson, task: Task) -> None:
    """Raises ValueError for a lesson of that name whose teacher is a checkpoint that cannot teach the task."""
    if lesson.needs_teacher and lesson.is_of_checkpoint:
        try:
            checkpoint_teacher(Path(lesson.teacher), task)
        except ValueError as error:
            raise ValueError(f"{name}.teacher: {error}") from error


def _tokenizer(path: Path) -> dict[str, Any]:
    """What a tokenizer.json does to a text, but for what the task chooses. Raises ValueError for what is none."""
    try:
        parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: part for name, part in parts.items() if name not in OURS}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a {TOKENIZER} ({error})") from error
