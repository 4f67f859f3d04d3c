"""One finished small run for all tests that need one, made by the command itself."""

from pathlib import Path

import pytest
import torch

from experiments.build import build
from experiments.config import composed
from experiments.progress import Reporter
from tests.support.commands import RECORDED, command
from tests.support.exploring import calibration_of

torch.set_num_threads(1)

# Whole searches, which tests of one file share: they begin first, so that no worker waits for the other at the end.
LONGEST = ("test_resume.py", "test_readme.py", "test_export.py", "test_lost_device.py", "test_exploring.py", "test_measure.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


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


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Of a brief search, which measures on its way."""
    words = ["experiment=smoke", f"run={tmp_path_factory.mktemp('parts') / 'run'}", "searcher.measure=4"]
    return build(composed(*words), report=Reporter(quiet=True))


@pytest.fixture
def calibrated(pipeline):
    """Its calibration on a device whose times are known."""
    return calibration_of(pipeline)
