"""What a finished run left, read back for the commands that go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from experiments.results import Results
from experiments.run_directory import CANDIDATES, CONFIG, RunDirectory, RunError
from nas.space import Architecture
from nas.types import Candidate, Provenance


def existing_run(path: str) -> RunDirectory:
    """The directory of a run that is there. Raises RunError if it is not."""
    if not (Path(path) / "run.json").is_file():
        raise RunError(f"run: {path} is not the directory of a run (it has no run.json)")
    return RunDirectory(path)


def load(run: RunDirectory) -> tuple[Results, list[Candidate]]:
    """What a finished run concluded, and all candidates. Raises RunError for an unfinished or damaged one."""
    if not run.has("results.json"):
        raise RunError(f"run: {run.path} is not finished; paretoformer search run={run.path} with its overrides goes on with it")
    if "choices" in run.read_json("run.json"):  # of `experiments.table_search`
        raise RunError(
            f"run: {run.path} is a search in a table and has no networks; its pareto.csv and pareto.png say everything"
        )
    try:
        return Results.from_json(run.read_json("results.json")), [_candidate(r) for r in run.read_lines(CANDIDATES)]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"run: {run.path} holds damaged results ({error}); the same search command writes them again") from error


def config_of(run: RunDirectory) -> DictConfig:
    """What a run was asked for, of one that has its `CONFIG`."""
    return cast(DictConfig, OmegaConf.load(run / CONFIG))


def _candidate(record: dict[str, object]) -> Candidate:
    """A candidate as it was written; its space is not needed to draw it."""
    arch, objectives, provenance = record["arch"], record["objectives"], record["provenance"]
    assert isinstance(arch, dict)
    assert isinstance(objectives, dict)
    assert isinstance(provenance, dict)
    sources, phase = {n: Provenance(p) for n, p in provenance.items()}, str(record["phase"])
    return Candidate(Architecture(tuple(arch.items())), objectives, sources, phase, float(str(record["seconds"])))
