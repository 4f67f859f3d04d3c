"""The study of a run: one of something else is named before anything is written, and so is a damaged one."""

import pytest

from experiments.journal import check_journal, open_study
from experiments.run_directory import RunDirectory, RunError
from nas.search import search
from nas.searchers.tpe import Tpe
from tests.support.known_law import SPACE, evaluate

MEANT = {"objectives": ("error", "latency_ms"), "limits": {"latency_ms": 5.0}}


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path)
    check_journal(run, SPACE, **MEANT)
    assert not list(tmp_path.iterdir()), "no file is made by looking"
    search(Tpe(SPACE, seed=0, population=4, storage=open_study(run), **MEANT), evaluate, num_evaluations=2)
    return run


def test_another_study_is_named_with_its_file(run):
    check_journal(run, SPACE, **MEANT)
    before = (run / "study.journal").read_bytes()
    with pytest.raises(RunError, match=r"study\.journal: the study holds a search within .*; delete it, or name a new directory"):
        check_journal(run, SPACE, **{**MEANT, "limits": {"latency_ms": 6.0}})
    assert (run / "study.journal").read_bytes() == before


@pytest.mark.parametrize("content", [b"garbage\nmore of it\n", b"\x00\xff\n\n", b"5\n", b"{}\n"])
def test_a_damaged_one_is_named(run, content):
    (run / "study.journal").write_bytes(content)
    with pytest.raises(RunError, match=r"study\.journal: is damaged \(.*\); delete it, what was scored is known from candidates"):
        check_journal(run, SPACE, **MEANT)
    assert (run / "study.journal").read_bytes() == content
