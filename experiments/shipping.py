"""The folder that ships: one ONNX file, and what is needed to use it, to trust it and to make it again.

export/<id>/  model.onnx  tokenizer.json  labels.json  parity.json  architecture.json  config.yaml  card.md

A decoder ships prefill.onnx and decode.onnx too: the same weights with a cache of keys and values, as `paretoformer generate`
uses them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.finishing import Finisher
from experiments.results import Verdict, format_ms
from latency_models.memory import memory_of_file
from nas.protocols import GenerativeFamily
from nas.space import Architecture
from nas.types import Measurement

TEST = "test.json"
CACHE = """
`prefill.onnx` takes `token_ids` of prompts of one length and gives `logits` [batch, 1, words] of the next token and, for each
layer that attends, `present.<layer>.key` and `.value`, float32 [batch, heads, past, head size]. `decode.onnx` takes one token of
each sequence, `token_ids` and `position_ids`, int64 [batch, 1], and these as `past_key_values.<layer>.key` and `.value`; past may
be 0. A layer with a window keeps as many tokens as it sees. All three files hold the same weights.
"""


@dataclass(frozen=True)
class Shipped:
    """Facts of an exported network; errors in percent."""

    folder: Path
    test_error_percent: float
    test_metrics: Mapping[str, float]
    num_test_reads: int
    parity: Mapping[str, Any]
    file_bytes: int


def ship(finisher: Finisher, arch: Architecture, measurement: Measurement | None, verdict: Verdict, *, command: str) -> Shipped:
    """Writes the folder of a finished network; the file in it is the one that was measured, if it was.

    The test split is read once for each network that ships, by the exported file itself; `num_test_reads` counts the networks.
    """
    run = finisher.run
    folder = run / f"export/{arch.id}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in finisher.files(arch).items():
        with run.replacing(f"export/{arch.id}/{name}") as path:
            shutil.copyfile(source, path)
    finisher.task.save_preprocessing(folder)
    parity = {**finisher.record(arch)["export"], **finisher.parity(arch), "path": "model.onnx"}
    run.write_json(f"export/{arch.id}/parity.json", parity)
    run.write_json(f"export/{arch.id}/architecture.json", {"space": finisher.family.space.to_json(), "picks": arch.to_json()})
    if run.has(".hydra/config.yaml"):
        shutil.copyfile(run / ".hydra/config.yaml", folder / "config.yaml")
    tests = run.read_json(TEST) if run.has(TEST) else {}
    label = finisher.label(arch)
    if label not in tests:
        tests[label] = finisher.file_scores(arch, "test")
        run.write_json(TEST, tests)
    shipped = Shipped(
        folder=folder,
        test_error_percent=tests[label]["error_percent"],
        test_metrics=tests[label]["metrics"],
        num_test_reads=len(tests),
        parity=parity,
        file_bytes=(folder / "model.onnx").stat().st_size,
    )
    with run.replacing(f"export/{arch.id}/card.md") as path:
        path.write_text(card(finisher, arch, measurement, verdict, shipped, command=command))
    return shipped


def card(
    finisher: Finisher, arch: Architecture, measurement: Measurement | None, verdict: Verdict, shipped: Shipped, *, command: str
) -> str:
    """The model card, in Markdown."""
    record, device, task, workload = finisher.record(arch), finisher.device, finisher.task, finisher.workload
    digest = hashlib.sha256((shipped.folder / "model.onnx").read_bytes()).hexdigest()
    environment: Mapping[str, Any] = {}
    times = f"NOT MEASURED; predicted {format_ms(verdict.predicted_ms)} ms, at most {format_ms(verdict.predicted_upper_ms)} ms"
    if measurement is not None:
        environment = measurement.environment
        p50, p90 = (measurement.percentile_ms(p) for p in (50, 90))
        times = f"{measurement.latency_ms:.3f} ms in quiet moments (p50 {p50:.3f} ms, p90 {p90:.3f} ms of all calls)"
    within = {True: "within it", False: "NOT within it", None: "not known to be within it"}[verdict.kept]
    again = (
        "" if shipped.num_test_reads == 1 else f" The test split has been read for {shipped.num_test_reads} networks of this run."
    )
    parity = f"{100 * shipped.parity['equal_decisions']:.2f} % of {shipped.parity['num_examples']} test inputs"
    example = finisher.family.example_input(workload.encoded)
    memory = memory_of_file(shipped.folder / "model.onnx", {name: value.numpy() for name, value in example.items()})
    metrics = "".join(f"\n| {name} on the test split | {value:.3f} |" for name, value in shipped.test_metrics.items())
    timed = "this file" if workload.mode == "encode" else f"`{workload.mode}.onnx`"
    cache = CACHE if isinstance(finisher.family, GenerativeFamily) else ""
    facts = "\n".join(f"- {name}: {value}" for name, value in environment.items())
    return f"""# {task.name}: network {arch.id}

A transformer for `{task.name}`, found by paretoformer in the space `{finisher.family.space.name}`.

| what | value |
|---|---|
| error ({task.error_means}) on the test split, by this file | {shipped.test_error_percent:.2f} % |{metrics}
| error on the validation split, which chose it | {record["error_percent"]:.2f} % |
| latency of {timed} on {device.name} | {times} |
| budget | {verdict.asked_ms:.3f} ms: {within} |
| workload | {workload.words} |
| parameters | {record["export"]["num_parameters"]:,} |
| memory as ONNX Runtime places it | weights {memory.weights_mib:.2f} MiB, activations {memory.activations_mib:.2f} MiB |
| file | {shipped.file_bytes:,} bytes, sha256 `{digest}` |
| answers equal to the torch network's | {parity} |
| largest difference of a logit | {shipped.parity["max_abs_difference"]:.1e} |
{again}

## Input and output

{task.interface}
{cache}{stages_section(finisher.stages(arch)["stages"])}
## Architecture

```json
{json.dumps(arch.to_json(), indent=1)}
```

## Measured with

{facts or "Nothing: " + str(verdict.sentence)}

## Made again by

    {command}
"""


def stages_section(records: Sequence[Mapping[str, Any]]) -> str:
    """What the network went through after its training, in Markdown; nothing if there was nothing."""
    if not records:
        return ""
    return "\n## Stages after the training\n\n" + "".join(f"- {r['name']}: {r['sentence']}\n" for r in records)
