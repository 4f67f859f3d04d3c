"""`paretoformer measure`: inputs for any file, the table, the raw samples, and clear words for what cannot be measured."""

import csv
import itertools
import json
import re
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from experiments.measure import main
from experiments.measured import Timed, said, times_table, write
from experiments.onnx_inputs import DynamicSizes, make_inputs
from experiments.verdicts import facts_of
from hardware.ethos_u import Estimate
from hardware.local_cpu import LocalCpu
from hardware.quality import outliers
from hardware.timing import measure
from nas.protocols import DeviceError
from tests.support.simulated import NETWORKS, SENTINEL, TIMES, WORKLOAD, Metered, SimulatedDevice


def save(path, nodes, inputs, weights=(), output="y"):
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], [numpy_helper.from_array(v, n) for n, v in weights],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def embedding(path, rows=50, width=8, type_=TensorProto.INT64):
    """Words looked up in a table of `rows`, times a mask."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["rows"], axis=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["rows"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "mask"], ["y"]),
    ]
    shape = ["batch", "sequence"]
    inputs = [("ids", type_, shape), ("attention_mask", TensorProto.INT64, shape)]
    return save(path, nodes, inputs, [("table", np.ones((rows, width), np.float32))])


def product(path, width, *, fixed=False):
    weights = [("w", np.ones((width, width), np.float32))]
    shape = [1, 16, width] if fixed else ["n", None, width]
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", TensorProto.FLOAT, shape)], weights)


# --- inputs


def test_inputs_have_the_types_and_shapes_of_the_graph(tmp_path):
    inputs = make_inputs(embedding(tmp_path / "a.onnx", rows=50), DynamicSizes(batch=3, tokens=400))
    assert {name: (v.dtype, v.shape) for name, v in inputs.items()} == {
        "ids": (np.int64, (3, 400)),
        "attention_mask": (np.int64, (3, 400)),
    }
    assert inputs["ids"].min() == 0
    assert inputs["ids"].max() == 49, "below the rows of the table that they look up"
    assert (inputs["attention_mask"] == 1).all()


def test_integers_stay_below_ids(tmp_path):
    path = embedding(tmp_path / "a.onnx", rows=50, type_=TensorProto.INT32)
    inputs = make_inputs(path, DynamicSizes(tokens=400, ids=7))
    assert inputs["ids"].dtype == np.int32
    assert inputs["ids"].max() == 6


def test_integers_of_which_nothing_is_known_are_zero_or_one(tmp_path):
    node = helper.make_node("Cast", ["flags"], ["y"], to=TensorProto.FLOAT)
    path = save(tmp_path / "a.onnx", [node], [("flags", TensorProto.INT8, [200])])
    assert set(make_inputs(path, DynamicSizes())["flags"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("type_", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64), (TensorProto.BOOL, np.bool_)]
)
def test_other_types(type_, dtype, tmp_path):
    path = save(tmp_path / "a.onnx", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], [("x", type_, [5, 4])])
    x = make_inputs(path, DynamicSizes())["x"]
    assert x.dtype == dtype
    assert x.shape == (5, 4)
    assert x.all()


def test_dimensions_by_name_and_by_place(tmp_path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    path = save(tmp_path / "a.onnx", [node], [("x", TensorProto.FLOAT, ["n", 3, "height", "width"])])
    assert make_inputs(path, DynamicSizes(batch=2, tokens=8))["x"].shape == (2, 3, 8, 8)
    assert make_inputs(path, DynamicSizes(batch=2, dims={"height": 5, "width": 6}))["x"].shape == (2, 3, 5, 6)


def test_inputs_are_the_same_again_and_weights_are_none(tmp_path):
    path = product(tmp_path / "a.onnx", 16)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 16]))  # as old exporters do
    onnx.save(model, path)
    first, again = (make_inputs(path, DynamicSizes()) for _ in range(2))
    assert list(first) == ["x"]
    assert np.array_equal(first["x"], again["x"])
    assert 0.8 < first["x"].std() < 1.2


def test_inputs_that_cannot_be_made_up(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    with pytest.raises(ValueError, match="the input x is of the type object, which is not one of float, integer and bool"):
        make_inputs(save(tmp_path / "text.onnx", [node], [("x", TensorProto.STRING, [1])]), DynamicSizes())
    with pytest.raises(ValueError, match="the input x is no tensor of known rank"):
        make_inputs(save(tmp_path / "rank.onnx", [node], [("x", TensorProto.FLOAT, None)]), DynamicSizes())
    with pytest.raises(ValueError, match="height: 0 is not at least 1"):
        DynamicSizes(dims={"height": 0})


# --- the command


def test_files_are_timed_side_by_side(tmp_path, capsys):
    small, large = product(tmp_path / "small.onnx", 16), product(tmp_path / "large.onnx", 512)
    assert main([str(large), str(small), "rounds=4", "tokens=32", f"out={tmp_path / 'times.json'}"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.split("latency:")[0].splitlines())) <= 100
    assert "Measuring" not in out, "quiet where there is no terminal"
    assert re.search(r"large\.onnx .* ± .* … .* / .* ± ", out)
    assert re.search(r"small\.onnx .* 1\.00 *\n", out)
    assert "Inputs of large.onnx: x float32 [1, 32, 512]." in out
    assert "Device local_cpu, 4 rounds" in out

    networks = json.loads((tmp_path / "times.json").read_text())["networks"]
    assert [n["name"] for n in networks] == ["large.onnx", "small.onnx"]
    assert networks[0]["latency_ms"] > 3 * networks[1]["latency_ms"]
    for n in networks:
        samples = np.concatenate(n["measurement"]["samples_ms"])
        assert len(n["measurement"]["samples_ms"]) == 4
        assert n["runs"] == len(samples)
        assert n["median_ms"] == pytest.approx(np.median(samples), rel=1e-4)
        assert n["min_ms"] <= n["median_ms"] <= n["p90_ms"] <= n["p99_ms"] <= n["max_ms"]
        assert sum(map(sum, n["outlier"])) == n["outliers"]
        assert isinstance(n["measurement"]["environment"]["conditions_after"]["other_load"], list)


def test_samples_as_csv(tmp_path, capsys):
    path = product(tmp_path / "a.onnx", 16)
    main([str(path), "rounds=2", "device.max_samples=15", "device.graph_optimization=none", f"out={tmp_path / 'times.csv'}"])
    rows = list(csv.DictReader((tmp_path / "times.csv").read_text().splitlines()))
    times = [float(row["ms"]) for row in rows if row["of"] == "network"]
    assert len(times) == 30
    assert min(times) > 0
    assert {row["round"] for row in rows} == {"1", "2"}
    assert {row["of"] for row in rows} == {"network", "sentinel"}
    assert {row["outlier"] for row in rows if row["of"] == "network"} <= {"0", "1"}
    assert "not known of less than 4 rounds" in capsys.readouterr().out


def test_an_architecture_by_its_picks(capsys):
    picks = {"width": 32, "depth": 1, "layer1.attention": "full", "layer1.heads": 1, "layer1.ffn": 64, "ngrams": 1, "pool": "2"}
    main([f"arch={json.dumps(picks)}", "rounds=1", "tokens=16", "ids=500", "device.max_samples=10"])
    out = capsys.readouterr().out
    assert "token_ids int64 [1, 16], attention_mask int64 [1, 16]" in out


def test_networks_of_a_run(finished, capsys):
    """Finished ones by a rule, any that was scored by its id; with the run's workload and device."""
    shipped = json.loads((finished / "results.json").read_text())["picked_id"]
    scored = json.loads((finished / "candidates.jsonl").read_text().splitlines()[-1])["id"]
    main([f"run={finished}", f"pick={shipped}", f"arch={scored}", "rounds=2"])
    out = capsys.readouterr().out
    assert f"{shipped}.onnx" in out
    assert re.search(rf"^ {scored} ", out, flags=re.MULTILINE)
    assert "[1, 32]" in out
    with pytest.raises(ValueError, match=r"arch: 'zz' begins 0 of the \d+ ids"):
        main([f"run={finished}", "arch=zz"])
    with pytest.raises(ValueError, match="pick: 'zz' is not one of knee, best"):
        main([f"run={finished}", "pick=zz"])


def test_what_ships_is_measured(finished, tmp_path, capsys):
    """After a stage that was kept, its file, with inputs of the run's task."""
    run = shutil.copytree(finished, tmp_path / "run")
    id_ = json.loads((run / "results.json").read_text())["picked_id"]
    for kind in ("onnx", "safetensors"):
        (run / f"shortlist/{id_}.{kind}").rename(run / f"shortlist/{id_}.distil.{kind}")
    (run / f"shortlist/{id_}.stages.json").write_text(json.dumps({"ships": "distil", "stages": []}))
    main([f"run={run}", f"pick={id_}", "rounds=1", "device.max_samples=10"])
    assert f"Inputs of {id_}.distil.onnx: token_ids int64 [1, 32]" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="tokens: 999 of the workload are more than max_tokens 32"):
        main([f"run={run}", f"pick={id_}", "tokens=999"])
    shutil.rmtree(run / ".hydra")
    with pytest.raises(ValueError, match="was made from Python; name its files"):
        main([f"run={run}", f"pick={id_}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "measure: name ONNX files"),
        (["none.onnx"], "none.onnx: there is no such file"),
        (["garbage.onnx"], "garbage.onnx: is not an ONNX file"),
        (["empty.onnx"], "empty.onnx: is not an ONNX file"),
        (["."], ": there is no such file"),
        (["a.onnx", "rounds=0"], "rounds: 0 is not at least 1"),
        (["a.onnx", "batch=0"], "batch: 0 is not at least 1"),
        (["a.onnx", "ids=0"], "ids: 0 is not at least 1"),
        (["a.onnx", "dims={height: 3}"], "height: no input of a.onnx has such a dynamic dimension"),
        (["fixed.onnx", "tokens=8"], "tokens: no input of fixed.onnx has such a dynamic dimension"),
        (["a.onnx", "round=3"], "'round=3' is not one of rounds=…"),
        (["a.onnx", "device=abacus"], "device: there is no 'abacus'. Available options in 'device': adb cuda"),
        (["a.onnx", "device.speed=9"], "there is no value 'device.speed'; there are device."),
        (["a.onnx", "threads=9999"], "threads: 9999 is not between 1 and"),
        (["a.onnx", "device=ssh"], "device.host: has no value; give one as device.host=…"),
        (["a.onnx", "device=local_torch"], "runs torchscript files"),
        (["a.onnx", "out=times.xlsx"], "out: 'times.xlsx' does not end in one of"),
        (["a.onnx", "out=nowhere/times.csv"], "out: the folder of 'nowhere/times.csv' does not exist"),
        (["pick=knee"], "pick: 'knee' needs run=DIR"),
        (["run=nowhere", "pick=knee"], "run: nowhere is not the directory of a run"),
        (["arch=abc"], "arch: 'abc' is not a JSON object; an id needs run=DIR"),
        (['arch={"width": 7}'], "width: 7 is not one of"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_timed(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    product(tmp_path / "a.onnx", 16)
    product(tmp_path / "fixed.onnx", 16, fixed=True)
    (tmp_path / "garbage.onnx").write_bytes(b"no network at all")
    (tmp_path / "empty.onnx").write_bytes(b"")
    monkeypatch.setattr("experiments.measure.measure", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(ValueError, match=re.escape(message)):
        main(words)


def test_what_a_device_lacks_is_said_before_a_network_is_made_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu.vela", None)
    monkeypatch.setattr("experiments.measure.export_for_timing", lambda *_, **__: pytest.fail("a network was exported"))
    with pytest.raises(DeviceError, match=re.escape("ethosu is not installed: pip install 'paretoformer[ethos-u]'")):
        main(["arch={}", "device=ethos_u"])


def test_a_file_that_the_device_refuses(tmp_path):
    path = embedding(tmp_path / "a.onnx", rows=5)
    with pytest.raises(DeviceError, match=r"a\.onnx: ONNX Runtime failed: .*out of data bounds"):
        main([str(path), "ids=1000"])
    with pytest.raises(
        DeviceError, match=r"failed: .*; it was run with ids \[1, 64\], attention_mask \[1, 64\]; other sizes are giv"
    ):
        main([str(path), "ids=1000"])


def test_what_was_measured_before_the_device_was_lost_is_shown_and_written(tmp_path, capsys, monkeypatch):
    path, visits, run = product(tmp_path / "a.onnx", 16), itertools.count(), LocalCpu.run

    def until_lost(device, path, inputs):
        if next(visits) > 2 * 5 + 1:
            raise DeviceError("pi over ssh: No route to host")
        return run(device, path, inputs)

    monkeypatch.setattr(LocalCpu, "run", until_lost)
    with pytest.raises(DeviceError, match="pi over ssh: No route to host; shown are the 5 of 400 rounds that were complete"):
        main([str(path), "rounds=400", "device.max_samples=10", f"out={tmp_path / 'times.json'}"])
    assert "Device local_cpu, 5 rounds" in capsys.readouterr().out
    [record] = json.loads((tmp_path / "times.json").read_text())["networks"]
    assert len(record["measurement"]["samples_ms"]) == 5


# --- what is said


def timed(device, rounds=6):
    measured = measure(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, rounds=rounds)
    return [Timed(n.path.name, n, m) for n, m in zip(NETWORKS, measured, strict=True)]


def text_of(lines):
    console = Console(width=100, highlight=False)
    with console.capture() as captured:
        for line in lines:
            console.print(line, markup=False)
    return " ".join(captured.get().split())


def test_relative_times_come_with_their_uncertainty():
    networks = timed(SimulatedDevice(TIMES))
    ratio, error = networks[2].relative_to(networks[1])
    assert ratio == pytest.approx(TIMES["c"] / TIMES["b"], rel=0.01)
    assert 0 < error < 0.05
    assert networks[1].relative_to(networks[1]) == (1.0, 0.0)


def test_energy_is_shown_where_a_device_meters_it():
    assert " mJ " in text_of([times_table(timed(Metered(TIMES)))])
    assert "17.5" in text_of([times_table(timed(Metered(TIMES)))]), "2.5 mJ a ms of the network d"
    assert " mJ " not in text_of([times_table(timed(SimulatedDevice(TIMES)))])


def test_fast_networks_are_shown_in_microseconds():
    slow = timed(SimulatedDevice({name: 10 * t for name, t in TIMES.items()}))
    assert "Times in ms" in text_of([times_table(slow)])
    fast = timed(SimulatedDevice({name: t / 10 for name, t in TIMES.items()}))
    text = text_of([times_table(fast)])
    assert "Times in µs" in text
    assert "a.onnx 10.0 " in text


def test_a_disturbed_session_comes_with_advice():
    class Busy(SimulatedDevice):
        def conditions(self):
            return {"other_load": [{"name": "compiler", "pid": 4711, "cores": 0.93}], "governor": "powersave"}

    random = np.random.default_rng(0).uniform(1, 4, size=100)
    text = text_of(said(timed(Busy(TIMES, lambda visit: random[visit]))))
    assert "Meanwhile ran: compiler (process 4711): 93% of a core." in text
    assert "Advice: latencies are uncertain by" in text
    assert "close compiler (process 4711)" in text
    assert "Outliers (modified Z-score above 3.5; flagged, none dropped): a.onnx" in text
    calm = text_of(said(timed(SimulatedDevice(TIMES))))
    assert "Meanwhile" not in calm
    assert "uncertain by" not in calm


@pytest.mark.parametrize("kind", ["emulated", "estimated"])
def test_times_of_no_real_device_are_marked(kind):
    assert f"These times are {kind}" in text_of(said(timed(SimulatedDevice(TIMES, **{kind: True}))))
    assert f"These times are {kind}" not in text_of(said(timed(SimulatedDevice(TIMES, **{kind: False}))))


ESTIMATE = Estimate(
    accelerator="ethos-u55-128", system_config="High_End", memory_mode="Shared_Sram", clock_mhz=500.0, cycles=3449085,
    latency_ms=6.9, sram_kib=146.1, dram_kib=0.0, flash_kib=392.9, file_kib=400.0, num_passes=4,
    cpu_operators={"Cast": 2, "EmbeddingLookup": 1},
)  # fmt: skip


class Computing(SimulatedDevice):
    """As `ethos_u` does."""

    def estimated(self, path, inputs):
        return asdict(replace(ESTIMATE, latency_ms=self.times_ms[path.stem]))


def test_all_that_a_compiler_says_of_a_network_is_shown_and_kept(tmp_path):
    networks = timed(Computing(TIMES, estimated=True), rounds=1)
    text = text_of(said(networks))
    assert "These times are estimated" in text
    assert "a.onnx: estimated 0.100 ms (3449085 cycles at 500 MHz) on ethos-u55-128, High_End, Shared_Sram: SRAM 146 KiB" in text
    assert "flash 393 KiB, file 400 KiB; without 3 of 4 operators, which run on the CPU: 2 Cast, 1 EmbeddingLookup." in text
    write(tmp_path / "times.json", networks)
    [record, *_] = json.loads((tmp_path / "times.json").read_text())["networks"]
    assert Estimate(**record["measurement"]["environment"]["estimate"]).num_on_cpu == 3
    assert facts_of(networks[0].measurement)["estimated"] is True


def test_files_hold_every_sample(tmp_path):
    networks = timed(SimulatedDevice(TIMES), rounds=2)
    write(tmp_path / "times.csv", networks)
    rows = [row for row in csv.DictReader((tmp_path / "times.csv").read_text().splitlines()) if row["of"] == "network"]
    for n in networks:
        own = [row for row in rows if row["network"] == n.name]
        assert [float(row["ms"]) for row in own] == pytest.approx(n.measurement.wall_ms, abs=1e-6)
        assert sum(int(row["outlier"]) for row in own) == n.figures["outliers"] > 0
    drift = networks[0].measurement.drift
    even = np.concatenate([np.array(v) / d for v, d in zip(networks[0].measurement.samples_ms, drift, strict=True)])
    assert np.concatenate(networks[0].outliers).tolist() == outliers(even).tolist()
