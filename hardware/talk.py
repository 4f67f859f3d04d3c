"""A running command that is written to and read from, with bounds on time and on size."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
import weakref
from dataclasses import dataclass

from nas.protocols import DeviceError

MAX_OUTPUT = 2**20  # bytes that may come before an answer is whole, banners and complaints included


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, and the last line of its complaints."""

    status: int
    complaint: str


class Talk:
    """A running command. It is ended by `close`, with the object, or with this process.

    Raises:
        DeviceError: there is no such command on this machine.
    """

    def __init__(self, words: list[str], *, stdin: int = subprocess.PIPE) -> None:
        try:
            self._process = subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        except OSError as error:
            raise DeviceError(f"{words[0]} cannot be run on this machine: {error.strerror}") from error
        assert self._process.stdout
        assert self._process.stderr
        self._output, self._complaints = self._process.stdout.fileno(), self._process.stderr.fileno()
        self._selector = selectors.DefaultSelector()
        for source in (self._output, self._complaints):
            os.set_blocking(source, False)
            self._selector.register(source, selectors.EVENT_READ)
        self._pending = self._complaint = b""
        self._end = weakref.finalize(self, _end, self._process, self._selector)

    def ask(self, request: bytes, mark: bytes, *, seconds: float) -> bytes | Ended:
        """Sends a line and waits for the line that begins with the mark; returns what follows it.

        Raises:
            TimeoutError: no such line in time.
            OverflowError: more than `MAX_OUTPUT` bytes, and no such line.
        """
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its output says why
            self._process.stdin.write(request)
        deadline, size = time.monotonic() + seconds, 0
        while True:
            *lines, self._pending = self._pending.split(b"\n")
            for index, line in enumerate(lines):
                if line.startswith(mark):
                    self._pending = b"\n".join([*lines[index + 1 :], self._pending])
                    return line[len(mark) :]
            more = self._more(deadline)
            if more is None:
                return self._ended(deadline)
            size += more
            if size > MAX_OUTPUT:
                raise OverflowError

    def rest(self, *, seconds: float) -> Ended:
        """Waits for the end of the command. Raises TimeoutError or OverflowError."""
        deadline, size = time.monotonic() + seconds, 0
        while (more := self._more(deadline)) is not None:
            size += more
            if size > MAX_OUTPUT:
                raise OverflowError
        return self._ended(deadline)

    def close(self) -> None:
        self._end()

    def _more(self, deadline: float) -> int | None:
        """Reads what there is; returns the number of bytes, None at the end of the output."""
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        size = 0
        for key, _ in ready:
            chunk = _read(key.fd)
            size += len(chunk)
            if key.fd == self._complaints:
                self._complaint = (self._complaint + chunk)[-4096:]
                if not chunk:
                    self._selector.unregister(key.fd)
            elif not chunk:
                return None
            else:
                self._pending += chunk
        return size

    def _ended(self, deadline: float) -> Ended:
        try:
            status = self._process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        self._complaint = (self._complaint + _read(self._complaints))[-4096:]
        lines = [line.strip() for line in self._complaint.decode(errors="replace").splitlines() if line.strip()]
        return Ended(status, lines[-1] if lines else "")


def _read(source: int) -> bytes:
    """What there is to be read, at most 64 KiB; nothing at the end."""
    try:
        return os.read(source, 65536)
    except BlockingIOError:
        return b""


def _end(process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> None:
    selector.close()
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
