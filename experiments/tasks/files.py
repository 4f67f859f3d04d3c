"""Files as they are read: whole, in the encoding that they should have, or with the checksum that they should have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path


def read_bytes(path: Path) -> bytes:
    """Raises ValueError for what is not a file."""
    if not path.is_file():
        raise ValueError(f"path: {str(path)!r} is not a file")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Raises ValueError for what is not a file, or not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {path} is not UTF-8 text (byte {error.start})") from error


def read_pinned(path: Path, sha256: str) -> bytes:
    """Raises ValueError for what is not a file, or another than it should be."""
    raw = read_bytes(path)
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise ValueError(f"path: {path} has the checksum {found[:12]}…, expected is {sha256[:12]}…")
    return raw


def save_labels(labels: Sequence[str], folder: Path) -> None:
    """Writes `labels.json`, the classes in the order of the logits."""
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=0), encoding="utf-8")
