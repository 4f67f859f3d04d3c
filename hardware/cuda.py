"""An NVIDIA GPU: ONNX Runtime's CUDA or TensorRT provider, or torch with CUDA events."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from hardware import environment
from hardware.local import check_option, in_order, optional, own_folder, refusals
from hardware.local_torch import load, to_half, warm_up
from hardware.visit import Visit, wall
from nas.formats import Answer, arrays
from nas.protocols import DeviceError

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
PRECISIONS = {"cuda": ("fp32", "tf32"), "tensorrt": ("tf32", "fp16"), "torch": ("fp32", "tf32", "fp16")}
PATIENCE_SECONDS = 5.0  # for a step of the energy counter


class Cuda:
    """Times a network on a GPU of this machine. Every visit opens the file anew; the inputs lie on the GPU already.

    ONNX Runtime's times are wall times of a run and the wait for its end; torch's are those between two CUDA events.

    Args:
        runtime: cuda or tensorrt, providers of ONNX Runtime; torch; auto is cuda where ONNX Runtime has it, else torch.
        precision: fp32, but for tensorrt; tf32, matrix products with 10-bit mantissas; fp16, for tensorrt where it likes and for
            torch throughout.
        cuda_graph: for torch alone, replays one recorded graph, which spares the launches of the single kernels.
        index: which GPU.
        energy_seconds: if above 0, a visit goes on for so long to take a run's energy; the counter has steps of 20 to 100 ms.
        warmup_seconds, visit_seconds, min_samples, max_samples: see `Visit`.

    Raises:
        ValueError: a value outside its range, or options that do not go together.
    """

    name = "cuda"

    def __init__(
        self,
        *,
        runtime: str = "auto",
        precision: str = "fp32",
        cuda_graph: bool = False,
        index: int = 0,
        energy_seconds: float = 0.0,
        warmup_seconds: float = 0.1,
        visit_seconds: float = 0.1,
        min_samples: int = 10,
        max_samples: int = 1000,
    ) -> None:
        self.runtime = check_option("runtime", runtime, ("auto", *PRECISIONS))
        chosen = self.chosen_runtime if runtime != "auto" else f"{self.chosen_runtime}, which auto is here"
        if precision not in PRECISIONS[self.chosen_runtime]:
            raise ValueError(f"precision: {precision!r} is not one of {PRECISIONS[self.chosen_runtime]} of runtime={chosen}")
        if cuda_graph and self.chosen_runtime != "torch":
            raise ValueError(f"cuda_graph: needs runtime=torch, not {chosen}")
        self.precision = precision
        if index < 0:
            raise ValueError(f"index: {index} is negative")
        if not 0 <= energy_seconds <= 60:
            raise ValueError(f"energy_seconds: {energy_seconds} is not between 0 and 60")
        self.cuda_graph, self.index, self.energy_seconds = cuda_graph, index, energy_seconds
        self.visit = Visit(warmup_seconds, visit_seconds, min_samples, max_samples)
        self._energy_mj: float | None = None

    @functools.cached_property
    def chosen_runtime(self) -> str:
        """cuda, tensorrt or torch."""
        if self.runtime != "auto":
            return self.runtime
        return "cuda" if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "torch"

    @property
    def format(self) -> str:
        return {"torch": "torchscript", "tensorrt": "onnx"}.get(self.chosen_runtime, "onnxruntime")

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The stable facts that a time depends on. Raises DeviceError without a GPU or its runtime."""
        nvml, _ = self._nvml
        is_torch = self.chosen_runtime == "torch"
        return {
            "gpu": self._ask("Name"),
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "max_sm_mhz": self._ask("MaxClockInfo", nvml.NVML_CLOCK_SM),
            "cpu": environment.cpu_model(),
            "os": environment.system(),
            "runtime": self.chosen_runtime,
            **({"torch": torch.__version__} if is_torch else {"onnxruntime": onnxruntime.__version__}),
            "precision": self.precision,
            "cuda_graph": self.cuda_graph,
        }

    @property
    def fingerprint(self) -> str:
        return environment.fingerprint(self.environment)

    def conditions(self) -> dict[str, Any]:
        """The state of machine and GPU right now: load, clocks, temperature and power."""
        nvml, _ = self._nvml
        return {
            **environment.conditions(),
            "sm_mhz": self._ask("ClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("ClockInfo", nvml.NVML_CLOCK_MEM),
            "temperature_celsius": self._ask("Temperature", nvml.NVML_TEMPERATURE_GPU),
            "power_mw": self._ask("PowerUsage"),
        }

    @property
    def measures_energy(self) -> bool:
        return self.energy_seconds > 0

    def energy_mj(self) -> float | None:
        """Energy of one run in the last visit, of the whole GPU; None if `energy_seconds` is 0 or before a visit."""
        return self._energy_mj

    def run(self, path: Path, inputs: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """One visit: raw times in ms, in the order in which they were taken.

        Raises:
            DeviceError: there is no GPU, runtime or file, or the runtime refuses the file or the inputs, or runs out of memory.
        """
        self._energy_mj = None
        assert self._nvml, "says what is missing"
        with refusals(path, self.chosen_runtime), self._opened(path, inputs) as sample:
            samples = self.visit.times(sample)
            if self.energy_seconds:
                counter_mj = functools.partial(self._ask, "TotalEnergyConsumption")
                self._energy_mj = energy_per_run(sample, counter_mj, seconds=self.energy_seconds)
            return samples

    def opened(self, path: Path) -> Answer:
        """A file for its answers, by the same runtime in the same precision. Raises DeviceError like `run`, and so does what
        answers."""
        assert self._nvml, "says what is missing"
        with refusals(path, self.chosen_runtime):
            answers = self._answers_of_torch(path) if self.chosen_runtime == "torch" else self._answers_of_onnxruntime(path)

        def answer(inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
            with refusals(path, self.chosen_runtime):
                return answers(inputs)

        return answer

    def _answers_of_torch(self, path: Path) -> Answer:
        module, names = self._module(path)

        def answer(inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
            with self._as_timed():
                outputs = module(*self._tensors({name: value.numpy() for name, value in inputs.items()}, names))
                return arrays([x.float().cpu() for x in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs)])

        return answer

    def _answers_of_onnxruntime(self, path: Path) -> Answer:
        session = self._session(path)
        return lambda inputs: list(session.run(None, {name: value.numpy() for name, value in inputs.items()}))

    @contextmanager
    def _opened(self, path: Path, inputs: Mapping[str, np.ndarray]) -> Iterator[Callable[[], float]]:
        """A run to its end, which returns its ms."""
        if self.chosen_runtime == "torch":
            with self._as_timed():
                yield self._with_torch(path, inputs)
        else:
            yield self._with_onnxruntime(path, inputs)

    @contextmanager
    def _as_timed(self) -> Iterator[None]:
        """The state of torch in which a network is timed, and answers."""
        with torch.inference_mode(), torch.cuda.device(self.index), allow_tf32(self.precision == "tf32"):
            yield

    @property
    def _place(self) -> str:
        """The GPU, as torch calls it."""
        return f"cuda:{self.index}"

    def _module(self, path: Path) -> tuple[Any, list[str]]:
        """A network on the GPU in its precision, and the names of its inputs in their order."""
        module, names = load(path, to=self._place)
        if self.precision == "fp16":
            to_half(module)
        return module, names

    def _tensors(self, inputs: Mapping[str, np.ndarray], names: list[str]) -> list[torch.Tensor]:
        """Inputs for a network as `_module` loads it."""
        tensors = [torch.from_numpy(value).to(self._place) for value in in_order(inputs, names)]
        if self.precision != "fp16":
            return tensors
        return [tensor.half() if tensor.is_floating_point() else tensor for tensor in tensors]

    def _with_torch(self, path: Path, inputs: Mapping[str, np.ndarray]) -> Callable[[], float]:
        module, names = self._module(path)
        tensors = self._tensors(inputs, names)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a graph is recorded only after runs on another stream (torch.cuda.graphs)
            warm_up(module, tensors)
        torch.cuda.current_stream().wait_stream(side)
        launch: Callable[[], object] = functools.partial(module, *tensors)
        if self.cuda_graph:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                launch()
            launch = graph.replay
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def sample() -> float:
            start.record()
            launch()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return sample

    def _session(self, path: Path) -> onnxruntime.InferenceSession:
        """With the GPU's own provider. Raises DeviceError if it does not load."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=self._providers())
        used, wanted = session.get_providers()[0], PROVIDERS[self.chosen_runtime]
        if used != wanted:  # ONNX Runtime goes on without a provider that does not load
            raise DeviceError(f"{path}: {wanted} did not load; ONNX Runtime would run on {used}")
        return session

    def _with_onnxruntime(self, path: Path, inputs: Mapping[str, np.ndarray]) -> Callable[[], float]:
        session = self._session(path)
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", self.index))
        for output in session.get_outputs():
            binding.bind_output(output.name, "cuda", self.index)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return wall(run)

    def _providers(self) -> list[tuple[str, dict[str, Any]]]:
        """Those that ONNX Runtime may use. TensorRT leaves operators that it does not know to CUDA, and builds an engine once."""
        cuda = {"device_id": self.index, "use_tf32": int(self.precision == "tf32")}
        if self.chosen_runtime == "cuda":
            return [(PROVIDERS["cuda"], cuda)]
        engines = {"trt_engine_cache_enable": 1, "trt_engine_cache_path": str(self._folder)}
        tensorrt = {"device_id": self.index, "trt_fp16_enable": int(self.precision == "fp16"), **engines}
        return [(PROVIDERS["tensorrt"], tensorrt), (PROVIDERS["cuda"], cuda)]

    @functools.cached_property
    def _folder(self) -> Path:
        """For TensorRT's engines."""
        return own_folder(self)

    def _ask(self, fact: str, *which: int) -> Any:
        """What NVML says of the GPU; None where the GPU does not say it."""
        nvml, gpu = self._nvml
        try:
            return getattr(nvml, f"nvmlDeviceGet{fact}")(gpu, *which)
        except nvml.NVMLError_NotSupported:
            return None

    @functools.cached_property
    def _nvml(self) -> tuple[Any, Any]:
        """NVML and its handle of the GPU."""
        nvml = optional("pynvml", extra="cuda")
        try:
            nvml.nvmlInit()
            if torch.cuda.is_available():  # torch's order of the GPUs need not be NVML's
                uuid = torch.cuda.get_device_properties(self.index).uuid
                gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            else:
                gpu = nvml.nvmlDeviceGetHandleByIndex(self.index)
        except (nvml.NVMLError, AssertionError) as error:  # torch asserts that there is a GPU of this index
            raise DeviceError(f"index: there is no NVIDIA GPU {self.index} on this machine ({error})") from error
        if self.chosen_runtime == "torch" and not torch.cuda.is_available():
            raise DeviceError(f"runtime: torch {torch.__version__} sees no CUDA GPU, and ONNX Runtime has no {PROVIDERS['cuda']}")
        if self.chosen_runtime != "torch" and PROVIDERS[self.chosen_runtime] not in onnxruntime.get_available_providers():
            raise DeviceError(f"runtime: this ONNX Runtime has no {PROVIDERS[self.chosen_runtime]}: pip install onnxruntime-gpu")
        return nvml, gpu


def energy_per_run(run: Callable[[], object], counter_mj: Callable[[], float], *, seconds: float) -> float:
    """Energy in mJ of one run: what a counter that moves in steps says between two of its steps, at least `seconds` apart.

    Raises:
        DeviceError: the counter stands still, or there is none.
    """

    def until_a_step(since: float) -> tuple[float, int]:
        num, patience = 0, time.perf_counter() + PATIENCE_SECONDS
        while (now := counter_mj()) == since:
            if time.perf_counter() > patience:
                raise DeviceError("energy: the GPU's counter does not move")
            run()
            num += 1
        return now, num

    first, _ = until_a_step(counter_mj())
    end, num = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        run()
        num += 1
    last, more = until_a_step(counter_mj())
    return (last - first) / (num + more)


@contextmanager
def allow_tf32(is_allowed: bool) -> Iterator[None]:
    """Torch has one setting for the whole process: set for a while."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
