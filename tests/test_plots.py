"""The pictures of a run: what is drawn, where labels stand, and that they are the same again."""

import dataclasses

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from experiments.layers import split_layers
from experiments.networks import Network, front
from experiments.plots.architecture import architecture_figure
from experiments.plots.attainment import attainment_figure
from experiments.plots.gains import gains_figure
from experiments.plots.ledger import ledger_figure
from experiments.plots.pareto import pareto_figure
from experiments.plots.predictor import predictor_figure
from experiments.plots.style import NARROW, WIDE, png, svg
from experiments.results import LedgerEntry, PredictorReport
from experiments.trust import hypervolumes_by_cost
from nas.pareto import attainment_surface
from nas.types import Candidate
from tests.support.made_up_run import HELD_OUT, INHERITED, QUALITY, SPACE, make_candidates, make_results, with_memory


def artists(figure):
    """The drawn parts that carry a name, by that name."""
    named = {}
    for artist in figure.findobj(lambda a: a.get_gid()):
        named.setdefault(artist.get_gid(), []).append(artist)
    return named


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("num", [1, 2, 4, 12])
def test_picture_has_content(num, width, tmp_path):
    results = make_results(num=num)
    path = tmp_path / "pareto.png"
    path.write_bytes(png(pareto_figure(results, make_candidates() if num > 1 else [], width=width)))
    pixels = imread(path)[..., :3]
    assert pixels.shape[1] == round(150 * width)
    assert 0.01 < np.mean(np.any(pixels < 0.9, axis=-1)) < 0.5


def test_picture_shows_every_network():
    results, candidates = make_results(), make_candidates()
    figure = pareto_figure(results, candidates)
    drawn = artists(figure)
    for role in ("search", "random", "hand"):
        of_role = results.of_role(role)
        expected = sorted((n.measured_ms, n.error_percent) for n in of_role)
        assert sorted(map(tuple, drawn[role][0].get_xydata())) == expected
        assert sorted(drawn[f"predicted {role}"][0].get_xdata()) == sorted(n.predicted_ms for n in of_role)
        assert [list(bar.get_xdata()) for bar in drawn[f"interval {role}"]] == [
            [n.measured_low_ms, n.measured_high_ms] for n in of_role
        ]
    for name, networks in (("front", results.networks), ("front of the search", results.of_role("search"))):
        assert list(drawn[name][0].get_xdata()) == [n.measured_ms for n in front(networks)]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "front: no other network here is better in both" in words
    assert "search, and its own front: trained, measured" in words
    assert drawn["picked"][0].get_xydata().tolist() == [[results.picked.measured_ms, results.picked.error_percent]]
    assert set(drawn["budget"][0].get_xdata()) == {0.95}
    assert set(drawn["trivial"][0].get_ydata()) == {9.9}
    assert [label.get_text() for label in drawn["hand label"]] == [n.label for n in results.of_role("hand")]
    assert drawn["asked"][0].get_text() == "asked 0.950 ms"
    assert results.picked_id in drawn["ships"][0].get_text()


def test_dots_out_of_range_are_counted_and_networks_are_not_squashed():
    results, candidates = make_results(), make_candidates()
    far = Candidate(SPACE.largest(), {"error": 97.0, "latency_ms": 900.0}, INHERITED)
    figure = pareto_figure(results, [*candidates, far])
    drawn, axes = artists(figure), figure.axes[0]
    shown = sum(len(drawn[f"scored {role}"][0].get_offsets()) for role in ("search", "random"))
    hidden = len(candidates) + 1 - shown
    assert hidden >= 1
    assert drawn["hidden"][0].get_text() == f"{hidden} of {len(candidates) + 1} scored architectures lie outside"
    bottom, top = axes.get_ylim()
    errors = [n.error_percent for n in results.networks]
    assert bottom < min(errors)
    assert max(errors) < top
    assert (max(errors) - min(errors)) > 0.45 * (top - bottom)
    assert axes.get_xlim()[1] < 10


def test_a_far_baseline_is_named_and_not_drawn():
    figure = pareto_figure(make_results(trivial=60.0), [])
    drawn = artists(figure)
    assert "trivial" not in drawn
    assert " ".join(drawn["trivial label"][0].get_text().split("\n")).endswith("60.00\u00a0%, above this picture")
    assert figure.axes[0].get_ylim()[1] < 30


def test_a_budget_far_beyond_all_networks_is_named_and_not_drawn():
    results = make_results(num=1)
    far = dataclasses.replace(results, verdict=dataclasses.replace(results.verdict, asked_ms=20.0))
    figure = pareto_figure(far, [])
    drawn = artists(figure)
    assert "budget" not in drawn
    assert drawn["asked"][0].get_text() == "asked 20.0 ms, beyond this picture"
    assert figure.axes[0].get_xlim()[1] < 2


def test_a_wide_range_is_logarithmic():
    near = make_results(num=1)
    assert pareto_figure(near, []).axes[0].get_xscale() == "linear"
    assert pareto_figure(make_results(), []).axes[0].get_xscale() == "log"


@pytest.mark.parametrize("trivial", [5.0, 9.9, 60.0])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_labels_are_inside_and_apart(width, trivial):
    figure = pareto_figure(make_results(trivial=trivial), make_candidates(), width=width)
    figure.draw_without_rendering()
    frame = figure.axes[0].bbox.padded(2)
    boxes = []
    for name in ("asked", "ships", "hand label", "trivial label"):
        for label in artists(figure)[name]:
            box = Text.get_window_extent(label)
            assert frame.containsx(box.x0), name
            assert frame.containsx(box.x1), name
            assert frame.containsy(box.y0), name
            assert frame.containsy(box.y1), name
            assert not box.count_overlaps(boxes), name
            boxes.append(box)


def crowded(**changes):
    """Seven networks designed by hand beside the one that ships."""
    results = make_results(num=12, **changes)
    at, rng = results.picked, np.random.default_rng(1)
    names = ("BERT-tiny", "BERT-mini", "MiniLM-L6-H384", "DistilBERT", "TinyBERT-4", "BERT-small", "BERT-medium")
    near = (
        dataclasses.replace(
            at, id=f"beside{i}", role="hand", label=name, measured_ms=at.latency_ms * (1 + 0.06 * rng.normal()),
            measured_low_ms=None, measured_high_ms=None, error_percent=at.error_percent + 0.15 * rng.random(),
        )
        for i, name in enumerate(names)
    )  # fmt: skip
    return dataclasses.replace(results, networks=(*results.networks, *near))


def test_labels_of_crowded_points_are_apart_with_lines_to_their_points():
    results = crowded()
    figure = pareto_figure(results, make_candidates())
    figure.draw_without_rendering()
    drawn, axes = artists(figure), figure.axes[0]
    boxes, num_lines = [], 0
    for label in (*drawn["ships"], *drawn["hand label"], *drawn["asked"], *drawn["trivial label"]):
        box = Text.get_window_extent(label)
        assert not box.count_overlaps(boxes), label.get_text()
        boxes.append(box)
    for label in drawn["hand label"]:
        box, at = Text.get_window_extent(label), axes.transData.transform(label.xy)
        far = np.hypot(*(np.clip(at, box.min, box.max) - at)) * 72 / figure.dpi > 11
        assert label.arrow_patch.get_visible() or not far
        num_lines += label.arrow_patch.get_visible()
    assert num_lines >= 3
    markers = axes.transData.transform([(n.latency_ms, n.error_percent) for n in results.of_role("search")])
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)


def test_what_ships_is_drawn_over_all_networks():
    drawn = artists(pareto_figure(crowded(), make_candidates()))
    others = [line.get_zorder() for role in ("search", "random", "hand") for line in drawn[role]]
    assert min(drawn["shipped"][0].get_zorder(), drawn["picked"][0].get_zorder()) > max(others)


def test_errors_begin_at_zero():
    low = make_results()
    networks = tuple(dataclasses.replace(n, error_percent=max(0.0, n.error_percent - 7.4)) for n in low.networks)
    figure = pareto_figure(make_results(networks=networks), [])
    assert min(n.error_percent for n in networks) == 0.0
    assert figure.axes[0].get_ylim()[0] == 0.0
    assert not any(artists(figure)[signs][0].get_clip_on() for signs in ("hand", "predicted hand"))


def test_a_budget_that_nobody_gave_is_not_called_asked():
    results = make_results()
    derived = dataclasses.replace(results, verdict=dataclasses.replace(results.verdict, asked_origin="half of the largest"))
    assert artists(pareto_figure(derived, []))["asked"][0].get_text() == "budget 0.950 ms (derived)"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_legend_is_whole_and_labels_are_off_it(width):
    figure = pareto_figure(make_results(trivial=6.3), make_candidates(), width=width)
    figure.draw_without_rendering()
    [legend] = figure.legends
    around = legend.get_window_extent()
    assert around.x1 <= figure.bbox.x1
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in legend.get_texts())
    [label] = artists(figure)["trivial label"]
    assert not Text.get_window_extent(label).count_overlaps([around])
    assert label.get_bbox_patch().get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_predictor_picture_marks_a_broken_bound():
    held_out = (("a", 1.0, 1.1, 1.2), ("b", 2.0, 1.5, 1.6), ("c", 30.0, 29.0, 31.0))
    figure = predictor_figure(PredictorReport.of(QUALITY, [dict(zip(HELD_OUT, h, strict=True)) for h in held_out]))
    drawn = artists(figure)
    assert drawn["held out"][0].get_xydata().tolist() == [[1.0, 1.1], [2.0, 1.5], [30.0, 29.0]]
    assert drawn["exceeded"][0].get_xydata().tolist() == [[2.0, 1.6]]
    assert figure.axes[0].get_xscale() == "log"
    assert png(figure)


@pytest.mark.parametrize("arch", [{"width": 32}, {"width": 32, "layer1.kind": "gated"}])
def test_architecture_picture_takes_any_space(arch):
    bare = Network("ab", arch, "search", "search", 1.0, 1.0, 1.0, 1.0, None, None, 1000, 1.0)
    assert png(architecture_figure(bare, [bare]))


def test_architecture_picture_shows_the_layers():
    results = make_results()
    _, layers = split_layers(results.picked.arch)
    words = [text.get_text() for text in architecture_figure(results.picked, results.networks).axes[0].texts]
    for layer in layers:
        assert all(str(option) in words for option in layer.values())


def test_attainment_picture_shows_the_median_of_each_strategy():
    rng = np.random.default_rng(0)
    runs = {name: [rng.random((6, 2)) for _ in range(3)] for name in ("ours", "random")}
    figure = attainment_figure(runs, title="three seeds", axes_words=("latency (ms)", "error (%)"))
    drawn = artists(figure)
    for name, of_seeds in runs.items():
        assert drawn[name][0].get_xydata().tolist() == attainment_surface(of_seeds).tolist()
    assert len(figure.axes[0].lines) == 6
    assert png(figure)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_gains_picture_shows_each_curve_by_evaluations_and_by_seconds(width):
    curves = hypervolumes_by_cost(make_results(), make_candidates(num=30))
    figure = gains_figure(curves, width=width)
    drawn = artists(figure)
    volumes = {phase: curves[phase]["after_evaluations"] for phase in ("search", "random")}
    best = max(*(of_phase[-1] for of_phase in volumes.values()), curves["hand"])
    for phase, of_phase in volumes.items():
        by_evaluations, by_seconds = (drawn[f"{phase} by {which}"][0] for which in ("evaluations", "seconds"))
        assert list(by_evaluations.get_xdata()) == list(range(1, 31))
        assert list(by_seconds.get_xdata()) == curves[phase]["seconds"]
        for line in (by_evaluations, by_seconds):
            assert np.allclose(line.get_ydata() * best, of_phase)
    assert set(drawn["hand by seconds"][0].get_ydata()) == {curves["hand"] / best}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "search", "random search", "designed by hand, all of them",
    ]  # fmt: skip
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert png(figure)


def test_ledger_picture_has_a_bar_a_phase():
    figure = ledger_figure(make_results().ledger)
    assert len(figure.axes[0].patches) == 8
    assert png(ledger_figure([LedgerEntry("calibration", 0.0, 0.0, 1.0, 0)]))


def test_pictures_are_the_same_bytes_again():
    first, second = (svg(pareto_figure(make_results(), make_candidates())) for _ in range(2))
    assert first == second


def test_the_picture_rings_who_is_on_the_front_by_memory_alone():
    results = with_memory()
    alone = [n for n in results.front if n not in front(results.networks)]
    assert alone
    figure = pareto_figure(results, make_candidates())
    [ring] = [line for line in figure.axes[0].lines if line.get_gid() == "front in more"]
    assert sorted(ring.get_xdata()) == sorted(n.latency_ms for n in alone)
    assert "on the front for its memory" in [text.get_text() for text in figure.legends[0].get_texts()]
