"""What a board answers, checked before anything relies on it: it may be broken, or something else may answer in its name."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hardware.agent import MAX_LOADS, MAX_NUMBERS
from nas.protocols import DeviceError

MAX_NAME = 100  # characters of a program's
FACTS = {"cpu", "os", "onnxruntime", "threads", "emulated"}
LOAD = "other_load"  # of a state, where the board says it
STATE = {"governor", "current_mhz", "temperature_celsius", "load_average"}


def samples_of(answer: Mapping[str, Any], *, least: int, most: int) -> tuple[float, ...]:
    """The times in ms. Raises DeviceError unless they are so many, positive and finite."""
    samples = answer.get("samples_ms")
    if not isinstance(samples, list) or not least <= len(samples) <= most:
        raise DeviceError(f"an answer without {least} to {most} times: {shown(samples)}")
    bad = [s for s in samples if not isinstance(s, float) or not math.isfinite(s) or s <= 0]
    if bad:
        raise DeviceError(f"an answer with {shown(bad[0])} as a time in ms")
    return tuple(samples)


def logits_of(answer: Mapping[str, Any]) -> np.ndarray:
    """The first rows [N, C] of a network's logits, float32, all or as many as the agent sends. Raises DeviceError unless there
    is one at least, and the numbers are those of their shape."""
    shape, text = answer.get("shape"), answer.get("numbers")
    if not (isinstance(shape, list) and shape and all(type(size) is int and size > 0 for size in shape)):
        raise DeviceError(f"an answer without the shape of its logits: {shown(shape)}")
    try:
        numbers = np.frombuffer(base64.b64decode(text if isinstance(text, str) else "", validate=True), dtype="<f4")
    except (binascii.Error, ValueError) as error:
        raise DeviceError(f"an answer without logits: {shown(text)}") from error
    if len(numbers) != min(math.prod(shape), MAX_NUMBERS):
        raise DeviceError(f"an answer of {len(numbers)} numbers, its logits are {shape}")
    rows = len(numbers) // shape[-1]
    if not rows:
        raise DeviceError(f"logits of {shape[-1]} numbers, an answer has at most {MAX_NUMBERS}")
    return numbers[: rows * shape[-1]].reshape(rows, shape[-1])


def environment_of(answer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stable facts of the board and its state at one or more moments. Raises DeviceError if they are no plain values."""
    facts, conditions = answer.get("environment"), answer.get("conditions")
    if not (isinstance(facts, dict) and set(facts) >= FACTS and _is_plain(facts)):
        raise DeviceError(f"an answer without the facts of a board: {shown(facts)}")
    if not (isinstance(conditions, dict) and all(_is_state(state) for state in conditions.values())):
        raise DeviceError(f"an answer without the state of a board: {shown(conditions)}")
    return facts, conditions


def shown(value: Any) -> str:
    """What a board said, fit to be shown: one line of printable characters, at most 300."""
    said = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    line = "".join(c if c.isprintable() else " " for c in said)
    return " ".join(line.split())[:300]


def _is_state(state: Any) -> bool:
    if not (isinstance(state, dict) and set(state) - {LOAD} == STATE):
        return False
    loads = state.get(LOAD, [])
    return (
        _is_plain({name: state[name] for name in STATE})
        and isinstance(loads, list)
        and len(loads) <= MAX_LOADS
        and all(map(_is_load, loads))
    )


def _is_load(load: Any) -> bool:
    """Whether it is what `hardware.load.Load` takes."""
    if not (isinstance(load, dict) and set(load) == {"name", "pid", "cores"}):
        return False
    name, pid, cores = load["name"], load["pid"], load["cores"]
    is_named = isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME
    return is_named and (pid is None or type(pid) is int) and isinstance(cores, float) and 0 < cores < math.inf


def _is_plain(facts: Mapping[str, Any]) -> bool:
    """Whether the values are numbers, texts that can be shown, or lists of these."""
    return all(all(map(_can_be_shown, value)) if isinstance(value, list) else _can_be_shown(value) for value in facts.values())


def _can_be_shown(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and value.isprintable())
