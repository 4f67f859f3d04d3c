"""Recorded tables: what a file may look like, and that the published ones are read as they stand."""

import gzip
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import devices
from hardware import tables as hardware_tables
from hardware.csv_table import read_csv_rows, read_csv_table
from hardware.table_checks import cautions, contradictions, find_outliers, modified_z, robust_fit, same_device
from hardware.tables import TABLES, is_there, load_table
from nas.encoding import Encoding
from nas.tables import RecordedTable, Source
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space
from search_spaces.named import NAMED, match, operators, published, vision_transformer

SOURCE = Source("example.org/tables", "0123abcd", "times.csv", "MIT", "times.csv", "0" * 64)


def table(**changes) -> RecordedTable:
    given = {
        "name": "mine", "device": "a board", "kind": "cpu", "runtime": "ONNX Runtime", "precision": "fp32", "unit": "ms",
        "features": ("depth", "width"), "rows": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "values": np.array([1.5, 2.5, 3.5]), "labels": ("a", "b", "c"),
        "parts": {}, "extra": {}, "source": SOURCE, "outliers": np.zeros(3, dtype=bool),
    }  # fmt: skip
    return RecordedTable(**{**given, **changes})


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tpu"}, r"kind 'tpu' is not one of \('cpu', 'gpu', 'npu'\)"),
        ({"unit": "s"}, r"unit 's' is not one of \('ms', 'mj'\)"),
        ({"values": np.array([])}, "mine: has no rows"),
        ({"labels": ("a",)}, r"other lengths than the 3 values: \{'labels': 1\}"),
        ({"parts": {"encoder": np.ones(2)}}, r"\{'encoder': 2\}"),
        ({"features": ("depth",)}, r"rows \(3, 2\) are not \(3 values, 1 features\)"),
        ({"rows": np.array([[1, 2], [3, np.inf], [5, 6]])}, "row 1: width is inf"),
        ({"values": np.array([1.0, 2.0, 0.0])}, r"row 2: 0.0 ms is not positive and finite \(1 such rows\)"),
        ({"values": np.array([1.0, np.nan, -1.0])}, r"row 1: nan ms is not positive and finite \(2 such rows\)"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_missing_file_says_where_it_comes_from_and_where_it_goes(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no such file; it is latency_dataset/.* of github.com/mit-han-lab/.* at commit 70e5a279.* search device.data=…$",
    ):
        load_table("hat_xeon", tmp_path)
    with pytest.raises(ValueError, match=r"it was collected from qai_hub_models/models/.* \(BSD-3-Clause\)\. Put it there"):
        load_table("qualcomm_galaxy_s24_float_tflite", tmp_path)
    with pytest.raises(ValueError, match=r"table: 'hat_xeonn' is not one of the 120 .* near it: .'hat_xeon'"):
        load_table("hat_xeonn", tmp_path)
    assert not is_there("hat_xeon", tmp_path)


def test_a_changed_file_is_refused_with_both_checksums(tmp_path):
    source = TABLES["hat_xeon"].source
    path = tmp_path / source.file
    path.parent.mkdir()
    path.write_text("encoder_embed_dim\n640\n")
    with pytest.raises(ValueError, match=rf"its sha256 is [0-9a-f]{{64}}, but .* is {source.sha256}: the file was changed"):
        load_table("hat_xeon", tmp_path)


def test_a_file_without_the_columns_is_refused(tmp_path, monkeypatch):
    data = b"model,time\nvit,1\n"
    found = replace(SOURCE, file="times.csv", sha256=hardware_tables.hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(hardware_tables, "TABLES", {"mine": replace(TABLES["aws_c6i"], source=found)})
    (tmp_path / "times.csv").write_bytes(data)
    with pytest.raises(ValueError, match="has no column 'instance_type'"):
        load_table("mine", tmp_path)


def test_a_file_is_read_once_for_all_its_tables_and_again_when_it_changes(tmp_path, monkeypatch):
    header = "time_avg_ms,time_std_ms,time_p95_ms,sequence_length,instance_type,model\n"
    for seconds, value in ((10, "4.0"), (20, "8.0")):
        data = gzip.compress(f"{header}{value},0.1,4.5,8,here,bert\n".encode(), mtime=0)
        source = replace(SOURCE, file="times.csv.gz", sha256=hardware_tables.hashlib.sha256(data).hexdigest())
        recorded = replace(TABLES["aws_c6i"], source=source, read=hardware_tables.readers.aws("here"), unit="s")
        monkeypatch.setattr(hardware_tables, "TABLES", {"mine": recorded})
        path = tmp_path / "times.csv.gz"
        path.write_bytes(data)
        os.utime(path, (seconds, seconds))
        found = load_table("mine", tmp_path)
        assert found.unit == "ms"
        assert found.values.tolist() == [1000 * float(value)]
        assert found.parts["p95"].tolist() == [4500.0]


# --- flags ----------------------------------------------------------------------------------------------------------------------


def test_modified_z_against_its_definition():
    x = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert modified_z(x).tolist() == pytest.approx(((x - 3) * 0.6745 / 1).tolist())
    assert not modified_z(np.array([5.0, 5.0, 5.0, 9.0])).any()


def test_disturbed_rows_are_flagged_and_only_they():
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 9, size=(400, 3)).astype(float)
    values = (2 + 3 * rows[:, 0] + rows[:, 1] * rows[:, 2]) * np.exp(rng.normal(0, 0.01, 400))
    slow = np.arange(400) % 10 == 3
    values[slow] *= 1.6
    found = find_outliers(rows, values)
    assert found[slow].mean() >= 0.95
    assert found[~slow].mean() <= 0.05
    by_spread = find_outliers(None, values, std=np.where(np.arange(400) == 7, values, 0.02 * values * rng.uniform(0.8, 1.2, 400)))
    assert np.flatnonzero(by_spread).tolist() == [7]
    assert not find_outliers(None, values).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (4, 7), (30, 2)])
def test_a_robust_fit_needs_no_least_number_of_rows(shape):
    rows = np.random.default_rng(1).uniform(size=shape)
    assert np.isfinite(robust_fit(rows, np.arange(float(shape[0])))).all()


def test_cautions_name_what_a_reader_should_know():
    assert cautions(table()) == ()
    (whole,) = cautions(table(values=np.array([2.0, 3.0, 5.0])))
    assert "whole ms" in whole
    assert "25 %" in whole
    (tiny,) = cautions(table(values=np.array([0.0031, 9.5, 10.5])))
    assert "1 value under 1 % of the median, the smallest 0.0031 ms" in tiny
    (fell,) = cautions(table(kind="npu", extra={"layers_cpu": np.array([0.0, 3.0, 1.0])}))
    assert fell.startswith("2 rows with layers that fell back")
    same = np.array([[1.0, 2.0]] * 3)
    (clash,) = cautions(table(rows=same, labels=("",) * 3, values=np.array([4.1, 4.2, 9.3])))
    assert "rows 0 and 2: 4.1 and 9.3 ms" in clash
    assert contradictions(same, np.array([4.1, 4.2, 9.3]), ("", "", "")) == [(0, 2)]
    assert contradictions(same, np.array([4.1, 4.2, 9.3]), ("a", "b", "c")) == []


def test_one_device_under_two_names_is_found():
    rows = np.arange(12.0).reshape(6, 2)
    values = np.linspace(1.1, 2.2, 6)
    kept = {"rows": rows, "labels": ("",) * 6, "outliers": np.zeros(6, dtype=bool)}
    pool = {
        "a": table(values=values, **kept),
        "b": table(values=values[::-1].copy(), **{**kept, "rows": rows[::-1].copy()}),
        "other": table(values=values * 1.001, **kept),
        "energy": table(values=values, unit="mj", **kept),
        "short": table(rows=rows[:3], values=values[:3]),
    }
    assert same_device(pool) == [("a", "b", 6)]


# --- a user's own table ---------------------------------------------------------------------------------------------------------

GOOD = "depth,width,latency_ms\n1,32,1.0\n2,32,2.1\n3,64,5.0\n"


def test_a_user_s_table_is_normalised(tmp_path):
    found = read_csv_table(written(tmp_path, GOOD), features=("depth", "width"), target="latency_ms", unit="ms")
    assert found.name == "mine"
    assert found.values.tolist() == [1.0, 2.1, 5.0]
    assert found.rows.tolist() == [[1, 32], [2, 32], [3, 64]]
    text = GOOD.replace("latency_ms", "took")
    for unit, values in {"s": [1000, 2100, 5000], "us": [0.001, 0.0021, 0.005], "j": [1000, 2100, 5000]}.items():
        found = read_csv_table(written(tmp_path, text), features=["depth"], target="took", unit=unit, label="width")
        assert found.unit == ("mj" if unit == "j" else "ms")
        assert found.values.tolist() == pytest.approx(values)
        assert found.labels == ("32", "32", "64")
    assert read_csv_rows(written(tmp_path, "width,depth\n9,1\n"), features=("depth", "width")).tolist() == [[1, 9]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("2.1", "-2.1"), r"mine.csv, line 3: latency_ms is -2.1; a measured value is above 0"),
        (GOOD.replace("2.1", "0"), "line 3: latency_ms is 0; a measured value is above 0"),
        (GOOD.replace("2.1", "nan"), "line 3: latency_ms is nan, which is not finite"),
        (GOOD.replace("2.1", "fast"), "line 3: latency_ms is 'fast', which is not a number"),
        (GOOD.replace("2.1", ""), "line 3: latency_ms is '', which is not a number"),
        (GOOD.replace("3,64", "inf,64"), "line 4: depth is inf, which is not finite"),
        (GOOD.replace("2.1", "9e9"), r"line 3: latency_ms is 9e9 ms, .* is the column in another unit"),
        (GOOD.replace("2.1", "1e-9"), r"line 3: latency_ms is 1e-9 ms, .* which no network takes"),
        (GOOD.replace("width", "weight"), r"has no column 'width'; its columns are \('depth', 'weight', 'latency_ms'\)"),
        (GOOD.replace(",2.1", ""), "line 3: has not the 3 cells of the header"),
        (GOOD.replace("2.1", "2.1,7"), "line 3: has not the 3 cells of the header"),
        ("depth,width,latency_ms\n", "has no rows"),
        ("depth,width,latency_ms\n1,32,2.0\n", "1 rows are fewer than the 2 features"),
        (GOOD.replace("depth,", "depth,depth,"), "two columns have the same name"),
    ],
)
def test_a_user_s_bad_table_is_refused_with_file_line_and_value(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_csv_table(written(tmp_path, text), features=("depth", "width"), target="latency_ms", unit="ms")


def test_a_unit_that_the_column_contradicts_is_refused(tmp_path):
    path = written(tmp_path, GOOD)
    with pytest.raises(ValueError, match=r"the column 'latency_ms' says ms, but the unit given is s"):
        read_csv_table(path, features=["depth"], target="latency_ms", unit="s")
    with pytest.raises(ValueError, match=r"unit: 'min' is not one of"):
        read_csv_table(path, features=["depth"], target="latency_ms", unit="min")
    with pytest.raises(ValueError, match="without the target 'latency_ms'"):
        read_csv_table(path, features=["latency_ms"], target="latency_ms", unit="ms")
    with pytest.raises(ValueError, match="there is no such file"):
        read_csv_table(tmp_path / "none.csv", features=["depth"], target="latency_ms", unit="ms")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        read_csv_table(path, features=["depth"], target="latency_ms", unit="ms")


def test_contradicting_rows_are_kept_and_flagged(tmp_path):
    path = written(tmp_path, GOOD + "2,32,4.5\n")
    found = read_csv_table(path, features=("depth", "width"), target="latency_ms", unit="ms")
    assert len(found) == 4
    assert found.outliers.tolist() == [False, True, False, True]
    assert any("rows 1 and 3: 2.1 and 4.5 ms" in caution for caution in cautions(found))


# --- the published tables -------------------------------------------------------------------------------------------------------


def test_every_table_is_read(recorded):
    pool = {name: load_table(name, recorded) for name in TABLES}
    assert sum(name.startswith("qualcomm") for name in pool) == 58
    assert {found.source.licence for found in pool.values()} == {"MIT", "Apache-2.0", "BSD-3-Clause"}
    assert all(found.outliers.mean() < 0.25 for found in pool.values())
    assert same_device({name: found for name, found in pool.items() if len(found) < 5000}) == []


def test_values_are_those_of_the_files(recorded):
    pi = load_table("hat_raspberrypi4", recorded)
    assert len(pi) == 2000
    assert pi.features[0] == "encoder_embed_dim"
    assert pi.values[0] == pytest.approx(1990.0972843170166 + 5932.554125785828)
    assert pi.parts["encoder"][0] == 1990.0972843170166
    assert pi.rows[0].tolist() == pytest.approx([512, 6, 5632 / 3, 6, 640, 3, 5120 / 3, 6, 8 / 3, 4 / 3])
    energy = load_table("hat_gtx1080_energy", recorded)
    assert (energy.unit, len(energy)) == ("mj", 600)
    assert energy.values[0] == pytest.approx(1000 * (0.991739995464613 + 13.5810667845861))
    nano = load_table("jetson_nano_cpu", recorded)
    assert nano.values[0] == pytest.approx(593.4918165206909)
    npu = load_table("qualcomm_iq9075_float_tflite", recorded)
    row = npu.labels.index("albert_base_v2_hf")
    assert (npu.values[row], npu.extra["layers_npu"][row], npu.extra["memory_mb"][row]) == (27.14, 550, 33)


def test_two_sessions_of_a_phone_stay_apart(recorded):
    first, second = (load_table(f"vit_pixel1_{session}", recorded) for session in ("v2", "v3"))
    assert (len(first), len(second)) == (18095, 12116)
    times = dict(zip(first.labels, first.values, strict=True))
    ratios = np.array([times[label] / value for label, value in zip(second.labels, second.values, strict=True)])
    assert 1.2 < np.median(np.maximum(ratios, 1 / ratios)) < 1.5
    row = first.labels.index("conv_112_16_16_2_2_hard_swish_3_nose")
    sizes = dict(zip(first.features, first.rows[row], strict=True))
    assert [sizes[name] for name in ("is_conv", "is_transds", "resolution", "expansion", "stride", "kernel")] == [
        1,
        0,
        112,
        2,
        2,
        3,
    ]


def test_clocks_of_whole_milliseconds_and_empty_cells_are_named(recorded):
    for name in ("samsung_a50", "samsung_s7", "essential_ph_1"):
        assert any("whole ms" in caution for caution in cautions(load_table(f"nb201_{name}", recorded)))
    cells = load_table("nb201_pixel3", recorded)
    assert any("under 1 % of the median" in caution for caution in cautions(cells))
    assert cells.rows.shape == (15625, 24)
    assert len(np.unique(cells.rows, axis=0)) == 15625


# --- well-known models ----------------------------------------------------------------------------------------------------------

PUBLISHED = {  # millions of parameters, as the papers and model cards say
    "bert_base_uncased": 110, "bert_large_uncased": 335, "roberta_base": 125, "distilbert_base_uncased": 66,
    "albert_base_v2": 11.7, "gpt2_large": 774, "opt_13": 1300, "gpt3_27": 2650, "nomic_embed_text": 137, "vit": 86.6,
    "openai_clip": 149.6, "video_mae": 87.7,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_parameters(name):
    assert NAMED[name].parameters / 1e6 == pytest.approx(PUBLISHED[name], rel=0.02)


def test_a_published_model_costs_what_the_family_s_own_network_does():
    model = replace(NAMED["bert_base_uncased"], outputs=0, head_hidden=0)
    shape = {"width": (768,), "depth": (12,), "heads": (12,), "ffn": (3072,)}
    family = EncoderFamily(encoder_space(**shape, attention=("full",)), 30522, 2, 514, head_size=64)
    workload = Workload(batch=2, tokens=128)
    ours = family.operators(Encoding.of(family.space, [family.space.largest()]), workload)
    for kind in ("projections", "attention.full", "attention.norm", "ffn", "ffn.norm", "embedding"):
        for part in ("count", "flops", "bytes", "parameters"):
            expected = sum(float(np.sum(getattr(op, part))) for op in ours if op.kind == kind)
            assert sum(getattr(op, part) for op in operators(model, workload) if op.kind == kind) == pytest.approx(expected), kind


def test_what_our_encoders_have_not_is_counted():
    wordy = operators(NAMED["distil_bert_base_uncased_hf"], Workload(tokens=384))
    assert sum(op.flops for op in wordy if op.kind == "head") == 2 * 384 * 768 * (768 + 30522)
    vit = operators(NAMED["vit"], Workload(tokens=197))
    assert sum(op.flops for op in vit if op.kind == "patches") == 2 * 196 * 768 * 768
    plain, gated = (
        sum(op.flops for op in operators(replace(NAMED["nomic_embed_text"], gated=g), Workload(tokens=128)) if op.kind == "ffn")
        for g in (False, True)
    )
    assert gated == 1.5 * plain
    with pytest.raises(ValueError, match="tokens: 64 of the workload are not the model's 197"):
        operators(NAMED["vit"], Workload(tokens=64))
    assert not [op for op in operators(NAMED["bert_base_uncased"], Workload(tokens=16)) if op.kind == "patches"]


@pytest.mark.parametrize(
    "label",
    ["swin_tiny_patch4_window7_224_224", "vit_relpos_base_patch16_224.sw_in1k_224", "switchxl4", "gpt3_xl", "resnet50",
     "vit_small_r26_s32_224.augreg_in21k_ft_in1k_224", "vit_base_patch16_224_miil.in21k_ft_in1k_224", "vit_base_224"],
)  # fmt: skip
def test_a_model_that_is_not_known_for_certain_is_left_out(label):
    assert published(label) is None


def test_names_of_vision_transformers():
    assert published("deit_small_distilled_patch16_224_224") == vision_transformer(
        "deit", "small", patch=16, image=224, distilled=True
    )
    assert published("flexivit_large.300ep_in1k_240").tokens == 226
    with pytest.raises(ValueError, match="patch: 32 is not between 1 and the image's 16"):
        vision_transformer("vit", "base", patch=32, image=16)
    with pytest.raises(ValueError, match="vit, huge: not one of"):
        vision_transformer("vit", "huge", patch=14, image=224)


def test_published_sizes_agree_with_what_a_source_counted(recorded):
    """The table's own parameters and multiply-adds (to two decimals) are an independent count of the same models."""
    nano = load_table("jetson_nano_cpu", recorded)
    found = match(nano)
    assert (len(found), len(nano)) == (60, 521)
    column = dict(zip(nano.features, nano.rows.T, strict=True))
    for one in found:
        matrices = [op for op in operators(one.model, one.workload) if not op.kind.endswith("norm")]
        assert one.model.parameters / 1e6 == pytest.approx(column["mega_parameters"][one.row], rel=0.002, abs=0.006)
        assert sum(op.flops for op in matrices) / 2e9 == pytest.approx(column["gmacs"][one.row], rel=0.005, abs=0.01)


@pytest.mark.parametrize(
    ("name", "known", "others"),
    [("aws_inferentia2", 31, 0), ("qualcomm_galaxy_s25_float_qnn_dlc", 12, 121),
     ("neusight_h100_80gb_hbm3", 8, 8), ("nb201_pixel3", 0, 15625)],
)  # fmt: skip
def test_rows_of_known_models_are_matched_and_the_others_left_out(recorded, name, known, others):
    table_ = load_table(name, recorded)
    assert (len(match(table_)), len(table_)) == (known, known + others)


# --- the command ----------------------------------------------------------------------------------------------------------------


def test_devices_without_data(tmp_path, capsys):
    assert devices.main([f"data={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "local_cpu" in printed
    assert (
        f"not there: 58 tables from qualcomm_galaxy_s24_float_qnn_dlc to qualcomm_rb3_gen2_w8a16_onnx need it in {tmp_path}"
        in printed
    )
    with pytest.raises(ValueError, match="data: '/nowhere' is not a folder"):
        devices.main(["data=/nowhere"])
    with pytest.raises(ValueError, match="'folder=x' is not one of data=…"):
        devices.main(["folder=x"])


def test_devices_with_data(recorded, tmp_path, capsys):
    for name in ("hat_xeon", "aws_c6i"):
        path = tmp_path / TABLES[name].source.file
        path.parent.mkdir()
        path.symlink_to((recorded / TABLES[name].source.file).resolve())
    assert devices.main([f"data={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (xeon,) = (line.split() for line in lines if line.startswith("  hat_xeon "))
    assert xeon[-4:-2] == ["2000", "ms"]
    assert xeon[-1] == "-"
    (aws,) = (line.split() for line in lines if line.startswith("  aws_c6i "))
    assert (aws[-4], aws[-1]) == ("31", "31")


def test_a_file_that_was_changed_hides_no_other_table(tmp_path, capsys, monkeypatch):
    changed, sound = tmp_path / TABLES["aws_c6i"].source.file, tmp_path / TABLES["hat_xeon"].source.file
    for path in (changed, sound):
        path.parent.mkdir(parents=True)
        path.write_text("1,2\n")
    load = devices.load_table
    monkeypatch.setattr(devices, "load_table", lambda name, folder: None if name == "hat_xeon" else load(name, folder))
    monkeypatch.setattr(devices, "described", lambda table: ["hat_xeon", *"abcdefgh"])
    monkeypatch.setattr(devices, "cautions", lambda table: [])
    monkeypatch.setattr(devices, "same_device", lambda tables: [])
    assert devices.main([f"data={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "  hat_xeon  a" in printed
    assert re.search(r"CHANGED: 3 tables from aws_inferentia2 to aws_c6i cannot be used: .*its sha256 is", printed)
    assert printed.count("its sha256 is") == 1


def test_the_state_of_a_device_is_one_sentence():
    assert devices.state("_target_: hardware.local_cpu.LocalCpu\n") == "here"
    assert devices.state("_target_: hardware.local_cpu.LocalCpu\nthreads: ???\n") == "needs device.threads=…"
    assert (
        devices.state("# @package _global_\ndevice:\n  _target_: hardware.local_cpu.LocalCpu\n  threads: ???\n")
        == "needs device.threads=…"
    )
    [recorded] = [line for line in devices.live_devices() if line[0] == "recorded"]
    assert recorded[1] == "needs device.table=…"
    assert recorded[2].startswith("A table of measurements of a device that is not at hand")
    assert devices.state("_target_: hardware.local_cpu.LocalCpu\nthreads: 0\n").startswith("not here: device: threads: 0 is not")
