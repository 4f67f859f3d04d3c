"""The README and docs/ are true: its code runs, its commands work, its recipes build."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from experiments.build import build
from experiments.cli import COMMANDS
from experiments.config import composed
from experiments.progress import Reporter
from experiments.settings import OuterSettings
from experiments.timed_networks import export_for_timing
from nas.protocols import Device, DifferentiableLatencyModel, Searcher
from nas.types import Measurement, Workload
from tests.support.commands import ROOT, command
from tests.support.readme import COMMAND_LINES, NAMED, TEXT, line_of


def run_python(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={"PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "3000"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name: str):
    """A recipe's file as the module that it would be."""
    module_name = name.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_loader(module_name, loader=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    exec(compile(NAMED[name], name, "exec"), module.__dict__)
    return module


def test_every_command_line_is_known():
    for line in COMMAND_LINES:
        first, *rest = shlex.split(line)
        assert first in ("make", "paretoformer", "python"), line
        if first == "paretoformer":
            assert rest[0] in COMMANDS
        if first == "make":
            assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("line", [c for c in COMMAND_LINES if c.startswith("paretoformer search")])
def test_search_commands_compose(line, tmp_path):
    words = [w for w in shlex.split(line)[1:] if w != "--multirun"]
    words = [w.split(",")[0] if "," in w and not {"[", "{"} & set(w) else w for w in words]
    done = command(*words, *([] if "--help" in words else ["--cfg", "job"]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in words[1:]:
        name, _, value = word.partition("=")
        if "." in name or name in ("budget_ms", "seed", "run"):
            assert OmegaConf.select(OmegaConf.create(done.stdout), name) == OmegaConf.from_dotlist([f"value={value}"]).value


def test_pareto_shows_a_finished_run(finished):
    before = (finished / "results.json").read_bytes()
    (finished / "pareto.png").unlink()
    done = command("pareto", f"run={finished}")
    assert done.returncode == 0, done.stderr
    assert "(derived: half of the largest network's latency), predicted" in done.stdout
    assert (finished / "pareto.png").stat().st_size > 10_000
    assert (finished / "results.json").read_bytes() == before


def test_devices_are_listed(tmp_path):
    done = command(*line_of("devices"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("local_cpu", "ssh", "hat_raspberrypi4", "qualcomm_"))


def test_a_space_is_shown(tmp_path):
    done = command(*line_of("space"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layer1-4.heads" in done.stdout


def test_measure_times_files_side_by_side(finished, tmp_path):
    models = sorted((finished / "shortlist").glob("*.onnx"))[:2]
    for name, model in zip(("a.onnx", "b.onnx"), models, strict=True):
        (tmp_path / name).write_bytes(model.read_bytes())
    words = [word.replace("tokens=64", "tokens=32").replace("rounds=10", "rounds=4") for word in line_of("measure")]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a.onnx" in done.stdout
    assert "b.onnx" in done.stdout


def test_calibrate_measures_on(tmp_path):
    words = [word.replace("minutes=5", "minutes=0.01") for word in line_of("calibrate run")]
    done = command(*words, "experiment=smoke", f"store={tmp_path / 'store'}", "torch_threads=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the upper bound is" in done.stdout


def test_calibrate_takes_recorded_tables(recorded, tmp_path):
    words = line_of("calibrate device=recorded device.table=hat")
    done = command(*[word.replace("data=DIR", f"data={recorded}") for word in words], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Raspberry Pi 4" in done.stdout


def test_a_space_is_searched_in_its_recorded_table(recorded, tmp_path):
    said = line_of("search space=hat device=recorded device.table=hat_raspberrypi4")
    words = [word.replace("=DIR", f"={recorded}") for word in said]
    done = command(*words, "searcher.evaluations=30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "asked 5000 ms" in done.stdout
    assert "takes seconds and finds the same" in " ".join(done.stdout.split())
    assert (tmp_path / "runs/hat/pareto.csv").is_file()
    assert (tmp_path / "runs/hat/.hydra/config.yaml").is_file()
    done = command("export", "run=runs/hat", cwd=tmp_path)
    assert done.returncode == 2
    assert "is a search in a table and has no networks" in done.stderr


def test_calibrate_takes_a_table_of_ones_own(tmp_path):
    rows = [f"{depth},{width},{0.1 * depth * width + 1}" for depth in range(1, 7) for width in (32, 48, 64, 96, 128)]
    (tmp_path / "mine.csv").write_text("\n".join(["depth,width,time", *rows]) + "\n")
    (tmp_path / "new.csv").write_text("depth,width\n3,80\n")
    done = command(*line_of("calibrate device=recorded device.table=mine"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.predicted.csv").read_text().startswith("depth,width,mean_ms,std_ms,lower_ms,upper_ms\n3.0,80.0,")


@pytest.mark.parametrize("rule", ["knee", "best", "fastest_within:1.5%"])
def test_export_of_another_network(finished, rule):
    done = command("export", f"run={finished}", f"pick={rule}")
    assert done.returncode == 0, done.stderr
    assert "test error" in done.stdout
    assert "model.onnx" in done.stdout


def test_the_answer_script_answers(finished, tmp_path):
    (tmp_path / "answer.py").write_text(NAMED["answer.py"])
    [folder, *_] = sorted((finished / "export").iterdir())
    answer = run_python("answer.py", folder, "Bitte geben Sie eine Zahl ein.", cwd=tmp_path).strip()
    labels = yaml.safe_load((folder / "labels.json").read_text())
    assert answer in labels
    assert len([line for line in NAMED["answer.py"].splitlines() if line and not line.startswith("#")]) <= 10


def test_the_python_script_finds_a_network(tmp_path):
    # three rounds and brief trainings: neither how noisy nor how good they were is judged, and other tests run beside this one
    script = NAMED["mine.py"]
    for word, more in {"num_held_out=4": "rounds=3", "shortlist=2": "most_steps=60"}.items():
        assert word in script
        script = script.replace(word, f"{word}, {more}")
    (tmp_path / "mine.py").write_text(script)
    out = run_python("mine.py", tmp_path / "run", "0.5", cwd=tmp_path)
    assert re.search(r"Kept: asked 0\.500 ms|BROKEN: asked 0\.500 ms", out)
    [model] = (tmp_path / "run" / "export").glob("*/model.onnx")
    assert model.stat().st_size > 1000


@pytest.fixture
def small(tmp_path):
    """A pipeline of the smoke experiment, not run."""
    config = composed("experiment=smoke", f"run={tmp_path / 'run'}", f"store={tmp_path / 'store'}")
    return build(config, report=Reporter(quiet=True))


def test_recipe_device(small, tmp_path):
    load("hardware/second_runtime.py")
    device: Device = hydra.utils.instantiate(OmegaConf.create(NAMED["conf/device/second_runtime.yaml"]))
    largest = small.family.space.largest()
    [exported] = export_for_timing(small.family, [largest], small.workload, tmp_path, device=device)
    assert all(time > 0 for time in device.run(exported.path, exported.inputs))
    assert len(device.fingerprint) == 12


def on_its_default(group, name):
    """What a file of the guide makes of the one choice that it begins with, built."""
    text = yaml.safe_load(NAMED[f"conf/{group}/{name}.yaml"])
    [default] = text.pop("defaults")
    return hydra.utils.instantiate(OmegaConf.merge(OmegaConf.load(ROOT / f"conf/{group}/{default}.yaml"), text), _convert_="all")


def test_recipe_space():
    make = on_its_default("space", "narrow")
    family = make(vocab_size=50, num_classes=2, max_tokens=8)
    assert family.space.name == "narrow"
    assert family.space.by_name["width"].options == (16, 32, 48)


def test_recipe_predictor(small):
    load("latency_models/flops_only.py")
    model = hydra.utils.instantiate(OmegaConf.create(NAMED["conf/latency_model/flops_only.yaml"]))
    assert isinstance(model, DifferentiableLatencyModel)
    archs = [small.family.space.sample(np.random.default_rng(seed)) for seed in range(10)]
    times = [0.1 * arch.size("depth") for arch in archs]
    workload = Workload(tokens=8)
    model.fit(
        small.family, [Measurement(a, "d", workload, ((t,),), ((1.0,),), 1.0, {}) for a, t in zip(archs, times, strict=True)]
    )
    prediction = model.predict(archs)
    assert np.all(prediction.upper_ms >= prediction.mean_ms)


def test_recipe_strategy(small):
    load("nas/searchers/hill.py")
    settings = on_its_default("searcher", "hill")
    assert settings.evaluations == OuterSettings().evaluations
    space = small.family.space
    searcher = settings.searcher(space, objectives=("error",), seed=0, initial=[space.largest()], limits={})
    assert isinstance(searcher, Searcher)
    assert searcher.ask() == space.largest()
    space.validate(searcher.ask())


def test_recipe_task():
    load("experiments/tasks/parity.py")
    task = hydra.utils.instantiate(OmegaConf.create(NAMED["conf/task/parity.yaml"]))
    assert task.labels == ("even", "odd")
    assert sum(len(b.targets) for b in task.batches("test", tokens_per_batch=512, seed=None)) == task.num_examples("test")


def test_the_tree_is_the_tree():
    for folder in ("conf", "experiments", "search_spaces", "hardware", "latency_models", "nas", "tests"):
        assert f"\n{folder}/ " in TEXT
        assert (ROOT / folder).is_dir()
