"""A table of trained networks: every architecture of a small space, what it reached, and the recipe that trains it again.

A table is two files. `encoders.csv.gz` has a line for each architecture: its picks (empty where a choice is absent), its errors
and its costs. `encoders.json` says what the columns mean, what was trained how and on what, and the checksum of the other.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from experiments.run_directory import replacing
from experiments.settings import CalibrationSettings
from experiments.tasks.languages import identifiable, read_catalogues, split_by_message
from experiments.tasks.text import TextClassification
from experiments.tasks.tokenizing import WORDPIECE
from nas.space import Architecture, Option, SearchSpace
from nas.training import TrainConfig
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space

FOLDER = Path(__file__).parent / "tables"  # of the table that is installed
TABLE, ABOUT = "encoders.csv.gz", "encoders.json"
COLUMNS = {
    "error_percent_N": "wrong answers on the validation split after the training with seed N; empty if there was none",
    "parameters": "weights and biases",
    "flops": "floating-point operations of one call of the workload; a multiply-add counts 2",
    "predicted_ms": "time of that call by the latency model, which was fitted to all of measured_ms",
    "measured_ms": "the same as measured; empty if it was not",
    "train_cpu_seconds": "CPU time of the training with seed 0",
}


@dataclass(frozen=True)
class Recipe:
    """Which networks are trained, on what, and how.

    Args:
        languages: those of the task `languages` that are told apart.
        space: arguments of `encoder_space`.
        train: of every network alike; with a seed, which also gives its first weights.
        seeds, repeated: so many seeds for so many of the networks; the others have seed 0.
        batch: texts in one call, of `max_tokens` each, where costs are said.
        calibration: networks that are measured to fit the latency model, and to judge it.
    """

    languages: tuple[str, ...]
    vocab_size: int
    max_tokens: int
    space: Mapping[str, Any]
    head_size: int
    train: TrainConfig
    seeds: int
    repeated: int
    batch: int
    calibration: CalibrationSettings

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        parts = {"train": TrainConfig(**record["train"]), "calibration": CalibrationSettings(**record["calibration"])}
        return cls(**{**record, **parts, "languages": tuple(record["languages"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def search_space(self) -> SearchSpace:
        return encoder_space(**self.space)

    def task(self) -> TextClassification:
        """Raises ValueError without the packages that hold the texts, as the task `languages` does."""
        examples = [e for e in identifiable(read_catalogues()) if e.language in self.languages]
        return TextClassification(
            "languages", splits=split_by_message(examples), vocab_size=self.vocab_size, max_tokens=self.max_tokens,
            tokenizer=WORDPIECE,
        )  # fmt: skip

    def family(self, task: TextClassification) -> EncoderFamily:
        sizes: dict[str, Any] = dict(task.sizes)
        return EncoderFamily(self.search_space(), **sizes, head_size=self.head_size)

    @property
    def workload(self) -> Workload:
        return Workload(self.batch, self.max_tokens)


@dataclass(frozen=True, eq=False)
class TrainedTable:
    """Columns of numbers [N], by name, of the N architectures of a space; not a number where a cell is empty.

    `about` is what the second file holds beside the recipe.

    Raises:
        ValueError: architectures that are not those of the recipe's space, each once.
    """

    recipe: Recipe
    about: Mapping[str, Any]
    archs: Sequence[Architecture]
    columns: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        every = {arch.id for arch in self.recipe.search_space().architectures()}
        ids = [arch.id for arch in self.archs]
        if len(ids) != len(every) or set(ids) != every:
            raise ValueError(f"table: {len(ids)} rows are not the {len(every)} architectures of the space, each once")

    def errors(self) -> np.ndarray:
        """Of the networks that have all seeds, [networks, seeds]."""
        columns = np.stack([self.columns[f"error_percent_{seed}"] for seed in range(self.recipe.seeds)], axis=1)
        found: np.ndarray = columns[~np.isnan(columns).any(axis=1)]
        return found

    def write(self, folder: Path) -> int:
        """Both files; returns the bytes of the first."""
        choices = [choice.name for choice in self.recipe.search_space()]
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow([*choices, *self.columns])
        for row, arch in enumerate(self.archs):
            numbers = [column[row] for column in self.columns.values()]
            lines.writerow(
                [*(arch.as_dict.get(name, "") for name in choices), *("" if np.isnan(n) else f"{n:.7g}" for n in numbers)]
            )
        content = gzip.compress(text.getvalue().encode(), mtime=0)
        with replacing(folder / TABLE) as path:
            path.write_bytes(content)
        checksum = hashlib.sha256(content).hexdigest()
        about = {**self.about, "columns": COLUMNS, "recipe": self.recipe.to_json(), "sha256": checksum}
        with replacing(folder / ABOUT) as path:
            path.write_text(json.dumps(about, indent=1) + "\n")
        return len(content)

    @classmethod
    def read(cls, folder: Path = FOLDER) -> Self:
        """Raises ValueError for a table whose checksum is another, or that lacks architectures."""
        about = json.loads((folder / ABOUT).read_text())
        content = (folder / TABLE).read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != about["sha256"]:
            raise ValueError(f"{folder / TABLE}: its sha256 is {found}, {ABOUT} says {about['sha256']}")
        recipe = Recipe.from_json(about["recipe"])
        space = recipe.search_space()
        rows = list(csv.DictReader(io.StringIO(gzip.decompress(content).decode())))
        archs = [space.canonical({c.name: _option(row[c.name], c.is_nested) for c in space if row[c.name]}) for row in rows]
        names = [name for name in rows[0] if name not in space.by_name]
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
        return cls(recipe, about, archs, columns)


def _option(text: str, is_size: bool) -> Option:
    return int(text) if is_size else text
