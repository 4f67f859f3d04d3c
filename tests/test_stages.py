"""What ships goes through stages: each is judged by its file, and what was done is read again."""

import dataclasses
import itertools
import json
import math
import re
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from experiments.card import stages_of
from experiments.checkpoints import TrainingCheckpoint
from experiments.file_scores import FileScores
from experiments.finishing import Finisher
from experiments.network_files import FOLDER, NetworkFiles
from experiments.progress import Reporter
from experiments.quantising import Quantising
from experiments.results import StageFigures
from experiments.run_directory import RunDirectory, RunError
from experiments.settings import FinishSettings, Settings
from experiments.shipping import _training_of
from experiments.stages import check_match, check_stages, judged
from nas.compute import Compute
from nas.finish.cut import Cut
from nas.finish.early_exit import EarlyExit
from nas.finish.learn import Learn
from nas.finish.low_rank import LowRank
from nas.finish.prune import Prune
from nas.finish.quantise import Quantise
from nas.finish.remembered import Remembered, Remembering
from nas.finish.teaching import Lesson
from nas.training import TrainConfig
from nas.types import Workload
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import vision_space
from tests.support.stages import FAST, Scale, Sum, finisher_of, operators, stopped_and_done, through


@pytest.fixture
def family():
    torch.manual_seed(0)
    space = encoder_space(width=(16, 32), depth=(1,), heads=(1, 2), ffn=(16, 32), attention=("full",))
    return EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)


def test_what_is_faster_takes_its_place(family, tmp_path):
    finisher, arch = finisher_of(family, tmp_path), family.space.largest()
    stages = {"low_rank": LowRank(train=FAST, energy=0.5), "quantise": Quantise(train=FAST)}
    low_rank, quantise = through(finisher, stages)
    assert low_rank.kept, low_rank.sentence
    assert low_rank.after.num_parameters < low_rank.before.num_parameters
    assert quantise.kept, quantise.sentence
    assert "ships, it is faster" in quantise.sentence
    assert quantise.facts == {"kind": "dynamic", "aware": True, "kept_blocks": []}
    assert quantise.before.latency_ms == pytest.approx(low_rank.after.latency_ms, rel=0.01)

    assert finisher.files.onnx_path(arch).name == f"{arch.id}.quantise.onnx"
    before, after = (operators(finisher.files.onnx_path(arch, tag=tag))["MatMulInteger"] for tag in ("", None))
    assert before == 0 < after
    ships, first = (finisher.times.verdict(arch, reference_ms=None, tag=tag) for tag in (None, ""))
    assert ships.latency_ms < first.latency_ms
    assert finisher.files.label(arch, "") == arch.id
    assert finisher.files.label(arch) == f"{arch.id}.quantise {quantise.identity}"
    assert finisher.scores.parity(arch, num_examples=8)["max_abs_difference"] > 0
    phases = [json.loads(line)["phase"] for line in (tmp_path / "measurements.jsonl").read_text().splitlines()]
    assert {"stage low_rank before", "stage quantise after"} <= set(phases)
    section = stages_of({"id": arch.id, "stages": finisher.files.stages(arch)["stages"]})
    assert section.count("\n- ") == 1 + 1
    assert quantise.sentence in section


def test_a_baseline_that_taught_is_named(family, tmp_path):
    class Guesses(Remembered):
        def forward(self, token_ids_BT, attention_mask_BT):
            return torch.zeros(len(token_ids_BT), 3)

    stages = {"longer": Learn(train=FAST, lesson=Lesson(beta=(1.0, 1.0), teacher="baseline"))}
    finisher = finisher_of(family, tmp_path, Scale(constant=True))
    [report] = through(finisher, stages, teachers=[Guesses("n-grams", [], torch.zeros(0, 3).numpy())])
    assert report.facts == {"taught_by": ["n-grams"]}
    assert report.sentence.endswith("; it learned from n-grams, too")
    [report] = through(finisher_of(family, tmp_path / "alone", Scale(constant=True)), stages, teachers=[])
    assert report.facts == {}


@pytest.mark.parametrize("stage", [Prune, Quantise])
def test_what_a_stage_finds_in_its_file_stands_beside_who_taught(family, tmp_path, stage):
    class Guesses(Remembered):
        def forward(self, token_ids_BT, attention_mask_BT):
            return torch.zeros(len(token_ids_BT), 3)

    finisher = finisher_of(family, tmp_path, Scale(constant=True))
    taught = stage(train=FAST, lesson=Lesson(beta=(1.0, 1.0), teacher="baseline"))
    [report] = through(
        finisher, {"prune" if stage is Prune else "quantise": taught}, teachers=[Guesses("n-grams", [], np.zeros((0, 3)))]
    )
    assert report.facts["taught_by"] == ["n-grams"]
    assert {"pattern_kept", "kept_blocks"} & set(report.facts)
    assert "; it learned from n-grams, too" in report.sentence


def test_what_went_wrong_in_a_stage_s_training_is_said(family, tmp_path, monkeypatch):
    finisher = finisher_of(family, tmp_path, Scale(constant=True))
    through(finisher, {})
    loss, calls = finisher.task.loss, itertools.count()
    failing = staticmethod(lambda *of: loss(*of) * (math.nan if next(calls) == 0 else 1.0))
    monkeypatch.setattr(type(finisher.task), "loss", failing)
    [report] = through(finisher, {"longer": Learn(train=FAST, lesson=Lesson())})
    assert report.facts["setbacks"][0] in report.sentence
    assert "; in its training the loss is nan at step 0" in report.sentence


def test_ranks_are_chosen_by_what_they_save_on_the_device(family, tmp_path):
    stages = {"low_rank": LowRank(train=FAST, by="latency", faster=0.2)}
    [report] = through(finisher_of(family, tmp_path / "scale"), stages)
    assert report.kept, report.sentence
    assert report.facts["ranks"]
    assert report.after.latency_ms <= 0.85 * report.before.latency_ms, "what small weights need beside is not saved"
    [report] = through(finisher_of(family, tmp_path / "lost", Scale(lost=True)), stages)
    assert not report.kept
    assert report.sentence.startswith("does not ship, ")
    assert report.sentence.endswith("the scale is gone")


def test_a_network_without_a_layer_ships(tmp_path):
    torch.manual_seed(0)
    space = encoder_space(width=(16,), depth=(1, 2), heads=(1,), ffn=(16,), attention=("full",))
    finisher = finisher_of(EncoderFamily(space, 20, 3, max_tokens=8, head_size=8), tmp_path)
    stages = {"cut": Cut(train=FAST), "low_rank": LowRank(train=FAST, energy=0.5), "quantise": Quantise(aware=False)}
    cut, low_rank, quantise = through(finisher, stages, predict_ms=lambda arch: arch.size("depth"))
    [gone] = cut.facts["layers_gone"]
    for report in (cut, low_rank, quantise):
        assert report.kept, report.sentence
    assert cut.sentence.endswith(f"; without layer {gone} of the network before")
    assert len(finisher.files.network(space.largest()).stack.layers) == 1
    assert finisher.scores.parity(space.largest(), num_examples=8)["equal_decisions"] > 0.5
    [nothing] = through(finisher_of(finisher.family, tmp_path / "nothing"), {"cut": Cut(train=FAST)})
    assert not nothing.kept
    assert "is predicted to be faster" in nothing.sentence


def test_what_was_done_is_read_and_other_settings_are_done_anew(family, tmp_path):
    finisher = finisher_of(family, tmp_path)
    files = {
        name: tmp_path / FOLDER / f"{family.space.largest().id}.{name}.safetensors" for name in ("distil", "low_rank")
    }  # fmt: skip
    distil = {"distil": Learn(train=FAST)}
    stages = {**distil, "low_rank": LowRank(train=FAST, energy=0.5)}
    first = through(finisher, stages)
    times = {name: path.stat().st_mtime_ns for name, path in files.items()}
    assert through(finisher, stages) == first
    assert times == {name: path.stat().st_mtime_ns for name, path in files.items()}
    through(finisher, {**distil, "low_rank": LowRank(train=FAST, energy=0.6)})
    assert times["distil"] == files["distil"].stat().st_mtime_ns
    assert times["low_rank"] < files["low_rank"].stat().st_mtime_ns
    through(finisher, {})
    assert finisher.files.onnx_path(family.space.largest()).name == f"{family.space.largest().id}.onnx"


def test_a_killed_stage_is_done_again(family, tmp_path, monkeypatch):
    finisher = finisher_of(family, tmp_path)
    stages = {"distil": Learn(train=FAST), "quantise": Quantise(train=FAST)}
    with monkeypatch.context() as patch:
        patch.setattr(Quantising, "replace_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            through(finisher, stages)
    assert not finisher.run.has(f"{FOLDER}/{family.space.largest().id}.quantise.json")
    _, quantise = through(finisher, stages)
    assert operators(finisher.files.onnx_path(family.space.largest(), tag="quantise"))["MatMulInteger"]
    assert quantise.kept


@pytest.mark.parametrize(
    "stages",
    [
        {"longer": Learn(train=TrainConfig(steps=9, tokens_per_batch=64, ema=0.5, accumulate=2), lesson=Lesson(check_every=2))},
        {"prune": Prune(train=TrainConfig(steps=9, tokens_per_batch=64), score="movement", pattern="2:4")},
        {"early_exit": EarlyExit(train=TrainConfig(steps=9, tokens_per_batch=64))},
    ],
    ids=lambda stages: next(iter(stages)),
)
@pytest.mark.parametrize("after", [2, 5, 8])
def test_a_training_that_is_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, stages, after):
    torch.manual_seed(0)
    space = encoder_space(width=(16,), depth=(2,), heads=(1,), ffn=(16,), attention=("full",))
    family = EncoderFamily(space, 20, 3, max_tokens=8, head_size=8)
    [(name, stage)], supernet = stages.items(), family.supernet()
    for folder in ("whole", "killed"):
        finisher = finisher_of(family, tmp_path / folder, Scale(constant=True))
        finisher.finish(space.largest(), supernet)
        if folder == "killed":
            stopped_and_done(lambda: through(finisher, stages), monkeypatch, after=after, steps=stage.train.steps)  # noqa: B023
        else:
            through(finisher, stages)
        assert not list((tmp_path / folder / FOLDER).glob("*.ckpt"))
    whole, killed = (tmp_path / folder / FOLDER / f"{space.largest().id}.{name}.safetensors" for folder in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.parametrize("after", [2, 8])
def test_a_network_of_the_short_list_goes_on_after_a_kill(family, tmp_path, monkeypatch, after):
    train, arch, supernet = TrainConfig(steps=9, tokens_per_batch=64), family.space.largest(), family.supernet()
    stopped, whole = (finisher_of(family, tmp_path / name, train=train, most_steps=9) for name in ("stopped", "whole"))
    whole.finish(arch, supernet)
    started, steps = time.perf_counter(), list[int]()
    work = lambda: stopped.finish(arch, supernet, on_step=lambda _, step: steps.append(step))  # noqa: E731
    stopped_and_done(work, monkeypatch, after=after, steps=9)
    assert steps == [*range(1, after + 1), *range(after, 10)]
    assert 0 < stopped.files.record(arch)["train_seconds"] <= time.perf_counter() - started
    first, second = (finisher.run / f"{finisher.files.name(arch)}.safetensors" for finisher in (stopped, whole))
    assert first.read_bytes() == second.read_bytes()
    assert not list((tmp_path / "stopped" / FOLDER).glob("*.ckpt"))


def test_a_training_is_not_gone_on_with_in_another_way_nor_from_a_damaged_file(family, tmp_path, monkeypatch):
    train, arch, supernet = TrainConfig(steps=3, tokens_per_batch=64), family.space.largest(), family.supernet()
    finisher = finisher_of(family, tmp_path, train=train, most_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(NetworkFiles, "export", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finisher.finish(arch, supernet)
    faster = dataclasses.replace(finisher, settings=dataclasses.replace(finisher.settings, inherit=1.0))
    steps = list[int]()
    faster.finish(arch, supernet, on_step=lambda _, step: steps.append(step))
    assert steps == [1, 2, 3]
    (tmp_path / FOLDER / f"{arch.id}.json").unlink()
    (tmp_path / FOLDER / f"{arch.id}.ckpt").write_bytes(b"half")
    with pytest.raises(RunError, match=rf"{arch.id}\.ckpt: is damaged; delete it to do this part again"):
        finisher.finish(arch, supernet)


def test_a_checkpoint_of_another_training_is_not_gone_on_with(family, tmp_path):
    run, compute = RunDirectory(tmp_path), Compute()
    TrainingCheckpoint(run, "a.ckpt", "one", compute, 0.0).write(lambda: {"step": 3})
    assert TrainingCheckpoint(run, "a.ckpt", "one", compute, 0.0).read() == {"step": 3}
    assert TrainingCheckpoint(run, "a.ckpt", "other", compute, 0.0).read() is None
    TrainingCheckpoint(run, "b.ckpt", "one", compute, 60.0).write(lambda: {"step": 3})
    assert not run.has("b.ckpt"), "too soon"
    (run / "a.ckpt").write_bytes(b"half")
    with pytest.raises(RunError, match=r"a\.ckpt: is damaged"):
        TrainingCheckpoint(run, "a.ckpt", "one", compute, 0.0).read()


def test_what_is_not_faster_is_said_so_and_does_not_ship(family, tmp_path):
    finisher = finisher_of(family, tmp_path, Scale(constant=True))
    train = TrainConfig(steps=2, tokens_per_batch=64, learning_rate=1e-9)
    prune, quantise = through(finisher, {"prune": Prune(train=train), "quantise": Quantise(aware=False)})
    for report in (prune, quantise):
        more_accurate = report.after.error_percent < report.before.error_percent
        assert report.kept == more_accurate
        assert ("in as much time" if more_accurate else "NEITHER FASTER NOR MORE ACCURATE") in report.sentence
    assert prune.facts["sparsity_percent"] == pytest.approx(50, abs=0.1)


def test_a_file_that_does_not_keep_its_pattern_does_not_ship(family, tmp_path, monkeypatch):
    stages = {"prune": Prune(train=FAST, pattern="2:4")}
    [report] = through(finisher_of(family, tmp_path / "kept"), stages)
    assert report.facts["pattern_kept"]
    assert "; 50.0 % of the weights of 6 matrices are zero in the pattern 2:4" in report.sentence

    def learns_on(network, school):
        Learn(train=FAST, lesson=Lesson()).apply(network, school)
        with torch.no_grad():
            network.stack.layers[0].ffn.up.weight[0, :2] = 0
        school.facts["undivided"] = []
        return network

    monkeypatch.setattr(Prune, "apply", lambda self, network, school: learns_on(network, school))
    [report] = through(finisher_of(family, tmp_path / "broken"), stages)
    assert not report.facts["pattern_kept"]
    assert not report.kept
    assert report.sentence.startswith("does not ship, its file does NOT KEEP THE PATTERN: ")


def test_a_device_that_is_lost_leaves_what_was_there(family, tmp_path):
    stages = {"quantise": Quantise(aware=False)}
    [report] = through(finisher_of(family, tmp_path, Scale(lost=True)), stages)
    assert not report.kept
    assert "NOT MEASURED, so it does not ship (the scale is gone)" in report.sentence
    [report] = through(finisher_of(family, tmp_path), stages)
    assert report.kept, "it is measured when the device is there"


@pytest.mark.parametrize("allowed", [2, 0])
def test_blocks_stay_as_they_are_where_fewer_bits_cost_too_much(family, tmp_path, monkeypatch, allowed):
    monkeypatch.setattr(Quantising, "_error", lambda self, path: 1000.0 * (operators(path)["MatMulInteger"] > allowed))
    [report] = through(finisher_of(family, tmp_path), {"quantise": Quantise(aware=False)})
    path = tmp_path / FOLDER / f"{family.space.largest().id}.quantise.onnx"
    assert operators(path)["MatMulInteger"] <= allowed
    assert report.facts["kept_blocks"]
    if allowed:
        assert operators(path)["MatMulInteger"] > 0


def figures(error_percent: float, latency_ms: float | None) -> StageFigures:
    return StageFigures(error_percent, latency_ms, 100, 10)


@pytest.mark.parametrize(
    ("before", "after", "kept", "words"),
    [
        ((10, 1.0), (10.4, 0.5), True, r"ships, it is faster: 1.00 ms before, 0.500 ms after \(2.00 ± 0.04 times as fast\)"),
        ((10, 1.0), (10.6, 0.5), False, r"does not ship, it loses 0.60 points and 0.5 are allowed"),
        ((10, 1.0), (9, 0.97), True, r"ships, it is more accurate in as much time"),
        ((10, 1.0), (10, 0.97), False, r"does not ship, it is NEITHER FASTER NOR MORE ACCURATE"),
        ((10, 1.0), (9, 1.2), False, r"does not ship, it is SLOWER"),
        ((10, 1.0), (9, None), False, r"NOT MEASURED"),
    ],
)
def test_the_verdict_on_a_stage(before, after, kept, words):
    found, sentence = judged(figures(*before), figures(*after), error_of_ratio=0.02, most_points_lost=0.5, lost="lost")
    assert found == kept
    assert re.search(words, sentence), sentence


def test_teaching_costs_steps(family):
    unused = cast(Any, SimpleNamespace())
    taught = FinishSettings(shortlist=1, train=TrainConfig(steps=100), most_steps=1000, lesson=Lesson(beta=(1, 1)))
    task = cast(Any, SimpleNamespace(sizes={"num_classes": 3}, batches=lambda split, **_: iter(range(1000))))
    finisher = Finisher(family, task, unused, Workload(tokens=8), Compute(), taught, 0, unused)
    largest, smallest = family.space.largest(), family.space.smallest()
    assert finisher.steps(largest) == 100
    plain = Finisher(family, unused, unused, Workload(tokens=8), Compute(), FinishSettings(train=TrainConfig(steps=100), most_steps=1000), 0, unused)  # fmt: skip  # noqa: E501
    ratio = plain.steps(smallest) / 100
    assert finisher.steps(smallest) == pytest.approx(100 / (1 / ratio + 1 / 3), abs=1)
    task.batches = lambda split, **_: iter(range(30))
    again = dataclasses.replace(finisher)
    assert again.steps(smallest) == pytest.approx((100 - 10) * ratio, abs=1), "each example is asked for once"
    shared = dataclasses.replace(again, settings=dataclasses.replace(taught, shortlist=5))
    assert shared.steps(smallest) == pytest.approx((100 - 10 / 5) * ratio, abs=1), "once for all of a short-list"
    of_words = dataclasses.replace(finisher, task=SimpleNamespace(**{**vars(task), "sizes": {"vocab_size": 3}}))
    assert of_words.steps(smallest) == finisher.steps(smallest)


def test_the_largest_network_is_finished_first_and_teaches(family, tmp_path):
    finisher = finisher_of(family, tmp_path, lesson=Lesson(beta=(1, 1)))
    smallest, largest, steps = family.space.smallest(), family.space.largest(), []
    assert finisher.to_finish(smallest) == (largest, smallest)
    finisher.finish(smallest, family.supernet(), on_step=lambda arch, step: steps.append((arch, step)))
    assert steps == [(arch, step + 1) for arch in (largest, smallest) for step in range(finisher.steps(arch))]
    [teacher] = finisher.teachers.values()
    assert isinstance(teacher, Remembering)
    known = len(teacher.answers)
    ends = {family.space.smallest().id, family.space.largest().id}
    another = next(arch for arch in map(family.space.sample, map(np.random.default_rng, range(9))) if arch.id not in ends)
    finisher.finish(another, family.supernet())
    assert len(teacher.answers) == known > 0, "asked once for all students"
    assert finisher.files.is_finished(family.space.largest())
    torch.testing.assert_close(
        finisher.files.network(family.space.smallest()).classifier.weight,
        finisher.files.to_train(family.space.smallest()).classifier.weight,
    )


def test_the_error_of_a_trained_network_is_that_of_its_file(family, tmp_path, monkeypatch):
    finisher, arch = finisher_of(family, tmp_path), family.space.smallest()
    monkeypatch.setattr(FileScores, "of_file", lambda self, path, split: {"error_percent": 100.0 * len(path.name)})
    finisher.finish(arch, family.supernet())
    assert finisher.files.record(arch)["error_percent"] == 100.0 * len(finisher.files.onnx_path(arch).name)


def test_a_stage_says_each_step_of_its_training_and_each_visit(family, tmp_path, monkeypatch):
    said = []

    @contextmanager
    def phase(self, title, total=None, *, done=0):
        yield lambda finished, words="": said.append((title, total, finished, words))

    monkeypatch.setattr(Reporter, "phase", phase)
    finisher = finisher_of(family, tmp_path)
    through(finisher, {"longer": Learn(train=FAST)})
    steps, visits = range(1, FAST.steps + 1), range(1, 9)
    assert said[: FAST.steps] == [("Stage longer", FAST.steps, step, "") for step in steps]
    words = [f"timed beside what was before: visit {visit} of 8" for visit in visits]
    assert said[FAST.steps :][:8] == [("Stage longer", FAST.steps, FAST.steps, w) for w in words]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["quantise", "prune"], r"stages: \['quantise', 'prune'\] are not in the order of"),
        (["sharpen"], r"stages: \['sharpen'\] are not in the order of"),
    ],
)
def test_stages_have_an_order(stages, message):
    with pytest.raises(ValueError, match=message):
        Settings(stages=dict.fromkeys(stages, Prune()))


def test_stages_that_cannot_work_are_refused_before_any_work(family):
    task, device = cast(Any, Sum()), Scale()
    decoder = DecoderFamily(decoder_space(width=(16,), depth=(1,), heads=(1,), ffn=(16,)), 20, 8)
    check_stages({"quantise": Quantise()}, task=task, family=decoder, device=device)
    with pytest.raises(ValueError, match=r"stages.quantise.kind: 'static' is not for decoders"):
        check_stages({"quantise": Quantise(kind="static")}, task=task, family=decoder, device=device)
    device.environment = {"precision": "int8"}
    with pytest.raises(ValueError, match=r"stages.quantise: the device scale does not run ONNX files in float32"):
        check_stages({"quantise": Quantise()}, task=task, family=family, device=device)
    task.sizes = {"vocab_size": 20}
    with pytest.raises(ValueError, match="class_weights: the task sum has no classes"):
        check_stages({"prune": Prune(lesson=Lesson(class_weights=True))}, task=task, family=family, device=device)
    with pytest.raises(ValueError, match=r"aware: training rounds as int8 does, and the kind is 'fp16'"):
        Quantise(kind="fp16")
    with pytest.raises(ValueError, match=r"lesson.teacher: 'front' is not one of \('largest', 'baseline'\), nor a folder"):
        FinishSettings(lesson=Lesson(teacher="front"))


def test_tokens_that_a_teacher_does_not_have_are_refused_before_any_work(family):
    sizes = {"width": (16,), "depth": (1, 2), "heads": (1,), "ffn": (16,), "attention": ("full",)}
    lesson, answers = Lesson(beta=(1, 1), match=["answers", "relations"]), Lesson(beta=(1, 1))
    for word, space in (
        ("pool", encoder_space(**sizes, pool=(2, 3))), ("keep_after_1", encoder_space(**sizes, keep=(50, 100), keep_after=1)),
        ("patch", vision_space(**sizes, patch=(4, 7))),
    ):  # fmt: skip
        check_match("finish.lesson", answers, space)
        why = rf"\['answers', 'relations'\] compares tokens, and in the space {space.name} {word} chooses which tokens there are"
        with pytest.raises(ValueError, match=rf"finish.lesson.match: {why}; allowed is \['answers'\]"):
            check_match("finish.lesson", lesson, space)
        stages, others = {"distil": Learn(lesson=lesson)}, SimpleNamespace(space=space)
        with pytest.raises(ValueError, match=r"stages.distil.lesson.match: "):
            check_stages(stages, task=cast(Any, Sum()), family=cast(Any, others), device=Scale())
    for space in (family.space, encoder_space(**sizes, pool=(2, 4)), vision_space(**sizes, patch=(4,))):
        check_match("finish.lesson", lesson, space)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "70 steps for the short-list, and no further: stages go to what a search ships"),
        ([{"name": "longer", "kept": True}, {"name": "cut", "kept": False}], "70 steps for the short-list, then by longer"),
        ([{"name": "longer", "kept": False}], "70 steps for the short-list; what came after did not ship: longer"),
    ],
)
def test_how_a_network_was_trained_in_words(stages, said):
    files = SimpleNamespace(
        is_finished=lambda arch: True, record=lambda arch: {"train_steps": 70}, stages=lambda arch: {"stages": stages}
    )
    assert _training_of(SimpleNamespace(ships=None, files=files), None) == said
