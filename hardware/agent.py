"""Runs networks on a board for paretoformer: a single file that needs only Python 3.8 or newer, numpy and onnxruntime there.

It reads requests from standard input, one line of JSON each, and answers each with one line on standard output, until the input
ends:

    {"version": 2, "nonce": "8f3a", "action": "run", "model": "<SHA-256>.onnx", "inputs": "<SHA-256>.npz", ...}
    @paretoformer 2 8f3a {"samples_ms": [...], "environment": {...}, "conditions": {...}}

What else comes out, a login banner for example, is no answer: it lacks the mark and the request's nonce. The agent listens on
nothing, opens no connection, starts no program, and opens only files of its own folder that hold what their name says.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import math
import os
import platform
import re
import signal
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION = 2
MARK = "@paretoformer"
MAX_REQUEST = 65536  # bytes
MAX_NUMBERS = 2**17  # of a network's answer
WINDOW = 5  # runs of which a median is taken
LEAST_SECONDS = 0.01  # of warm-up, unless the bound is lower
STABLE = 0.05  # share by which the medians of two windows may differ in a network that is warm
PROVIDER = "CPUExecutionProvider"
FILE_NAME = re.compile(r"[0-9a-f]{64}\.(onnx|npz)")
FOLDER = os.path.dirname(os.path.abspath(__file__))
CPU = "/sys/devices/system/cpu"
ZONES = "/sys/class/thermal"
PROC = "/proc"
LOOK_SECONDS = 0.1  # at least, at what else runs: CPU time is counted in hundredths of a second
LEAST_CORES = 0.2  # that are worth a word
MAX_LOADS = 5  # that are named, the greediest
UNSEEN = "processes that ended or cannot be seen"
STOLEN = "other virtual machines on this host"


class RequestError(Exception):
    """A request that is not carried out, and why."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no part of an answer
    for line in iter(lambda: sys.stdin.buffer.readline(MAX_REQUEST), b""):
        nonce, answer = reply(line)
        answers.write(f"\n{MARK} {VERSION} {nonce} {json.dumps(answer)}\n".encode())
        answers.flush()


def reply(line: bytes) -> tuple[str, dict[str, Any]]:
    """The nonce of a request and the answer to it; an answer with `error` says why there is no other."""
    nonce = "-"
    try:
        request = json.loads(line.decode())
        nonce = str(request["nonce"])
        if request["version"] != VERSION:
            raise RequestError(f"version: {request['version']} is not {VERSION}")
        if request["action"] not in ACTIONS:
            raise RequestError(f"action: {request['action']!r} is not one of {sorted(ACTIONS)}")
        return nonce, ACTIONS[request["action"]](request)
    except ImportError as error:
        return nonce, {"error": f"{error} for {sys.executable} {platform.python_version()}; it needs numpy and onnxruntime"}
    except RequestError as error:
        return nonce, {"error": str(error)}
    except Exception as error:  # onnxruntime's have no class of their own; whatever it is, the other side is told
        return nonce, {"error": f"{type(error).__name__}: {error}"[:1000]}


def environment(request: dict[str, Any]) -> dict[str, Any]:
    facts, start = stable_facts(request), spent()
    return {"environment": facts, "conditions": {"before": {**state(), **other_load(start)}}}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One visit to a network."""
    return with_files(request, lambda *paths: {"samples_ms": visit(request, *paths)})


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The `shape` of a network's first output, and the first of its `numbers`, float32 in base64, at most `MAX_NUMBERS`."""

    def first(model: str, inputs: str) -> dict[str, Any]:
        session, feed = opened(request, model, inputs)
        output = session.run(None, feed)[0]
        numbers = output.reshape(-1)[:MAX_NUMBERS].astype("<f4").tobytes()
        return {"shape": list(output.shape), "numbers": base64.b64encode(numbers).decode()}

    return with_files(request, first)


def with_files(request: dict[str, Any], work: Callable[[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """What comes of a network and its inputs, or the names of those files that are `missing` here."""
    names = (request["model"], request["inputs"])
    missing = [name for name in names if not is_whole(name)]
    if missing:
        return {"missing": missing}
    facts, before, start = stable_facts(request), state(), spent()
    signal.alarm(math.ceil(request["limit_seconds"]))  # ends the agent if a network does not come to its end
    try:
        found = work(*(os.path.join(FOLDER, name) for name in names))
    finally:
        signal.alarm(0)
    after = {**state(), **other_load(start)}
    forget(request["cache_mib"] * 2**20, keep=names)
    return {**found, "environment": facts, "conditions": {"before": before, "after": after}}


ACTIONS = {"answer": answer, "environment": environment, "run": run}


# --- one visit


def visit(request: dict[str, Any], model: str, inputs: str) -> list[float]:
    """Loads the network, warms up and times: raw wall times in ms, in the order in which they were taken."""
    session, feed = opened(request, model, inputs)
    gc.disable()
    try:
        warm_up(lambda: session.run(None, feed), request["warmup_seconds"])
        samples: list[int] = []
        now = time.perf_counter_ns()
        end = now + round(1e9 * request["visit_seconds"])
        while len(samples) < request["max_samples"] and (now < end or len(samples) < request["min_samples"]):
            start = time.perf_counter_ns()
            session.run(None, feed)
            now = time.perf_counter_ns()
            samples.append(now - start)
    finally:
        gc.enable()
    return [sample / 1e6 for sample in samples]


def opened(request: dict[str, Any], model: str, inputs: str) -> tuple[Any, dict[str, Any]]:
    """The network as ONNX Runtime has loaded it, and its inputs by their names."""
    import numpy
    import onnxruntime

    with numpy.load(inputs, allow_pickle=False) as arrays:
        feed = {name: arrays[f"arr_{index}"] for index, name in enumerate(request["names"])}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = {
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[request["graph_optimization"]]
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=[PROVIDER]), feed


def warm_up(network: Callable[[], object], seconds: float) -> None:
    """Runs a network until the medians of two consecutive windows agree within `STABLE`, for so many seconds at most."""
    times: list[float] = []
    now = time.perf_counter()
    least, end = now + LEAST_SECONDS, now + seconds
    while not times or now < end:
        network()
        before, now = now, time.perf_counter()
        times = [*times[1 - 2 * WINDOW :], now - before]
        if len(times) == 2 * WINDOW and now >= least:
            earlier, later = statistics.median(times[:WINDOW]), statistics.median(times[WINDOW:])
            if abs(later - earlier) <= STABLE * earlier:
                return


# --- files


def is_whole(name: str) -> bool:
    """Whether there is such a file in the agent's folder and its content is what its name, a SHA-256, says."""
    if not (isinstance(name, str) and FILE_NAME.fullmatch(name)):
        raise RequestError(f"{name!r} is not the name of a file that was sent: a SHA-256 and .onnx or .npz")
    path = os.path.join(FOLDER, name)
    if os.path.islink(path):
        raise RequestError(f"{path} is a link")
    if not os.path.isfile(path):
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest() == name.split(".")[0]


def forget(limit: int, keep: tuple[str, ...]) -> None:
    """Removes the files that were not used for longest, until at most `limit` bytes are left; those in `keep` stay."""
    for name in keep:
        os.utime(os.path.join(FOLDER, name))
    paths = [os.path.join(FOLDER, name) for name in os.listdir(FOLDER) if FILE_NAME.fullmatch(name)]
    size = sum(map(os.path.getsize, paths))
    for path in sorted(paths, key=os.path.getmtime):
        if size > limit and os.path.basename(path) not in keep:
            size -= os.path.getsize(path)
            os.remove(path)


# --- the board


def stable_facts(request: dict[str, Any]) -> dict[str, Any]:
    """What a time depends on and what does not change while the board stays as it is."""
    import numpy  # noqa: F401  # so that its absence is said before anything is sent
    import onnxruntime

    cpus = usable_cpus()
    if request["threads"] > len(cpus):
        raise RequestError(f"threads: {request['threads']} are more than the {len(cpus)} cores")
    return {
        "cpu": cpu_model(),
        "cores": len(cpus),
        "cpus": cpus,
        "os": f"{os.uname().sysname} {os.uname().machine}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "provider": PROVIDER,
        "threads": request["threads"],
        "precision": request["precision"],
        "graph_optimization": request["graph_optimization"],
        "emulated": is_emulated(),
    }


def state() -> dict[str, Any]:
    """What varies from moment to moment; None where the board does not say."""
    cpus = usable_cpus()
    khz = [number(f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus]
    return {
        "governor": text(f"{CPU}/cpu{cpus[0]}/cpufreq/scaling_governor"),
        "current_mhz": max((value / 1000 for value in khz if value is not None), default=None),
        "temperature_celsius": temperature(),
        "load_average": [float(load) for load in (text("/proc/loadavg") or "").split()[:3]],
    }


def spent() -> dict[str, Any]:
    """Ticks of CPU so far: `busy` of the whole system, `stolen` by its host, and `each` process that shows them, with its name.

    Nothing of the system where /proc does not say it.
    """
    known: dict[str, Any] = {"time": time.perf_counter(), "each": {}}
    whole = re.match("cpu +([0-9]+) ([0-9]+) ([0-9]+) [0-9]+ [0-9]+ ([0-9]+) ([0-9]+) ([0-9]+)", text(f"{PROC}/stat") or "")
    if whole:
        *busy, stolen = map(int, whole.groups())
        known.update(busy=sum(busy), stolen=stolen)
    process = re.compile(r"[0-9]+ \((.*)\) \S(?: -?[0-9]+){10} ([0-9]+) ([0-9]+) ", re.DOTALL)
    for pid in filter(str.isdigit, os.listdir(PROC) if os.path.isdir(PROC) else ()):
        found = process.match(text(f"{PROC}/{pid}/stat") or "")
        if found:  # else it has ended, or belongs to another user
            name = "".join(c if c.isprintable() else "?" for c in found.group(1))
            known["each"][int(pid)] = (name, int(found.group(2)) + int(found.group(3)))
    return known


def other_load(start: dict[str, Any]) -> dict[str, Any]:
    """Who else used at least `LEAST_CORES` of a core since `spent` said `start`: nothing where the board does not say."""
    time.sleep(max(0.0, start["time"] + LOOK_SECONDS - time.perf_counter()))
    now = spent()
    if "busy" not in start or "busy" not in now:
        return {}
    used = [(ticks - start["each"].get(pid, ("", 0))[1], name, pid) for pid, (name, ticks) in now["each"].items()]
    unseen = now["busy"] - start["busy"] - sum(ticks for ticks, _, _ in used)
    used += [(unseen, UNSEEN, None), (now["stolen"] - start["stolen"], STOLEN, None)]
    core = (now["time"] - start["time"]) * os.sysconf("SC_CLK_TCK")  # ticks of a whole one
    loads = [
        {"name": name, "pid": pid, "cores": round(ticks / core, 2)}
        for ticks, name, pid in sorted(used, key=lambda of: -of[0])
        if pid != os.getpid() and ticks >= LEAST_CORES * core
    ]
    return {"other_load": loads[:MAX_LOADS]}


def cpu_model() -> str:
    """The name that the CPU gives itself, or its part numbers; where there are none, its architecture."""
    facts: dict[str, list[str]] = {}
    for line in (text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        known = facts.setdefault(key.strip(), [])
        if value.strip() not in known:
            known.append(value.strip())
    for key in ("model name", "Model", "Hardware"):  # x86, and what ARM boards may have
        if any(facts.get(key, [])):
            return facts[key][0]
    if facts.get("CPU part"):
        implementer, parts = facts.get("CPU implementer", ["?"])[0], " and ".join(facts["CPU part"])
        return f"{os.uname().machine} implementer {implementer} part {parts}"
    return os.uname().machine


def usable_cpus() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def temperature() -> float | None:
    """Of the hottest sensor of the CPU, or of any where none is called so, in degrees Celsius."""
    found: dict[str, float] = {}
    for zone in sorted(os.listdir(ZONES)) if os.path.isdir(ZONES) else ():
        value = number(f"{ZONES}/{zone}/temp")
        if zone.startswith("thermal_zone") and value is not None and 0 < value < 150000:
            kind = text(f"{ZONES}/{zone}/type")
            found[f"{kind} {zone}".lower()] = value / 1000
    of_cpu = [value for name, value in found.items() if re.search("cpu|soc|x86_pkg", name)]
    return max(of_cpu or found.values(), default=None)


def is_emulated() -> bool:
    """Whether an emulator such as qemu-user stands between this Python and the CPU: the kernel speaks of it or of another CPU."""
    if (text("/proc/self/comm") or "").startswith("qemu-"):
        return True
    mine = family(os.uname().machine)
    if family(text("/proc/sys/kernel/arch") or mine) != mine:
        return True
    return mine != "x86" and bool(re.search("GenuineIntel|AuthenticAMD", text("/proc/cpuinfo") or ""))


def family(machine: str) -> str:
    if re.fullmatch("x86_64|amd64|i[3-6]86", machine):
        return "x86"
    return "arm" if machine.startswith(("arm", "aarch64")) else machine


def text(path: str) -> str | None:
    try:
        with open(path, errors="replace") as file:
            return file.read(MAX_REQUEST).strip("\0 \n")
    except OSError:  # no such file here, or not for this user
        return None


def number(path: str) -> float | None:
    value = text(path) or ""
    return float(value) if re.fullmatch(r"-?[0-9]+", value) else None


if __name__ == "__main__":
    main()
