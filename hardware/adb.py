"""An Android phone or board that `adb` reaches, under ONNX Runtime."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from hardware.remote import Remote
from hardware.talk import Ended

LOST = re.compile("(adb: )?error: .*(device .*(not found|offline|unauthorized)|no devices|closed|protocol fault|daemon)")
SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")


@dataclass(eq=False)
class Adb(Remote):
    """An Android device by its serial, as `adb devices` lists it.

    Python, numpy and onnxruntime must be on it where the shell's user may run them; `python` says how, with the words before it
    that they need: `env LD_LIBRARY_PATH=/data/local/tmp/usr/lib /data/local/tmp/usr/bin/python3`. See `Remote` for the rest.

    Args:
        serial: of the device.
        adb: the command, with options of its own if need be: `adb -P 5038`.

    Raises:
        ValueError: a serial with other characters than serials have; a value outside its range.
    """

    name = "adb"
    serial: str
    folder: str = field(default="/data/local/tmp/paretoformer", kw_only=True)
    adb: str = field(default="adb", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not SERIAL.fullmatch(str(self.serial)):
            raise ValueError(
                f"serial: {self.serial!r} is not a serial of letters, digits and . _ : -, which begins with none of . : -"
            )
        if not self.folder.startswith("/"):
            raise ValueError(f"folder: {self.folder!r} does not begin with /")
        if not shlex.split(self.adb):
            raise ValueError("adb: is empty; it is a command such as adb")

    @property
    def _board(self) -> str:
        return f"{self.serial} over adb"

    def _words(self, *words: str) -> list[str]:
        return [*shlex.split(self.adb), "-s", str(self.serial), *words]

    def _shell(self, script: str) -> list[str]:
        return self._words("shell", shlex.join(["sh", "-c", script]))

    def _copy(self, source: Path, target: str) -> None:
        self._transfer(self._words("push", str(source.resolve()), f"{self.folder}/{target}"), source)

    def _is_lost(self, ended: Ended) -> bool:
        """By adb's own words, for its status is 1 for every error, and an old adb gives 0 for a command that was cut off."""
        return ended.status in (0, 255) or ended.status < 0 or LOST.match(ended.complaint) is not None
