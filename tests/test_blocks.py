"""Blocks of vision transformers that were measured on phones: what they cost, and what they tell about our networks."""

import numpy as np
import pytest

from experiments.build import build
from experiments.config import composed
from experiments.progress import Reporter
from experiments.table_calibration import MOST_BLOCKS, TableCalibrator
from hardware.recorded import RecordedDevice
from hardware.tables import load_table
from latency_models.additive import AdditiveLatency
from nas.encoding import Encoding
from nas.types import Workload
from search_spaces import blocks
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.vision import VisionFamily, vision_space

PIXELS = ("vit_pixel1_v2", "vit_pixel1_v3", "vit_pixel4_v3")


def calibrator(table, data, family, workload):
    return TableCalibrator(family, RecordedDevice(table, str(data)), workload, Reporter())


def vision_family(**choices):
    return VisionFamily(vision_space(**choices), (1, 28, 28), 10, (0.1,), (0.3,))


def test_a_block_costs_what_a_layer_of_ours_costs():
    """The count, FLOPs and bytes of each kind of operator; values as wide as keys, as ours are."""
    space = encoder_space(width=(64,), depth=(1,), heads=(4,), ffn=(192,), attention=("full",))
    family = EncoderFamily(space, 10, 2, 49, blocks.HEAD_SIZE)
    layer = family.operators(Encoding.of(space, [space.largest()]), Workload(tokens=49))
    ours = {op.kind: [float(np.sum(x)) for x in (op.count, op.flops, op.bytes)] for op in layer}
    theirs = [*blocks.attention(49.0, 64.0, 1.0), *blocks.feed_forward(49.0, 64.0, 3.0)]
    assert set(ours) - {"embedding", "head"} == {op.kind for op in theirs}
    for op in theirs:
        assert [op.count, op.flops, op.bytes] == pytest.approx(ours[op.kind])


def test_wide_values_have_larger_projections_and_products():
    """Multiply-adds of 100 tokens of width 40: 2 heads of 16, queries and keys of 32 channels, values of 96."""
    _, projections, product = blocks.attention(100.0, 40.0, 3.0)
    assert projections.flops == 2 * 100 * 40 * (32 + 32 + 96 + 96)
    assert product.flops == 2 * 100 * 100 * (32 + 96)


def test_only_what_our_networks_have_is_read(recorded):
    table = load_table("vit_pixel4_v3", recorded)
    assert blocks.are_in(table)
    assert not blocks.are_in(load_table("jetson_nano_cpu", recorded))
    known = {row for row, _ in blocks.match(table)}
    kinds = np.array(table.extra["kind"])
    assert known == set(np.flatnonzero((kinds == "transattn") | (kinds == "transffn")).tolist())


@pytest.mark.parametrize("table", PIXELS)
def test_blocks_predict_the_vision_space(recorded, table, capsys):
    family = vision_family()
    done = calibrator(table, recorded, family, Workload(tokens=784)).calibrate(AdditiveLatency(pooled=True))
    said = " ".join(capsys.readouterr().out.split())
    assert f"fitted to {MOST_BLOCKS} blocks" in said
    assert f"predicted to {done.quality['mape_percent']:.1f} %" in said
    assert "has none of attention.window, head, patches, standard" in said
    assert done.quality["mape_percent"] < 0.5 * done.quality["constant_mape_percent"]
    assert done.quality["spearman"] > 0.95
    prediction = done.model.predict([family.space.smallest(), family.space.largest()])
    assert 0 < prediction.mean_ms[0] < prediction.mean_ms[1] < prediction.upper_ms[1]


def test_blocks_do_not_tell_what_decoding_costs(recorded):
    family = DecoderFamily(decoder_space(), 100, 64)
    with pytest.raises(ValueError, match="workload mode decode cannot be predicted from them"):
        calibrator("vit_pixel4_v3", recorded, family, Workload(tokens=1, mode="decode", past=32)).calibrate(
            AdditiveLatency(pooled=True)
        )


def test_a_space_below_every_block_is_refused(recorded):
    family = VisionFamily(vision_space(patch=(4,), width=(8,), depth=(1,), heads=(1,), ffn=(8,)), (1, 4, 4), 2, (0.1,), (0.3,), 8)
    with pytest.raises(ValueError, match="holds 0 blocks with no more FLOPs than this space's largest network"):
        calibrator("vit_pixel4_v3", recorded, family, Workload(tokens=16)).calibrate(AdditiveLatency(pooled=True))


def test_the_space_of_the_command_takes_a_phone(recorded, tmp_path, capsys):
    words = ["space=vision_tiny", "task=digits", "device=recorded", "device.table=vit_pixel4_v3", f"device.data={recorded}"]
    pipeline = build(composed(*words, f"run={tmp_path / 'run'}"), report=Reporter())
    quality = pipeline.calibrate().quality
    assert 8 <= quality["num_held_out"] <= MOST_BLOCKS
    assert quality["mape_percent"] < quality["constant_mape_percent"]
    said = " ".join(capsys.readouterr().out.split())
    assert "times the FLOPs of this space's smallest: predictions are extrapolated" in said
