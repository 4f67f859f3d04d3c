"""From the rows of a recorded file to the columns of one table: one function for each kind of file.

Each takes the file's records (a list of dicts of strings, as `csv.DictReader` gives them) and what selects the table, and returns
its columns in the file's own unit and order. A row that holds no time for this table is not a row of it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Records = Sequence[Mapping[str, str]]


class Columns(NamedTuple):
    """Columns of equal length: `values` and `parts` in the file's unit, `features` by name."""

    labels: tuple[str, ...]
    values: np.ndarray
    features: Mapping[str, np.ndarray]
    parts: Mapping[str, np.ndarray]
    extra: Mapping[str, np.ndarray | tuple[str, ...]]


Reader = Callable[[Records], Columns]


def hat(quantity: str) -> Reader:
    """HAT's ten features; a value is encoder plus decoder. `quantity` is `latency` or `energy`."""
    parts = {"encoder": "mean_encoder", "decoder": "mean_decoder", "encoder_std": "std_encoder", "decoder_std": "std_decoder"}

    def read(records: Records) -> Columns:
        measured = {name: numbers(records, f"{quantity}_{column}") for name, column in parts.items()}
        measured["std"] = np.hypot(measured["encoder_std"], measured["decoder_std"])
        features = {name: numbers(records, name) for name in list(records[0])[:10]}
        return Columns(("",) * len(records), measured["encoder"] + measured["decoder"], features, measured, {})

    return read


BLOCKS = {
    "conv": r"conv_(?P<resolution>\d+)_(?P<channels_in>\d+)_(?P<channels_out>\d+)_(?P<expansion>\d+)_(?P<stride>\d+)"
    r"_hard_swish_(?P<kernel>\d+)_(?P<squeeze_excite>se|nose)",
    "firstconv": r"firstconv_(?P<resolution>\d+)_(?P<channels_in>\d+)_(?P<channels_out>\d+)_(?P<stride>\d+)_(?P<kernel>\d+)",
    "transattn": r"transattn_(?P<resolution>\d+)_(?P<channels_in>\d+)_hard_swish_(?P<value_scale>\d+)_ln",
    "transffn": r"transffn_(?P<resolution>\d+)_(?P<channels_in>\d+)_(?P<expansion>\d+)_hard_swish_ln",
    "transds": r"transds_(?P<resolution>\d+)_(?P<channels_in>\d+)_(?P<channels_out>\d+)_(?P<stride>\d+)_(?P<expansion>\d+)",
    "mbpool": r"mbpool_(?P<resolution>\d+)_(?P<channels_in>\d+)_(?P<channels_out>\d+)_(?P<expansion>\d+)_hard_swish",
}
BLOCK_SIZES = (
    "resolution", "channels_in", "channels_out", "expansion", "stride", "kernel", "squeeze_excite", "value_scale",
)  # fmt: skip


def vision_blocks(column: str) -> Reader:
    """Blocks of a vision transformer space, their sizes read from their names (0 for a size that a kind of block has not)."""

    def read(records: Records) -> Columns:
        records = [record for record in records if record[column]]
        sizes = np.array([_block_sizes(record["kind"], record["block"]) for record in records])
        features = {f"is_{kind}": np.array([float(record["kind"] == kind) for record in records]) for kind in BLOCKS}
        features |= {name: sizes[:, i] for i, name in enumerate(BLOCK_SIZES)}
        return Columns(texts(records, "block"), numbers(records, column), features, {}, {"kind": texts(records, "kind")})

    return read


def _block_sizes(kind: str, block: str) -> list[float]:
    found = re.fullmatch(BLOCKS[kind], block) if kind in BLOCKS else None
    if not found:
        raise ValueError(f"block: {block!r} is not a {kind} as this reader knows them")
    given = {**found.groupdict(), "squeeze_excite": float(found.groupdict().get("squeeze_excite") == "se")}
    return [float(given.get(name, 0)) for name in BLOCK_SIZES]


def timm_models(column: str) -> Reader:
    """Models of timm by name, with the sizes that the source gives; the first word of a name is its family."""
    sizes = {
        "image": "img", "gmacs": "infer_gmacs", "mega_activations": "infer_macts", "mega_parameters": "param_count",
        "file_mb": "model_size",
    }  # fmt: skip

    def read(records: Records) -> Columns:
        records = [record for record in records if record[column]]
        features = {name: numbers(records, theirs) for name, theirs in sizes.items()}
        extra: dict[str, np.ndarray | tuple[str, ...]] = {
            "type": texts(records, "model_type"),
            "family": tuple(name.partition("_")[0] for name in texts(records, "model_name")),
            "top1_percent": numbers(records, "top1_acc", blank=math.nan),
        }
        return Columns(texts(records, "model_name"), numbers(records, column), features, {}, extra)

    return read


def qualcomm(device: str, precision: str, runtime: str) -> Reader:
    """Models (and parts of models) on one device; what a network costs follows from its name (`search_spaces.named`)."""

    def read(records: Records) -> Columns:
        chosen = (device, precision, runtime)
        records = [r for r in records if (r["device"], r["precision"], r["runtime"]) == chosen and r["latency_ms"]]
        layers = {f"layers_{unit}": numbers(records, f"layers_{unit}", blank=0.0) for unit in ("npu", "gpu", "cpu")}
        extra: dict[str, np.ndarray | tuple[str, ...]] = {
            **layers,
            "memory_mb": numbers(records, "peak_mem_max_mb"),
            "mega_parameters": np.array([_mega(record["params"]) for record in records]),
            "input": texts(records, "input_res"),
        }
        labels = tuple(_component(record) for record in records)
        return Columns(labels, numbers(records, "latency_ms"), {"layers": numbers(records, "layers_total")}, {}, extra)

    return read


def _component(record: Mapping[str, str]) -> str:
    """A model's name, with its component where that is not simply the model again."""
    model, component = record["model"], record["component"]
    same = re.sub(r"\W|_", "", component).lower() in re.sub(r"\W|_", "", model).lower()
    return model if same else f"{model}/{component}"


def _mega(text: str) -> float:
    """`11.8M` as 11.8; NaN where the source says nothing."""
    return float(text[:-1]) * {"K": 1e-3, "M": 1.0, "B": 1e3}[text[-1]] if text else math.nan


def aws(instance: str) -> Reader:
    """One sequence a call. A row of the image model has no sequence length: it is 196 patches and a class token."""

    def read(records: Records) -> Columns:
        records = [record for record in records if record["instance_type"] == instance]
        parts = {name: numbers(records, f"time_{name}_ms") for name in ("std", "p95")}
        tokens = numbers(records, "sequence_length", blank=197.0)
        return Columns(texts(records, "model"), numbers(records, "time_avg_ms"), {"tokens": tokens}, parts, {})

    return read


def netspresso(section: str) -> Reader:
    """Models on one board in one precision; `section` is the heading of their rows."""

    def read(records: Records) -> Columns:
        records = [record for record in records if record["section"] == section]
        image = np.array([float(record["input"].strip("()").split(",")[0]) for record in records])
        memory = {f"{unit}_memory_mb": numbers(records, f"{unit}_mem_mb", blank=math.nan) for unit in ("gpu", "cpu")}
        extra: dict[str, np.ndarray | tuple[str, ...]] = {**memory, "task": texts(records, "task")}
        return Columns(texts(records, "model"), numbers(records, "latency_ms"), {"image": image}, {}, extra)

    return read


def neusight(device: str) -> Reader:
    """Inference on one GPU; rows of training or of several GPUs are another workload."""

    def read(records: Records) -> Columns:
        records = [r for r in records if r["device"] == device and r["mode"] == "inf" and r["opt"] in ("", "-fusion")]
        features = {"tokens": numbers(records, "seq"), "batch": numbers(records, "batch")}
        features["fused"] = np.array([float(record["opt"] == "-fusion") for record in records])
        return Columns(texts(records, "model"), numbers(records, "e2e_latency"), features, {}, {})

    return read


def lts(name: str) -> Reader:
    """Decoders of one search; sizes that differ from layer to layer are averages over the layers."""

    def read(records: Records) -> Columns:
        records = [record for record in records if record["set"] == name]
        configs = [json.loads(record["config"]) for record in records]
        features = {
            "width": np.array([float(config["d_model"]) for config in configs]),
            "depth": np.array([float(config["n_layer"]) for config in configs]),
            "ffn": np.array([float(np.mean(config["d_inner"])) for config in configs]),
            "heads": np.array([float(np.mean(config["n_head"])) for config in configs]),
            "tokens": np.array([float(config["tgt_len"]) for config in configs]),
            "mega_parameters": numbers(records, "params_total") / 1e6,
            "mega_nonembedding": numbers(records, "params_nonemb") / 1e6,
        }
        extra = {"memory_mb": numbers(records, "memory"), "perplexity": numbers(records, "ppl", blank=math.nan)}
        return Columns(texts(records, "model"), numbers(records, "latency"), features, {}, extra)

    return read


OPERATIONS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # and `none`


def nasbench201(column: str) -> Reader:
    """Cells with six edges; a feature says whether an edge is one of four operations (else it is `none`)."""

    def read(records: Records) -> Columns:
        cells = texts(records, "arch")
        return Columns(cells, numbers(records, column), _edges(cells), {}, {})

    return read


@functools.lru_cache(maxsize=1)
def _edges(cells: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """The features of cells that are written like `|none~0|+|none~0|none~1|+|none~0|none~1|none~2|`; many tables share them."""
    chosen = np.zeros((len(cells), 6, 1 + len(OPERATIONS)))
    for row, cell in enumerate(cells):
        operations = [part.partition("~")[0] for part in cell.split("|") if "~" in part]
        for edge, operation in enumerate(operations):
            chosen[row, edge, ("none", *OPERATIONS).index(operation)] = 1.0
    return {f"edge{e}.{op}": chosen[:, e, 1 + o] for e in range(6) for o, op in enumerate(OPERATIONS)}


def numbers(records: Records, column: str, *, blank: float | None = None) -> np.ndarray:
    """A column as float64, [N]. Raises ValueError: a cell that is not a number, or an empty one without a `blank`."""
    found = np.empty(len(records))
    for row, record in enumerate(records):
        text = record[column]
        if text == "" and blank is not None:
            found[row] = blank
            continue
        try:
            found[row] = float(text)
        except ValueError as error:
            raise ValueError(f"row {row}: {column} is {text!r}, which is not a number") from error
    return found


def texts(records: Records, column: str) -> tuple[str, ...]:
    return tuple(record[column] for record in records)
