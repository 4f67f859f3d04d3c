"""The files of a run's stand-alone networks: what they are called, the networks in them, and which of them ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from experiments.checkpoints import loaded
from experiments.onnx_inputs import read_graph
from experiments.run_directory import RunDirectory
from hardware.surroundings import device_of
from hardware.timing import HasDeployment
from nas.attention import Backend
from nas.compute import Compute
from nas.export import ExportReport, export_onnx, form_of, format_of, runs_onnx
from nas.finish.shapes import with_weights
from nas.protocols import Device, Family, GenerativeFamily
from nas.space import Architecture
from nas.supernet import state_of
from nas.types import MODES, Workload

FOLDER = "shortlist"


@dataclass(frozen=True)
class NetworkFiles:
    """The files `shortlist/<id>.*` of one run.

    A network that ships may have gone through stages after its training (see `experiments.stages`). The files of each stage have
    its name as their `tag`, those of the training alone the empty one; `None` is whatever ships.
    """

    family: Family
    device: Device
    workload: Workload
    compute: Compute
    run: RunDirectory
    ships: str | None = None  # the tag of what ships of each network, where it is not for stages to say

    def is_finished(self, arch: Architecture) -> bool:
        return self.run.has(f"{FOLDER}/{arch.id}.json")

    def record(self, arch: Architecture) -> dict[str, Any]:
        """Facts of a trained network: validation error in percent, parameters, seconds, export report."""
        facts: dict[str, Any] = self.run.read_json(f"{FOLDER}/{arch.id}.json")
        return facts

    def name(self, arch: Architecture, tag: str | None = None) -> str:
        """How a network's files begin, from the run's directory."""
        tag = self.stages(arch)["ships"] if tag is None else tag
        return f"{FOLDER}/{arch.id}{tag and '.' + tag}"

    def label(self, arch: Architecture, tag: str | None = None) -> str:
        """What tells the files of an architecture apart: its id, and after a stage that stage with all that went before."""
        name = self.name(arch, tag)
        own = Path(name).name
        return own if own == arch.id else f"{own} {self.run.read_json(f'{name}.json')['identity']}"

    def stages(self, arch: Architecture) -> dict[str, Any]:
        """Which stage's files ship ("" if none's), and the records of all `stages` that the network went through."""
        if self.ships is not None:
            return {"ships": self.ships, "stages": []}
        name = f"{FOLDER}/{arch.id}.stages.json"
        record: dict[str, Any] = self.run.read_json(name) if self.run.has(name) else {"ships": "", "stages": []}
        return record

    def export(self, arch: Architecture, network: nn.Module, *, tag: str) -> ExportReport:
        """Writes a trained network's weights and its file."""
        with self.run.replacing(f"{self.name(arch, tag)}.safetensors") as path:
            save_file(state_of(network), path)
        example = self.family.example_input(self.workload)
        return export_onnx(self.network(arch, tag=tag), example, self.onnx_path(arch, tag=tag), kind=self.onnx_kind)

    @property
    def onnx_kind(self) -> str:
        """Which kind of ONNX file is scored and ships: the one that the device runs, if it runs any."""
        return format_of(self.device) if runs_onnx(self.device) else "onnxruntime"

    def network(self, arch: Architecture, *, tag: str | None = None, backend: Backend = "blocks") -> nn.Module:
        """A finished network, by default in the form that is exported, in float32 on the CPU. Raises RunError for weights that
        are damaged."""
        path, blank = self.run / f"{self.name(arch, tag)}.safetensors", self.family.network(arch, backend=backend)
        network: nn.Module = loaded(path, lambda path: with_weights(blank, load_file(path)), advice=_again(arch))
        return network.eval()

    def check(self, arch: Architecture) -> None:
        """Raises RunError for a damaged file of those that ship, or its weights."""
        self.network(arch)
        for mode in self.modes:
            loaded(self.onnx_path(arch, mode), read_graph, advice=_again(arch))

    def to_train(self, arch: Architecture, *, tag: str | None = None) -> nn.Module:
        """The same in the form that is trained, on the device that trains."""
        return self.network(arch, tag=tag, backend=self.compute.backend).to(self.compute.device)

    def onnx_path(self, arch: Architecture, mode: str = "encode", *, tag: str | None = None) -> Path:
        """The file of a finished network; for another mode than `encode` it is written when it is first asked for."""
        name = self.name(arch, tag)
        if mode == "encode":
            return self.run / f"{name}.onnx"
        path = self.run / f"{name}.{mode}.onnx"
        if not path.is_file():
            whole = self.workload.encoded
            tokens, past = (whole.tokens, 0) if mode == "prefill" else (1, whole.tokens - 1)
            workload = Workload(whole.batch, tokens, mode, past)
            export_onnx(*form_of(self.family, self.network(arch, tag=tag), workload), path, kind=self.onnx_kind)
        return path

    @property
    def modes(self) -> tuple[str, ...]:
        """The forms that ship; the first answers for whole inputs."""
        return MODES if isinstance(self.family, GenerativeFamily) else MODES[:1]

    def shipped(self, arch: Architecture) -> dict[str, Path]:
        """What ships, by its names there."""
        return {f"{'model' if mode == 'encode' else mode}.onnx": self.shipped_path(arch, mode) for mode in self.modes}

    def shipped_path(self, arch: Architecture, mode: str = "encode", *, tag: str | None = None) -> Path:
        """The file that the device really runs, of those that are ONNX: the exported one, or its quantisation."""
        path = self.onnx_path(arch, mode, tag=tag)
        device = device_of(self.device, arch)
        return device.deployed(path) if isinstance(device, HasDeployment) else path


def _again(arch: Architecture) -> str:
    return f"delete {FOLDER}/{arch.id}.* of the run, and the same search makes them again"
