"""One finished small run for all tests that need one, made by the command itself."""

from pathlib import Path

import pytest
import torch

from tests.support.commands import RECORDED, command

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
