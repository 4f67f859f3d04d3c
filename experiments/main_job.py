"""The job behind `paretoformer search`: from a composed configuration to the files of a run and the last lines on the screen."""

from __future__ import annotations

import shlex

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.build import build
from experiments.conclude import conclude
from experiments.progress import Reporter


def run(config: DictConfig) -> None:
    """Searches, writes and says what was found. Raises what `Pipeline.search` raises."""
    report = Reporter()
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN":
        config = OmegaConf.merge(config, {"run": hydra_config.runtime.output_dir})  # type: ignore[assignment]
    pipeline = build(config, report=report)
    with pipeline.run.lock():
        pipeline.claim()
        resolved = OmegaConf.to_container(config, resolve=True)
        for name, content in (("config", resolved), ("overrides", overrides)):
            with pipeline.run.replacing(f".hydra/{name}.yaml") as path:
                path.write_text(OmegaConf.to_yaml(content))
        report.say(f"Run: {pipeline.run.path}  (stop at any time; the same command with run={pipeline.run.path} goes on)")
        words = [w for w in overrides if not w.startswith("run=")]
        command = shlex.join(["paretoformer", "search", *words, f"run={pipeline.run.path}"])
        conclude(pipeline, pipeline.search(), command=command, report=report)
