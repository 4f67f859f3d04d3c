"""Errors of architectures with the weights that they inherit: in this process, or in several at once.

Further processes begin anew (a fork of a process in which torch has threads may hang), which takes each of them seconds: torch is
imported, and the weights are read from the run's file. They live until the search ends, do not hear Ctrl-C, and end with this
process however it ends. An error is the same wherever it was computed: where this was tried, no logit depends on the number of
threads.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import load_file
from torch import nn

from experiments.checkpoints import loaded
from experiments.roles import SCORED_ON
from hardware.environment import num_cores
from nas.compute import Compute
from nas.protocols import Batch, Family, Task
from nas.space import Architecture
from nas.supernet import evaluation_batches, inherited_error
from nas.surroundings import answering


class WorkerError(RuntimeError):
    """A process that scored architectures has ended."""


@dataclass(frozen=True)
class Scorer:
    """Errors in percent on the split of the search."""

    family: Family
    supernet: nn.Module
    task: Task
    compute: Compute

    @functools.cached_property
    def batches(self) -> Sequence[Batch]:
        return [batch.to(self.compute.device) for batch in evaluation_batches(self.task, SCORED_ON)]

    def __call__(self, arch: Architecture) -> tuple[float, float]:
        """The error, and the seconds that it took."""
        start = time.perf_counter()
        error = inherited_error(self.family, self.supernet, arch, self.batches, self.task, self.compute)
        return error, time.perf_counter() - start


class Scoring:
    """Scores architectures, none twice of those that answer alike; to be used in a `with` block if there are several processes.

    Args:
        weights: the file that holds the supernet's weights, for further processes.
        threads: of torch in this process; several processes share as many, and each has one at least.
    """

    def __init__(self, scorer: Scorer, *, weights: Path, processes: int, threads: int) -> None:
        self.scorer, self.weights, self.processes, self.threads = scorer, weights, processes, threads
        self.errors: dict[str, float] = {}
        """What is known, by the id of `answering`."""
        self._running: dict[str, tuple[Architecture, Future[tuple[float, float]]]] = {}
        self._pool: _Pool | None = None

    def ahead(self, archs: Sequence[Architecture]) -> None:
        """Begins with those that are not known, if there are several and processes for them. Raises WorkerError."""
        missing = {id_: arch for arch in archs if (id_ := answering(arch).id) not in self.errors}
        if self.processes > 1 and len(missing) > 1:
            if self._pool is None:
                self._pool = _Pool(self.scorer, self.weights, self.processes, max(1, self.threads // self.processes))
            for id_, arch in missing.items():
                if id_ not in self._running:
                    self._running[id_] = arch, self._pool.submit(arch)

    def __call__(self, arch: Architecture) -> tuple[float, float]:
        """The error in percent, and the seconds that this took now, wherever.

        Raises:
            WorkerError: the process that was at it has ended.
        """
        id_ = answering(arch).id
        if id_ in self.errors:
            return self.errors[id_], 0.0
        if id_ in self._running:
            with _as_worker_error():
                error, seconds = self._running.pop(id_)[1].result()
        else:
            error, seconds = self.scorer(arch)
        self.errors[id_] = error
        return error, seconds

    def finished(self) -> list[Architecture]:
        """Those that were begun with and are scored, but that nobody has asked for."""
        return [arch for arch, future in self._running.values() if future.done() and future.exception() is None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends all processes at once, whatever they are at."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
        self._running.clear()


class _Pool:
    """Processes that end with this one, which alone holds the other end of their pipe."""

    def __init__(self, scorer: Scorer, weights: Path, processes: int, threads: int) -> None:
        context, self._others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
        reader, self._holder = context.Pipe(duplex=False)
        self._folder = tempfile.TemporaryDirectory(prefix="paretoformer-")
        parts = Path(self._folder.name) / "parts.pickle"  # through a pipe, each process would be waited for until it has torch
        parts.write_bytes(pickled(scorer.family, scorer.task, scorer.compute))
        begun_with = (parts, weights, threads, reader)
        self._executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=begun_with)

    def submit(self, arch: Architecture) -> Future[tuple[float, float]]:
        """A process that begins now inherits that it does not hear Ctrl-C, nor a terminal that is closed. Raises WorkerError."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            with _as_worker_error():
                return self._executor.submit(_score, arch)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        for process in multiprocessing.active_children():
            if process not in self._others:
                process.kill()
        self._holder.close()
        self._executor.shutdown(cancel_futures=True)
        self._folder.cleanup()


@contextlib.contextmanager
def _as_worker_error() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise WorkerError(
            "searcher.processes: a process that scored architectures has ended (killed, or out of memory?); what was scored is "
            "kept, and fewer processes need less memory"
        ) from error


def pickled(family: Family, task: Task, compute: Compute) -> bytes:
    """What a further process begins with. Raises ValueError for parts that cannot be sent to one."""
    try:
        return pickle.dumps((family, task, compute))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"searcher.processes: the task {task.name} cannot be sent to another process: {error}") from error


def check_processes(processes: int, family: Family, task: Task) -> None:
    """Raises ValueError for more processes than cores, or parts that cannot be sent to one."""
    if processes > num_cores():
        raise ValueError(f"searcher.processes: {processes} is not between 1 and {num_cores()}, the cores of this machine")
    if processes > 1:
        pickled(family, task, Compute())


# --- in a further process

_scorer: Scorer


def _begin(parts: Path, weights: Path, threads: int, held: Connection) -> None:
    global _scorer
    threading.Thread(target=_end_with, args=(held,), daemon=True).start()
    torch.set_num_threads(threads)
    family, task, compute = pickle.loads(parts.read_bytes())
    supernet = family.supernet()
    supernet.load_state_dict(loaded(weights, load_file))
    _scorer = Scorer(family, supernet.to(compute.device), task, compute)


def _end_with(held: Connection) -> None:
    """Nothing is ever sent: the pipe ends when whoever holds its other end closes it or ends."""
    with contextlib.suppress(EOFError, OSError):
        held.recv_bytes()
    os._exit(1)


def _score(arch: Architecture) -> tuple[float, float]:
    return _scorer(arch)
