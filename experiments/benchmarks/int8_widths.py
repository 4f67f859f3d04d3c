"""From which width on int8 pays on this machine's CPU: encoders of 4 layers with random weights, over 64 tokens."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from experiments.progress import Reporter
from experiments.timed_networks import export_for_timing
from hardware.local_cpu import LocalCpu
from hardware.timing import measure
from nas.finish.precision import quantised
from nas.types import Workload
from search_spaces.encoder import EncoderFamily, encoder_space

WIDTHS = (128, 192, 256, 384)  # the feed-forward is twice as wide
DEPTH, HEAD_SIZE, ROUNDS = 4, 32, 20


def int8_by_width(report: Reporter) -> dict[str, float]:
    """How many times as fast int8 is, by width."""
    sizes = {width: {"width": width, "layer.heads": width // HEAD_SIZE, "layer.ffn": 2 * width} for width in WIDTHS}
    heads, ffn = ([row[name] for row in sizes.values()] for name in ("layer.heads", "layer.ffn"))
    space = encoder_space(width=WIDTHS, depth=(DEPTH,), heads=heads, ffn=ffn, attention=("full",))
    family = EncoderFamily(space, vocab_size=1000, num_classes=2, head_size=HEAD_SIZE)
    archs = [space.canonical({**space.largest().as_dict, **_in_each_layer(row)}) for row in sizes.values()]
    workload, device = Workload(tokens=64), LocalCpu()
    with report.phase("int8 by width", 1), tempfile.TemporaryDirectory() as folder:
        plain = export_for_timing(family, archs, workload, Path(folder), device=device)
        fewer = [dataclasses.replace(network, path=network.path.with_suffix(".int8.onnx")) for network in plain]
        for before, after in zip(plain, fewer, strict=True):
            onnx.save(quantised(onnx.load(before.path), "dynamic"), after.path)
        found = measure(device, [*plain, *fewer], sentinel=plain[0], workload=workload, rounds=ROUNDS)
    times = [measurement.latency_ms for measurement in found]
    ratios = dict(zip(WIDTHS, np.divide(times[: len(WIDTHS)], times[len(WIDTHS) :]).tolist(), strict=True))
    report.say("int8 by width: " + ", ".join(f"{width}: {ratio:.2f} times as fast" for width, ratio in ratios.items()))
    return {f"int8_speedup_width_{width}": ratio for width, ratio in ratios.items()}


def _in_each_layer(sizes: Mapping[str, int]) -> dict[str, int]:
    """Those of layers by their full names."""
    return {name.replace("layer.", f"layer{number}."): size for name, size in sizes.items() for number in range(1, DEPTH + 1)}
