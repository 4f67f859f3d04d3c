"""A finished run, made up: what a report, a picture and the evidence are drawn from."""

from dataclasses import replace

import numpy as np

from experiments.networks import Network, hypervolumes
from experiments.results import LedgerEntry, Parity, PredictorReport, Results
from experiments.verdicts import LimitVerdict, Verdict
from nas.space import Choice, Condition, SearchSpace
from nas.types import Candidate, Provenance, Workload

LAYERS = range(1, 7)
SPACE = SearchSpace(
    "encoder",
    (
        Choice("width", (32, 64, 96, 128)),
        Choice("depth", tuple(LAYERS)),
        *(
            choice
            for i in LAYERS
            for choice in (
                Choice(
                    f"layer{i}.attention", ("full", "window", "none"), (Condition("depth", tuple(d for d in LAYERS if d >= i)),)
                ),
                Choice(f"layer{i}.heads", (1, 2, 4), (Condition(f"layer{i}.attention", ("full", "window")),)),
                Choice(f"layer{i}.ffn", (64, 128, 256), (Condition("depth", tuple(LAYERS)[i - 1 :]),)),
            )
        ),
    ),
)
QUALITY = {
    "num_fit": 32, "num_held_out": 12, "mape_percent": 3.4, "spearman": 0.986, "within_10_percent": 91.7,
    "coverage_percent": 100.0, "constant_mape_percent": 45.2,
}  # fmt: skip
HELD_OUT = ("id", "measured_ms", "predicted_ms", "upper_ms")
INHERITED = {"error": Provenance.INHERITED, "latency_ms": Provenance.PREDICTED}


def cost_ms(arch):
    """A made-up latency with the shape of a real one."""
    layers = [i for i in LAYERS if i <= arch.size("depth")]
    attention = sum(0.05 + 0.03 * arch.size(f"layer{i}.heads") for i in layers if arch[f"layer{i}.attention"] != "none")
    return 0.08 + arch.size("width") / 128 * (attention + sum(arch.size(f"layer{i}.ffn") for i in layers) / 1100)


def make_network(arch, role, label, *, error, rng):
    time = cost_ms(arch) * (1 + 0.03 * rng.normal())
    return Network(
        id=arch.id, arch=arch.to_json(), role=role, label=label, error_percent=round(error, 3), predicted_ms=cost_ms(arch),
        predicted_upper_ms=1.08 * cost_ms(arch), measured_ms=time, measured_low_ms=0.99 * time, measured_high_ms=1.04 * time,
        num_parameters=arch.size("width") * 9000, train_seconds=12.5,
    )  # fmt: skip


def make_candidates(*, num=120, seed=0):
    rng = np.random.default_rng(seed)
    candidates = []
    for phase in ("search", "random"):
        for arch in (SPACE.sample(rng) for _ in range(num)):
            error = 7.5 + 6 / (0.3 + cost_ms(arch)) + 4 * rng.random() ** (2 if phase == "search" else 1)
            candidates.append(Candidate(arch, {"error": error, "latency_ms": cost_ms(arch)}, INHERITED, phase=phase))
    return candidates


def make_results(*, budget_ms=0.95, trivial=9.9, picked_ms=None, num=4, **changes):
    """A run as it ends; `picked_ms` is what the verdict measured, `num` how many networks each search trained."""
    rng = np.random.default_rng(7)
    by_time = sorted((SPACE.sample(rng) for _ in range(200)), key=cost_ms)
    within = [a for a in by_time if cost_ms(a) <= 0.9 * budget_ms]
    largest = SPACE.largest()
    networks = []
    for role, label, gain in (("search", "search", 0.9), ("random", "random search", 0.0)):
        step = max(1, len(within) // num)
        for arch in within[(role == "random") :: step][:num] if num > 1 else within[-1:] * (role == "search"):
            networks.append(make_network(arch, role, label, error=6.2 - gain + 1.9 / (0.25 + cost_ms(arch)), rng=rng))
    if num > 2:
        for label, depth in (("largest", 6), ("2 layers", 2), ("1 layer", 1)):
            arch = SPACE.canonical({**largest.as_dict, "depth": depth})
            networks.append(make_network(arch, "hand", label, error=6.1 + 1.8 / (0.25 + cost_ms(arch)), rng=rng))
    ours = [n for n in networks if n.role == "search"]
    picked = min((n for n in ours if n.measured_ms <= budget_ms), key=lambda n: n.error_percent)
    measured = picked_ms or picked.measured_ms
    held_out = [SPACE.sample(rng) for _ in range(12)]
    results = Results(
        title="languages on local_cpu",
        task="languages",
        device="local_cpu: Example CPU @ 2.10GHz, 1 thread, fp32",
        workload=Workload(batch=1, tokens=64),
        space="encoder",
        seed=0,
        networks=tuple(networks),
        picked_id=picked.id,
        interval="the quietest to the noisiest visit, drift removed",
        verdict=Verdict.of(
            asked_ms=budget_ms, asked_origin="user", predicted_ms=picked.predicted_ms,
            predicted_upper_ms=picked.predicted_upper_ms, measured_ms=measured, measured_low_ms=0.99 * measured,
            measured_high_ms=1.04 * measured,
        ),
        predictor=PredictorReport.of(
            QUALITY,
            [
                dict(zip(HELD_OUT, (a.id, cost_ms(a) * (1 + 0.03 * rng.normal()), cost_ms(a), 1.08 * cost_ms(a)), strict=True))
                for a in held_out
            ],
        ),
        trivial_baselines={"majority class": 96.4, "character 1-4-grams, logistic regression": trivial},
        test_error_percent=7.31,
        parity=Parity(num_examples=256, max_abs_difference=2.1e-6, equal_decisions=1.0, inputs="test split"),
        files=tuple(f"export/{picked.id}/{name}" for name in ("card.md", "labels.json", "model.onnx", "tokenizer.json")),
        hypervolumes=hypervolumes(networks, (budget_ms, 100.0)),
        error_means="wrong answers",
        hypervolume_reference=(budget_ms, 100.0),
        ledger=(
            LedgerEntry("calibration", 64.2, 61.0, 512.0, 0),
            LedgerEntry("trivial baselines", 8.1, 15.0, 800.0, 0),
            LedgerEntry("supernet", 121.9, 240.1, 1210.5, 1),
            LedgerEntry("Differentiable search", 95.0, 186.0, 1210.5, 1),
            LedgerEntry("Outer loop (nsga2)", 60.2, 118.0, 1210.5, 0),
            LedgerEntry("Random search, for comparison", 58.8, 117.0, 1210.5, 0),
            LedgerEntry("short-list", 210.4, 415.0, 1300.0, 11),
            LedgerEntry("measuring the short-list", 20.4, 20.0, 1300.0, 0),
        ),
        notes=("Networks were trained on 2 threads in bfloat16.", "Validation errors chose the network, so they flatter it."),
        command="paretoformer search task=languages budget_ms=0.95 run=runs/languages",
        versions={"python": "3.11.9", "torch": "2.13.0", "optuna": "5.0.0", "onnxruntime": "1.31.1"},
    )  # fmt: skip
    return replace(results, **changes)


def network(id_, role, ms, error, *, high=None):
    """A bare trained network."""
    return Network(id_, {"width": 32}, role, role, error, ms, ms, ms, high and 0.9 * ms, high, 1000, 1.0)


def with_memory(**changes):
    """Memory as a third objective: the slowest network of all needs the least, the others ever more."""
    results = make_results(**changes)
    by_time = sorted(results.networks, key=lambda n: -n.latency_ms)
    mib = {n.id: 1.0 + i for i, n in enumerate(by_time)}
    networks = tuple(replace(n, predicted={"memory_mib": mib[n.id] - 0.25}, measured={"memory_mib": mib[n.id]}) for n in by_time)
    memory = LimitVerdict.of("memory_mib", asked=40.0, predicted=11.0, predicted_upper=12.5, measured=11.25)
    return replace(results, networks=networks, objectives=("error", "latency_ms", "memory_mib"), beside={"memory_mib": memory})
