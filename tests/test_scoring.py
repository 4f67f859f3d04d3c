"""Scoring in several processes: the same errors, and what is left when one of them ends, or all."""

import multiprocessing
import signal
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file

from experiments.build import build
from experiments.config import composed
from experiments.progress import Reporter
from experiments.run_directory import CANDIDATES, SUPERNET
from experiments.scoring import WorkerError, check_processes
from experiments.settings import OuterSettings
from nas.searchers.random import Random
from nas.supernet import state_of
from tests.support.commands import refused
from tests.support.exploring import explorer, lines


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    made = build(composed("experiment=smoke", f"run={tmp_path_factory.mktemp('parts') / 'run'}"), report=Reporter(quiet=True))
    save_file(state_of(made.family.supernet()), made.run / SUPERNET)
    return made


def in_processes(pipeline, calibration, processes):
    settings = replace(pipeline.settings, outer=replace(pipeline.settings.outer, processes=processes))
    one = replace(explorer(pipeline, calibration), settings=settings)
    one.supernet.load_state_dict(load_file(one.run / SUPERNET))
    return one


def workers():
    """What this process began to score with."""
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_two_processes_find_what_one_finds_and_leave_what_they_scored(pipeline, calibrated):
    space = pipeline.family.space
    alone, together = (in_processes(pipeline, calibrated, processes) for processes in (1, 2))
    found = alone._phase("search", Random(space, seed=0), 6)
    (pipeline.run / CANDIDATES).unlink()
    with together.scoring:
        searcher = Random(space, seed=0)
        again = together._phase("search", searcher, 6)
        assert [(c.arch, c.objectives) for c in again] == [(c.arch, c.objectives) for c in found]
        assert all(c.seconds > 0 for c in again)
        assert len(workers()) == 2

        for worker in workers():
            worker.send_signal(signal.SIGINT)  # Ctrl-C in a terminal is for all processes, and this one says what it means
        two = [space.sample(np.random.default_rng(seed)) for seed in (101, 102)]
        together.scoring.ahead(two)
        assert [together.scoring(arch)[0] for arch in two] == [alone.scoring(arch)[0] for arch in two]

        begin = together.scoring.ahead

        def ending(archs):
            """The first is never scored, as one process of two is busy; the others are, and then that process is killed."""
            begin(archs)
            running = together.scoring._running
            running[archs[0].id] = archs[0], together.scoring._pool._executor.submit(time.sleep, 60)
            deadline = time.monotonic() + 20
            while len(together.scoring.finished()) < len(archs) - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            workers()[0].kill()

        together.scoring.ahead = ending
        with pytest.raises(WorkerError, match=r"searcher\.processes: a process that scored architectures has ended"):
            together._phase("search", searcher, 10)
    assert workers() == []
    kept = [line["id"] for line in lines(pipeline.run / CANDIDATES)]
    assert len(set(kept)) == len(kept) == 9, "all but the first of four"
    whole = alone._phase("search", Random(space, seed=0), 10)
    assert {c.arch.id for c in whole} > set(kept)


def test_processes_that_end_at_once_when_the_first_one_is_killed(pipeline, calibrated):
    """By a kill that nobody can catch, in the middle of the work."""
    one = in_processes(pipeline, calibrated, 2)
    process = multiprocessing.get_context("fork").Process(target=_begin_and_sleep, args=(one,))
    process.start()
    begun = time.monotonic()
    orphans = []
    while len(orphans) < 2 and time.monotonic() < begun + 20:
        orphans = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(orphans) == 2
    assert psutil.wait_procs(orphans, timeout=20)[1] == []


def _begin_and_sleep(one):
    one.scoring.ahead([one.family.space.sample(np.random.default_rng(seed)) for seed in range(4)])
    time.sleep(60)


def test_what_no_processes_can_do_is_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match="processes: 0 is not at least 1"):
        OuterSettings(processes=0)
    with pytest.raises(ValueError, match=r"searcher\.processes: 999 is not between 1 and \d+, the cores of this machine"):
        check_processes(999, pipeline.family, pipeline.task)

    class Own:
        name = "mine"

    with pytest.raises(ValueError, match=r"searcher\.processes: the task mine cannot be sent to another process: .*Own"):
        check_processes(2, pipeline.family, Own())
    refused(
        "search", "experiment=smoke", "searcher.processes=999", f"run={tmp_path / 'run'}", message="searcher.processes: 999 is"
    )
