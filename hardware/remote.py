"""A board at the other end of a command such as `ssh` or `adb`, and the conversation with `hardware/agent.py` there.

The agent and the networks are copied once each, by content. One agent runs for as long as the device is used: a visit costs one
line each way, not a connection and a start of Python.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shlex
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from hardware import agent
from hardware.answers import environment_of, logits_of, samples_of, shown
from hardware.environment import fingerprint
from hardware.int8 import Int8Files
from hardware.local import check_option, refusals
from hardware.local_cpu import PRECISIONS
from hardware.placement import LEVELS
from hardware.talk import MAX_OUTPUT, Ended, Talk
from hardware.visit import Visit
from nas.formats import Answer
from nas.protocols import DeviceError

T = TypeVar("T")

AGENT = Path(agent.__file__)
PATIENCE = {  # options that no fact of a board depends on
    "folder", "warmup_seconds", "visit_seconds", "min_samples", "max_samples", "connect_seconds", "timeout_seconds", "retries",
    "retry_seconds", "cache_mib",
}  # fmt: skip
SIGNALS = {4: "an instruction that its CPU lacks", 9: "the system (out of memory?)", 14: "its limit of time"}
# Runs the agent only if it is, to the byte, the one that was sent. No line ends and no exclamation marks: for any login shell.
START = (
    "import hashlib,os,sys;p,h,m=sys.argv[1:];s=open(p,'rb').read() if os.path.isfile(p) else b'';"
    "exec(compile(s,p,'exec'),{'__name__':'__main__','__file__':p}) "
    "if hashlib.sha256(s).hexdigest()==h else print(m+' {\"absent\": true}')"
)


class ConnectionLostError(DeviceError):
    """The board cannot be reached, or not any more: worth another try."""


@dataclass(kw_only=True, eq=False)
class Remote(ABC):
    """What `ssh` and `adb` share. Nothing is contacted before the first time or fact is asked for.

    A lost connection is tried again, a few times. A network must be one file.

    Args:
        python: that runs the agent, with words before or after it if need be: `taskset -c 4 python3`.
        folder: on the board, for the agent and the networks.
        threads: that one run may use.
        precision: fp32, the file as it is; int8, its dynamic quantisation, which may be slower as well as faster.
        warmup_seconds: at most, until the times are stable.
        visit_seconds: how long runs are timed, unless `min_samples` takes longer or `max_samples` is reached before.
        graph_optimization: of ONNX Runtime when it loads the file: all, extended, basic or none.
        connect_seconds: for a connection; a board that is silent for so long is lost.
        timeout_seconds: for one visit or the copy of one file.
        retries: further tries after a lost connection, and `retry_seconds` before each.
        cache_mib: of networks that stay on the board, those that were used last.
        allow_emulated: accept times of a board that is emulated: they say that a network runs, and nothing of its speed.

    Raises:
        ValueError: a value outside its range.
    """

    format = "onnxruntime"
    python: str = "python3"
    folder: str = ".cache/paretoformer"
    threads: int = 1
    precision: str = "fp32"
    warmup_seconds: float = 0.1
    visit_seconds: float = 0.05
    min_samples: int = 10
    max_samples: int = 200
    graph_optimization: str = "all"
    connect_seconds: float = 10.0
    timeout_seconds: float = 120.0
    retries: int = 2
    retry_seconds: float = 2.0
    cache_mib: int = 256
    allow_emulated: bool = False
    _talk: Talk | None = field(init=False, default=None, repr=False)
    _facts: dict[str, Any] | None = field(init=False, default=None, repr=False)
    _int8: Int8Files = field(init=False, default_factory=Int8Files, repr=False)
    _conditions: dict[str, Any] = field(init=False, default_factory=dict, repr=False)
    _memory: Path | None = field(init=False, default=None, repr=False)
    absent: str = field(init=False, default="", repr=False)
    """Why the board does not answer, where its facts are those of an earlier time; else empty."""

    def __post_init__(self) -> None:
        Visit(self.warmup_seconds, self.visit_seconds, self.min_samples, self.max_samples)
        for name, least, most in (
            ("threads", 1, 1024), ("max_samples", 1, 10_000), ("connect_seconds", 1, 600), ("timeout_seconds", 1, 3600),
            ("retries", 0, 20), ("retry_seconds", 0, 600), ("cache_mib", 0, 2**20),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}: {value} is not between {least} and {most}")
        check_option("precision", self.precision, PRECISIONS)
        check_option("graph_optimization", self.graph_optimization, tuple(LEVELS))
        for name in ("python", "folder"):
            if not getattr(self, name).strip() or not getattr(self, name).isprintable():
                raise ValueError(f"{name}: {getattr(self, name)!r} is not a text of printable characters")
        shlex.split(self.python)  # raises ValueError for a quotation that does not end
        if self.folder.startswith(("-", "~")):
            raise ValueError(f"folder: {self.folder!r} begins with {self.folder[0]!r}; a relative one lies in the home folder")

    @abstractmethod
    def _shell(self, script: str) -> list[str]:
        """The words of a command on this machine that runs a shell script on the board."""

    @abstractmethod
    def _copy(self, source: Path, target: str) -> None:
        """Copies a file into the board's folder."""

    @abstractmethod
    def _is_lost(self, ended: Ended) -> bool:
        """Whether a command ended so because the board could not be reached."""

    @property
    @abstractmethod
    def _board(self) -> str:
        """The board in words."""

    @property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on, from the board, or remembered if it cannot be reached. Raises DeviceError."""
        if self._facts is None:
            try:
                self._request({"action": "environment"}, {})
            except ConnectionLostError as error:
                self._facts, self.absent = self._remembered(), str(error)
                if self._facts is None:
                    raise
        assert self._facts is not None
        return self._facts

    def remember_in(self, folder: Path) -> None:
        """From now on the board's facts are kept in a file there: they are known also when it cannot be reached."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in PATIENCE}
        key = hashlib.sha256(json.dumps([type(self).__name__, told], sort_keys=True).encode()).hexdigest()[:12]
        self._memory = folder / "boards" / f"{key}.json"

    def _remembered(self) -> dict[str, Any] | None:
        """The facts of an earlier time; None if there are none that can be read."""
        if self._memory is None:
            return None
        try:
            return environment_of(json.loads(self._memory.read_text()))[0]
        except (OSError, ValueError, DeviceError):
            return None

    def _remember(self, facts: Mapping[str, Any]) -> None:
        if self._memory is None:
            return
        with contextlib.suppress(OSError):  # no room, a folder of another user: measuring goes on all the same
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._memory.with_suffix(f".{secrets.token_hex(4)}.part")
            unfinished.write_text(json.dumps({"environment": facts, "conditions": {}}) + "\n")
            unfinished.replace(self._memory)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.environment)

    def conditions(self) -> dict[str, Any]:
        """Governor, MHz, degrees Celsius and load, before and after the last visit; before the first visit, as it began."""
        return self._conditions

    def run(self, onnx_path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: raw wall times in ms, in the order in which they were taken.

        Raises:
            DeviceError: there is no such file, the board refuses the file or the inputs, cannot be reached after all tries, or
                answers something else than times.
        """
        return self._with_file(
            "run", onnx_path, inputs, lambda answer: samples_of(answer, least=self.min_samples, most=self.max_samples)
        )

    def opened(self, onnx_path: Path) -> Answer:
        """A file for its logits alone, as the board gives them: the first rows [N, C], at most so many as fit into one line of
        an answer. It raises DeviceError like `run`, also for an answer that is no logits."""

        def answer(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
            named = {name: value.numpy() for name, value in inputs.items()}
            return [self._with_file("answer", onnx_path, named, logits_of)]

        return answer

    def _with_file(
        self, action: str, onnx_path: Path, inputs: Mapping[str, np.ndarray], read: Callable[[Mapping[str, Any]], T]
    ) -> T:
        """What the board's answer says of a network and its inputs. Raises DeviceError."""
        with refusals(onnx_path, self._board), tempfile.TemporaryDirectory() as folder:
            network = self.deployed(onnx_path)
            packed = Path(folder) / "inputs.npz"
            np.savez(packed, *inputs.values())
            model, data = f"{_sha256(network)}.onnx", f"{_sha256(packed)}.npz"
            request = {"action": action, "model": model, "inputs": data, "names": list(inputs)}
            try:
                return read(self._request(request, {model: network, data: packed}))
            except ConnectionLostError:
                raise  # whatever the file
            except DeviceError as error:
                raise DeviceError(f"{onnx_path}: {error}") from error

    def deployed(self, onnx_path: Path) -> Path:
        """The file that really runs: the given one, or its quantisation, which is made on this machine."""
        return onnx_path if self.precision == "fp32" else self._int8.of(onnx_path)

    def close(self) -> None:
        """Ends the connection; the next visit opens another."""
        if self._talk is not None:
            self._talk.close()
            self._talk = None

    def _request(self, request: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.retry_seconds)
            try:
                return self._answer(request, files)
            except ConnectionLostError as error:
                self.close()
                lost = error
            except DeviceError as error:
                self.close()
                raise DeviceError(f"{self._board}: {error}") from error
        raise ConnectionLostError(f"{self._board}: {lost} (tried {self.retries + 1} times)") from lost

    def _answer(self, request: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
        """The answer to one request, the files sent before if the board lacks them."""
        for _ in range(2):
            if self._talk is None:
                self._talk = self._open()
            answer = self._ask(self._talk, request)
            missing = answer.get("missing")
            if not isinstance(missing, list):
                return answer
            for name in [name for name in files if name in missing]:
                self._copy(files[name], name)
        raise DeviceError(f"files do not arrive whole in {self.folder}; is its disk full?")

    def _open(self) -> Talk:
        """A conversation with an agent that is the one of this version; checks that the board is the one known."""
        for _ in range(2):
            nonce = secrets.token_hex(8)
            where, mark = f"{self.folder}/{AGENT.name}", f"{agent.MARK} {agent.VERSION} {nonce}"
            words = [*shlex.split(self.python), "-c", START, where, _sha256(AGENT), mark]
            talk = Talk(self._shell(f"{shlex.join(words)}; exit $?"))
            try:
                answer = self._ask(talk, {"action": "environment"}, nonce=nonce)
            except DeviceError:
                talk.close()
                raise
            if "absent" not in answer:
                return talk
            talk.close()
            self._copy(AGENT, AGENT.name)
        raise DeviceError(f"the agent does not arrive whole in {self.folder}; is its disk full?")

    def _ask(self, talk: Talk, request: Mapping[str, Any], *, nonce: str = "") -> dict[str, Any]:
        """One question, one answer; remembers what the answer says of the board."""
        nonce = nonce or secrets.token_hex(8)
        options = (
            "threads", "precision", "graph_optimization", "warmup_seconds", "visit_seconds", "min_samples", "max_samples",
            "cache_mib",
        )  # fmt: skip
        facts = {"version": agent.VERSION, "nonce": nonce, "limit_seconds": self.timeout_seconds}
        line = json.dumps({**facts, **{name: getattr(self, name) for name in options}, **request})
        answer = self._read(talk, line, f"{agent.MARK} {agent.VERSION} {nonce} ")
        if "error" in answer:
            raise DeviceError(shown(answer["error"]))
        if ("absent" if request["action"] == "environment" else "missing") not in answer:
            facts, conditions = environment_of(answer)
            self._meet(facts)
            if self._facts is None:
                self._remember(facts)
            self._facts, self._conditions, self.absent = facts, conditions, ""
        return answer

    def _read(self, talk: Talk, line: str, mark: str) -> dict[str, Any]:
        try:
            found = talk.ask(line.encode() + b"\n", mark.encode(), seconds=self.timeout_seconds)
            answer = json.loads(found) if isinstance(found, bytes) else None
        except TimeoutError as error:
            raise DeviceError(f"no answer within {self.timeout_seconds:g} seconds") from error
        except OverflowError as error:
            raise DeviceError(f"more than {MAX_OUTPUT} bytes, and no end of the answer") from error
        except (ValueError, RecursionError) as error:
            raise DeviceError(f"an answer that is no JSON: {shown(found)}") from error
        if isinstance(found, Ended):
            raise self._failure(found)
        if not isinstance(answer, dict):
            raise DeviceError(f"an answer that is no JSON object: {shown(answer)}")
        return answer

    def _failure(self, ended: Ended, *, what: str = "the agent") -> DeviceError:
        said = f": {shown(ended.complaint)}" if ended.complaint else ""
        if self._is_lost(ended):
            return ConnectionLostError(f"the connection failed{said}")
        if ended.status in (126, 127):
            return DeviceError(f"{self.python} cannot be run{said}")
        if ended.status > 128:
            name = SIGNALS.get(ended.status - 128, f"signal {ended.status - 128}")
            return DeviceError(f"{what} was ended by {name}{said}")
        return DeviceError(f"{what} ended with status {ended.status}{said}")

    def _meet(self, facts: dict[str, Any]) -> None:
        """Checks that the board is a real one, and the one known."""
        if facts["emulated"] and not self.allow_emulated:
            raise DeviceError(f"{facts['os']} is emulated, its times say nothing; allow_emulated=true to see them")
        if self._facts is not None and facts != self._facts:
            changed = "; ".join(f"{n} {v}, now {facts.get(n)}" for n, v in self._facts.items() if facts.get(n) != v)
            raise DeviceError(f"is not what it was: {shown(changed)}")

    def _transfer(self, words: list[str], source: Path) -> None:
        """Runs a command with a file as its input."""
        with source.open("rb") as file:
            talk = Talk(words, stdin=file.fileno())
        try:
            ended = talk.rest(seconds=self.timeout_seconds)
        except TimeoutError as error:
            raise DeviceError(f"{source.name} was not copied within {self.timeout_seconds:g} seconds") from error
        except OverflowError as error:
            raise DeviceError(f"more than {MAX_OUTPUT} bytes in answer to {source.name}") from error
        finally:
            talk.close()
        if ended.status:
            raise self._failure(ended, what=f"the copy of {source.name}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
