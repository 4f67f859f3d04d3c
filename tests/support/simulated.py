"""A device whose times are known, and networks for it."""

from pathlib import Path

import numpy as np

from experiments.progress import Reporter
from hardware import environment
from hardware.timing import Exported
from nas.protocols import DeviceError
from nas.space import Choice, SearchSpace
from nas.types import Workload

SPACE = SearchSpace("chain", (Choice("width", (8, 16, 32, 64, 128, 256)), Choice("depth", (1, 2, 4, 8))))
WORKLOAD = Workload(batch=1, tokens=16)


def arch_of(width, depth):
    return SPACE.canonical({"width": width, "depth": depth})


class SimulatedDevice:
    """Networks with known times, `slowdown(visit number)` times slower, with spikes in every visit."""

    name = "simulated"

    def __init__(self, times_ms, slowdown=lambda visit: 1.0, **facts):
        self.times_ms, self.slowdown = times_ms, slowdown
        self.environment = {"cpu": "simulated", "runtime": "1.30", "threads": 1, **facts}
        self.visited = []
        self.rng = np.random.default_rng(0)

    @property
    def fingerprint(self):
        return environment.fingerprint(self.environment)

    def run(self, onnx_path, inputs):
        self.visited.append(onnx_path.stem)
        if onnx_path.stem not in self.times_ms:
            raise DeviceError(f"{onnx_path}: lost")
        samples = np.full(40, self.times_ms[onnx_path.stem] * self.slowdown(len(self.visited) - 1))
        samples *= 1.0 + 0.002 * self.rng.random(40)
        samples[self.rng.choice(40, size=8, replace=False)] *= 1.0 + self.rng.exponential(size=8)
        return tuple(samples.tolist())


def simulated(stem, width=8, depth=1):
    return Exported(arch_of(width, depth), Path(f"{stem}.onnx"), {})


TIMES = {"s": 0.9, "a": 0.1, "b": 1.0, "c": 2.5, "d": 7.0}
NETWORKS = [simulated("a", 16), simulated("b", 32), simulated("c", 64), simulated("d", 128)]
SENTINEL = simulated("s")


class Metered(SimulatedDevice):
    """Meters energy, and grows hotter."""

    measures_energy = True

    def conditions(self):
        return {"celsius": 40 + len(self.visited)}

    def energy_mj(self):
        return 2.5 * TIMES[self.visited[-1]]


class Heard(Reporter):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)
