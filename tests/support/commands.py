"""The commands as a user runs them, and the folders that tests read."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from experiments import cli

ROOT = Path(__file__).parent.parent.parent
SAID = ("out", "err")
RECORDED = Path(os.environ.get("PARETOFORMER_RECORDED", ROOT.parent / "shared" / "measurements"))

# A process that has imported what commands need, and forks: importing torch takes longer than most commands that are tested.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.main_job", "experiments.space", "experiments.export", "scipy.stats", "onnxruntime"])


def command(*words: str | Path, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs `paretoformer WORDS` as a user does: another process, not a terminal."""
    with tempfile.TemporaryDirectory() as folder:
        process = begun(*words, said=Path(folder), cwd=cwd)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["paretoformer", *words], timeout)
        out, err = (Path(folder, name).read_text() for name in SAID)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def begun(*words: str | Path, said: Path, cwd: Path | None = None) -> BaseProcess:
    """A process that runs `paretoformer WORDS`; what it says goes to the files `out` and `err` in the folder `said`."""
    files = [said / name for name in SAID]
    process = FORKS.Process(target=_run, args=([str(word) for word in words], cwd, dict(os.environ), files))
    process.start()
    return process


def _run(words: list[str], cwd: Path | None, environment: dict[str, str], said: list[Path]) -> None:
    for descriptor, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    sys.exit(cli.main(words))


def refused(*words, message: str) -> str:
    done = command(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert message in done.stderr, done.stderr
    return done.stdout
