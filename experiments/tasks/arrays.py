"""Classification of images and signals: examples of one shape, given to the network as they are.

Shapes: N examples of C channels; images are [N, C, height, width], signals [N, C, length].
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.tasks.answers import Classification
from experiments.tasks.baselines import majority_error, values_error
from experiments.tasks.checks import check_at_least, check_splits
from experiments.tasks.files import save_labels
from experiments.tasks.ragged import equal_groups
from experiments.tasks.splits import checked, stratified
from nas.protocols import SPLITS, Batch


@dataclass(frozen=True, eq=False)
class Values:
    """One split: examples `x` [N, C, ...] in the type in which they are kept, and classes `targets` [N]."""

    x: np.ndarray
    targets: np.ndarray
    tokens_per_example: int

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, *, tokens_per_batch: int, seed: int | None) -> Iterator[Batch]:
        """See `equal_groups`."""
        groups = equal_groups(len(self), tokens=self.tokens_per_example, tokens_per_batch=tokens_per_batch, seed=seed)
        return (self._batch(group) for group in groups)

    def _batch(self, indices: np.ndarray) -> Batch:
        import torch

        values = torch.from_numpy(self.x[indices].astype(np.float32))
        return Batch((values,), torch.from_numpy(self.targets[indices]))


class ArrayClassification(Classification):
    """Images or signals of one shape that are already split, as a task.

    `splits` maps each of the four splits to examples [N, C, ...] and classes [N], numbered as in `labels`. The network learns on
    raw values and standardises them itself, with mean and deviation of each channel over `train` (1 for a constant channel).

    Args:
        tokens_per_example: what an example counts as in a batch of so many tokens, whatever its shape.
        values: what the values are, for the model card.
        pictures: whether they are those of pictures, from 0 to 255, so that what ships reads PNG and JPEG files as well.

    Raises:
        ValueError: examples of other shapes than one image's or signal's, values that are not finite numbers, other splits than
            the four, an empty one, fewer than 2 classes, or a class without examples in `train`.
    """

    def __init__(
        self, name: str, *, splits: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: Sequence[str], tokens_per_example: int,
        values: str, pictures: bool = False,
    ) -> None:  # fmt: skip
        check_at_least(1, tokens_per_example=tokens_per_example)
        check_splits({split: targets.tolist() for split, (_, targets) in splits.items()}, labels)
        shape = splits["train"][0].shape[1:]
        for split, (x, targets) in splits.items():
            check_values(split, x)
            if x.shape[1:] != shape or len(x) != len(targets):
                raise ValueError(f"{split}: {x.shape} with {len(targets)} classes does not fit to examples of shape {shape}")
        self.name, self.labels, self.shape, self.values, self.pictures = name, tuple(labels), tuple(shape), values, pictures
        self.max_tokens = math.prod(shape[1:])
        self._splits: dict[str, Values] = {
            s: Values(splits[s][0], splits[s][1].astype(np.int64), tokens_per_example) for s in SPLITS
        }
        x = self._splits["train"].x
        axes = (0, *range(2, x.ndim))
        deviation = x.std(axis=axes, dtype=np.float64)
        self.mean = tuple(x.mean(axis=axes, dtype=np.float64).tolist())
        self.std = tuple(np.where(deviation > 0, deviation, 1.0).tolist())
        identity = hashlib.sha256(json.dumps([self.labels, shape, str(x.dtype)]).encode())
        for part in self._splits.values():
            identity.update(np.ascontiguousarray(part.x).tobytes() + part.targets.tobytes())
        self.fingerprint = identity.hexdigest()[:16]

    @property
    def sizes(self) -> dict[str, object]:
        return {"input_shape": self.shape, "num_classes": len(self.labels), "mean": self.mean, "std": self.std}

    @property
    def interface(self) -> str:
        name, sides = ("image", "height, width") if len(self.shape) == 3 else ("signal", "length")
        return (
            f"`{name}`, float32 [batch, channels, {sides}] = [batch, {', '.join(map(str, self.shape))}]: {self.values}, as they "
            f"are (the network standardises them itself); `logits`, float32 [batch, {len(self.labels)}]. `labels.json` names the "
            "classes in the order of the logits."
        )

    def trivial_baselines(self) -> dict[str, float]:
        """Validation errors in percent."""
        train, validation = (self._standardised(self._splits[split]) for split in ("train", "validation"))
        return {
            "majority class": majority_error(train[1], validation[1]),
            "raw values, logistic regression": values_error(train, validation),
        }

    def _standardised(self, part: Values) -> tuple[np.ndarray, np.ndarray]:
        shape = (-1, *[1] * (len(self.shape) - 1))
        mean, std = (np.array(a, dtype=np.float32).reshape(shape) for a in (self.mean, self.std))
        return ((part.x - mean) / std).reshape(len(part), -1), part.targets

    def save_preprocessing(self, folder: Path) -> None:
        """Writes `labels.json`; the file takes raw values."""
        save_labels(self.labels, folder)


def check_values(name: str, x: np.ndarray) -> None:
    """Raises ValueError for what is not images [N, C, height, width] or signals [N, C, length] of finite numbers."""
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(f"{name}: shape {x.shape} is not [N, channels, height, width] or [N, channels, length]")
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating)):
        raise ValueError(f"{name}: values of type {x.dtype} are not numbers")
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ValueError(f"{name}: example {int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))} is not finite")


def divided(
    x: np.ndarray, names: Sequence[str], fractions: Mapping[str, float], *, seed: int
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Splits by class (see `stratified`), equal examples in one of them; and the labels in the order of the classes.

    Raises:
        ValueError: fewer than 2 classes, or a class with fewer distinct examples than splits.
    """
    labels = tuple(sorted(set(names)))
    if len(labels) < 2:
        raise ValueError(f"labels: {labels} are fewer than 2 classes")
    keys = [hashlib.sha256(np.ascontiguousarray(example).tobytes()).digest() for example in x]
    split_of = np.array(stratified(keys, names, fractions, seed=seed, what="examples"))
    classes = {label: index for index, label in enumerate(labels)}
    targets = np.array([classes[name] for name in names])
    return {split: (x[split_of == split], targets[split_of == split]) for split in ("train", *fractions)}, labels


class Arrays(ArrayClassification):
    """`x` and `y` of an .npz file: images [N, C, height, width] or signals [N, C, length]; classes [N], integers or strings.

    The fractions are of each class, rounded down but never to nothing; the rest is `train`. Equal examples are in one split.

    Raises:
        ValueError: a size or fraction out of bounds, no such file, a file without x and y, arrays of other shapes or types, fewer
            than 2 classes, or a class with fewer than 4 distinct examples.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokens_per_example: int = 64,
        architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction, test=test_fraction)
        path = Path(path)
        x, y = read_arrays(path)
        splits, labels = divided(x, [str(label) for label in y.tolist()], fractions, seed=seed)
        super().__init__(path.stem, splits=splits, labels=labels, tokens_per_example=tokens_per_example, values="your own values")


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`x` and `y` of an .npz file, checked."""
    if not path.is_file():
        raise ValueError(f"path: {str(path)!r} is not a file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"path: {path} is not an .npz file; numpy.savez(FILE, x=…, y=…) writes one")
    try:
        file = np.load(path, allow_pickle=False)
        arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path} is not an .npz file of plain arrays ({error})") from error
    if missing := [name for name in ("x", "y") if name not in arrays]:
        raise ValueError(f"path: {path} holds {sorted(arrays)} and no {missing[0]!r}")
    x, y = arrays["x"], arrays["y"]
    check_values("x", x)
    if y.shape != (len(x),) or not (np.issubdtype(y.dtype, np.integer) or y.dtype.kind == "U"):
        raise ValueError(f"y: {y.dtype} of shape {y.shape} are not {len(x)} classes, integers or strings")
    return x, y
