"""Boards over ssh and adb: a real sshd on loopback, the agent on its own, and what a board, a wire or an answer may do wrong."""

import ast
import contextlib
import gc
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch

from experiments.build import build
from experiments.config import composed
from experiments.progress import Reporter
from hardware import agent, load
from hardware.adb import Adb
from hardware.answers import FACTS, environment_of
from hardware.ssh import Ssh
from hardware.surroundings import absences
from hardware.timing import Exported, measure
from nas.protocols import DeviceError
from nas.space import Choice, SearchSpace
from nas.types import Workload
from tests.support.boards import PYTHON, SSH, executable

SPACE = SearchSpace("product", (Choice("width", (8, 64, 256)),))
QUESTION = {"version": agent.VERSION, "threads": 1, "precision": "fp32", "graph_optimization": "all"}
VISIT = {"warmup_seconds": 0, "visit_seconds": 0.001, "min_samples": 3, "max_samples": 5, "limit_seconds": 60, "cache_mib": 1}
ADB = """#!/bin/sh
echo "$*" >> {log}
[ "$1 $2" = "-s phone-5" ] || {{ echo "error: device '$2' not found" >&2; exit 1; }}
shift 2
case "$1" in
    push) mkdir -p "$(dirname "$3")" && cp "$2" "$3" && echo "$2: 1 file pushed" ;;
    shell) shift; exec sh -c "$*" ;;
esac
"""
# A board's Python that is no agent: it answers every line with `{answer}`, an expression that knows the nonce and the action.
IMPOSTOR = """#!{python}
import json, os, sys, time
facts = dict(cpu="c", os="Linux arm", onnxruntime="1", threads=1, emulated=False)
def say(answer, mark="@paretoformer 2 "):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    print(mark + nonce + " " + text, flush=True)
def whole(**more):
    return dict(environment=facts, conditions=dict(), **more)
for line in sys.stdin:
    nonce, action = (json.loads(line)[name] for name in ("nonce", "action"))
    if action == "environment":
        {greeting}
    else:
        {answer}
"""


def network(folder, width=64):
    """A product with a matrix of `width` x `width`, and its input."""
    weight = onnx.numpy_helper.from_array(np.full((width, width), 1 / width, dtype=np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [16, width]) for name in ("x", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    path = folder / f"{width}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path, {"x": np.ones((16, width), dtype=np.float32)}


@pytest.fixture
def closing():
    """Closes every device that it is called with."""
    devices = []
    yield lambda device: devices.append(device) or device
    for device in devices:
        device.close()


@pytest.fixture
def over_ssh(tmp_path, closing):
    """Makes a device behind an ssh that connects to this machine at once; `tmp_path / "log"` has what it was called with."""

    def make(*, before="", **options):
        command = executable(tmp_path / "ssh", SSH.format(log=tmp_path / "log", before=before))
        defaults = {"python": PYTHON, "folder": str(tmp_path / "board"), "visit_seconds": 0.01, "retry_seconds": 0.0}
        return closing(Ssh("board", ssh=command, **{**defaults, **options}))

    return make


# --- the agent on its own


def asked(folder, *requests, python=sys.executable):
    """The answers of an agent in `folder`, and its exit status."""
    shutil.copy(agent.__file__, folder / "agent.py")
    lines = b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in requests)
    done = subprocess.run([*python.split(), folder / "agent.py"], input=lines, capture_output=True, timeout=60, check=True)
    answers = [line.split(" ", 3) for line in done.stdout.decode().splitlines() if line]
    assert all(answer[:2] == ["@paretoformer", str(agent.VERSION)] for answer in answers)
    return [(nonce, json.loads(text)) for _, _, nonce, text in answers]


def sent(folder, path, suffix):
    name = hashlib.sha256(path.read_bytes()).hexdigest() + suffix
    shutil.copy(path, folder / name)
    return name


def test_the_agent_is_python_3_8_of_the_standard_library_and_opens_no_network():
    tree = ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 8))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names} | {
        n.module for n in nodes if isinstance(n, ast.ImportFrom)
    }
    assert names - set(sys.stdlib_module_names) <= {"numpy", "onnxruntime", "collections.abc"}
    assert not names & {"socket", "subprocess", "http", "urllib", "multiprocessing", "ctypes"}
    at_start = {alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
    assert not at_start & {"numpy", "onnxruntime"}, "what is not installed must be said, not crash"


def test_the_agent_runs_what_it_was_sent_and_describes_the_board(tmp_path):
    path, inputs = network(tmp_path)
    np.savez(tmp_path / "x.npz", *inputs.values())
    files = {"model": sent(tmp_path, path, ".onnx"), "inputs": sent(tmp_path, tmp_path / "x.npz", ".npz"), "names": ["x"]}
    first, second, third = asked(
        tmp_path,
        {**QUESTION, "nonce": "a", "action": "environment"},
        b"garbage\n",
        {**QUESTION, **VISIT, **files, "nonce": "b", "action": "run"},
    )
    assert first[0] == "a"
    assert "samples_ms" not in first[1]
    assert set(first[1]["environment"]) == {
        "cpu", "cores", "cpus", "os", "python", "onnxruntime", "provider", "threads", "precision", "graph_optimization",
        "emulated",
    }  # fmt: skip
    assert first[1]["environment"]["emulated"] is False
    assert "JSONDecodeError" in second[1]["error"]
    assert third[0] == "b"
    assert third[1]["environment"] == first[1]["environment"]
    assert set(third[1]["conditions"]["before"]) == {"governor", "current_mhz", "temperature_celsius", "load_average"}
    assert set(third[1]["conditions"]) == {"before", "after"}
    assert isinstance(third[1]["conditions"]["after"]["other_load"], list)
    assert 3 <= len(third[1]["samples_ms"]) <= 5
    assert all(0 < s < 1000 for s in third[1]["samples_ms"])


def test_the_agent_opens_nothing_else(tmp_path):
    folder = tmp_path / "board"
    folder.mkdir()
    path, _ = network(tmp_path)
    whole = sent(folder, path, ".onnx")
    cut = "0" * 64 + ".onnx"
    (folder / cut).write_bytes(b"other content")
    link = "1" * 64 + ".npz"
    (folder / link).symlink_to(path)
    run = {**QUESTION, **VISIT, "nonce": "n", "action": "run", "names": ["x"]}
    outside = [f"../{path.name}", str(path), f"{folder}/{whole}", "agent.py", whole + "/", "", None, ["a"]]
    answers = asked(
        folder,
        *({**run, "model": name, "inputs": whole} for name in outside),
        {**run, "model": whole, "inputs": link},
        {**run, "model": cut, "inputs": "2" * 64 + ".npz"},
        {**run, "version": 1},
        {**run, "action": "shell"},
        {**run, "threads": 10_000, "action": "environment"},
    )
    errors = [answer.get("error", "") for _, answer in answers]
    assert all("is not the name of a file that was sent" in error for error in errors[: len(outside)])
    assert "is a link" in errors[len(outside)]
    assert answers[len(outside) + 1][1] == {"missing": [cut, "2" * 64 + ".npz"]}
    assert errors[-3:-1] == ["version: 1 is not 2", "action: 'shell' is not one of ['answer', 'environment', 'run']"]
    assert "threads: 10000 are more than the" in errors[-1]


def test_old_networks_are_removed_when_the_cache_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "FOLDER", str(tmp_path))
    names = [f"{digit * 64}.onnx" for digit in "abcd"]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (10_000 - age, 10_000 - age))
    (tmp_path / "notes.txt").write_bytes(bytes(5000))
    agent.forget(2500, keep=(names[3],))
    assert sorted(p.name for p in tmp_path.iterdir()) == [names[0], names[3], "notes.txt"]
    agent.forget(0, keep=(names[3],))
    assert sorted(p.name for p in tmp_path.iterdir()) == [names[3], "notes.txt"]


def test_frequency_governor_and_temperature_are_read_where_the_board_has_them(tmp_path, monkeypatch):
    for cpu, khz in ((0, 1_500_000), (1, 1_800_000)):
        (tmp_path / f"cpu{cpu}/cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/cpufreq/scaling_cur_freq").write_text(f"{khz}\n")
        (tmp_path / f"cpu{cpu}/cpufreq/scaling_governor").write_text("ondemand\n")
    for index, (kind, value) in enumerate((("battery", "71000"), ("cpu-thermal", "52300"), ("cpu-big", "-1"), ("gpu", "n/a"))):
        (tmp_path / f"thermal_zone{index}").mkdir()
        (tmp_path / f"thermal_zone{index}/type").write_text(kind)
        (tmp_path / f"thermal_zone{index}/temp").write_text(value)
    monkeypatch.setattr(agent, "usable_cpus", lambda: [0, 1])
    monkeypatch.setattr(agent, "CPU", str(tmp_path))
    monkeypatch.setattr(agent, "ZONES", str(tmp_path))
    assert {**agent.state(), "load_average": []} == {
        "governor": "ondemand",
        "current_mhz": 1800.0,
        "temperature_celsius": 52.3,
        "load_average": [],
    }
    monkeypatch.setattr(agent, "CPU", "none")
    monkeypatch.setattr(agent, "ZONES", "none")
    assert {**agent.state(), "load_average": []} == {
        "governor": None,
        "current_mhz": None,
        "temperature_celsius": None,
        "load_average": [],
    }


STAT = "{pid} ({name}) S 1 1 1 0 -1 4194560 1 0 0 0 {ticks} 5 0 0 20 0 1 0 100 1000 50"


def proc(folder, busy, stolen, **processes):
    """A /proc in which the system has spent so many ticks, and each process (`name=(pid, ticks)`) some of them."""
    for pid, text in [("stat", f"cpu  {busy} 0 0 900 0 0 0 {stolen} 0 0\ncpu0 1 2 3\n")] + [
        (f"{pid}/stat", STAT.format(pid=pid, name=name, ticks=ticks)) for name, (pid, ticks) in processes.items()
    ]:
        (folder / pid).parent.mkdir(parents=True, exist_ok=True)
        (folder / pid).write_text(text)


def test_what_ran_beside_the_agent_is_named_greediest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "PROC", str(tmp_path))
    monkeypatch.setattr(agent.os, "getpid", lambda: 9)
    monkeypatch.setattr(agent.os, "sysconf", lambda _: 100)
    moments = iter([10.0, 11.0, 11.0])
    monkeypatch.setattr(agent.time, "perf_counter", lambda: next(moments))
    proc(tmp_path, 1000, 50, agent=(9, 10), **{"a) (b\x1b": (4, 100), "idle": (5, 30)})
    start = agent.spent()
    proc(tmp_path, 1240, 80, agent=(9, 100), **{"a) (b\x1b": (4, 150), "idle": (5, 40), "new": (6, 25)})
    found = agent.other_load(start)["other_load"]
    assert found == [
        {"name": agent.UNSEEN, "pid": None, "cores": 0.6},
        {"name": "a) (b?", "pid": 4, "cores": 0.5},
        {"name": "new", "pid": 6, "cores": 0.3},
        {"name": agent.STOLEN, "pid": None, "cores": 0.3},
    ]
    assert environment_of({"environment": dict.fromkeys(FACTS), "conditions": {"after": {**agent.state(), "other_load": found}}})


def test_a_busy_process_beside_the_agent_is_named(monkeypatch):
    monkeypatch.setattr(agent, "LEAST_CORES", 0.01)  # a full machine leaves it little
    monkeypatch.setattr(agent, "MAX_LOADS", 1000)
    busy = subprocess.Popen([sys.executable, "-c", "print('ready', flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout.readline() == b"ready\n"
        for _ in range(20):
            found = {one["pid"]: load.Load(**one) for one in agent.other_load(agent.spent()).get("other_load", ())}
            if busy.pid in found:
                break
        assert found[busy.pid].name == psutil.Process(busy.pid).name()
        assert os.getpid() not in found
    finally:
        busy.kill()
        busy.communicate()


def test_the_load_that_is_named_is_bounded_and_unknown_without_proc(tmp_path, monkeypatch):
    assert (agent.UNSEEN, agent.STOLEN, agent.LEAST_CORES) == (load.UNSEEN, load.STOLEN, load.LEAST_CORES)
    monkeypatch.setattr(agent, "PROC", str(tmp_path / "proc"))
    assert agent.other_load(agent.spent()) == {}
    proc(tmp_path / "proc", 0, 0)
    start = agent.spent()
    proc(tmp_path / "proc", 10**6, 0, **{f"busy{pid}": (pid, 10**4) for pid in range(100, 140)})
    assert len(agent.other_load(start)["other_load"]) == agent.MAX_LOADS


@pytest.mark.parametrize(
    "loads",
    [
        7, [7], [{}], [{"name": "a", "pid": 1}], [{"name": "\x1b", "pid": 1, "cores": 1.0}],
        [{"name": "a", "pid": 1, "cores": 1e999}], [{"name": "a", "pid": "1", "cores": 1.0}],
        [{"name": "a" * 101, "pid": 1, "cores": 1.0}],
        [{"name": "a", "pid": 1, "cores": 1.0}] * 6,
    ],
)  # fmt: skip
def test_loads_that_are_none_are_refused(loads):
    answer = {"environment": dict.fromkeys(FACTS), "conditions": {"after": {**agent.state(), "other_load": loads}}}
    with pytest.raises(DeviceError, match="without the state of a board"):
        environment_of(answer)


@pytest.mark.parametrize(
    ("machine", "files", "emulated"),
    [
        ("x86_64", {"/proc/self/comm": "python3", "/proc/sys/kernel/arch": "x86_64", "/proc/cpuinfo": "GenuineIntel"}, False),
        ("i686", {"/proc/sys/kernel/arch": "x86_64"}, False),
        ("armv7l", {"/proc/sys/kernel/arch": "aarch64"}, False),
        ("aarch64", {"/proc/cpuinfo": "CPU implementer : 0x41"}, False),
        ("aarch64", {"/proc/self/comm": "qemu-aarch64-st"}, True),
        ("aarch64", {"/proc/sys/kernel/arch": "x86_64"}, True),
        ("aarch64", {"/proc/cpuinfo": "vendor_id : GenuineIntel"}, True),
    ],
)
def test_an_emulated_board_is_found_out(machine, files, emulated, monkeypatch):
    monkeypatch.setattr(agent, "text", files.get)
    monkeypatch.setattr(agent.os, "uname", lambda: os.uname_result(("Linux", "", "", "", machine)))
    assert agent.is_emulated() is emulated


def test_big_and_little_cores_are_both_named(monkeypatch):
    cores = "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd05\n\nprocessor : 1\nCPU implementer : 0x41\nCPU part : 0xd0b\n"
    monkeypatch.setattr(agent, "text", {"/proc/cpuinfo": cores}.get)
    assert agent.cpu_model().endswith("implementer 0x41 part 0xd05 and 0xd0b")


# --- a device over an ssh that cannot fail


def test_visits_share_one_agent_and_files_are_sent_once(over_ssh, tmp_path):
    device = over_ssh(before="echo; echo 'Welcome to the board'; echo '@paretoformer 2 0000 {}'; echo Notice >&2")
    small, large = network(tmp_path, 8), network(tmp_path, 256)
    for path, inputs in (small, large, small, large):
        samples = device.run(path, inputs)
        assert 10 <= len(samples) <= 200
        assert all(isinstance(s, float) and 0 < s < 1000 for s in samples)
    calls = (tmp_path / "log").read_text().splitlines()
    assert len(calls) == 7, "a start without the agent, the agent, a start with it, and two files of each network"
    assert all("BatchMode=yes" in call and " -- board sh -c" in call for call in calls)
    assert device.environment["cpu"]
    assert set(device.conditions()) == {"before", "after"}
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o700

    device.close()
    device.run(*small)
    assert len((tmp_path / "log").read_text().splitlines()) == 8, "everything is there from before"
    [model] = [p for p in (tmp_path / "board").glob("*.onnx") if p.read_bytes() == small[0].read_bytes()]
    model.write_bytes(b"cut off")
    (tmp_path / "board" / "agent.py").write_text("raise SystemExit('not the agent that was sent')")
    device.close()
    device.run(*small)
    assert model.read_bytes() == small[0].read_bytes()


def test_a_board_answers_with_what_the_network_says(over_ssh, tmp_path):
    device = over_ssh()
    path, inputs = network(tmp_path, 8)
    values = np.arange(128, dtype=np.float32).reshape(16, 8)
    [rows] = device.opened(path)({"x": torch.from_numpy(values)})
    assert np.allclose(rows, values @ np.full((8, 8), 1 / 8))
    assert device.conditions()["before"]["load_average"]
    with pytest.raises(DeviceError, match=r"8.onnx.*over ssh.*other"):
        device.opened(path)({"other": torch.ones(16, 8)})
    assert device.run(path, inputs)


def test_int8_is_made_here_and_runs_there(over_ssh, tmp_path):
    device = over_ssh(precision="int8")
    path, inputs = network(tmp_path)
    assert device.run(path, inputs)
    assert device.run(path, inputs)
    assert device.environment["precision"] == "int8"
    [sent] = (tmp_path / "board").glob("*.onnx")
    assert "MatMulInteger" in {node.op_type for node in onnx.load(sent).graph.node}


def test_measurements_of_a_board_say_in_what_state_it_was(over_ssh, tmp_path):
    device = over_ssh()
    first, second, sentinel = (Exported(SPACE.canonical({"width": width}), *network(tmp_path, width)) for width in (8, 256, 64))
    low, high = measure(device, [first, second], sentinel=sentinel, workload=Workload(tokens=16), rounds=2)
    assert low.latency_ms < high.latency_ms
    assert low.device == "ssh"
    assert low.environment["emulated"] is False
    assert low.environment["before"]["load_average"]
    assert isinstance(low.environment["conditions_after"]["after"]["other_load"], list)


def test_a_device_that_is_forgotten_leaves_no_process(tmp_path):
    command = executable(tmp_path / "ssh", SSH.format(log=tmp_path / "log", before=""))
    of_others = psutil.Process().children(recursive=True)  # such as workers of scikit-learn, which wait for more
    device = Ssh("board", ssh=command, python=PYTHON, folder=str(tmp_path / "board"))
    assert len(device.fingerprint) == 12
    children = [child for child in psutil.Process().children(recursive=True) if child not in of_others]
    assert children
    del device
    gc.collect()
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_what_the_board_refuses_is_said_and_the_next_visit_works(over_ssh, tmp_path):
    device = over_ssh()
    path, inputs = network(tmp_path)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no network at all")
    for bad in (garbage, tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(DeviceError, match=bad.name):
            device.run(bad, inputs)
    with pytest.raises(DeviceError, match=r"64.onnx.*over ssh.*other"):
        device.run(path, {"other": inputs["x"]})
    with pytest.raises(DeviceError, match="Object arrays cannot be loaded"):
        device.run(path, {"x": np.array([{}], dtype=object)})
    assert device.run(path, inputs)
    with pytest.raises(DeviceError, match=r"threads: 1000 are more than the .* cores"):
        _ = over_ssh(threads=1000).environment


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("no-such-python", "board over ssh: no-such-python cannot be run: .*not found"),
        (f"{sys.executable} -I -S", "No module named 'numpy' for .* it needs numpy and onnxruntime"),
        ("sh -c 'kill -9 $$'", r"the agent was ended by the system \(out of memory\?\)"),
        ("sh -c 'echo half a disk >&2; exit 3'", "the agent ended with status 3: half a disk"),
    ],
)
def test_a_board_that_lacks_something_says_so(python, message, over_ssh, tmp_path):
    device = over_ssh(python=python)
    with pytest.raises(DeviceError, match=message) as caught:
        device.run(*network(tmp_path))
    assert "\n" not in str(caught.value)
    assert "tried" not in str(caught.value), "only a lost connection is tried again"


GREETING = "say(whole())"


@pytest.mark.parametrize(
    ("greeting", "answer", "message"),
    [
        (GREETING, "say(whole(samples_ms=[1.0, 2.0, float('nan')] * 5))", "an answer with nan as a time in ms"),
        (GREETING, "say(whole(samples_ms=[1.0, -2.0] * 5))", "an answer with -2.0 as a time"),
        (GREETING, "say(whole(samples_ms=[1.0, True] * 5))", "an answer with True as a time"),
        (GREETING, "say(whole(samples_ms=['1.0'] * 10))", "an answer with 1.0 as a time"),
        (GREETING, "say(whole(samples_ms=[1.0] * 9))", r"an answer without 10 to 200 times: \[1.0, 1.0"),
        (GREETING, "say(whole(samples_ms=[1.0] * 201))", "an answer without 10 to 200 times"),
        (GREETING, "say(whole())", "an answer without 10 to 200 times: None"),
        (GREETING, "say('[1.0]')", r"no JSON object: \[1.0\]"),
        (GREETING, "say('{\"samples_ms\": ')", "an answer that is no JSON"),
        (GREETING, "say('[' * 200000)", "an answer that is no JSON"),
        (GREETING, "say('9' * 5000)", "an answer that is no JSON"),
        (GREETING, "say(dict(samples_ms=[1.0] * 10))", "an answer without the facts of a board: None"),
        (GREETING, "facts['cpu'] = 'another'; say(whole(samples_ms=[1.0] * 10))", "is not what it was: cpu c, now another"),
        (GREETING, "say(dict(error='line one\\n\\x1b[31mred'))", r"board over ssh: line one \[31mred"),
        (GREETING, "say(dict(missing=[json.loads(line)['model']]))", "files do not arrive whole in"),
        (GREETING, "say(dict(missing=7))", "an answer without 10 to 200 times: None"),
        (GREETING, "os.write(1, b'x' * 2**21)", "more than 1048576 bytes"),
        (GREETING, "os.write(2, b'x' * 2**21)", "more than 1048576 bytes"),
        (GREETING, "nonce = 'other'; say(whole(samples_ms=[1.0] * 10))", "no answer within 2 seconds"),
        (GREETING, "time.sleep(60)", "no answer within 2 seconds"),
        ("say(dict(environment=[], conditions=dict()))", "", r"an answer without the facts of a board: \[\]"),
        ("say(dict(missing=['x']))", "", "an answer without the facts of a board: None"),
        ("say(dict(absent=False))", "", "the agent does not arrive whole"),
        ("facts['cpu'] = chr(27) + '[31m'; say(whole())", "", r"without the facts of a board: .*'cpu': '\\x1b\[31m'"),
        ("facts['cpu'] = dict(a=1); say(whole())", "", "without the facts of a board"),
        ("say(dict(environment=facts, conditions=dict(before=dict(other_load=7))))", "", "the state of a board: .*other_load"),
        ("facts['emulated'] = True; say(whole())", "", "Linux arm is emulated, its times say nothing; allow_emulated=true"),
    ],
)
def test_garbage_is_an_error_in_one_sentence(greeting, answer, message, over_ssh, tmp_path):
    python = executable(
        tmp_path / "python", IMPOSTOR.format(python=f"{sys.executable} -IS", greeting=greeting, answer=answer or "pass")
    )
    device = over_ssh(python=python, timeout_seconds=2)
    began = time.monotonic()
    with pytest.raises(DeviceError, match=message) as caught:
        device.run(*network(tmp_path))
    assert time.monotonic() - began < 15
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_times_of_an_emulated_board_are_taken_only_if_asked_for(over_ssh, tmp_path):
    script = IMPOSTOR.format(
        python=f"{sys.executable} -IS",
        greeting="facts['emulated'] = True; say(whole())",
        answer="say(whole(samples_ms=[1.0] * 10))",
    )
    device = over_ssh(python=executable(tmp_path / "python", script), allow_emulated=True)
    assert device.run(*network(tmp_path)) == (1.0,) * 10
    assert device.environment["emulated"] is True


def test_a_lost_connection_is_tried_again_with_a_bound(over_ssh, tmp_path):
    device = over_ssh(before="echo 'ssh: connect to host board port 22: No route to host' >&2; exit 255", retries=3)
    with pytest.raises(DeviceError, match=r"the connection failed: ssh: connect .* No route to host \(tried 4 times\)"):
        device.run(*network(tmp_path))
    assert len((tmp_path / "log").read_text().splitlines()) == 4

    flaky = f"[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; exit 255; }}"
    assert over_ssh(before=flaky, retries=1).run(*network(tmp_path))


@pytest.mark.parametrize("also", [False, True])
def test_a_search_and_a_calibration_take_no_times_of_an_emulated_board(also, tmp_path):
    """Said before the board is called, of the device and of a further one."""
    board = f"device=ssh device.host=board device.ssh={tmp_path}/nobody device.allow_emulated=true".split()
    if also:
        board = [f"also={{board:{{device:ssh,host:board,ssh:{tmp_path}/nobody,allow_emulated:true}}}}"]
    with pytest.raises(ValueError, match=r"allow_emulated: times of an emulated board .* `paretoformer measure` shows them"):
        build(composed("experiment=smoke", *board, f"run={tmp_path}/run"), report=Reporter(quiet=True))
    assert not (tmp_path / "run").exists()


DEAD = "echo 'ssh: connect to host board port 22: No route to host' >&2; exit 255"


def dying(device, tmp_path, before=DEAD):
    """From now on ssh does something else before it connects."""
    executable(tmp_path / "ssh", SSH.format(log=tmp_path / "log", before=before))
    device.close()


def test_the_facts_of_a_board_are_known_when_it_does_not_answer(over_ssh, tmp_path):
    first = over_ssh()
    first.remember_in(tmp_path / "store")
    facts = first.environment
    assert first.absent == ""
    dying(first, tmp_path)
    later = over_ssh(before=DEAD, visit_seconds=0.02, retries=1)
    later.remember_in(tmp_path / "store")
    assert (later.environment, later.fingerprint) == (facts, first.fingerprint)
    assert later.absent.endswith("No route to host (tried 2 times)")
    assert absences(later) == [later.absent]
    with pytest.raises(DeviceError, match=r"No route to host \(tried 2 times\)"):
        later.run(*network(tmp_path))
    for unknown in (over_ssh(before=DEAD, retries=0), over_ssh(before=DEAD, retries=0, precision="int8")):
        if unknown.precision == "int8":
            unknown.remember_in(tmp_path / "store")
        with pytest.raises(DeviceError, match="No route to host"):
            _ = unknown.environment
    dying(later, tmp_path, before="")
    assert later.run(*network(tmp_path))
    assert later.absent == ""


def test_a_board_that_comes_back_as_another_is_refused_and_a_damaged_memory_is_none(over_ssh, tmp_path):
    first = over_ssh()
    first.remember_in(tmp_path / "store")
    facts = first.environment
    [memory] = (tmp_path / "store/boards").iterdir()
    memory.write_text(json.dumps({"environment": {**facts, "onnxruntime": "1.0"}, "conditions": {}}))
    later = over_ssh(before=DEAD, retries=0)
    later.remember_in(tmp_path / "store")
    assert later.environment["onnxruntime"] == "1.0"
    dying(later, tmp_path, before="")
    with pytest.raises(DeviceError, match=r"is not what it was: onnxruntime 1\.0, now"):
        later.run(*network(tmp_path))
    memory.write_text('{"environment": 7}')
    damaged = over_ssh(before=DEAD, retries=0)
    damaged.remember_in(tmp_path / "store")
    with pytest.raises(DeviceError, match="No route to host"):
        _ = damaged.environment


# --- options


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=touch x", "-v", "board; touch x", "$(touch x)", "`touch x`", "board x", "board\nx", "a|b", "a&b", "a>b", "",
     "ä", "'board'", "user@", "@board", "user@-oProxyCommand=x", "user@host@other", "ssh://board", "pi@board/", "~", "*",
     "b\\oard"],
)  # fmt: skip
def test_a_host_with_other_characters_reaches_no_shell(host, tmp_path):
    command = executable(tmp_path / "ssh", f"#!/bin/sh\ntouch {tmp_path}/called\n")
    with pytest.raises(ValueError, match=r"host: .* is not a host or user@host of letters, digits and \. _ - : %"):
        Ssh(host, ssh=command)
    with pytest.raises(ValueError, match=r"serial: .* is not a serial of letters, digits and"):
        Adb(host, adb=command)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "host", ["board", "pi@raspberrypi.local", "10.0.0.7", "root@fe80::1%eth0", "::1", "lab_board-2", "a_b@c"]
)
def test_names_and_addresses_are_hosts(host):
    assert Ssh(host).host == host


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, "port: 0 is not between 1 and 65535"),
        ({"threads": 0}, "threads: 0 is not between 1 and"),
        ({"retries": -1}, "retries: -1 is not between 0 and 20"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: nan is not between"),
        ({"min_samples": 20, "max_samples": 10}, "min_samples: 20 is not between 1 and max_samples, 10"),
        ({"visit_seconds": 0}, "visit_seconds: 0 is not"),
        ({"precision": "int4"}, "precision: 'int4' is not one of"),
        ({"graph_optimization": "most"}, "'most' is not one of"),
        ({"folder": "~/cache"}, "folder: '~/cache' begins with '~'"),
        ({"folder": "-f"}, "folder: '-f' begins with '-'"),
        ({"folder": "a\nb"}, "folder: .* is not a text of printable characters"),
        ({"python": " "}, "python: ' ' is not a text"),
        ({"python": "it's"}, "No closing quotation"),
        ({"ssh": ""}, "ssh: is empty"),
        ({"ssh": "ssh -F 'x"}, "No closing quotation"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ssh("board", **options)


def test_no_ssh_on_this_machine_is_said():
    with pytest.raises(DeviceError, match="no-such-ssh cannot be run on this machine: No such file"):
        _ = Ssh("board", ssh="no-such-ssh").environment


def test_words_of_the_folder_and_of_python_reach_no_shell_unquoted(over_ssh, tmp_path):
    folder = tmp_path / 'it\'s $(touch called) `touch called`; a "folder"'
    device = over_ssh(folder=str(folder), python=f"{PYTHON} -X 'warn;touch called'")
    assert device.run(*network(tmp_path))
    assert (folder / "agent.py").is_file()
    assert not [p for p in (Path("called"), tmp_path / "called") if p.exists()]


# --- adb


def over_adb(tmp_path, closing, **options):
    command = executable(tmp_path / "adb", ADB.format(log=tmp_path / "log"))
    return closing(Adb(**{"serial": "phone-5", "adb": command, "python": PYTHON, "folder": str(tmp_path / "phone"), **options}))


def test_a_phone_runs_networks_over_adb(tmp_path, closing):
    device = over_adb(tmp_path, closing, folder=str(tmp_path / "a phone's"))
    path, inputs = network(tmp_path)
    for _ in range(2):
        assert all(0 < s < 1000 for s in device.run(path, inputs))
    words = [line.split()[2] for line in (tmp_path / "log").read_text().splitlines()]
    assert words == ["shell", "push", "shell", "push", "push"]
    assert device.name == "adb"
    assert device.environment["emulated"] is False


def test_a_phone_that_is_not_there_is_tried_again_and_one_that_is_full_is_not(tmp_path, closing):
    device = over_adb(tmp_path, closing, serial="phone-6", retry_seconds=0.0)
    message = r"phone-6 over adb: the connection failed: error: device 'phone-6' not found \(tried 3 times\)"
    with pytest.raises(DeviceError, match=message):
        device.run(*network(tmp_path))
    full = "adb: error: failed to copy 'agent.py' to '/x': remote write failed: No space left on device"
    executable(tmp_path / "full", f'#!/bin/sh\n[ $3 = push ] && {{ echo "{full}" >&2; exit 1; }}\nshift 3\nexec sh -c "$*"\n')
    with pytest.raises(DeviceError, match=r"the copy of agent.py ended with status 1: adb: error: .* No space left on device$"):
        over_adb(tmp_path, closing, adb=str(tmp_path / "full")).run(*network(tmp_path))
    with pytest.raises(ValueError, match="folder: 'relative' does not begin with /"):
        Adb("phone-5", folder="relative")


# --- a real sshd


@pytest.fixture
def sshd(tmp_path):
    """Starts an OpenSSH server on loopback as this user, with keys of its own; returns its process and the ssh command for it."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("sshd is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and its own service would have made it
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}")
    (tmp_path / "ssh_config").write_text(
        f"Host board\nHostName 127.0.0.1\nPort {port}\nIdentityFile {tmp_path}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {tmp_path}/known_hosts\nGlobalKnownHostsFile none\n"
    )
    server = psutil.Popen([program, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.PIPE)
    line = b""
    while b"listening on 127.0.0.1" not in line:
        line = server.stderr.readline()
        assert line, f"sshd ended with status {server.wait(timeout=10)}"
    entered = subprocess.run(["ssh", "-F", tmp_path / "ssh_config", "board", "true"], capture_output=True, text=True, timeout=30)
    if not entered.returncode:
        yield server, f"ssh -F {tmp_path}/ssh_config"
    for process in (*server.children(recursive=True), server):
        with contextlib.suppress(psutil.NoSuchProcess):  # a connection's own ends with the connection
            process.kill()
    server.wait(timeout=10)
    server.stderr.close()
    if entered.returncode:
        pytest.skip(f"sshd does not let this user in: {entered.stderr.strip()}")


def over_sshd(sshd, tmp_path, closing, **options):
    defaults = {"python": PYTHON, "folder": str(tmp_path / "board"), "retries": 1, "retry_seconds": 0.1}
    return closing(Ssh("board", ssh=sshd[1], **{**defaults, **options}))


def test_over_a_real_sshd(sshd, tmp_path, closing):
    device = over_sshd(sshd, tmp_path, closing)
    times = {width: device.run(*network(tmp_path, width)) for width in (8, 256)}
    assert all(0 < s < 1000 for samples in times.values() for s in samples)
    assert min(times[256]) > 2 * min(times[8])
    assert device.environment["onnxruntime"]
    with pytest.raises(DeviceError, match="no-such-python cannot be run"):
        over_sshd(sshd, tmp_path, closing, python="no-such-python").run(*network(tmp_path))
    (tmp_path / "known_hosts").write_text("")
    with pytest.raises(DeviceError, match=r"Host key verification failed.* \(tried 2 times\)"):
        over_sshd(sshd, tmp_path, closing).run(*network(tmp_path))


def struck_in_mid_run(device, path, inputs, victims, strike):
    """What a visit of some seconds comes to whose connection is killed or frozen once the agent there is at work."""
    outcome = []

    def visit():
        try:
            outcome.append(device.run(path, inputs))
        except DeviceError as error:
            outcome.append(error)

    agents = [p for v in victims() for p in v.children(recursive=True) if "python" in p.name()]
    assert agents
    before = {p: sum(p.cpu_times()[:2]) for p in agents}
    thread = threading.Thread(target=visit)
    thread.start()
    while all(sum(p.cpu_times()[:2]) < before[p] + 0.2 for p in agents):
        assert thread.is_alive(), outcome
        time.sleep(0.01)
    for victim in victims():
        strike(victim)
    thread.join(timeout=60)
    return outcome[0]


@pytest.mark.parametrize("strike", [psutil.Process.kill, psutil.Process.suspend])
def test_a_connection_that_dies_or_falls_silent_is_made_again(strike, sshd, tmp_path, closing):
    device = over_sshd(sshd, tmp_path, closing, connect_seconds=1)
    path, inputs = network(tmp_path, 1024)
    device.run(path, inputs)
    device.visit_seconds, device.max_samples = 1.0, 10_000
    outcome = struck_in_mid_run(device, path, inputs, sshd[0].children, strike)
    assert isinstance(outcome, tuple)
    assert all(0 < s < 1000 for s in outcome)


def test_a_killed_sshd_is_an_error_in_bounded_time(sshd, tmp_path, closing):
    device = over_sshd(sshd, tmp_path, closing)
    path, inputs = network(tmp_path, 1024)
    device.run(path, inputs)
    device.visit_seconds, device.min_samples, device.max_samples = 5.0, 10_000, 10_000
    began = time.monotonic()
    outcome = struck_in_mid_run(device, path, inputs, lambda: [*sshd[0].children(), sshd[0]], psutil.Process.kill)
    assert isinstance(outcome, DeviceError)
    assert str(outcome).startswith("board over ssh: the connection failed: ssh: connect to host 127.0.0.1")
    assert str(outcome).endswith("Connection refused (tried 2 times)")
    assert time.monotonic() - began < 15


# --- ARM binaries, emulated


@pytest.mark.slow
def test_the_agent_runs_on_arm_binaries_and_its_times_are_refused(over_ssh, tmp_path):
    """`tests/arm_board.sh` makes the folder that the variable ARM_BOARD names."""
    qemu, root = shutil.which("qemu-aarch64-static"), os.environ.get("ARM_BOARD")
    if qemu is None or root is None:
        pytest.skip("qemu-aarch64-static is not installed, or ARM_BOARD names no folder that tests/arm_board.sh made")
    python = f"env PYTHONPATH={root}/site {qemu} -cpu cortex-a76 -L {root} {root}/usr/bin/python3.11"
    path, inputs = network(tmp_path)
    with pytest.raises(DeviceError, match="Linux aarch64 is emulated, its times say nothing"):
        over_ssh(python=python, timeout_seconds=300).run(path, inputs)
    device = over_ssh(python=python, timeout_seconds=300, allow_emulated=True)
    assert len(device.run(path, inputs)) >= 10
    assert device.environment["os"] == "Linux aarch64"
    assert device.environment["emulated"] is True
