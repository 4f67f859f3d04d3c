"""Devices and their measurements: visits and their errors, drift that is taken out, and a store that survives kills."""

import errno
import fcntl
import gc
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import onnx
import psutil
import pytest

from hardware import environment
from hardware.local_cpu import LocalCpu
from hardware.store import MeasurementStore, contradict, sentinel_reference
from hardware.timing import Exported, measure
from nas.protocols import DeviceError
from nas.types import Measurement, Workload
from tests.support.simulated import NETWORKS, SENTINEL, SPACE, TIMES, WORKLOAD, SimulatedDevice, arch_of, simulated


def export_chain(folder, width, depth):
    """A chain of `depth` products with matrices of `width` x `width`."""
    weights = [np.full((width, width), 1.0 / width, dtype=np.float32) for _ in range(depth)]
    names = ["x", *(f"x{i}" for i in range(1, depth)), "y"]
    shape = [WORKLOAD.tokens, width]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(depth)],
        "chain",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    path = folder / f"{width}x{depth}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return Exported(arch_of(width, depth), path, {"x": np.ones(shape, dtype=np.float32)})


# --- devices


def test_a_bigger_network_is_slower(tmp_path):
    small, sentinel, big = (export_chain(tmp_path, w, d) for w, d in ((32, 2), (64, 4), (256, 8)))
    first, second = measure(LocalCpu(), [small, big], sentinel=sentinel, workload=WORKLOAD, rounds=3)
    assert second.latency_ms > 3 * first.latency_ms
    assert first.environment["onnxruntime"]
    assert len(first.environment["load_average"]) == 3


def test_a_visit_has_as_many_samples_as_asked(tmp_path):
    network = export_chain(tmp_path, 32, 2)
    assert len(LocalCpu(warmup_seconds=0, visit_seconds=1e-9, min_samples=7).run(network.path, network.inputs)) == 7
    assert len(LocalCpu(warmup_seconds=0, visit_seconds=5, max_samples=25).run(network.path, network.inputs)) == 25


def test_a_visit_leaves_the_garbage_collector_as_it_was(tmp_path):
    network, device = export_chain(tmp_path, 32, 2), LocalCpu()
    device.run(network.path, network.inputs)
    assert gc.isenabled()
    gc.disable()
    try:
        device.run(network.path, network.inputs)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads: 0 is not between 1 and "),
        ({"threads": 100_000}, "threads: 100000 is not between 1 and "),
        ({"warmup_seconds": -1}, "warmup_seconds: -1 is not between"),
        ({"visit_seconds": 0}, "visit_seconds: 0 is not above 0"),
        ({"visit_seconds": float("nan")}, "visit_seconds: nan"),
        ({"min_samples": 0}, "min_samples: 0 is not between 1"),
        ({"min_samples": 20, "max_samples": 10}, "min_samples: 20 is not between 1 and max_samples, 10"),
        ({"graph_optimization": "most"}, "'most' is not one of"),
    ],
)
def test_the_local_cpu_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalCpu(**arguments)


def test_the_fingerprint_changes_with_stable_facts_only():
    device = LocalCpu()
    assert device.fingerprint != LocalCpu(graph_optimization="basic").fingerprint
    assert device.fingerprint == LocalCpu(visit_seconds=1.0).fingerprint
    assert not set(device.environment) & set(device.conditions())


# --- the machine


def test_the_machine_is_described_in_json():
    facts = {**LocalCpu().environment, **environment.conditions()}
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert len(facts["load_average"]) == 3


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor : 0\nmodel : 85\nmodel name : Fast CPU @ 2 GHz\n", "Fast CPU @ 2 GHz"),
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0b\n\nModel : Board 5\n", "Board 5"),
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0b\n", "implementer 0x41 part 0xd0b"),
    ],
)
def test_the_cpu_says_its_name(cpuinfo, name, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(environment, "CPUINFO", path)
    assert environment.cpu_model().endswith(name)


def test_a_system_that_says_nothing_is_described_all_the_same(tmp_path, monkeypatch):
    def unreadable():
        raise NotImplementedError("no frequency here")

    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(environment, "CPUFREQ", tmp_path / "none")
    monkeypatch.setattr(psutil, "cpu_freq", unreadable)
    assert environment.cpu_model()
    facts = environment.conditions()
    assert facts["governor"] is None
    assert facts["current_mhz"] is None


# --- measuring


def test_the_sentinel_stands_between_any_two_visits_and_every_round_begins_elsewhere():
    device, seen = SimulatedDevice(TIMES), []
    measured = measure(
        device,
        NETWORKS[:3],
        sentinel=SENTINEL,
        workload=WORKLOAD,
        rounds=3,
        on_visit=lambda *progress: seen.append(progress),
    )
    assert "".join(device.visited) == "sasbscs" + "bscsas" + "csasbs"
    assert seen == [(done, 9) for done in range(1, 10)]
    assert [m.arch for m in measured] == [n.arch for n in NETWORKS[:3]]
    for m in measured:
        assert [len(visit) for visit in m.samples_ms] == [40] * 3
        assert [len(visit) for visit in m.sentinel_ms] == [80] * 3
        assert m.device == "simulated"
        assert m.environment["rounds"] == 3
        assert m.environment["sentinel"] == SENTINEL.arch.id
    shared = measured[0].sentinel_ms[0][40:]
    assert measured[1].sentinel_ms[0][:40] == shared


DISTURBANCES = {
    "none": lambda visit: 1.0,
    "slow throughout": lambda visit: 1.6,
    "twice as slow in the second half": lambda visit: 1.0 + (visit >= 24),
    "slow, then fast": lambda visit: 1.5 if visit < 20 else 1.0,
    "every fifth visit": lambda visit: 1.8 if visit % 5 == 0 else 1.0,
    "single visits at random": lambda visit: (1.0, 1.0, 1.4, 1.0, 3.0, 1.0, 1.2)[visit * 5 % 7],
    "most visits at random": lambda visit: 1.0 + 0.8 * (np.random.default_rng(visit).random() < 0.5),
    "a slow ramp to 1.3": lambda visit: 1.0 + 0.3 * visit / 48,
    "a ramp from slow to fast": lambda visit: 1.3 - 0.3 * visit / 48,
}


@pytest.mark.parametrize("slowdown", DISTURBANCES.values(), ids=DISTURBANCES)
def test_drift_is_taken_out(slowdown):
    """The truth is what the device would show undisturbed; the wall median is off by the disturbance."""
    device = SimulatedDevice(TIMES, slowdown)
    measured = measure(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, sentinel_reference_ms=TIMES["s"])
    for network, m in zip(NETWORKS, measured, strict=True):
        assert m.latency_ms == pytest.approx(TIMES[network.path.stem], rel=0.02)


def test_two_sessions_agree_on_the_first_ones_reference():
    [first] = measure(SimulatedDevice(TIMES), NETWORKS[:1], sentinel=SENTINEL, workload=WORKLOAD)
    assert first.sentinel_reference_ms == pytest.approx(TIMES["s"], rel=0.01)
    assert np.min(first.drift) == pytest.approx(1.0)
    later = SimulatedDevice(TIMES, lambda visit: 1.7)
    reference = sentinel_reference([first])
    [second] = measure(later, NETWORKS[:1], sentinel=SENTINEL, workload=WORKLOAD, sentinel_reference_ms=reference)
    assert second.latency_ms == pytest.approx(first.latency_ms, rel=0.01)
    assert np.median(second.wall_ms) > 1.6 * first.latency_ms


def test_measuring_refuses_what_it_cannot_do():
    device = SimulatedDevice(TIMES)
    with pytest.raises(ValueError, match="networks: there is nothing"):
        measure(device, [], sentinel=SENTINEL, workload=WORKLOAD)
    with pytest.raises(ValueError, match="rounds: 0 is not at least 1"):
        measure(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, rounds=0)
    with pytest.raises(DeviceError, match=r"e\.onnx: lost"):
        measure(device, [simulated("e")], sentinel=SENTINEL, workload=WORKLOAD)


# --- the store


@pytest.fixture
def device():
    return SimulatedDevice(TIMES)


@pytest.fixture
def measured(device):
    return measure(device, NETWORKS, sentinel=SENTINEL, workload=WORKLOAD, rounds=2)


@pytest.fixture
def store(tmp_path, device, measured):
    """A store that holds the four measurements; `load` is bound to their device, family and workload."""
    store = MeasurementStore(tmp_path / "store")
    store.append(measured, device=device, signature="family")
    return store


def load(store, device, signature="family", workload=WORKLOAD):
    return store.load(SPACE, device, signature, workload)


def the_file(store):
    [path] = store.folder.iterdir()
    return path


def rewrite(store, edit):
    """Passes every record of the only file through `edit`."""
    path = the_file(store)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        edit(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_is_kept_is_read_again(store, device, measured):
    found, notes = load(store, device)
    assert notes == []
    assert list(found) == [m.arch.id for m in measured]
    for m in measured:
        assert found[m.arch.id].to_json() == m.to_json()
        assert found[m.arch.id].latency_ms == pytest.approx(m.latency_ms, rel=1e-5)
    record = json.loads(the_file(store).read_text().splitlines()[0])
    assert record["fingerprint"] == device.fingerprint
    assert record["signature"] == "family"


def test_a_real_measurement_is_read_again(tmp_path):
    network, sentinel = (export_chain(tmp_path, w, 2) for w in (32, 64))
    device = LocalCpu()
    fresh = measure(device, [network], sentinel=sentinel, workload=WORKLOAD, rounds=1)
    store = MeasurementStore(tmp_path / "store")
    store.append(fresh, device=device, signature="family")
    found, notes = load(store, LocalCpu())
    assert notes == []
    assert found[network.arch.id].latency_ms == pytest.approx(fresh[0].latency_ms, rel=1e-4)


def test_an_empty_store_holds_nothing(tmp_path, device):
    assert load(MeasurementStore(tmp_path / "none"), device) == ({}, [])
    assert not (tmp_path / "none").exists()
    assert sentinel_reference([]) is None


def test_the_last_line_of_an_architecture_counts(store, device, measured):
    slower = replace(measured[0], samples_ms=((9.0,),), sentinel_ms=((0.9,),))
    store.append([slower], device=device, signature="family")
    found, _ = load(store, device)
    assert len(found) == 4
    assert found[slower.arch.id].samples_ms == ((9.0,),)


@pytest.mark.parametrize(
    ("factor", "slower_machine", "noted"),
    [(3.0, 1.0, True), (1 / 3, 1.0, True), (1.1, 1.0, False), (1.0, 3.0, False), (3.0, 3.0, True)],
)
def test_contradicting_measurements_are_noted_once(factor, slower_machine, noted, store, device, measured):
    """What slows the sentinel too is no contradiction."""
    times = {name: ms * (slower_machine if name == "s" else factor * slower_machine) for name, ms in TIMES.items()}
    again = measure(SimulatedDevice(times), NETWORKS[:2], sentinel=SENTINEL, workload=WORKLOAD, rounds=4)
    store.append(again, device=device, signature="family")
    found, notes = load(store, device)
    assert found[again[0].arch.id].latency_ms == pytest.approx(again[0].latency_ms, rel=1e-4)
    assert len(found) == 4
    assert len(notes) == noted
    if noted:
        assert re.match(rf"MEASUREMENTS CONTRADICT EACH OTHER in .*: {again[0].arch.id} \(0\.1\d* ms, then \d", notes[0])
        assert notes[0].count(" ms, then ") == 2


def test_noise_is_no_contradiction(measured):
    """The quietest visit of a noisy session tells less than that of a steady one."""
    beside = {"sentinel_ms": ((0.9, 0.9),) * 4, "sentinel_reference_ms": 0.9}
    steady, noisy = (
        replace(measured[0], samples_ms=[(ms, ms) for ms in times], **beside)
        for times in ((0.15, 0.15, 0.15, 0.15), (0.15, 0.25, 0.3, 0.4))
    )
    assert steady.latency_ms == noisy.latency_ms
    assert contradict(measured[0], steady)
    assert not contradict(measured[0], noisy)


def test_families_and_workloads_are_kept_apart(store, device):
    assert load(store, device, signature="other") == ({}, [])
    assert load(store, device, workload=Workload(tokens=8)) == ({}, [])


@pytest.mark.parametrize("kept", [1, 2, 50, 300, -2])
def test_a_kill_loses_at_most_the_line_that_was_written(kept, store, device, measured):
    path = the_file(store)
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    path.write_bytes(whole[: start + kept] if kept > 0 else whole[:kept])
    found, notes = load(store, device)
    assert list(found) == [m.arch.id for m in measured[:3]]
    assert notes == [f"the last line of {path} was cut off and is not used"]
    store.append(measured[3:], device=device, signature="family")
    assert path.read_bytes() == whole
    assert load(store, device)[1] == []


def test_what_another_run_is_writing_is_waited_for(store, device, measured):
    path = the_file(store)
    whole = path.read_bytes()
    with path.open("ab", buffering=0) as other, ThreadPoolExecutor() as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(whole[:50])
        done = pool.submit(store.append, measured[:1], device=device, signature="family")
        assert not wait([done], timeout=0.2).done
        other.write(whole[50:])
        fcntl.flock(other, fcntl.LOCK_UN)
        done.result(timeout=10)
    assert path.read_bytes() == whole + whole + whole[: whole.index(b"\n") + 1]


def test_a_last_line_that_only_lacks_its_end_is_used_and_stays(store, device, measured):
    path = the_file(store)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(load(store, device)[0]) == 4
    store.append(measured[:1], device=device, signature="family")
    assert len(path.read_text().splitlines()) == 5
    assert len(load(store, device)[0]) == 4


def corrupt_sample(record):
    record["samples_ms"][0][0] = -1.0


def other_space(record):
    record["arch"]["width"] = 7


def no_time(record):
    del record["environment"]["time"]


@pytest.mark.parametrize("edit", [corrupt_sample, other_space, no_time, lambda r: r.pop("arch"), lambda r: r.pop("environment")])
def test_a_record_that_is_none_is_named_and_left_alone(edit, store, device):
    rewrite(store, edit)
    before = the_file(store).read_bytes()
    with pytest.raises(ValueError, match=r"jsonl, line 1: is not a measurement of the space chain .*can be deleted safely"):
        load(store, device)
    assert the_file(store).read_bytes() == before


@pytest.mark.parametrize("junk", [b"{", b"\xff\xfe", b"7", b"null", b"[]", b""])
def test_a_corrupted_line_is_named_and_left_alone(junk, store, device):
    path = the_file(store)
    lines = path.read_bytes().splitlines()
    lines[1] = junk
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"jsonl, line 2: .*can be deleted safely"):
        load(store, device)
    assert path.read_bytes() == before


def test_measurements_of_another_environment_are_counted_and_not_used(store, device):
    upgraded = SimulatedDevice(TIMES, runtime="1.31")
    note = "4 measurements of runtime 1.30 are not used with runtime 1.31"
    assert load(store, upgraded) == ({}, [note])
    copied = the_file(store).with_name(the_file(store).name.replace(device.fingerprint, upgraded.fingerprint))
    the_file(store).rename(copied)
    assert load(store, upgraded) == ({}, [note])


def test_foreign_lines_in_a_file_are_counted_and_not_used(store, device):
    records = iter(range(4))

    def of_another_machine(record):
        if next(records) == 2:
            record["environment"] |= {"cpu": "another", "threads": 2}

    rewrite(store, of_another_machine)
    found, notes = load(store, device)
    assert len(found) == 3
    assert notes == ["1 measurement of cpu another, threads 2 is not used with cpu simulated, threads 1"]


def test_unreadable_lines_of_another_environment_are_passed_over(store, device):
    path = the_file(store)
    path.write_bytes(b"junk\n7\n" + path.read_bytes()[:-5])
    assert load(store, SimulatedDevice(TIMES, runtime="1.31"))[1] == [
        "3 measurements of runtime 1.30 are not used with runtime 1.31"
    ]


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ([40, 29, 31, 0], "2 measurements older than 30 days are not used any more"),
        ([-400, -0.9, -1.1, 0], "2 measurements from days to come are not used (a clock is wrong, here or where they were kept)"),
    ],
)
def test_old_measurements_and_those_of_a_clock_that_was_ahead_are_not_used(store, device, measured, days, said):
    ages = iter(days)

    def aged(record):
        record["environment"]["time"] = (datetime.now(UTC) - timedelta(days=next(ages))).isoformat()

    rewrite(store, aged)
    found, notes = load(store, device)
    assert set(found) == {measured[1].arch.id, measured[3].arch.id}
    assert notes == [said]


def test_the_reference_is_that_of_the_earliest_measurement(measured):
    early = replace(
        measured[2], sentinel_reference_ms=0.5, environment={**measured[2].environment, "time": "2020-01-01T00:00+00:00"}
    )
    assert sentinel_reference([*measured, early]) == 0.5
    assert sentinel_reference(measured) == measured[0].sentinel_reference_ms


def test_a_full_disk_is_said_and_costs_nothing_that_was_kept(store, device, measured, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="measurements cannot be kept: No space left on device") as caught:
        store.append(measured[:1], device=device, signature="family")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(store.folder)
    assert len(load(store, device)[0]) == 4


def test_a_folder_that_cannot_be_made_is_said(tmp_path, device, measured):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="measurements cannot be kept"):
        MeasurementStore(tmp_path / "file" / "store").append(measured, device=device, signature="family")


def test_measurements_go_through_json(measured):
    [again] = [Measurement.from_json(SPACE, json.loads(json.dumps(measured[0].to_json())))]
    assert again.latency_ms == pytest.approx(measured[0].latency_ms, rel=1e-5)
    assert hash(again.arch) == hash(measured[0].arch)
