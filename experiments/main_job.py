"""The job behind `paretoformer search`: from a composed configuration to the files of a run and the last lines on the screen."""

from __future__ import annotations

import shlex

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.build import build, make, make_places, make_settings, surroundings
from experiments.compute import check_trains_on
from experiments.conclude import conclude
from experiments.pipeline import Pipeline
from experiments.progress import Reporter
from experiments.run_directory import CONFIG
from experiments.scoring import check_processes
from experiments.table_search import TableSearch
from nas.space import SearchSpace


def run(config: DictConfig) -> None:
    """Searches, writes and says what was found. Raises what `Pipeline.search` and `TableSearch.search` raise."""
    report = Reporter()
    overrides = list(HydraConfig.get().overrides.task)
    space = make(config, "space")
    job: Pipeline | TableSearch
    if isinstance(space, SearchSpace):  # no family: there is nothing to build or train
        if surroundings(config):
            raise ValueError("surroundings: what a table was recorded in cannot be chosen")
        device, settings, places = make(config, "device"), make_settings(config), make_places(config)
        job = TableSearch(space, device, settings=settings, directory=config.run, report=report, also=places)
    else:
        check_trains_on(config.train_on)
        job = build(config, report=report)
        check_processes(job.settings.outer.processes, job.family, job.task)
    with job.run.lock():
        job.claim()
        resolved = OmegaConf.to_container(config, resolve=True)
        for name, content in ((CONFIG, resolved), (".hydra/overrides.yaml", overrides)):
            with job.run.replacing(name) as path:
                path.write_text(OmegaConf.to_yaml(content))
        then = "goes on" if isinstance(job, Pipeline) else "takes seconds and finds the same"
        report.say(f"Run: {job.run.path}  (stop at any time; the same command with run={job.run.path} {then})")
        words = [w for w in overrides if not w.startswith("run=")]
        command = shlex.join(["paretoformer", "search", *words, f"run={job.run.path}"])
        if isinstance(job, Pipeline):
            conclude(job, job.search(), command=command, report=report)
        else:
            job.search(command=command)
