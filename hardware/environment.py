"""What this machine is, and in what state: everything in JSON-able values, `None` where the system does not say."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from hardware.load import other_load

CPUINFO = Path("/proc/cpuinfo")
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def cpu_model() -> str:
    """The name that the CPU gives itself; where there is none, its architecture."""
    if CPUINFO.is_file():
        pairs = (line.partition(":") for line in CPUINFO.read_text(errors="replace").splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        for name in ("model name", "Model", "Hardware"):  # x86, and what ARM boards may have
            if facts.get(name):
                return facts[name]
        if facts.get("CPU part"):
            return f"{platform.machine()} implementer {facts.get('CPU implementer')} part {facts['CPU part']}"
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def system() -> str:
    return f"{platform.system()} {platform.machine()}"


def conditions() -> dict[str, Any]:
    """What varies from moment to moment and a time may depend on: recorded with a measurement, no part of a device's identity."""
    return {
        "governor": _line(CPUFREQ / "scaling_governor"),
        "current_mhz": _current_mhz(),
        "load_average": load_average(),
        "other_load": [load.to_json() for load in other_load()],
    }


def load_average() -> list[float]:
    """Over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in psutil.getloadavg()]


def fingerprint(environment: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits, equal for equal environments."""
    return hashlib.sha256(json.dumps(dict(environment), sort_keys=True).encode()).hexdigest()[:12]


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # no such file in a container, not readable for this user
        return None


def _current_mhz() -> float | None:
    try:
        found = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    except (OSError, NotImplementedError, RuntimeError):  # some virtual machines and boards have no reading
        return None
    return round(found.current, 1) or None if found else None
