"""The model card of an exported folder, in Markdown, from its contract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.early_exits import told
from experiments.formatting import format_ms

CACHE = """
`prefill.onnx` takes `token_ids` of prompts of one length and gives `logits` [batch, 1, words] of the next token and, for each
layer that attends, `present.<layer>.key` and `.value`, float32 [batch, heads, past, head size]. `decode.onnx` takes one token of
each sequence, `token_ids` and `position_ids`, int64 [batch, 1], and these as `past_key_values.<layer>.key` and `.value`; past may
be 0. A layer with a window keeps as many tokens as it sees.
"""
FOR_EACH = {"text": '"a text"', "language model": '"a text" --tokens 100', "token ids": '"[3, 1, 4]"', "values": "example.npy"}


def card(contract: Mapping[str, Any]) -> str:
    """What the contract says, for a reader."""
    networks: Sequence[Mapping[str, Any]] = contract["networks"]
    names = ", ".join(n["id"] for n in networks)
    title = f"network {names}" if len(networks) == 1 else f"a family of {len(networks)} networks"
    parts = [
        f"# {contract['task']}: {title}",
        f"{'A transformer' if len(networks) == 1 else 'Transformers'} for `{contract['task']}`, of the space "
        f"`{contract['space']}`, made by paretoformer. Everything here is in `contract.json`, for programs.",
        *(_network(contract, network) for network in networks),
        f"Promised: {contract['promised']}.",
        *_reads(contract),
        *(stages_of(network) for network in networks if network["stages"]),
        *_shared(contract),
        "## Use",
        _use(contract),
        "## Input and output",
        contract["input"]["description"] + (CACHE if any("decode.onnx" in n["files"] for n in networks) else ""),
        "## Measured with",
        _environment(networks[0]) or f"Nothing: {networks[0]['verdict']}",
        "## Made again by",
        f"    {contract['command']}",
    ]
    return "\n\n".join(parts) + "\n"


def _network(contract: Mapping[str, Any], network: Mapping[str, Any]) -> str:
    parity, test, memory = network["parity"], network["test"], network.get("memory")
    kept = _within(network["kept"])
    rows = [
        (f"error ({contract['error_means']}) on the test split, by this file", f"{test['error_percent']:.2f} %"),
        *((f"{name} on the test split", f"{value:.3f}") for name, value in test["metrics"].items()),
        ("error on the validation split, which chose it", f"{network['validation_error_percent']:.2f} %"),
        ("the same of the torch network", f"{network['torch_validation_error_percent']:.2f} %"),
        *_on_its_own(network),
        (
            f"latency of {_timed(network)} on {contract['device']}",
            _latency(network, is_emulated=contract["device_environment"].get("emulated", False)),
        ),
        *_expected(network),
        (
            "budget, of the latency in quiet moments, as of `predict.py --within`",
            f"{network['asked_ms']:.3f} ms, {network['asked_by']}: {kept}",
        ),
        ("workload", contract["workload"]),
        ("parameters", f"{network['num_parameters']:,}"),
        ("trained", network["trained"]),
        *(_memory(memory) if memory else []),
        *([("who runs it", _placement(network))] if "operators" in network else []),
        *([("sizes of its inputs, shorter ones padded with zeros", json.dumps(network["sizes"]))] if "sizes" in network else []),
        *((f"file `{name}`", _file(contract["files"][name])) for name in network["files"]),
        (
            "answers equal to the torch network's",
            f"{100 * parity['equal_decisions']:.2f} % of {parity['num_examples']} test inputs",
        ),
        ("largest difference of a logit", f"{parity['max_abs_difference']:.1e}"),
        *_token_by_token(parity),
        ("who answered, for errors and differences", _answered(network)),
        *_on_device(network),
    ]
    table = ["| what | value |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    architecture = json.dumps(network["architecture"])
    head = f"## {network['id']}" + (f" ({', '.join(network['names'])})" if network["names"] else "")
    return "\n".join([head, "", *table, "", f"Architecture: `{architecture}`"])


def _on_its_own(network: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Beside inherited weights: the error of the same architecture's own file, scored by the same export."""
    if "inherited" not in network:
        return []
    return [("the same of this architecture trained on its own", f"{network['inherited']['own_validation_error_percent']:.2f} %")]


def _token_by_token(parity: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "token_by_token" not in parity:
        return []
    steps = parity["token_by_token"]
    equal = f"{100 * steps['equal_decisions']:.2f} % of {steps['num_tokens']} tokens in {steps['num_sequences']} test inputs"
    return [("the same token by token, by `prefill.onnx` and `decode.onnx`", f"{equal}, {steps['max_abs_difference']:.1e}")]


def _answered(network: Mapping[str, Any]) -> str:
    parity = network["parity"]
    known = parity["runtime_is_timed"] or "on_device" in network
    return f"{parity['runtime']}{'' if known else '; the device was timed, its own answers were not compared'}"


def _on_device(network: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("the device that was timed", device_sentence(network["on_device"]))] if "on_device" in network else []
    return rows + [(f"the further device {name}", device_sentence(facts)) for name, facts in network.get("also", {}).items()]


def device_sentence(facts: Mapping[str, Any]) -> str:
    """How the file that was timed answers under its own runtime, in words."""
    if "unknown" in facts:
        return f"{facts['device']} did not answer, so its answers are NOT COMPARED with torch's: {facts['unknown']}"
    said = (
        f"{facts['device']} ({facts['runtime']}, {facts['precision']}), which was timed with a file in the format "
        f"`{facts['format']}`, decides {100 * facts['equal_decisions']:.2f} % of {facts['num_decisions']:,} cases as torch does "
        f"({facts['inputs']}); "
        f"a logit differs by at most {facts['max_abs_difference']:.1e}"
    )
    if "test" not in facts:
        return said
    return (
        f"{said}; that file has {facts['validation_error_percent']:.2f} % error on the validation split and "
        f"{facts['test']['error_percent']:.2f} % on the test split"
    )


def _timed(network: Mapping[str, Any]) -> str:
    return "this file" if network["timed"] == network["files"][0] else f"`{network['timed']}`"


def _latency(network: Mapping[str, Any], *, is_emulated: bool) -> str:
    ms = network["latency_ms"]
    if ms is None and is_emulated:
        return "NOT MEASURED: it is emulated on this machine, which says nothing of its speed"
    if ms is None:
        predicted, upper = (format_ms(network[name]) for name in ("predicted_ms", "predicted_upper_ms"))
        return f"NOT MEASURED; predicted {predicted} ms, at most {upper} ms"
    return (
        f"{ms['quiet']:.3f} ms in quiet moments (p50 {ms['p50']:.3f} ms, p90 {ms['p90']:.3f}, p99 {ms['p99']:.3f} of all calls)"
    )


def _expected(network: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of a file that may stop early: the latency above is then that of inputs at which it does not."""
    shipped = [stage["facts"] for stage in network["stages"] if stage["kept"]]
    if not shipped or "expected_ms" not in shipped[-1]:
        return []
    return [("of inputs like the validation split's, as some stop early or skip layers", told(shipped[-1]))]


def _within(kept: bool | None) -> str:
    return {True: "within it", False: "NOT within it", None: "not known to be within it"}[kept]


def _memory(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """As ONNX Runtime plans it, of other runtimes what a process grows by at most."""
    peak = memory["peak"]
    if "weights_mib" not in memory:
        what = "memory that opening it and answering take at most, beside its runtime"
        return [(what, f"{peak['network_mib']:.1f} MiB")] if peak else []
    placed = f"weights {memory['weights_mib']:.2f} MiB, activations {memory['activations_mib']:.2f} MiB"
    said = f"{placed}; a process that answers once peaks at {peak['process_mib']:.0f} MiB" if peak else placed
    return [("memory as ONNX Runtime places it", said)]


def _placement(network: Mapping[str, Any]) -> str:
    fallen = ", ".join(f"{f['operator']} ({f['provider']})" for f in network["fallbacks"])
    fallen = f"fallbacks: {fallen}" if fallen else "no operator falls back"
    if "run" not in network:
        return f"{network['delegate']}; {fallen}"
    run = network["run"]
    ways = [way for way in network["tried"] if "file" not in way]
    tried = f", the fastest of {len(ways)} ways that were tried" if ways else " (where it was exported)"
    for other in (way for way in network["tried"] if "file" in way and way["latency_ms"]):
        own = next(way for way in ways if all(way[name] == other[name] for name in run))
        tried += f"; {other['file']} it takes {other['latency_ms'] / own['latency_ms']:.2f} times as long"
    return f"{_opened(run)}{tried}{_beside(network)}; {fallen}"


def _opened(way: Mapping[str, Any]) -> str:
    threads = way["threads"]
    return f"{way['provider']}, {threads} thread{'s' * (threads != 1)}, graph optimisation `{way['graph_optimization']}`"


def _beside(network: Mapping[str, Any]) -> str:
    """Where the latency was measured in another way than the file is best run."""
    other = network["measured_with"]
    if other in (None, network["run"]):
        return ""
    times = f"{format_ms(network['run_ms'])} ms beside {format_ms(network['measured_with_ms'])} ms"
    return f"; the latency above was measured with {_opened(other)}; briefly tried side by side, they take {times}"


def _file(facts: Mapping[str, Any]) -> str:
    return f"{facts['bytes']:,} bytes, sha256 `{facts['sha256']}`"


def _reads(contract: Mapping[str, Any]) -> list[str]:
    reads = contract["num_test_reads"]
    return [] if reads == 1 else [f"The test split has been read for {reads} files of networks of this run."]


def stages_of(network: Mapping[str, Any]) -> str:
    """What a network went through after its training."""
    lines = [f"- {stage['name']}: {stage['sentence']}" for stage in network["stages"]]
    return "\n".join([f"## Stages of {network['id']} after the training", "", *lines])


def _shared(contract: Mapping[str, Any]) -> list[str]:
    shared = contract["shared_weights"]
    if shared is None:
        return []
    apart = "Networks that were trained on their own share little."
    if "inherited" in contract["networks"][0]:
        apart = (
            "All are parts of one supernet: the corner of another's matrix, or the beginning of its vector, is stored once. "
            "Attention that is one operator packs queries, keys and values: it is shared among equal numbers of heads alone."
        )
    return [
        f"All ONNX files lie over one file of weights, {shared['stored_bytes']:,} bytes; equal weights are stored once, which "
        f"saves {shared['shared_percent']:.1f} %. {apart} What the smallest network "
        "needs comes first: it answers before the rest is read (`--at-once`)."
    ]


def _use(contract: Mapping[str, Any]) -> str:
    if contract["format"] != "onnx":
        return f"The file is in the format `{contract['format']}`; its runtime opens it."
    example = f"    python predict.py {FOR_EACH[contract['input']['kind']]}"
    more = "\n    python predict.py --within 8ms …        the best network that fits" if len(contract["networks"]) > 1 else ""
    checks = "It compares what it reads of every file with its checksum first; with `--check`, every file of the folder."
    return f"{example}{more}\n    python predict.py --help\n\n{checks}"


def _environment(network: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_plain(value)}" for name, value in network["environment"].items())


def _plain(value: Any) -> str:
    """Facts within facts, without the brackets of a program."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(fact)}" for name, fact in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_plain, value)) or "none"
    return "not known" if value is None else str(value)
