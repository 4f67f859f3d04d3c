"""`paretoformer search`: composes the configuration with Hydra and runs the main job on it.

Importing torch takes seconds, so nothing here does: the job is named and loaded when the configuration is known to be good.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.cli import guarded
from experiments.config import check_dashes, check_names, composed, register
from experiments.mistakes import in_words

JOB = "experiments.main_job.run"


def main(words: Sequence[str]) -> int:
    """Runs the search, or several with --multirun.

    Raises:
        ValueError: an override that does not fit the configuration, in one line; whatever the job raises.
    """
    check_dashes(words)
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and we say them in one line
    sys.argv = ["paretoformer search", *sorted(words, key=_is_override)]  # flags in front, where alone argparse takes them
    start = time.time()
    failed: list[BaseException] = []

    def job(config: DictConfig) -> None:
        made = Path(HydraConfig.get().runtime.output_dir)
        mode = HydraConfig.get().mode
        if mode is not None and mode.name == "MULTIRUN":
            config.run = str(made)
        try:
            check_names(config, words)
            hydra.utils.get_method(JOB)(config)
        except BaseException as error:
            if (made / "run.json").exists():
                error.add_note(f"The same command with run={config.run} goes on where it was.")
            elif made.stat().st_mtime >= start and not any(made.iterdir()):  # Hydra's, not one that was there
                made.rmdir()
            failed.append(error)
            raise SystemExit(1) from error  # past Hydra, which would print its own story

    entry: Any = hydra.main(version_base="1.3", config_path="pkg://conf", config_name="search")(job)
    code = 0
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(in_words(error, words, composed)) from error
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    if failed:  # not raised above: what it came from, such as Ctrl-C, would be forgotten for the SystemExit
        raise failed[0]
    return code


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


if __name__ == "__main__":
    sys.exit(guarded("experiments.search", sys.argv[1:]))
