"""A board that the user's own `ssh` reaches, under ONNX Runtime."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from hardware.remote import Remote
from hardware.talk import Ended

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(@[A-Za-z0-9_:][A-Za-z0-9_.:%-]*)?|[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")


@dataclass(eq=False)
class Ssh(Remote):
    """A board by the name that `ssh` knows it by: identity, jump hosts and the rest come from the user's ssh configuration.

    It must let the user in without a question (a key, an agent), and needs Python 3.8, numpy and onnxruntime. See `Remote` for
    the other options.

    Args:
        host: name or address, or user@name.
        port: by default as in the ssh configuration.
        ssh: the command, with options of its own if need be: `ssh -F lab.config`.

    Raises:
        ValueError: a host with other characters than a name or an address has; a value outside its range.
    """

    name = "ssh"
    host: str
    port: int | None = field(default=None, kw_only=True)
    ssh: str = field(default="ssh", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not HOST.fullmatch(str(self.host)):
            raise ValueError(
                f"host: {self.host!r} is not a host or user@host of letters, digits and . _ - : %, which does not begin with -"
            )
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not between 1 and 65535")
        if not shlex.split(self.ssh):
            raise ValueError("ssh: is empty; it is a command such as ssh")

    @property
    def _board(self) -> str:
        return f"{self.host} over ssh"

    def _shell(self, script: str) -> list[str]:
        seconds = math.ceil(self.connect_seconds / 2)
        options = (
            "BatchMode=yes", f"ConnectTimeout={math.ceil(self.connect_seconds)}", f"ServerAliveInterval={seconds}",
            "ServerAliveCountMax=2", "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no",
        )  # fmt: skip
        port = [] if self.port is None else ["-p", str(self.port)]
        said = [word for option in options for word in ("-o", option)]
        return [*shlex.split(self.ssh), "-T", *said, *port, "--", str(self.host), shlex.join(["sh", "-c", script])]

    def _copy(self, source: Path, target: str) -> None:
        folder, path = shlex.quote(self.folder), shlex.quote(f"{self.folder}/{target}")
        self._transfer(self._shell(f"umask 077; mkdir -p {folder} && cat > {path}"), source)

    def _is_lost(self, ended: Ended) -> bool:
        return ended.status == 255 or ended.status < 0
