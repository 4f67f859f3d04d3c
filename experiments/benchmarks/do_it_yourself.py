"""What an engineer can write today without this package, in about a hundred lines: a sliced supernet, Optuna, ONNX Runtime.

The reference that a search is measured against. It takes nothing of ours but the task's batches, so that data and tokens are the
same. Of the seconds that it is given, 30 % train the supernet, 25 % search with latencies measured inside the objective and
errors of a part of the validation split, and the rest trains a few picks of the front.
"""

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import torch
from matplotlib.figure import Figure
from optuna.storages.journal import JournalFileBackend
from torch import Tensor, nn
from torch.nn import functional as F

CHOICES = {"width": (32, 48, 64, 96, 128), "depth": (1, 2, 3, 4, 5, 6), "heads": (1, 2, 4), "ffn": (64, 128, 192, 256)}
HEAD, PICKS, INPUTS = 32, 3, ("token_ids", "attention_mask")


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.ModuleList(nn.Linear(width, heads * HEAD) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(heads * HEAD, width), nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm1(x)
        q, k, v = (project(normed).unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for project in self.qkv)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class Net(nn.Module):
    def __init__(self, vocab: int, classes: int, tokens: int, width: int, depth: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocab, width), nn.Embedding(tokens, width)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, tokens = self.words(ids) + self.places.weight[: ids.shape[1]], mask[:, :, None].float()
        for block in self.blocks:
            x = block(x, (1.0 - mask[:, None, None, :].float()) * -1e4)
        result: Tensor = self.head((self.norm(x) * tokens).sum(1) / tokens.sum(1))
        return result


def train(parameters: list[nn.Parameter], loss: Callable[[], Tensor], seconds: float, rate: float) -> None:
    optimizer, start = torch.optim.AdamW(parameters, lr=rate), time.perf_counter()
    while (done := (time.perf_counter() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(done / 0.05, 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def export(net: nn.Module, path: Path, tokens: int) -> Path:
    example, axes = torch.ones(1, tokens, dtype=torch.int64), {name: {0: "batch", 1: "sequence"} for name in INPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (example, example), str(path), input_names=list(INPUTS), output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}}, opset_version=20, dynamo=False,
        )  # fmt: skip
    return path


def latency_ms(path: Path, tokens: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed, times = dict.fromkeys(INPUTS, np.ones((1, tokens), dtype=np.int64)), []
    for _ in range(60):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[10:]))


def spread(values: list[Any], num: int) -> list[Any]:
    """At most `num` of the values, the first and the last among them."""
    return [values[i] for i in sorted({round(i) for i in np.linspace(0, len(values) - 1, num)})] if values else []


def undominated(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def beats(b: dict[str, Any], a: dict[str, Any]) -> bool:
        return bool(b["latency_ms"] < a["latency_ms"] and b["error_percent"] <= a["error_percent"])

    return [a for a in found if not any(beats(b, a) for b in found)]


def draw(study: optuna.Study, front: list[dict[str, Any]], path: Path) -> None:
    figure = Figure()
    axes = figure.add_subplot(xlabel="latency (ms)", ylabel="validation error (%)")
    axes.scatter([t.values[1] for t in study.trials if t.values], [t.values[0] for t in study.trials if t.values], s=8)
    axes.plot([a["latency_ms"] for a in front], [a["error_percent"] for a in front], "o-")
    figure.savefig(path)


def run(task: Any, *, seconds: float, budget_ms: float, seed: int, directory: Path, tokens: int) -> list[dict[str, Any]]:
    """The front that it finds, the fastest first: architecture, validation error in percent, latency in ms, ONNX file."""
    end, rng = time.perf_counter() + seconds, np.random.default_rng(seed)
    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    sizes = (task.vocab_size, len(task.labels), task.max_tokens)
    supernet = Net(*sizes, *(options[-1] for options in CHOICES.values()))
    epochs = (task.batches("train", tokens_per_batch=2048, seed=epoch) for epoch in itertools.count(1000 * seed))
    batches = itertools.chain.from_iterable(epochs)
    validation = list(task.batches("validation", tokens_per_batch=2048, seed=seed))
    part = validation[::3]  # batches are of one length each, so a part needs many of them

    @functools.cache
    def shape(*arch: int) -> Net:
        with torch.device("meta"):
            return Net(*sizes, *arch)

    def prefixes(arch: tuple[int, ...]) -> dict[str, Tensor]:
        shared = dict(supernet.named_parameters())
        return {name: shared[name][tuple(map(slice, p.shape))] for name, p in shape(*arch).named_parameters()}

    def sampled_loss() -> Tensor:
        arch, batch = tuple(int(rng.choice(options)) for options in CHOICES.values()), next(batches)
        return F.cross_entropy(torch.func.functional_call(shape(*arch), prefixes(arch), batch.inputs), batch.targets)

    def cut_out(arch: tuple[int, ...]) -> Net:
        net = Net(*sizes, *arch)
        net.load_state_dict({name: weight.detach() for name, weight in prefixes(arch).items()})
        return net

    @torch.no_grad()
    def error_percent(net: nn.Module, batches: list[Any]) -> float:
        wrong = sum(int((net(*batch.inputs).argmax(-1) != batch.targets).sum()) for batch in batches)
        return 100 * wrong / sum(len(batch.targets) for batch in batches)

    @functools.cache
    def score(arch: tuple[int, ...]) -> tuple[float, float]:
        net = cut_out(arch).eval()
        return error_percent(net, part), latency_ms(export(net, directory / "trial.onnx", tokens), tokens)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        error, ms = score(tuple(trial.suggest_categorical(name, options) for name, options in CHOICES.items()))
        trial.set_constraint("latency", ms - budget_ms)
        return error, ms

    train(list(supernet.parameters()), sampled_loss, 0.3 * seconds, 2e-3)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(directory / "study.journal")))
    study = optuna.create_study(
        study_name="it", storage=storage, load_if_exists=True, directions=["minimize"] * 2,
        sampler=optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
    )  # fmt: skip
    study.optimize(objective, timeout=0.25 * seconds)

    fits = {tuple(t.params.values()): t.values[1] for t in study.best_trials if t.values[1] <= budget_ms}
    picks = spread(sorted(fits, key=fits.__getitem__), PICKS)
    found: list[dict[str, Any]] = []
    for number, arch in enumerate(picks):
        net = cut_out(arch)

        def loss(net: Net = net) -> Tensor:
            batch = next(batches)
            return F.cross_entropy(net(*batch.inputs), batch.targets)

        train(list(net.parameters()), loss, max(0.1, (end - time.perf_counter()) / (len(picks) - number) - 0.5), 2e-3)
        path = export(net, directory / f"picked-{'-'.join(map(str, arch))}.onnx", tokens)
        facts = {"error_percent": error_percent(net, validation), "latency_ms": fits[arch], "onnx": path}
        found.append({"arch": dict(zip(CHOICES, arch, strict=True)), **facts})
    front = undominated(found)
    draw(study, front, directory / "front.png")
    return front
