"""How networks of the short-list are trained: what they begin with and for how long."""

import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from experiments.calibration import MEASUREMENTS
from experiments.file_times import FileTimes
from experiments.finishing import Finisher
from experiments.run_directory import RunDirectory
from experiments.settings import FinishSettings
from hardware.timing import CutShortError
from nas.compute import Compute
from nas.protocols import DeviceError
from nas.supernet import cut_out
from nas.training import TrainConfig, shrink_and_perturb
from nas.types import Measurement, Workload
from search_spaces.encoder import EncoderFamily, encoder_space


@pytest.fixture
def family() -> EncoderFamily:
    return EncoderFamily(encoder_space(), vocab_size=50, num_classes=5)


def finisher(family: EncoderFamily, settings: FinishSettings) -> Finisher:
    unused = cast(Any, SimpleNamespace())
    return Finisher(family, unused, unused, Workload(tokens=64), Compute(), settings, 0, unused)


def test_smaller_networks_train_for_as_many_flops_up_to_a_limit(family):
    space = family.space
    two_layers = family.hand_designed()["2 layers"]
    steps = finisher(family, FinishSettings(train=TrainConfig(steps=100), most_steps=500)).steps
    assert steps(space.largest()) == 100
    assert 290 <= steps(two_layers) <= 300  # a third of the layers; the classifier is no layer
    assert steps(space.smallest()) == 500


@pytest.mark.parametrize(("rounds", "phases"), [(4, {"short-list"}), (3, {"short-list, cut short"})])
def test_what_a_lost_device_leaves_is_kept(rounds, phases, family, tmp_path, monkeypatch):
    """Four rounds count as a measurement, fewer are raw times that nothing reads."""
    archs = [family.space.smallest(), family.space.largest()]
    left = [
        Measurement(arch, "board", Workload(tokens=64), ((1.0, 1.1),) * rounds, ((1.0, 1.1),) * rounds, 1.0, {}) for arch in archs
    ]

    def lost(*_, **__):
        raise CutShortError("board: No route to host", left)

    monkeypatch.setattr("experiments.file_times.measure_on", lost)
    monkeypatch.setattr("experiments.file_times.export_for_timing", lambda *_, **__: [None])
    monkeypatch.setattr(FileTimes, "exported", lambda *_, **__: None)
    job = replace(finisher(family, FinishSettings()), run=RunDirectory(tmp_path / "run"))
    with nullcontext() if rounds == 4 else pytest.raises(DeviceError, match="No route to host"):
        assert len(job.times.measure(archs, reference_ms=1.0, phase="short-list", rounds=6)) == 2
    assert {record["phase"] for record in job.run.read_lines(MEASUREMENTS)} == phases


@pytest.mark.parametrize("inherit", [0.0, 0.3, 1.0])
def test_inherited_weights_shrink_towards_fresh_ones(family, inherit):
    arch = family.space.smallest()
    network, fresh = cut_out(family, family.supernet(), arch, Compute()), family.network(arch)
    inherited = [p.detach().clone() for p in network.parameters()]
    shrink_and_perturb(network, fresh, inherit=inherit)
    for weight, own, new in zip(network.parameters(), inherited, fresh.parameters(), strict=True):
        torch.testing.assert_close(weight, inherit * own + (1 - inherit) * new)


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"inherit: 1\.5 is not in \[0, 1\]"):
        FinishSettings(inherit=1.5)


@pytest.mark.parametrize("rungs", [[0.2, 0.1], [0.1, 0.1], [0.0], [0.5, 1.0]])
def test_rungs_that_do_not_rise_to_the_top_are_refused(rungs):
    with pytest.raises(ValueError, match=re.escape(f"rungs: {rungs} are not ascending shares between 0 and 1")):
        FinishSettings(rungs=rungs)


def test_a_short_training_keeps_more_of_what_it_inherits() -> None:
    settings = FinishSettings(inherit=0.3, most_steps=200)
    assert [settings.inherited(steps) for steps in (1, 100, 200, 400)] == pytest.approx([0.9965, 0.65, 0.3, 0.3])
