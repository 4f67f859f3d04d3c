"""The benchmarks: what they print for programs, what they refuse, and that the reference to beat is a sound one."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments import bench
from experiments.benchmarks import (
    beside_hand,
    compared,
    darts,
    do_it_yourself,
    inherited,
    on_tasks,
    search,
    spaces,
    supernet,
    tabular,
)
from experiments.benchmarks.beside_hand import BesideHand
from experiments.benchmarks.first_light import Fronts, Point, picks_kept_percent, same_layers
from experiments.benchmarks.int8_products import int8_of_products, products_of
from experiments.benchmarks.ship import Row, Trial, summary
from experiments.formatting import rounded
from experiments.progress import Reporter
from experiments.tasks.languages import Languages
from experiments.timed_networks import export_for_timing
from hardware.local_cpu import LocalCpu
from hardware.local_torch import num_threads
from nas.formats import open_session
from nas.types import Workload
from search_spaces import hat
from search_spaces.encoder import EncoderFamily, encoder_space

STEPS = (
    "relaxed_step_ratio", "relaxed_step_ratio_256", "darts_iteration_ratio", "latency_term_ratio", "sandwich_step_ratio",
    "sandwich_step_ratio_1_random",
)  # fmt: skip
NAMES = "'supernet', 'first_light', 'latency', 'spaces', 'ship', 'darts', 'search', 'exhaustive', 'pretrained', 'ablation'"
FIRST_LIGHT = {
    "seconds_main_job", "hypervolume_ours", "hypervolume_random", "hypervolume_main_job", "hypervolume_do_it_yourself",
    "hypervolume_ratio_to_random", "test_error_percent_main_job",
    "hypervolume_ratio_to_do_it_yourself", "test_error_percent_ours", "test_error_percent_random",
    "test_error_percent_do_it_yourself", "ngram_baseline_error_percent", "budgets_kept", "budgets_asked",
    "median_budget_use_percent", "predictor_spearman", "predictor_mape_percent", "predictor_within_10_percent",
    "bound_coverage_percent", "picks_kept_percent", "num_fit", "num_held_out", "num_measured", "num_seeds", "verdicts_kept",
}  # fmt: skip


def test_supernet_ends_with_its_figures(capsys, tmp_path):
    assert bench.main(["supernet", "preset=tiny", f"out={tmp_path / 'figures.json'}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    figures = json.loads(last)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    ratios = {name + suffix for name in STEPS for suffix in ("", "_wall", "_chosen", "_wall_chosen")}
    memory = {"peak_memory_ratio", "peak_memory_ratio_chosen"}
    assert set(figures) == ratios | memory | {"tokens_per_step", "tokens_per_small_step"}
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    assert (figures["tokens_per_step"], figures["tokens_per_small_step"]) == (16, 8)


def test_peak_memory_is_the_same_every_time():
    family = supernet.default_family()
    with num_threads(1):
        steps = supernet.Steps(family, supernet.random_batch(2, 8), supernet.WRITTEN_OUT)
        first, *others = [steps.peak_memory_ratio() for _ in range(3)]
    assert others == pytest.approx([first] * 2, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], rf"bench: '' is not one of \({NAMES}\)"),
        (["supernets"], rf"bench: 'supernets' is not one of \({NAMES}\)"),
        (["supernet", "preset=huge"], r"preset: 'huge' is not one of \('tiny', 'quick', 'full'\)"),
        (["first_light", "preset=huge"], r"preset: 'huge' is not one of \('quick', 'full'\)"),
        (["supernet", "rounds=3"], r"'rounds=3' is not one of preset=…, out=…"),
        (["supernet", "out=/no/such/folder/figures.json"], r"out: the folder of '/no/such/folder/figures.json' does not exist"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        bench.main(words)


def test_a_figure_that_could_not_be_computed_is_null():
    assert rounded({"a": 1.23456, "b": float("nan"), "c": 12345, "d": math.inf}) == {
        "a": 1.235,
        "b": None,
        "c": 12345,
        "d": None,
    }


def test_do_it_yourself_finds_a_front(tmp_path):
    task = Languages(max_examples=3000, vocab_size=1000, max_tokens=32)
    with num_threads(1):
        front = do_it_yourself.run(task, seconds=6, budget_ms=20.0, seed=0, directory=tmp_path, tokens=32)
    assert front
    costs = [(network["latency_ms"], network["error_percent"]) for network in front]
    assert costs == sorted(costs)
    assert all(slower[1] < faster[1] for faster, slower in itertools.pairwise(costs)), "one dominates another"
    batch = next(iter(task.batches("test", tokens_per_batch=1024, seed=None)))
    for network in front:
        same_layers(encoder_space(), network["arch"])
        feed = dict(zip(("token_ids", "attention_mask"), (x.numpy() for x in batch.inputs), strict=True))
        [logits] = open_session(network["onnx"]).run(None, feed)
        assert logits.shape == (len(batch.targets), len(task.labels))
    assert (tmp_path / "front.png").is_file()
    assert (tmp_path / "study.journal").is_file()


def test_points_over_the_budget_do_not_count():
    points = (
        Point("ours", "a", 1.0, validation_error_percent=40.0, test_error_percent=41.0),
        Point("ours", "b", 2.0, validation_error_percent=20.0, test_error_percent=30.0),
        Point("ours", "c", 5.0, validation_error_percent=1.0, test_error_percent=1.0),
        Point("random", "d", 5.0, validation_error_percent=1.0, test_error_percent=1.0),
    )
    found = Fronts(0, "run", 1.0, 4.0, "Kept.", True, 10.0, points)
    assert found.hypervolume("ours") == pytest.approx(1 * 59 + 2 * 70)
    assert found.test_error_percent("ours") == 30.0
    assert (found.hypervolume("random"), found.test_error_percent("random")) == (0.0, 100.0)
    assert (found.hypervolume("do_it_yourself"), found.test_error_percent("do_it_yourself")) == (0.0, 100.0)


def test_a_pick_is_the_network_whose_bound_uses_the_budget_up():
    upper_ms = np.array([1.0, 4.0, 2.0, 8.0])
    assert picks_kept_percent(upper_ms, 0.9 * upper_ms) == 100
    late = np.array([0.9, 8.0, 1.9, 7.0])  # the second takes 8 ms: no budget that it is picked for, from 4 to 8 ms, is kept
    assert picks_kept_percent(upper_ms, late) == pytest.approx(67, abs=2)
    assert picks_kept_percent(upper_ms, 10 * upper_ms) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_first_light_runs_and_reads_back_what_it_finished(capsys, tmp_path, monkeypatch):
    by_oneself = do_it_yourself.run
    monkeypatch.setattr(do_it_yourself, "run", lambda task, *, seconds, **how: by_oneself(task, seconds=min(seconds, 5), **how))
    words = ["first_light", "preset=quick", f"directory={tmp_path}"]
    lines = []
    for _ in range(2):
        assert bench.main(words) == 0
        lines.append(capsys.readouterr().out.splitlines()[-1])
    figures = json.loads(lines[0])
    assert set(figures) == FIRST_LIGHT
    assert all(value is not None and math.isfinite(value) for value in figures.values())
    assert lines[1] == lines[0]


def test_spaces_says_what_searching_costs_and_times_every_kind(capsys):
    assert bench.main(["spaces", "preset=tiny"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["encoder_log10_size"] >= 20
    for key in ("full_relaxed_step_ratio", "full_peak_memory_ratio", "sampled_step_ratio", "sizes_peak_memory_ratio"):
        assert figures[key] > 0
    for ways, prefix in ((spaces.KINDS, ""), (spaces.CAUSAL, "decode_")):
        assert all(figures[f"{prefix}{way}_to_full_{tokens}"] > 0 for way in (*ways[1:], "shared") for tokens in (16, 20))
    assert all(f"{choice}_adds_to_{of}_ratio" in figures for choice in spaces.CATEGORICAL for of in ("step", "memory"))
    configured = OmegaConf.load(Path(__file__).parent.parent / "conf/space/encoder_full.yaml")
    assert {name: tuple(configured[name]) for name in spaces.FULL} == spaces.FULL


def test_spaces_shows_every_kind_by_its_own_figures(capsys):
    preset = dataclasses.replace(spaces.PRESETS["tiny"], added_rounds=0)
    figures = dict.fromkeys(
        ("encoder_log10_size", "full_relaxed_step_ratio", "full_peak_memory_ratio", "sampled_step_ratio"), 0.0
    )
    numbers = itertools.count()
    for ways, prefix in ((spaces.KINDS, ""), (spaces.CAUSAL, "decode_")):
        for way, tokens in itertools.product((*ways, "shared"), preset.tokens):
            figures |= {f"{prefix}{way}_ms_{tokens}": float(next(numbers)), f"{prefix}{way}_to_full_{tokens}": 0.5}
    report = Reporter()
    report.console.width = bench.WIDTH
    spaces._show(figures, preset, report)
    out = capsys.readouterr().out
    assert all(f" {number}.000" in out for number in range(next(numbers)))


def test_ship_counts_only_files_that_lose_at_most_a_point():
    rows = (
        Row("largest", "int8", 2.0, 0.9, 0.3, True),
        Row("largest", "int8_untrained", 2.0, 1.9, 0.25, False),
        Row("largest", "trained_on", 1.0, -0.1, 1.0, False),
        Row("small", "int8", 1.25, 0.4, 0.4, True),
        Row("small", "cut", 5.0, 3.0, 0.5, False),
    )
    trial = Trial(
        "task", 0, {"largest": 8.0, "small": 1.0}, {"largest": 10.0, "small": 10.5}, {"small": 10.2}, rows, 1.6, 1e-6, 1.0
    )
    assert trial.speedup_at(1.0) == pytest.approx(8 * 1.25)
    assert trial.speedup_at(0.5) == pytest.approx(8)
    assert trial.speedup_at(0.0) == pytest.approx(1)
    figures = summary([trial, dataclasses.replace(trial, rows=(dataclasses.replace(rows[0], speedup=0.5), *rows[1:]))])
    assert figures["int8_speedup"] == pytest.approx(1.0), "the geometric mean of 2 and 0.5"
    assert figures["int8_points_lost"] == pytest.approx(0.9)
    assert figures["int8_most_there_is"] == pytest.approx(1.6)
    slow = dataclasses.replace(trial, int8_of_products=0.8)
    assert summary([slow])["int8_most_there_is"] == 1.0, "it can stay in float"
    assert (figures["int8_size_ratio"], figures["int8_stage_size_ratio"]) == pytest.approx((0.25, 0.3))
    assert figures["int8_points_lost_to_trained_on"] == pytest.approx(1.0)
    assert (figures["distilled_better"], figures["distilled_cases"]) == (2, 2)
    assert "int8_speedup_task" not in figures, "there is a single one"
    slower = dataclasses.replace(trial, task="code", rows=(dataclasses.replace(rows[0], speedup=0.5), *rows[1:]))
    several = summary([trial, slower])
    assert (several["int8_speedup"], several["int8_speedup_task"], several["int8_speedup_code"]) == pytest.approx((1.0, 2.0, 0.5))
    assert figures["parity_max_abs"] == 1e-6


def test_products_of_a_network_are_timed_by_themselves(tmp_path):
    space = encoder_space(width=(16,), depth=(2,), heads=(2,), ffn=(32,), attention=("full",))
    family, workload = EncoderFamily(space, 20, 3, max_tokens=8, head_size=8), Workload(tokens=8)
    [network] = export_for_timing(family, [space.largest()], workload, tmp_path, device=LocalCpu())
    products = products_of(network, tmp_path / "products.onnx")
    outputs = open_session(products.path, threads=1).run(None, dict(products.inputs))
    sizes = [(8, 3 * 16), (8, 16), (8, 32), (8, 16)]  # queries, keys and values; what heads become; up; down
    assert [output.shape[1:] for output in outputs] == 2 * sizes
    assert int8_of_products(network, workload, tmp_path) > 0


def test_what_is_found_dominates_what_is_designed_by_hand_if_it_is_less_in_both(capsys):
    by_hand = {"largest": (4.0, 12.0), "1 layer": (1.0, 10.0)}
    cases = [
        BesideHand("a", 0, by_hand, [(0.9, 9.0)]),
        BesideHand("a", 1, by_hand, [(0.9, 9.9), (3.0, 8.0)]),
        BesideHand("a", 2, by_hand, [(0.9, 10.0), (1.0, 9.0)]),
        BesideHand("b", 0, by_hand, []),
    ]
    assert [case.dominated for case in cases] == [["largest", "1 layer"], ["largest", "1 layer"], ["largest"], []]
    figures = beside_hand.summary(cases)
    assert figures["hand_designed_dominated_share"] == pytest.approx((1 + 1 + 0.5) / 4)
    assert (figures["hand_designed_cases_all_dominated"], figures["hand_designed_cases"]) == (2, 4)
    assert (figures["hand_designed_tasks_all_dominated"], figures["hand_designed_tasks"]) == (1, 2)
    apart = BesideHand("a", 1, by_hand, [(0.9, 11.0), (0.8, 9.9)])
    shared = BesideHand("a", 2, {"largest": (4.0, 9.0), "1 layer": (1.0, 10.0)}, [(3.0, 8.0), (0.9, 9.5)])
    assert (apart.dominating, shared.dominating) == ([(0.8, 9.9)], [])
    assert shared.all_dominated
    strict = beside_hand.summary([cases[0], apart, shared, shared])
    assert (strict["hand_designed_cases_all_dominated"], strict["hand_designed_cases_dominated_by_one"]) == (4, 2)
    assert (strict["hand_designed_tasks_all_dominated"], strict["hand_designed_tasks_dominated_by_one"]) == (1, 0)
    report = Reporter()
    report.console.width = bench.WIDTH
    beside_hand.show([cases[0], shared], report)
    out = capsys.readouterr().out
    assert out.count("dominates all by hand") == 1
    assert "by a single found network: 1 of 2 searches" in out


def test_a_search_is_judged_beside_what_is_designed_by_hand(tmp_path):
    case = beside_hand.search_beside_hand(
        "smoke", ("experiment=smoke", "torch_threads=1"), 0, tmp_path / "run", Reporter(quiet=True)
    )
    assert case.by_hand
    assert case.found
    assert all(ms > 0 and 0 <= error <= 100 for ms, error in (*case.by_hand.values(), *case.found))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ship_ends_with_its_figures(capsys):
    assert bench.main(["ship", "preset=tiny"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"int8_speedup", "int8_points_lost", "speedup_at_minus_one_point", "parity_max_abs"} <= set(figures)
    assert figures["parity_max_abs"] < 1e-4
    assert figures["parity_equal_decisions"] == 1
    assert figures["int8_speedup_code"] > 0


def test_the_full_comparison_of_options_has_them_with_gumbel_noise_too():
    preset = darts.PRESETS["full"]
    gumbel = {
        name: dataclasses.replace(preset.options, **changes)
        for name, changes in preset.compared.items()
        if name.startswith("gumbel")
    }
    assert {config.relaxation for config in gumbel.values()} == {"gumbel"}
    assert gumbel["gumbel_second_order"].unroll_rate > 0
    assert gumbel["gumbel_beta_decay"].beta_decay > 0
    assert gumbel["gumbel_auxiliary_skip"].auxiliary_skip > 0
    assert gumbel["gumbel_early_stopping"].operation_early_stopping > 0
    assert gumbel["gumbel_perturbation"].discretisation == "perturbation"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_darts_ends_with_its_figures(capsys):
    assert bench.main(["darts", "preset=tiny"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["budget_hit_percent"] == 100.0
    assert 0 <= figures["budget_hit_percent_predicted"] <= 100.0
    assert figures["cost_ratio_ten_to_one"] > 1
    compared = (*darts.OPTIONS, "even", "random", "random_best")
    assert {f"error_percent_{name}" for name in compared} <= set(figures)
    assert min(figures[f"points_to_best_{name}"] for name in darts.OPTIONS) == 0


def test_search_knows_the_best_front_of_its_law():
    family = EncoderFamily(encoder_space(width=(32, 64), depth=(1, 2), heads=(1, 2), ffn=(64, 128)), 100, 10)
    problem, rng = tabular.law(family), np.random.default_rng(0)
    archs = {arch.id: arch for arch in (family.space.sample(rng) for _ in range(5000))}
    assert len(archs) == family.space.num_architectures()
    costs = np.array([problem.costs(arch) for arch in archs.values()])
    assert problem.regret(costs) == pytest.approx(0.0, abs=1e-12)
    assert problem.regret(costs[:20]) > 0.01


def test_search_knows_the_best_front_of_recorded_devices(recorded):
    problem, rng = tabular.recorded("hat_raspberrypi4", recorded), np.random.default_rng(0)
    costs = np.array([problem.costs(problem.space.sample(rng)) for _ in range(300)])
    assert problem.regret(np.concatenate([problem.front, costs])) == pytest.approx(0.0, abs=1e-12)
    assert 0.05 < problem.regret(costs) < 1.0
    rows = tabular.all_rows(hat.hat_space(depth=(1, 2), ffn=(1024, 3072)))
    networks = [hat.hat_space(depth=(1, 2), ffn=(1024, 3072)).sample(rng) for _ in range(300)]
    assert len(np.unique(rows, axis=0)) == len(rows)
    known = {tuple(np.delete(row, 3).round(6)) for row in rows}
    assert {tuple(np.delete(row, 3).round(6)) for row in hat.features(networks)} <= known, "heads of the encoder cost nothing"


def test_search_compares_medians_of_the_same_seeds():
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert compared.ratio_with_interval("r", [(ours, theirs)]) == pytest.approx({"r": 0.5, "r_low": 0.5, "r_high": 0.5})
    found = compared.ratio_with_interval("r", [(ours, theirs), (ours, ours[::-1])])
    assert found["r"] == pytest.approx(0.5**0.5)
    assert found["r_low"] < found["r"] < found["r_high"]
    assert math.isnan(compared.ratio_with_interval("r", [(0 * ours, 0 * theirs)])["r"])


def test_search_says_how_far_fronts_are_behind_the_best_of_all():
    best = np.array([[0.0, 10.0], [2.0, 0.0]])
    fronts = {"hybrid": [best, best, best + 9], "random": [best + np.array([1.0, 0.0]), best + np.array([0.0, 2.5]), best]}
    assert on_tasks.epsilons(fronts) == pytest.approx({"epsilon_percent_hybrid": 0.0, "epsilon_percent_random": 25.0})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_search_ends_with_its_figures_and_trains_once(capsys, tmp_path):
    words = ["search", "preset=tiny", f"data={tmp_path / 'none'}", f"directory={tmp_path}"]
    assert bench.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert any(line.startswith("SKIPPED: hat_xeon") for line in lines)
    assert figures["num_tabular_problems"] == 2
    assert 0 < figures["regret_law_surrogate_evolution_23"] <= figures["regret_law_surrogate_evolution_21"] < 1
    assert figures["budget_hit_percent"] == 100.0
    for key in ("regret_ratio_to_random_23", "hypervolume_ratio_to_best_peer", "ask_tell_ms", "evaluations_per_minute"):
        assert figures[key] > 0
    assert all(figures[f"languages_epsilon_percent_{name}"] >= 0 for name in ("hybrid", *on_tasks.OTHERS))
    assert figures["hypervolume_ratio_of_all_found_to_best_peer"] >= figures["hypervolume_ratio_to_best_peer"]
    assert figures["tight_languages_hypervolume_ratio_to_random"] > 0
    assert (tmp_path / "attainment-languages.png").is_file()
    assert (tmp_path / "tight" / "attainment-languages.png").is_file()
    report = Reporter(quiet=True)
    [kept] = tmp_path.glob("supernet-*.safetensors")
    before = kept.stat().st_mtime_ns
    inherited.Inherited.of(search.TINY, tmp_path, report)
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("supernet-*")] == [before], "it was trained again"
