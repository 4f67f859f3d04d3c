"""Mistakes of a user: exit code 2, one clear line, no traceback, nothing damaged, before any training."""

import json
import os
import shutil

import pytest

from experiments import cli, run_directory
from experiments.run_directory import RunDirectory, RunError
from tests.support.commands import refused

SMOKE = ("search", "experiment=smoke")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("serch",),
            "'serch' is not one of ('search', 'pareto', 'export', 'space', 'generate', 'devices', 'calibrate', ",
        ),
        ((*SMOKE, "budgt_ms=3"), "there is no value 'budgt_ms'; near it: budget_ms, budget_mj, budget_mib"),
        ((*SMOKE, "+budget=3"), "there is no value 'budget'; near it: budget_ms, budget_mj, budget_mib"),
        ((*SMOKE, "+foo=3"), "there is no value 'foo'; there are seed, budget_ms, budget_mib, budget_mj, "),
        ((*SMOKE, "init.train.stpes=3"), "there is no value 'init.train.stpes'; near it: init.train.steps"),
        ((*SMOKE, "width=[32]", "spce=vision"), "there is no value 'width'; near it: space.width"),
        ((*SMOKE, "task=langauges"), "task: there is no 'langauges'; near it: languages, languages_sample. Available options in"),
        ((*SMOKE, "stages=[longr]"), "stages: there is no 'longr'; near it: longer. Available options in 'stages': cut distil"),
        ((*SMOKE, "stages"), "'stages' is not NAME=VALUE"),
        (
            (*SMOKE, "space=decoder_only"),
            "Available options in 'space': decoder decoder_tiny deit_tiny",
        ),
        ((*SMOKE, "budget_ms=5ms"), "paretoformer: budget_ms: '5ms' is not a number\n"),
        ((*SMOKE, "budget_ms="), "paretoformer: budget_ms: '' is not a number\n"),
        ((*SMOKE, "batch=1.5"), "paretoformer: batch: '1.5' is not a whole number\n"),
        ((*SMOKE, "surroundings.threads=[a]"), "paretoformer: surroundings.threads: 'a' is not a whole number\n"),
        ((*SMOKE, "objectives=error"), "objectives: 'error' is not a list; write objectives=[error]"),
        (
            (*SMOKE, "budget_ms=0,5"),
            "budget_ms: '0,5' are several values; a decimal takes a point, a list is budget_ms=[0,5]",
        ),
        ((*SMOKE, "budget_ms=-1"), "budget_ms: -1.0 is not positive"),
        ((*SMOKE, "space.attention=[full,cross]"), "attention: 'cross' is not one of ('full', 'window', 'block'"),
        ((*SMOKE, "space.width=[64,32]"), "width: options (64, 32) must be positive and ascending"),
        ((*SMOKE, "device.threads=999"), "threads: 999 is not between 1 and"),
        ((*SMOKE, "searcher.proposals=-1"), "proposals: -1 is negative"),
        ((*SMOKE, "searcher=proposals", "searcher.proposals=0"), "searcher: proposals: there are none to score"),
        ((*SMOKE, "searcher.population=1"), "searcher: population: 1 is not at least 2"),
        (
            (*SMOKE, "searcher=regularised_evolution", "searcher.make_searcher.tournament=2"),
            "searcher: tournament: 2 is not in (0, 1]",
        ),
        (
            (*SMOKE, "+searcher.make_searcher.size=2"),
            "searcher.make_searcher.size: SurrogateEvolution does not take it, but space, objectives, ",
        ),
        (
            (*SMOKE, "searcher.make_searcher._target_=nas.searchers.foo.Foo"),
            "searcher.make_searcher._target_: there is no nas.searchers.foo.Foo",
        ),
        ((*SMOKE, "seed=99999999999999999999999"), "seed: 99999999999999999999999 is not between 0 and 4294967295"),
        ((*SMOKE, "budget_ms=inf"), "budget_ms: inf is no limit; null stands for none"),
        ((*SMOKE, "budget_ms=nan"), "budget_ms: nan is not positive"),
        ((*SMOKE, "space.width=32"), "space.width: 32 is not a list; write space.width=[32]"),
        ((*SMOKE, "searcher.evaluations=many"), "searcher.evaluations: 'many' is not a whole number"),
        ((*SMOKE, "init.train.ema=low"), "init.train.ema: 'low' is not a number"),
        ((*SMOKE, "+space.widht=[32]"), "space.widht: encoder does not take it, but vocab_size, num_classes, max_tokens, "),
        ((*SMOKE, "+init.train.stpes=9"), "init.train.stpes: TrainConfig does not take it, but steps, tokens_per_batch, "),
        ((*SMOKE, "task._target_=experiments.nowhere"), "task._target_: there is no experiments.nowhere"),
        ((*SMOKE, "task=text_file", f"task.path={__file__}"), "task: test_bad_input does not go with the space encoder_tiny; it"),
        ((*SMOKE, "tokens=0"), "tokens: 0 is not at least 1"),
        ((*SMOKE, "train_on=cuda:99"), "train_on: 'cuda:99' is not one of ('auto', 'cpu'"),
        ((*SMOKE, "searcher.measure=-1"), "measure: -1 is negative"),
        ((*SMOKE, "objectives=[error,speed]"), "objectives: 'speed' is not one of ('error', 'latency_ms', 'memory_mib', "),
        ((*SMOKE, "objectives=[latency_ms,memory_mib]"), "must hold 'error' and something to weigh it against"),
        ((*SMOKE, "objectives=[error,energy_mj]"), "objectives: energy_mj is not measured by local_cpu; device=cuda with"),
        ((*SMOKE, "budget_mj=-1"), "budget_mj: -1.0 is not positive"),
        ((*SMOKE, "budget_mj=3"), "budget_mj: 3.0: energy is not measured by local_cpu; device=cuda with device.energy_seconds"),
        ((*SMOKE, "budget_mib=0.001"), "budget_mib: 0.001 is below what any network of the space needs; "),
        ((*SMOKE, "darts.steps=0"), "steps: 0 is not positive"),
        ((*SMOKE, "darts.logit_rate=.nan"), "darts.logit_rate: '.nan' is not a number"),
        ((*SMOKE, "task._target_=os.system"), "task._target_: os.system is not a part of experiments, hardware"),
        (
            (*SMOKE, "task=csv", "task.text=a"),
            "task.label, task.path: have no value; give them as task.label=… task.path=…",
        ),
        ((*SMOKE, "task.label=a"), "task is to be one of csv, text_table, which have it"),
        ((*SMOKE, "--budget_ms=3"), "--budget_ms=3: values are given without dashes, as budget_ms=VALUE"),
        ((*SMOKE, "--budget-ms", "3"), "--budget-ms: values are given without dashes, as budget_ms=VALUE"),
        (
            (*SMOKE, "task=arrays", "space=vision_tiny", f"task.path={__file__}"),
            "test_bad_input.py is not an .npz file; numpy.savez(",
        ),
        (("search", "task=csv", "task.path=/nowhere.csv", "task.text=a", "task.label=b"), "/nowhere.csv"),
        (("pareto", "run=/nowhere"), "run: /nowhere is not the directory of a run"),
        (("pareto",), "run=… is missing"),
        (("export", "run=/nowhere", "chose=knee"), "'chose=knee' is not one of run=…, pick=…"),
    ],
)
def test_before_anything_is_done(words, message, tmp_path):
    if words[0] == "search":
        words = (*words, f"run={tmp_path / 'run'}")
    refused(*words, message=message)
    assert not (tmp_path / "run").exists()


def test_several_searches_by_a_flag_anywhere(tmp_path):
    refused(*SMOKE, "--multirun", "searcher.proposals=-1,1", f"run={tmp_path / 'run'}", message="proposals: -1 is negative")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["multirun.yaml"]  # Hydra's


def test_a_folder_that_was_there_stays(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    os.utime(run, (0, 0))
    refused(*SMOKE, "searcher.proposals=-1", f"run={run}", message="proposals: -1 is negative")
    assert run.is_dir()


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        ("export", "tolerance=abc", "tolerance: 'abc' is not a number"),
        ("export", "pick=", "pick: has no value, it takes a text"),
        ("export", "replace=perhaps", "replace: 'perhaps' is not true or false"),
        ("export", "pick=[a", "pick: '[a' is not a text"),
        ("export", "pick=${x}", "pick: '${x}' is not a text"),
        ("measure", "batch=1.5", "batch: '1.5' is not a whole number"),
        ("measure", "dims=3", "dims: '3' is not numbers by names like {height:224}"),
    ],
)
def test_a_word_s_value_is_of_its_kind(command, word, message, capsys):
    assert cli.main([command, word]) == 2
    assert capsys.readouterr().err == f"paretoformer: {message}\n"


def test_a_run_where_a_file_is(tmp_path):
    path = tmp_path / "file"
    path.touch()
    refused(*SMOKE, f"run={path}", message=f"paretoformer: {path}: File exists\n")


def test_a_csv_without_the_column(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("sentence,stars\nhello,1\nworld,2\n")
    words = ("search", "task=csv", f"task.path={path}", "task.text=text", "task.label=stars", f"run={tmp_path / 'run'}")
    refused(*words, message="sentence")


def test_a_budget_below_the_fastest_network(finished, tmp_path):
    """Known after the calibration and before any training; names the fastest and its time."""
    store = finished.parent / "store"
    out = refused(*SMOKE, "budget_ms=0.0001", f"run={tmp_path / 'run'}", f"store={store}", message="is below the fastest network")
    assert "Training" not in out


def test_a_directory_with_other_things_in_it(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear to somebody")
    refused(*SMOKE, f"run={tmp_path / 'run'}", message="holds thesis.tex and no run.json")
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name != ".lock"] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("supernet.safetensors", "supernet.safetensors: is damaged; delete it to do this part again"),
        ("proposals.json", "proposals.json: is damaged"),
        ("compute.json", "compute.json: is damaged"),
    ],
)
def test_a_damaged_file_of_a_run(finished, tmp_path, name, message):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).write_bytes(b"\x00 not what it was")
    words = (*SMOKE, f"run={run}", f"store={finished.parent / 'store'}", "torch_threads=1")
    refused(*words, message=message)
    assert (run / name).read_bytes() == b"\x00 not what it was"


def test_a_damaged_line_of_measurements(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    lines = (run / "measurements.jsonl").read_text().splitlines()
    (run / "measurements.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    words = (*SMOKE, f"run={run}", f"store={finished.parent / 'store'}", "torch_threads=1")
    refused(*words, message="measurements.jsonl: line 2 is damaged")


def test_results_that_are_damaged(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    record = json.loads((run / "results.json").read_text())
    del record["verdict"]
    (run / "results.json").write_text(json.dumps(record))
    refused("pareto", f"run={run}", message="holds damaged results (Results: 'verdict' is missing)")


def test_two_processes_cannot_share_a_run(finished):
    with RunDirectory(finished).lock():
        refused("export", f"run={finished}", "pick=knee", message="is in use by another process")


def test_a_full_disk_is_said_before_work_starts(tmp_path, monkeypatch):
    class Usage:
        free = 5 * 2**20

    monkeypatch.setattr(run_directory.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(RunError, match="has 5 MiB left, a run needs 300 MiB"):
        RunDirectory(tmp_path / "run").claim({"task": "languages"})
    assert not list((tmp_path / "run").iterdir())


def test_a_line_that_a_kill_cut_off_is_removed(tmp_path):
    run = RunDirectory(tmp_path)
    run.append("lines.jsonl", {"a": 1})
    with (tmp_path / "lines.jsonl").open("a") as file:
        file.write('{"a": 2, "b"')
    assert run.read_lines("lines.jsonl") == [{"a": 1}]
    run.append("lines.jsonl", {"a": 3})
    assert run.read_lines("lines.jsonl") == [{"a": 1}, {"a": 3}]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_json("value.json", {"a": 1})

    def interrupted() -> None:
        with run.replacing("value.json") as path:
            path.write_text('{"a"')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert run.read_json("value.json") == {"a": 1}
