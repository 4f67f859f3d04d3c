"""`paretoformer search`: composes the configuration with Hydra and runs the main job on it.

Importing torch takes seconds, so nothing here does: the job is named and loaded when the configuration is known to be good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.cli import guarded
from experiments.config import register

JOB = "experiments.main_job.run"
NOISE = ("full_key:", "object_type=", "reference_type=", "Set the env")  # lines of Hydra's about structure and traces


def main(words: Sequence[str]) -> int:
    """Runs the search, or several with --multirun.

    Raises:
        ValueError: an override that does not fit the configuration, in one line; whatever the job raises.
    """
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, and we say them in one line
    sys.argv = ["paretoformer search", *words]
    failed: list[BaseException] = []

    def job(config: DictConfig) -> None:
        try:
            hydra.utils.get_method(JOB)(config)
        except BaseException as error:
            failed.append(error)
            raise SystemExit(1) from error  # past Hydra, which would print its own story

    entry: Any = hydra.main(version_base="1.3", config_path="pkg://conf", config_name="search")(job)
    code = 0
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_in_words(error)) from error
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    if failed:  # not raised above: what it came from, such as Ctrl-C, would be forgotten for the SystemExit
        raise failed[0]
    return code


def _in_words(error: Exception) -> str:
    """Hydra's complaint and its cause, without what is `NOISE`."""
    said = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    lines = [line.strip() for text in said for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(NOISE)]
    return " ".join(dict.fromkeys(kept))


if __name__ == "__main__":
    sys.exit(guarded("experiments.search", sys.argv[1:]))
