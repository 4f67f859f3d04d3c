"""One finished small run for all tests that need one, made by the command itself."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from experiments import cli

torch.set_num_threads(1)
RECORDED = Path(os.environ.get("PARETOFORMER_RECORDED", Path(__file__).parent.parent.parent / "shared" / "measurements"))

# Whole searches, which tests of one file share: they begin first, so that no worker waits for the other at the end.
LONGEST = ("test_resume.py", "test_readme.py", "test_export.py", "test_lost_device.py", "test_exploring.py", "test_measure.py")

# A process that has imported what commands need, and forks: importing torch takes longer than most commands that are tested.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.main_job", "experiments.space", "experiments.export", "scipy.stats", "onnxruntime"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def command(*words: str | Path, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs `paretoformer WORDS` as a user does: another process, not a terminal."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        process = FORKS.Process(target=_run, args=([str(word) for word in words], cwd, dict(os.environ), said))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["paretoformer", *words], timeout)
        out, err = (path.read_text() for path in said)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _run(words: list[str], cwd: Path | None, environment: dict[str, str], said: list[Path]) -> None:
    for descriptor, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    sys.exit(cli.main(words))


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
