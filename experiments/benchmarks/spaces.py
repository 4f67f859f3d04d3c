"""What a search space holds, what it costs to search it, and whether its cheap kinds of attention are cheap where they run.

Steps are timed as in `bench supernet`. A *sampled* architecture's step, over views of the supernet's weights, stands against one
of the same network on its own. Attention: one layer is exported with each kind, in the form that ships, and timed under ONNX
Runtime at several numbers of tokens, side by side with full attention; so is one step of decoding after as many of the past. What
each categorical choice adds to the full space's steps takes long, and is left to `preset=full`.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.supernet import (
    MAX_TOKENS,
    NUM_CLASSES,
    VOCAB_SIZE,
    WRITTEN_OUT,
    Steps,
    Words,
    default_family,
    random_batch,
)  # fmt: skip
from experiments.progress import Advance, Reporter
from experiments.timed_networks import export_for_timing
from hardware.local_cpu import LocalCpu
from hardware.local_torch import num_threads
from hardware.timing import measure
from nas.attention import LOOKS_AHEAD
from nas.export import form_of
from nas.feed_forward import FFN_KINDS
from nas.protocols import Family
from nas.space import Architecture
from nas.supernet import call, cut_out, skeleton
from nas.types import Workload
from search_spaces.attention import ATTENTION_KINDS
from search_spaces.common import NORM_KINDS, SHARING
from search_spaces.decoder import DecoderFamily, decoder_space
from search_spaces.encoder import EncoderFamily, encoder_space

KINDS = ATTENTION_KINDS[:-1]
CAUSAL = tuple(kind for kind in KINDS if kind not in LOOKS_AHEAD)
LAYER = {"width": (128,), "depth": (1,), "heads": (4,), "kv_heads": (1, 4), "ffn": (256,)}
FULL = {
    "width": (32, 48, 64, 96, 128, 192, 256), "depth": (1, 2, 3, 4, 6, 8, 10, 12), "heads": (1, 2, 4, 8),
    "kv_heads": (1, 2, 4, 8),
    "ffn": (64, 128, 192, 256, 384, 512, 768),
    "attention": ("full", "window16", "window4", "block", "strided", "topk", "linear", "lowrank", "none"), "ffn_kind": FFN_KINDS,
    "rank": (16, 32, 64), "activation": ("gelu", "hardswish", "relu"), "norm_kind": NORM_KINDS, "sharing": SHARING,
    "keep": (25, 50, 75, 100), "ngrams": (1, 2, 3),
}  # fmt: skip
"""The choices of conf/space/encoder_full.yaml."""
ALONE = {
    "attention": ("full",), "ffn_kind": ("mlp",), "rank": (), "activation": ("gelu",), "norm_kind": ("layer",),
    "sharing": ("none",), "keep": (),
}  # fmt: skip
"""Its categorical choices, each without a choice."""
CATEGORICAL = tuple(name for name in ALONE if name != "rank")


@dataclass(frozen=True)
class Preset:
    """Rounds of steps, those with one categorical choice at a time (0: none), sequences in a batch, sampled architectures,
    numbers of tokens, the largest first, and visits to every kind of attention."""

    rounds: int
    added_rounds: int
    batch: int
    sampled: int
    tokens: tuple[int, ...]
    visits: int


PRESETS = {
    "tiny": Preset(rounds=1, added_rounds=1, batch=1, sampled=2, tokens=(20, 16), visits=1),
    "quick": Preset(rounds=4, added_rounds=0, batch=32, sampled=12, tokens=(2048, 512, 64), visits=3),
    "full": Preset(rounds=20, added_rounds=10, batch=32, sampled=40, tokens=(2048, 1024, 512, 256, 128, 64), visits=20),
}


def run(words: Words, report: Reporter) -> dict[str, float]:
    preset = PRESETS[words.preset]
    full, batch = full_family(*CATEGORICAL), random_batch(preset.batch, MAX_TOKENS)
    figures = {"encoder_log10_size": math.log10(full.space.num_architectures())}
    with num_threads(1):
        steps = Steps(full, batch, WRITTEN_OUT)
        with report.phase("Relaxed steps of the full space", preset.rounds) as advance:
            figures["full_relaxed_step_ratio"] = steps.ratios(preset.rounds, advance, only=("relaxed",))["relaxed_step_ratio"][0]
        figures["full_peak_memory_ratio"] = steps.peak_memory_ratio()
        if preset.added_rounds:
            with report.phase("What each categorical choice adds", len(CATEGORICAL)) as advance:
                figures |= added(preset, on_choice=lambda n: advance(n, ""))
        with report.phase("Steps of sampled architectures", preset.sampled) as advance:
            figures["sampled_step_ratio"] = sampled_step_ratio(default_family(), preset, on_arch=lambda n: advance(n, ""))
    figures |= attention_figures(preset, report)
    _show(figures, preset, report)
    return figures


def full_family(*choices: str) -> EncoderFamily:
    """All sizes of the full space, and these categorical choices."""
    kept = {*choices, *(("rank",) if "ffn_kind" in choices else ())}
    chosen = {**FULL, **{name: options for name, options in ALONE.items() if name not in kept}}
    return EncoderFamily(encoder_space(name="encoder_full", keep_after=2, **chosen), VOCAB_SIZE, NUM_CLASSES, MAX_TOKENS)  # type: ignore[arg-type]


def added(preset: Preset, *, on_choice: Callable[[int], None]) -> dict[str, float]:
    """Relaxed steps of all sizes with one categorical choice more: how much larger they are, in time and in peak memory, each
    relative to the plain step of its own largest network."""
    batch, found = random_batch(preset.batch, MAX_TOKENS), {}
    for number, choice in enumerate(("sizes", *CATEGORICAL)):
        steps = Steps(full_family(choice), batch, WRITTEN_OUT)
        [(seconds, _)] = steps.ratios(preset.added_rounds, lambda *_, **__: None, only=("relaxed",)).values()
        found[choice] = np.array([seconds, steps.peak_memory_ratio()])
        on_choice(number)
    figures = {"sizes_relaxed_step_ratio": float(found["sizes"][0]), "sizes_peak_memory_ratio": float(found["sizes"][1])}
    for choice in CATEGORICAL:
        seconds, memory = found[choice] - found["sizes"]
        figures |= {f"{choice}_adds_to_step_ratio": float(seconds), f"{choice}_adds_to_memory_ratio": float(memory)}
    return figures


def sampled_step_ratio(family: Family, preset: Preset, *, on_arch: Callable[[int], None]) -> float:
    """Median over random architectures of the time of a step over the supernet's views to one of the network on its own."""
    batch, rng = random_batch(preset.batch, MAX_TOKENS), np.random.default_rng(0)
    supernet, ratios = family.supernet(), []
    for number in range(preset.sampled):
        arch = family.space.sample(rng)
        network = cut_out(family, supernet, arch, WRITTEN_OUT)

        def step(forward: Callable[[], Tensor]) -> float:
            supernet.zero_grad()
            network.zero_grad()  # noqa: B023 (used at once)
            start = time.process_time()
            F.cross_entropy(forward(), batch.targets).backward()
            return time.process_time() - start

        ways: tuple[Callable[[], Tensor], ...] = (
            lambda: call(supernet, skeleton(family, arch, WRITTEN_OUT), batch.inputs),  # noqa: B023
            lambda: network(*batch.inputs),  # noqa: B023
        )
        times = np.array([[step(forward) for forward in ways] for _ in range(3)])
        ratios.append(float(np.median(times[:, 0] / times[:, 1])))
        on_arch(number + 1)
    return float(np.median(ratios))


def attention_figures(preset: Preset, report: Reporter) -> dict[str, float]:
    """Milliseconds of one encoder layer with each kind of attention, by number of tokens, and relative to full attention; with
    `decode_`, of one decoder layer and one more token after so many of the past."""
    longest = max(preset.tokens)
    figures: dict[str, float] = {}
    encoder = EncoderFamily(encoder_space(**LAYER, attention=KINDS), 100, 2, longest)  # type: ignore[arg-type]
    decoder = DecoderFamily(decoder_space(**LAYER, attention=CAUSAL), 100, max_tokens=longest + 1, window=8)  # type: ignore[arg-type]
    encoding = {tokens: Workload(tokens=tokens) for tokens in preset.tokens}
    decoding = {tokens: Workload(tokens=1, mode="decode", past=tokens) for tokens in preset.tokens}
    for prefix, family, kinds, workloads in (("", encoder, KINDS, encoding), ("decode_", decoder, CAUSAL, decoding)):
        total = preset.visits * (len(kinds) + 1) * len(workloads)
        with report.phase(f"Kinds of attention, {next(iter(workloads.values())).mode}", total) as advance:
            times = attention_times(family, kinds, list(workloads.values()), visits=preset.visits, advance=advance)
        for tokens, by_way in zip(workloads, times, strict=True):
            figures |= {f"{prefix}{way}_ms_{tokens}": ms for way, ms in by_way.items()}
            others = {way: ms for way, ms in by_way.items() if way != "full"}
            figures |= {f"{prefix}{way}_to_full_{tokens}": ms / by_way["full"] for way, ms in others.items()}
    return figures


def attention_times(
    family: Family, kinds: Sequence[str], workloads: Sequence[Workload], *, visits: int, advance: Advance
) -> list[dict[str, float]]:
    """For each workload the milliseconds by kind, and of full attention with one head of keys and values as `shared`. Networks
    are exported once, for the first workload, as what ships is."""
    picks: dict[str, int | str] = {"width": 128, "depth": 1, "layer1.heads": 4, "layer1.ffn": 256}
    ways: dict[str, dict[str, int | str]] = {kind: {"layer1.attention": kind, "layer1.kv_heads_of_4": 4} for kind in kinds}
    ways["shared"] = {"layer1.attention": "full", "layer1.kv_heads_of_4": 1}
    archs = [family.space.canonical({**picks, **way}) for way in ways.values()]
    device, times = LocalCpu(threads=1, min_samples=3), []
    with tempfile.TemporaryDirectory() as folder:
        exported = export_for_timing(family, archs, workloads[0], Path(folder), device=device)
        for number, workload in enumerate(workloads):
            networks = [replace(network, inputs=_inputs(family, network.arch, workload)) for network in exported]
            measurements = measure(
                device, networks, sentinel=networks[0], workload=workload, rounds=visits,
                on_visit=lambda done, total, before=number: advance(before * total + done, ""),  # type: ignore[misc]
            )  # fmt: skip
            times.append({way: m.latency_ms for way, m in zip(ways, measurements, strict=True)})
    return times


def _inputs(family: Family, arch: Architecture, workload: Workload) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in form_of(family, family.network(arch), workload)[1].items()}


def _show(figures: Mapping[str, float], preset: Preset, report: Reporter) -> None:
    table = Table("figure", "value", "target", box=SIMPLE_HEAD, title="Spaces")
    for key, what, target, sign in (
        ("encoder_log10_size", "architectures of encoder_full, power of ten", 20.0, "≥"),
        ("full_relaxed_step_ratio", "its relaxed step to one of its largest network", 1.6, "≤"),
        ("full_peak_memory_ratio", "the same in peak memory", 1.25, "≤"),
        ("sampled_step_ratio", "step of a sampled architecture to that of the same network alone", 1.15, "≤"),
    ):
        missed = figures[key] < target if sign == "≥" else figures[key] > target
        table.add_row(what, f"{figures[key]:.3g}", f"{sign} {target:g}{' missed' if missed else ''}")
    report.console.print(table)
    if preset.added_rounds:
        _show_added(figures, report)
    for prefix, kinds, what in (
        ("", KINDS, "One encoder layer"),
        ("decode_", CAUSAL, "One decoder layer and one more token, with so many of the past,"),
    ):
        table = Table("tokens", "full", *(f"{way} (to full)" for way in (*kinds[1:], "shared")), box=SIMPLE_HEAD)
        for tokens in sorted(preset.tokens):
            times = {way: f"{figures[f'{prefix}{way}_ms_{tokens}']:.3f}" for way in (*kinds, "shared")}
            ratios = (f"{ms} ({figures[f'{prefix}{way}_to_full_{tokens}']:.2f})" for way, ms in times.items() if way != "full")
            table.add_row(str(tokens), times["full"], *ratios)
        table.title = f"{what} of width 128 under ONNX Runtime, one thread, ms"
        report.console.print(table)


def _show_added(figures: Mapping[str, float], report: Reporter) -> None:
    table = Table(
        "relaxed choice", "step", "peak memory", box=SIMPLE_HEAD, title="Relative to a step of the plain largest network"
    )
    table.add_row("all sizes", *(f"{figures[f'sizes_{figure}']:.2f}" for figure in ("relaxed_step_ratio", "peak_memory_ratio")))
    for choice in CATEGORICAL:
        gained = (figures[f"{choice}_adds_to_{figure}_ratio"] for figure in ("step", "memory"))
        table.add_row(f"and {choice}", *(f"{number:+.2f}" for number in gained))
    report.console.print(table)
