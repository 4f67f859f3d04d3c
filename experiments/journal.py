"""The Optuna study of a run: `study.journal`, opened, and checked to be this run's before anything is written to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from experiments.run_directory import CANDIDATES, RunDirectory, RunError, naming
from nas.searchers.study import check_study
from nas.space import SearchSpace

STUDY = "study.journal"


class _Named(JournalFileBackend):
    """Says which file it is that cannot be written."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with naming(Path(self._file_path)):
            super().append_logs(logs)


def open_study(run: RunDirectory) -> BaseStorage:
    """Raises RunError for a damaged file."""
    run.mend(STUDY)
    for lock in run.path.glob(f"{STUDY}.lock*"):  # of a killed process: a run has one process at a time
        lock.unlink()
    try:
        return JournalStorage(_Named(str(run / STUDY)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{run / STUDY}: is damaged ({error}); delete it, what was scored is known from {CANDIDATES}") from error


def check_journal(run: RunDirectory, space: SearchSpace, *, objectives: Sequence[str], limits: Mapping[str, float]) -> None:
    """Raises RunError if the run holds a study of something else, or none that can be read; nothing is written to it."""
    if not run.has(STUDY):
        return
    storage = open_study(run)
    try:
        check_study(storage, space, objectives=objectives, limits=limits)
    except ValueError as error:
        raise RunError(f"{run / STUDY}: {error}; delete it, or name a new directory") from error
