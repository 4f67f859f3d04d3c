"""The folder of a run: every write survives a kill, and nothing finished is done again.

A JSON or tensor file appears whole or not at all (written beside and renamed). A line of a `.jsonl` file is one write; a last
line that a kill cut off is removed when the run goes on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

CANDIDATES = "candidates.jsonl"  # one line for each network that was scored
SUPERNET = "supernet.safetensors"  # its weights, once it is trained
CONFIG = ".hydra/config.yaml"  # a run that was made from Python has none
MIN_FREE_BYTES = 300 * 2**20
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)  # to write


class RunError(ValueError):
    """The run's directory cannot be used as asked; nothing in it was changed."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to; it takes the target's place when the block ends well, and leaves nothing when it does not.

    A link stays one: what it leads to is replaced. A pipe or a terminal, which nothing can take the place of, is written to.

    Raises:
        OSError: the system refuses to write, whatever the block made of that; it names the target.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    target = target.resolve() if target.is_symlink() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, Exception) and (number := _refusal(error)) is not None:
            raise OSError(number, os.strerror(number), str(target)) from error
        raise


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the file, whose folder is made if it is not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as file:  # not `.lock`: the folder may be that of a run, too
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets the system's refusal to write in the block name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _refusal(error: BaseException | None) -> int | None:
    """The system's number of why it does not write for a library, which may tell it in words of its own; None if it does."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return error.errno
        if in_rust := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
            return int(in_rust[1])
        error = error.__context__
    return None


class RunDirectory:
    """Reads and writes the files of one run.

    Raises:
        RunError: the path is a file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"run: {self.path} is a file and not a directory")
        self.path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by one process at a time. Raises RunError when another one runs here."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"run: {self.path} is in use by another process") from None
            yield

    def replacing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write to; it takes the name's place when the block ends well. Raises RunError where the directory is gone."""
        if not self.path.is_dir():  # what is left of the run would be a directory that no command takes
            raise RunError(f"run: {self.path} is not there any more; it was deleted or moved while this ran")
        return replacing(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        with self.replacing(name) as path:
            path.write_text(json.dumps(value, indent=1) + "\n")

    def read_json(self, name: str, *, advice: str = "delete it to do this part again") -> Any:
        """Raises RunError for a file that is not JSON."""
        try:
            return json.loads((self.path / name).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path / name}: is damaged ({error}); {advice}") from error

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds one line, whole or not at all, and waits until it is on the disk. Raises OSError, which names the file."""
        path, line = self.path / name, (json.dumps(record) + "\n").encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with naming(path):
                if (written := os.write(descriptor, line)) < len(line):
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """All whole lines; a last line without its end is removed. Raises RunError for a line that is not JSON."""
        self.mend(name)
        if not self.has(name):
            return []
        records = []
        for number, line in enumerate((self.path / name).read_bytes().splitlines(), 1):
            try:
                records.append(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise RunError(f"{self.path / name}: line {number} is damaged; delete that line to go on") from error
        return records

    def mend(self, name: str) -> None:
        """Removes a last line that was cut off."""
        path = self.path / name
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(path, whole)

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Makes the directory this run's, unless it is already. A value of the identity may be a table of several.

        Raises:
            RunError: the directory belongs to a run with another identity, with every difference, or its disk lacks room.
        """
        free = shutil.disk_usage(self.path).free
        if free < MIN_FREE_BYTES:
            needed = MIN_FREE_BYTES // 2**20
            raise RunError(f"run: the disk of {self.path} has {free // 2**20} MiB left, a run needs {needed} MiB")
        if not self.has("run.json"):
            foreign = [p.name for p in self.path.iterdir() if p.name not in (".lock", ".hydra") and not p.name.endswith(".part")]
            if foreign:
                raise RunError(f"run: {self.path} holds {sorted(foreign)[0]} and no run.json; name a new or empty directory")
            self.write_json("run.json", identity)
            return
        known, ours = self.read_json("run.json", advice="name a new directory"), json.loads(json.dumps(identity))
        if any(isinstance(value, dict) and not isinstance(known.get(name), dict) for name, value in ours.items()):
            raise RunError(f"run: {self.path} was begun by an earlier version of this program; name a new directory")
        then, now = _flat(known), _flat(ours)
        differ = [name for name in dict.fromkeys((*now, *then)) if then.get(name) != now.get(name)]
        if differ:
            words = "; with ".join(f"{name} {then.get(name)!r}, this run has {now.get(name)!r}" for name in differ)
            raise RunError(f"run: {self.path} was begun with {words}; name a new directory")


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of an identity, each name once."""
    tables = [value for value in identity.values() if isinstance(value, dict)]
    rest = {name: value for name, value in identity.items() if not isinstance(value, dict)}
    return rest | {name: value for table in tables for name, value in table.items()}
