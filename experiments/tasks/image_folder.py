"""Your own images: a folder with one subfolder of PNG or JPEG files for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.tasks.arrays import ArrayClassification, divided
from experiments.tasks.checks import check_at_least
from experiments.tasks.splits import checked

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {"grey": "L", "rgb": "RGB"}
DEEP = ("I", "I;16", "I;16B", "F")  # more than 8 bits a channel: a conversion would cut them off


class ImageFolder(ArrayClassification):
    """Images as values from 0 to 255, made square with `size` pixels a side (bilinear), or left as they are with `size` None.

    A class is a subfolder, its files those that end in .png, .jpg or .jpeg. The fractions are of each class, rounded down but
    never to nothing; the rest is `train`. Equal images are in one split.

    Raises:
        ValueError: a size, fraction or colour out of bounds, no such folder, fewer than 2 classes, a class without images or with
            fewer than 4 distinct ones, a file that is no image, or of several sizes while `size` is None; Pillow not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | None = 28,
        colours: str = "rgb",
        tokens_per_example: int = 64,
        architecture_fraction: float = 0.1,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        fractions = checked(architecture=architecture_fraction, validation=validation_fraction, test=test_fraction)
        if size is not None:
            check_at_least(1, size=size)
        if colours not in MODES:
            raise ValueError(f"colours: {colours!r} is not one of {tuple(MODES)}")
        path = Path(path)
        files = image_files(path)
        images: list[np.ndarray] = []
        for file, _ in files:
            images.append(read_image(file, size=size, mode=MODES[colours]))
            if images[-1].shape != images[0].shape:
                one, other = (f"{image.shape[2]} x {image.shape[1]}" for image in (images[0], images[-1]))
                raise ValueError(f"size: {files[0][0]} is {one} and {file} is {other}; give a size that all are resized to")
        splits, labels = divided(np.stack(images), [label for _, label in files], fractions, seed=seed)
        resized = f", resized to {size} x {size} (bilinear)" if size is not None else ""
        super().__init__(
            path.name, splits=splits, labels=labels, tokens_per_example=tokens_per_example,
            values=f"{colours} values from 0 to 255{resized}", pictures=True,
        )  # fmt: skip


def image_files(path: Path) -> list[tuple[Path, str]]:
    """Files and their classes, sorted."""
    if not path.is_dir():
        raise ValueError(f"path: {str(path)!r} is not a folder")
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"path: {path} has the subfolders {[f.name for f in folders]}, fewer than 2 classes")
    found = []
    for folder in folders:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
        if not files:
            raise ValueError(f"path: {folder} has no files that end in {', '.join(SUFFIXES)}")
        found += [(file, folder.name) for file in files]
    return found


def read_image(path: Path, *, size: int | None, mode: str) -> np.ndarray:
    """Values [C, height, width], uint8."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("task: 'image_folder' needs Pillow; pip install 'paretoformer[images]'") from error
    try:
        with Image.open(path) as image:
            if image.mode in DEEP:
                raise ValueError(f"mode {image.mode} holds more than 8 bits a channel")
            converted = image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"path: {path} cannot be read as an image ({error})") from error
    if size is not None:
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    values = np.asarray(converted, dtype=np.uint8)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))
