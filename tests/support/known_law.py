"""A small space whose architectures have errors and latencies by a law, so that its front is known."""

from nas.space import Architecture
from nas.types import Candidate, Provenance
from search_spaces.encoder import encoder_space

SPACE = encoder_space(width=(8, 16, 24, 32), depth=(1, 2, 3), heads=(1, 2, 4), ffn=(8, 16, 32))


def evaluate(arch: Architecture) -> Candidate:
    """A law with a true conflict: capacity costs time, and pays off less and less."""
    layers = range(1, arch.size("depth") + 1)
    size = arch.size("width") * sum(
        arch.size(f"layer{i}.ffn") + 8 * (arch.size(f"layer{i}.heads") if f"layer{i}.heads" in arch else 0) for i in layers
    )
    attends = sum(arch[f"layer{i}.attention"] != "none" for i in layers)
    objectives = {"error": 100 / (1 + 0.01 * size) + 5 / (1 + attends), "latency_ms": 0.01 * size + 0.2 * attends}
    return Candidate(arch, objectives, dict.fromkeys(objectives, Provenance.PREDICTED))
