"""Recorded devices: tables of real measurements that others have published, by name.

    table = load_table("hat_raspberrypi4", folder)

The files are not part of this package. They lie in one folder, each where its `Source.file` says, and are read only if their
checksum is the one that is written here. A table belongs to a device, a runtime, a precision and a measuring session: two
sessions of one phone are two tables.
"""

from __future__ import annotations

import csv
import difflib
import functools
import gzip
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import platformdirs

from hardware import table_readers as readers
from hardware import table_sources as sources
from hardware.table_checks import find_outliers
from nas.tables import NORMALISED, RecordedTable, Source


@dataclass(frozen=True)
class Recorded:
    """How a table is read from its file. `unit` is the file's own, `note` what its reader should know.

    `describes` says whether the features describe a network: where they do not (it is known by its name), a value that does not
    follow from them is no sign of a disturbance.
    """

    device: str
    kind: str
    runtime: str
    precision: str
    source: Source
    read: readers.Reader
    unit: str = "ms"
    note: str = ""
    describes: bool = True


UNKNOWN = "not stated by the source"
FAIRSEQ = "PyTorch (fairseq)"
QUALCOMM_DEVICES = {
    "Samsung Galaxy S24": "galaxy_s24",
    "Samsung Galaxy S25": "galaxy_s25",
    "Snapdragon X Elite CRD": "x_elite",
    "QCS8550 (Proxy)": "qcs8550",
    "SA8775P ADP": "sa8775p",
    "SA8295P ADP": "sa8295p",
    "Dragonwing IQ-9075 EVK": "iq9075",
    "Dragonwing Q-6690 MTP": "q6690",
    "Dragonwing RB3 Gen 2 Vision Kit": "rb3_gen2",
}
QUALCOMM_RUNTIMES = {"qnn_dlc": "QNN", "tflite": "TFLite, QNN delegate", "onnx": "ONNX Runtime, QNN provider"}
QUALCOMM_MISSING = (("sa8775p", "onnx"), ("sa8295p", "onnx"), ("x_elite", "tflite"))
INTEGER_ONLY = ("q6690", "rb3_gen2")
NETSPRESSO = {
    "raspberrypi4b_fp16": ("Raspberry Pi 4B > FP16", "Raspberry Pi 4B", "cpu"),
    "raspberrypi4b_int8": ("Raspberry Pi 4B > INT8", "Raspberry Pi 4B", "cpu"),
    "raspberrypi3b_plus_fp16": ("Raspberry Pi 3B PLUS > FP16", "Raspberry Pi 3B+", "cpu"),
    "raspberrypi3b_plus_int8": ("Raspberry Pi 3B PLUS > INT8", "Raspberry Pi 3B+", "cpu"),
    "raspberrypi_zero2w_fp16": ("Raspberry Pi Zero 2 W > FP16", "Raspberry Pi Zero 2 W", "cpu"),
    "raspberrypi_zero2w_int8": ("Raspberry Pi Zero 2 W > INT8", "Raspberry Pi Zero 2 W", "cpu"),
    "alif_e7_int8": ("Alif Ensemble E7 DevKit Gen 2 > INT8", "Alif Ensemble E7 (Arm Ethos-U55)", "npu"),
    "imx93_int8": ("NXP iMX93 > INT8", "NXP i.MX 93 (Arm Ethos-U65)", "npu"),
    "orin_nano_fp16": ("JetPack 6.0 > Jetson Orin Nano > FP16", "NVIDIA Jetson Orin Nano (JetPack 6.0)", "gpu"),
    "agx_orin_fp16": ("JetPack 5.0.1 > Jetson AGX Orin > FP16", "NVIDIA Jetson AGX Orin (JetPack 5.0.1)", "gpu"),
    "jetson_nano_fp16": ("JetPack 4.6 > Jetson Nano > FP16", "NVIDIA Jetson Nano (JetPack 4.6)", "gpu"),
    "jetson_nx_fp16": ("JetPack 4.6 > Jetson NX > FP16", "NVIDIA Jetson NX (JetPack 4.6)", "gpu"),
    "jetson_tx2_fp16": ("JetPack 4.6 > Jetson TX2 > FP16", "NVIDIA Jetson TX2 (JetPack 4.6)", "gpu"),
    "jetson_xavier_fp16": ("JetPack 4.6 > Jetson Xavier > FP16", "NVIDIA Jetson Xavier (JetPack 4.6)", "gpu"),
}
NEUSIGHT_GPUS = (
    "NVIDIA_H100_80GB_HBM3", "NVIDIA_A100-PCIE-40GB", "NVIDIA_L4", "Tesla_V100-PCIE-32GB",
    "Tesla_P100-PCIE-16GB", "Tesla_T4", "Tesla_P4", "AMD_Instinct_MI100", "AMD_Instinct_MI210", "AMD_Instinct_MI250",
)  # fmt: skip
NASBENCH201_GPUS = {
    "1080ti": "NVIDIA GTX 1080 Ti", "2080ti": "NVIDIA RTX 2080 Ti", "titan_rtx": "NVIDIA TITAN RTX", "titanx": "NVIDIA TITAN X",
    "titanxp": "NVIDIA TITAN Xp",
}  # fmt: skip
NASBENCH201_CPUS = {
    "essential_ph_1": "Essential PH-1", "pixel3": "Google Pixel 3", "samsung_a50": "Samsung Galaxy A50",
    "samsung_s7": "Samsung Galaxy S7", "gold_6240": "Intel Xeon Gold 6240", "silver_4114": "Intel Xeon Silver 4114",
    "silver_4210r": "Intel Xeon Silver 4210R",
}  # fmt: skip


def _spaces() -> Iterator[tuple[str, Recorded]]:
    """Networks or blocks that are described by their sizes."""
    hat = readers.hat("latency")
    yield "hat_raspberrypi4", Recorded("Raspberry Pi 4 (ARM Cortex-A72)", "cpu", FAIRSEQ, "fp32", sources.HAT_RASPBERRYPI, hat)
    yield "hat_xeon", Recorded("Intel Xeon E5-2640", "cpu", FAIRSEQ, "fp32", sources.HAT_XEON, hat)
    yield "hat_titanxp_wmt", Recorded("NVIDIA TITAN Xp", "gpu", FAIRSEQ, "fp32", sources.HAT_TITANXP_WMT, hat)
    yield "hat_titanxp_iwslt", Recorded("NVIDIA TITAN Xp", "gpu", FAIRSEQ, "fp32", sources.HAT_TITANXP_IWSLT, hat)
    energy = "time by CUDA events, times power by NVML"
    yield (
        "hat_gtx1080_energy",
        Recorded("NVIDIA GTX 1080", "gpu", FAIRSEQ, "fp32", sources.HAT_GTX1080, readers.hat("energy"), "j", energy),
    )
    for name, device in {"pixel1": "Google Pixel 1 (ARM)", "pixel4": "Google Pixel 4 (ARM)"}.items():
        for session in ("v2", "v3") if name == "pixel1" else ("v3",):
            yield f"vit_{name}_{session}", Recorded(
                device, "cpu", "TFLite", "fp32", sources.VIT_BLOCKS, readers.vision_blocks(f"{name}_{session}"),
                note=f"single blocks; measuring session {session[1:]}, which may differ from another by a third",
            )  # fmt: skip
    for model in ("GPT2", "TransXL"):
        for name, (kind, device) in {"corei7": ("cpu", "Intel Core i7"), "titanxp": ("gpu", "NVIDIA TITAN Xp")}.items():
            yield f"lts_{model.lower()}_{name}", Recorded(
                device, kind, UNKNOWN, UNKNOWN, sources.LTS, readers.lts(f"pareto_{model}_lm1b_{name}"),
                note="only the networks that a search kept, so the range of latencies says little about the space",
            )  # fmt: skip
    for name, device in NASBENCH201_GPUS.items():
        for batch in (1, 32, 256) if name != "titan_rtx" else (1, 32):
            reader, words = readers.nasbench201(f"{name}_{batch}"), f"{device}, batch {batch}"
            yield f"nb201_{name}_batch{batch}", Recorded(words, "gpu", UNKNOWN, UNKNOWN, sources.NASBENCH201, reader)
    for name, device in NASBENCH201_CPUS.items():
        yield f"nb201_{name}", Recorded(device, "cpu", UNKNOWN, UNKNOWN, sources.NASBENCH201, readers.nasbench201(name))


def _well_known_models() -> Iterator[tuple[str, Recorded]]:
    """Networks that are known by their names."""
    for kind, device in {"cpu": "NVIDIA Jetson Nano, its ARM CPU", "gpu": "NVIDIA Jetson Nano, its GPU"}.items():
        reader = readers.timm_models(f"jetson_nano_{kind}_s")
        yield f"jetson_nano_{kind}", Recorded(device, kind, "ONNX Runtime", "fp32", sources.JETSON_NANO, reader, "s")
    for device, name in QUALCOMM_DEVICES.items():
        for precision in ("w8a8", "w8a16") if name in INTEGER_ONLY else ("float", "w8a8", "w8a16"):
            for runtime, words in QUALCOMM_RUNTIMES.items():
                if (name, runtime) not in QUALCOMM_MISSING and (precision, runtime) != ("w8a16", "tflite"):
                    reader = readers.qualcomm(device, precision, runtime)
                    yield (
                        f"qualcomm_{name}_{precision}_{runtime}",
                        Recorded(f"{device} (Hexagon NPU)", "npu", words, precision, sources.QUALCOMM, reader, describes=False),
                    )
    for instance, (name, kind, device, runtime) in {
        "inf2.xlarge": ("inferentia2", "npu", "AWS Inferentia 2 (inf2.xlarge)", "PyTorch Neuron, compiled"),
        "g5.2xlarge": ("a10g", "gpu", "NVIDIA A10G (g5.2xlarge)", "PyTorch, eager"),
        "c6i.2xlarge": ("c6i", "cpu", "Intel Xeon (c6i.2xlarge)", "PyTorch, eager"),
    }.items():
        precision = UNKNOWN if name == "inferentia2" else "fp32"
        yield f"aws_{name}", Recorded(device, kind, runtime, precision, sources.AWS, readers.aws(instance), describes=False)
    for name, (section, device, kind) in NETSPRESSO.items():
        runtime = "TensorRT" if kind == "gpu" else "TFLite"
        precision = section.rpartition("> ")[2].lower()
        yield f"netspresso_{name}", Recorded(
            device, kind, runtime, precision, sources.NETSPRESSO, readers.netspresso(section), describes=False,
            note="the source does not say which operators ran on the NPU and which on the CPU" if kind == "npu" else "",
        )  # fmt: skip
    for device in NEUSIGHT_GPUS:
        name = re.sub(r"^(nvidia|tesla|amd_instinct)_", "", device.lower()).replace("-", "_")
        words = device.replace("_", " ")
        reader = readers.neusight(device)
        yield (
            f"neusight_{name}",
            Recorded(words, "gpu", "PyTorch, eager or compiled", "fp32", sources.NEUSIGHT, reader, describes=False),
        )


TABLES: Mapping[str, Recorded] = dict(chain(_spaces(), _well_known_models()))


def default_folder() -> Path:
    """Where recorded tables are looked for if nothing else is said."""
    return platformdirs.user_cache_path("paretoformer") / "recorded"


def load_table(name: str, folder: Path | str | None = None) -> RecordedTable:
    """A recorded device, its values in ms or mJ and its disturbed rows flagged.

    Args:
        name: one of `TABLES`.
        folder: where the files lie; by default `default_folder()`.

    Raises:
        ValueError: an unknown name; no such file (says where it comes from and where to put it); a file with another checksum, or
            with a row that cannot be read.
    """
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=5, cutoff=0.3)
        raise ValueError(f"table: {name!r} is not one of the {len(TABLES)} that `paretoformer devices` lists; near it: {near}")
    recorded = TABLES[name]
    path = Path(folder if folder is not None else default_folder()) / recorded.source.file
    unit, factor = NORMALISED[recorded.unit]
    try:
        columns = recorded.read(_records(path, recorded.source))
    except KeyError as error:
        raise ValueError(f"{path}: has no column {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    values = columns.values * factor
    rows = np.stack([np.asarray(column, dtype=float) for column in columns.features.values()], axis=1)
    parts = {part: column * factor for part, column in columns.parts.items()}
    return RecordedTable(
        name=name, device=recorded.device, kind=recorded.kind, runtime=recorded.runtime, precision=recorded.precision, unit=unit,
        features=tuple(columns.features), rows=rows, values=values, labels=columns.labels, parts=parts, extra=columns.extra,
        source=recorded.source, outliers=find_outliers(rows if recorded.describes else None, values, parts.get("std")),
    )  # fmt: skip


def is_there(name: str, folder: Path | str | None = None) -> bool:
    """Whether the file of a table lies in the folder (its checksum is not read)."""
    return (Path(folder if folder is not None else default_folder()) / TABLES[name].source.file).is_file()


def origin(source: Source) -> str:
    """Where a file comes from, in words."""
    what = f"{source.path} of " if source.path else ""
    return f"{what}{source.repository} at commit {source.commit} ({source.licence})"


def _records(path: Path, source: Source) -> readers.Records:
    if not path.is_file():
        what = "it is" if source.is_copy else "it was collected from"
        words = "data=…, in a search device.data=…"
        raise ValueError(f"{path}: there is no such file; {what} {origin(source)}. Put it there, or name its folder: {words}")
    return _parsed(path, path.stat().st_mtime_ns, source)


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, mtime_ns: int, source: Source) -> readers.Records:
    """The records of a file, once for all tables in it; `mtime_ns` lets a file that changes be read again."""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{path}: its sha256 is {found}, but that of the recorded measurements is {source.sha256}: the file was changed or "
            f"is another version. Take it again from {origin(source)}; a table of your own is read with device.table=FILE"
        )
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text)))
