"""One finished small run for all tests that need one, made by the command itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
RECORDED = Path(os.environ.get("PARETOFORMER_RECORDED", Path(__file__).parent.parent.parent / "shared" / "measurements"))


def command(*words: str | Path, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs `paretoformer WORDS` as a user does: another process, not a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *map(str, words)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The run directory of `paretoformer search experiment=smoke`."""
    folder = tmp_path_factory.mktemp("finished")
    done = command("search", "experiment=smoke", f"run={folder / 'run'}", f"store={folder / 'store'}", "torch_threads=1")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "run"


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of the published tables of measurements, which are not part of this package."""
    if not RECORDED.is_dir():
        pytest.skip(f"no recorded measurements at {RECORDED} (PARETOFORMER_RECORDED names another folder)")
    return RECORDED
