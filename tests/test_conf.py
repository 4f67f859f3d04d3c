"""Every YAML in `conf/` composes and builds, and repeats the defaults of the constructor that it calls."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from inspect import Parameter
from typing import Any

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.build import build
from experiments.config import SearchConfig, composed
from experiments.progress import Reporter
from experiments.settings import Settings
from experiments.signatures import check_values
from hardware.visit import Visit, VisitOptions
from nas.encoding import Encoding
from nas.protocols import DifferentiableLatencyModel, Family
from nas.space import SearchSpace
from nas.types import Workload
from tests.support.commands import RECORDED, ROOT

GROUPS = sorted(p for p in (ROOT / "conf").iterdir() if p.is_dir() and p.name != "__pycache__")
CHOICES = [(group.name, path.stem) for group in GROUPS for path in sorted(group.glob("*.yaml"))]
MISSING = {
    ("task", "text_file"): ["task.path=mine.txt"],
    ("task", "csv"): ["task.path=mine.csv", "task.text=text", "task.label=label"],
    ("task", "text_table"): ["task.path=mine.jsonl", "task.text=text", "task.label=label"],
    ("task", "number_table"): ["task.path=mine.csv", "task.text=text", "task.number=price"],
    ("task", "tag_table"): ["task.path=mine.conll", "task.words=1", "task.tags=-1"],
    ("task", "news"): ["task.path=mine.whl"],
    ("task", "movie_snippets"): ["task.path=mine.zip"],
    ("task", "movie_ratings"): ["task.path=mine.zip"],
    ("task", "bible"): ["task.path=mine.whl"],
    ("task", "images"): ["task.path=folder"],
    ("task", "image_folder"): ["task.path=folder"],
    ("task", "signal"): ["task.path=mine.tar.gz"],
    ("task", "arrays"): ["task.path=mine.npz"],
    ("experiment", "ratings"): ["task.path=mine.zip"],
    ("experiment", "images"): ["task.path=folder"],
    ("experiment", "signal"): ["task.path=mine.tar.gz"],
    ("init", "pretrained"): ["init.path=checkpoint"],
    ("experiment", "pretrained"): ["init.path=checkpoint"],
    ("device", "ssh"): ["device.host=board"],
    ("device", "adb"): ["device.serial=phone-5"],
    ("device", "recorded"): ["device.table=aws_c6i", f"device.data={RECORDED}"],
}
SIZES = {  # what a family may ask of a task, and then the tokens of its workload
    "vocab_size": 60, "num_classes": 3, "max_tokens": 16, "input_shape": (2, 28, 28), "mean": (0.0, 1.0), "std": (1.0, 2.0),
}  # fmt: skip
SIDES = {"deit_tiny": (2, 32, 32)}  # of inputs, where the patches need others
DIFFERENT = {  # what a choice says on purpose other than the constructor that it calls
    ("darts", "second_order", "unroll_rate"),
    ("finish", "distilled", "lesson.teacher"),
    ("finish", "halving", "rungs"),
    ("init", "pretrained", "path"),
    ("init", "pretrained", "train.learning_rate"),
    ("init", "sandwich", "rule"),
    ("init", "sandwich", "train.steps"),
    ("latency_model", "flops", "costs"),
    ("latency_model", "flops", "pooled"),
    ("latency_model", "gradient_boosting", "regressor.regressor.min_samples_leaf"),
    ("latency_model", "parameters", "costs"),
    ("latency_model", "parameters", "pooled"),
    ("latency_model", "roofline", "pooled"),
    *(("task", "languages_sample", size) for size in ("vocab_size", "max_tokens", "max_examples")),
    ("stages", "longer", "train.steps"),
    ("stages", "longer", "train.learning_rate"),
    ("stages", "longer", "lesson.beta"),
    ("stages", "longer", "lesson.teacher"),
    ("stages", "longer", "lesson.temperature"),
    *(("searcher", name, "make_searcher") for group, name in CHOICES if group == "searcher" and name != "surrogate_evolution"),
}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes(group, name):
    config = composed(f"{group}={name}", "run=unused", *MISSING.get((group, name), []))
    assert not OmegaConf.missing_keys(config)
    text = (ROOT / "conf" / group / f"{name}.yaml").read_text()
    assert text.startswith("# "), "it begins with what it is"


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "task"])
def test_a_first_look_goes_with_every_task(name):
    config = composed("experiment=smoke", f"task={name}", "run=unused", *MISSING.get(("task", name), []))
    check_values(config.task, "task")


@pytest.mark.parametrize(("group", "name"), [c for c in CHOICES if c[0] not in ("task", "experiment", "space")])
def test_every_component_builds(group, name, request):
    if name == "recorded":
        request.getfixturevalue("recorded")
    node = composed(f"{group}={name}", "run=unused", *MISSING.get((group, name), []))[group]
    node = node[name] if group == "stages" else node
    hydra.utils.instantiate(node, _convert_="all")


@pytest.mark.parametrize(("group", "name"), [c for c in CHOICES if c[0] not in ("experiment", "space")])
def test_every_component_says_all_that_its_constructor_takes_with_its_defaults(group, name):
    node = OmegaConf.to_container(composed(f"{group}={name}", "run=unused"), resolve=True)[group]
    node = node[name] if group == "stages" else node
    assert node.keys() - {"_target_", "_partial_"} == defaults_of(node["_target_"]).keys()
    differ = {key for key, said, default in said_and_defaults(node) if plain(said) != plain(default)}
    assert differ == {key for *choice, key in DIFFERENT if choice == [group, name]}


def said_and_defaults(node: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each key of a node whose constructor has a default, what the node says and that default. Settings within the node are told
    one by one, against those of the default; other components within it by their target, and against their own constructor."""
    defaults = defaults_of(node["_target_"])
    for key in node.keys() - {"_target_", "_partial_"}:
        name, said, default = within + key, node[key], defaults[key]
        if is_dataclass(default):
            built = hydra.utils.instantiate(said, _convert_="all")
            assert type(built) is type(default), name
            yield from ((f"{name}.{f.name}", getattr(built, f.name), getattr(default, f.name)) for f in fields(built))
            continue
        if isinstance(said, dict):
            yield from said_and_defaults(said, f"{name}.")
            said = hydra.utils.get_object(said["_target_"])
        if default is not Parameter.empty:
            yield name, said, default


def defaults_of(target: str) -> dict[str, Any]:
    """What each parameter of a constructor, and of the visits that it makes, is by default; `Parameter.empty`: it has none."""
    called = hydra.utils.get_object(target)
    defaults = {name: parameter.default for name, parameter in inspect.signature(called).parameters.items()}
    if defaults.pop("visit", None):
        defaults |= {name: getattr(Visit, name) for name in VisitOptions.__annotations__}
    made = fields(called) if is_dataclass(called) else ()
    return defaults | {field.name: field.default_factory() for field in made if field.init and callable(field.default_factory)}


def plain(value: Any) -> Any:
    """A value with tuples for the lists of YAML."""
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", [n for g, n in CHOICES if g == "space" and n != "hat"])
def test_family_contract(name, tmp_path):
    """What every space with networks must keep; the law of its supernet is in test_supernet."""
    make = hydra.utils.instantiate(composed(f"space={name}", "run=unused").space, _convert_="all")
    given = SIZES | {"input_shape": SIDES.get(name, SIZES["input_shape"])}
    sizes = {size: value for size, value in given.items() if size in inspect.signature(make.func).parameters}
    family = make(**sizes)
    answer = (1, 3) if "num_classes" in sizes else (1, 12, 60)
    assert isinstance(family, Family)
    assert isinstance(family.space, SearchSpace)
    largest, *_ = family.hand_designed().values()
    assert largest == family.space.largest()
    workload = Workload(tokens=getattr(family, "num_positions", 12))
    example = family.example_input(workload)
    for seed in range(3):
        arch = family.space.sample(np.random.default_rng(seed))
        network = family.network(arch)
        assert network(*example.values()).shape == answer
        operators = family.operators(Encoding.of(family.space, [arch]), workload)
        counted = sum(float(np.sum(operator.parameters)) for operator in operators)
        assert counted == sum(p.numel() for p in network.parameters())
    with pytest.raises(
        ValueError, match=r"tokens: 99 of the workload are (more than max_tokens 16|not the (784|1024) positions)"
    ):
        family.example_input(Workload(tokens=99))


def test_the_default_search_builds(tmp_path):
    pipeline = build(composed(f"run={tmp_path / 'run'}", "task.max_examples=3000"), report=Reporter(quiet=True))
    assert isinstance(pipeline.latency_model, DifferentiableLatencyModel)
    assert pipeline.family.space.log10_size() >= 9
    assert list(pipeline.settings.stages) == ["longer"], "which a script does not have unless it says so"
    assert pipeline.settings == Settings(outer=pipeline.settings.outer, stages=pipeline.settings.stages)
    made, default = pipeline.settings.outer.make_searcher, Settings().outer.make_searcher
    assert (made.func, made.keywords) == (default, {})
    assert replace(pipeline.settings.outer, make_searcher=default) == Settings().outer


def test_the_schema_knows_every_group():
    groups = {group.name for group in GROUPS}
    assert groups <= set(SearchConfig.__dataclass_fields__)


def test_targets_outside_our_packages_are_refused(tmp_path):
    for override in ("task._target_=os.system", "searcher.make_searcher._target_=builtins.eval"):
        with pytest.raises(ValueError, match=r"_target_: (os.system|builtins.eval) is not a part of experiments"):
            build(composed(override, f"run={tmp_path / 'run'}"), report=Reporter(quiet=True))


@pytest.mark.parametrize("module", ["experiments.cli", "experiments.search", "experiments.results", "experiments.arguments"])
def test_commands_start_without_torch(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
