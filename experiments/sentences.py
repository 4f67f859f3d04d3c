"""What a finished run has to say of itself, in sentences for its page and for the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from experiments.formatting import format_ms, format_seconds
from experiments.networks import PLANE, Network, by_time
from experiments.objectives import OBJECTIVES, objective
from experiments.results import PredictorReport, Results
from experiments.roles import ROLES

FEW_EXAMPLES = 100  # of a split, below which one more wrong answer is more than a point of error


@dataclass(frozen=True)
class Comparison:
    """A network of another origin, and the search's most accurate one that takes no more time, if there is any."""

    other: Network
    ours: Network | None

    @property
    def points(self) -> float:
        """Error of ours minus that of the other: negative where the search is better."""
        assert self.ours is not None
        return self.ours.error_percent - self.other.error_percent


def compare_at_equal_time(results: Results) -> list[Comparison]:
    """For every network that the search did not find, the fastest first."""
    comparisons = []
    for other in by_time(results.of_role("random") + results.of_role("hand")):
        as_fast = [n for n in results.of_role("search") if n.latency_ms <= other.latency_ms]
        comparisons.append(Comparison(other, min(as_fast, key=lambda n: n.error_percent, default=None)))
    return comparisons


def trivial_wins(results: Results) -> bool:
    """Whether something that needs no network has a lower validation error than what ships."""
    return results.best_trivial is not None and results.best_trivial[1] < results.shipped.error_percent


def after_stages(results: Results) -> str:
    """Which stages are in what ships, and what it was before; empty without any."""
    kept = [stage.name for stage in results.kept_stages]
    return f" after {', '.join(kept)} ({results.picked.error_percent:.2f} % before)" if kept else ""


def trivial_sentence(results: Results) -> str:
    """Whether the networks are worth having at all, in plain words."""
    if results.best_trivial is None:
        return "No baseline without a network was run for this task."
    name, error = results.best_trivial
    ships = results.shipped
    best = min(*results.networks, ships, key=lambda n: n.error_percent)
    if error < best.error_percent:
        return (
            f"A baseline without a network is better than every network here: {name} has {error:.2f} % validation error, the "
            f"network that ships {ships.error_percent:.2f} %, the best one trained {best.error_percent:.2f} %. Where the device "
            f"can run it, it is the better choice."
        )
    if error < ships.error_percent:
        return (
            f"A baseline without a network is better than the network that ships: {name} has {error:.2f} % validation error, the "
            f"network {ships.error_percent:.2f} %. The best one trained, {best.id}, has {best.error_percent:.2f} %."
        )
    verb = "is level with" if error == ships.error_percent else "beats"
    return (
        f"The network that ships {verb} the best baseline without a network: {ships.error_percent:.2f} % validation error, "
        f"{name} has {error:.2f} %."
    )


def beaten_sentence(results: Results) -> str:
    """Says so if what ships, or what is better and no slower, was not found by the search; empty otherwise."""
    ships = results.picked
    if ships.role != "search":
        name = f"{ships.id} ({ships.label})"
        return f"The network that ships was not found by the search: {name} is the most accurate within the budget."
    others = [c.other for c in compare_at_equal_time(results)]
    others = [n for n in others if all(n.value(name) <= verdict.asked for name, verdict in results.beside.items())]
    better = [n for n in others if n.latency_ms <= ships.latency_ms and n.error_percent < ships.error_percent]
    if not better:
        return ""
    best = min(better, key=lambda n: n.error_percent)
    return (
        f"A network that the search did not find is better than the one that ships: {best.id} ({best.label}) has "
        f"{best.error_percent:.2f} % validation error in {format_ms(best.latency_ms)} ms, {ships.id} "
        f"{ships.error_percent:.2f} % in {format_ms(ships.latency_ms)} ms."
    )


def tied_sentence(results: Results) -> str:
    """Says so if what ships is tied for best with a network that takes less time; empty otherwise."""
    ships, tied = results.picked, [n for n in results.networks if n.id in results.tied_for_best]
    fastest = min(tied, key=lambda n: n.latency_ms, default=ships)
    if ships not in tied or fastest.latency_ms >= ships.latency_ms:
        return ""
    return (
        f"The test split cannot tell {fastest.id} ({fastest.label}) from the best either, as they were trained, and it takes "
        f"{fastest.latency_ms / ships.latency_ms:.2f} of the time: pick={fastest.id} exports it."
    )


def few_sentence(results: Results) -> str:
    """Says so if the splits that errors are read from are small; empty otherwise."""
    num = results.ties["num_test"] if results.ties else FEW_EXAMPLES
    if num >= FEW_EXAMPLES:
        return ""
    return f"Errors are rough: the test split has only {num} examples, one of which is {100 / num:.1f} % of it."


def doubts(results: Results) -> list[str]:
    """What speaks against what ships or against the figures, beside a verdict and a trivial baseline."""
    said = [few_sentence(results), beaten_sentence(results), tied_sentence(results)]
    alarms = [f"Differentiable search: {alarm}" for alarm in results.alarms]
    return [*filter(None, said), *alarms, *results.cautions]


def objective_words(objectives: Sequence[str]) -> str:
    """`both latency and error`, or `all of latency, error and memory`."""
    words = [objective(name).words for name in sorted(objectives, key=_rank)]
    listed = f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{'both' if len(words) == 2 else 'all of'} {listed}"


def _rank(name: str) -> int:
    known = [*PLANE, *OBJECTIVES]
    return known.index(name) if name in known else len(known)


def search_sentences(results: Results) -> list[str]:
    """How the search did against random search and hand-designed networks, as it came out."""
    on_front = results.front
    counts = [f"{words} {sum(n.role == role for n in on_front)}" for role, words in ROLES.items() if results.of_role(role)]
    sentences = [f"Networks that no other one beats in {objective_words(results.objectives)}, by origin: {', '.join(counts)}."]
    comparisons = compare_at_equal_time(results)
    if comparisons:
        won = sum(c.ours is not None and c.points < 0 for c in comparisons)
        sentences.append(
            f"For {won} of {len(comparisons)} other networks the search has one with a lower error and no more time."
        )
    areas = results.hypervolumes
    if areas:
        ms, percent = results.hypervolume_reference
        listed = ", ".join(f"{ROLES.get(role, role)} {area:.5g}" for role, area in areas.items())
        sentences.append(
            f"Hypervolume up to {format_ms(ms)} ms and {percent:.4g} % error, of trained networks (larger is better): {listed}."
        )
    if areas.get("search", 0.0) > 0 and areas.get("random", 0.0) > 0:
        lead = 100 * (areas["search"] / areas["random"] - 1)
        if abs(lead) < 0.005:
            sentences.append("By this measure the search and random search are level.")
        elif lead > 0:
            sentences.append(f"By this measure the search is {lead:.2f} % ahead of random search.")
        else:
            sentences.append(f"By this measure the search is {-lead:.2f} % behind random search: here it was not worth its cost.")
    return sentences


def trust_sentence(predictor: PredictorReport, *, how: str = "measured") -> str:
    """How far the predicted latencies can be believed; `how` is `Verdict.how`."""
    p = predictor
    rank = "too few to rank" if p.spearman is None else f"rank correlation {p.spearman:.3f}"
    useless = (
        " It is no better than a constant: do not trust its predictions." if p.mape_percent >= p.constant_mape_percent else ""
    )
    return (
        f"The latency model was fitted to {p.num_fit} {how} networks and judged on {p.num_held_out} others that it had not "
        f"seen: mean error {p.mape_percent:.1f} % (always guessing the median: {p.constant_mape_percent:.1f} %), {rank}, "
        f"{p.within_10_percent:.0f} % of the predictions within 10 %. {p.coverage_percent:.0f} % of the networks were no slower "
        f"than their upper bound.{useless}"
    )


def health_sentence(checks: Sequence[Mapping[str, Any]]) -> str:
    """How the differentiable search went, from what `nas.guards.Health` wrote; empty if it wrote nothing."""
    if not checks:
        return ""
    first, last = checks[0], checks[-1]
    entropy = [fmean(check["entropy"].values()) for check in (first, last)]
    alarms = sum(bool(check["alarm"]) for check in checks)
    frozen = f"; the weights of {last['frozen']} of its branches stand still in the end" if last.get("frozen") else ""
    return (
        f"The differentiable search was looked at {len(checks)} times. Mean entropy of its choices {entropy[0]:.2f} at first and "
        f"{entropy[1]:.2f} in the end, share of what can be skipped and is {first['skip_share']:.2f} and "
        f"{last['skip_share']:.2f}, largest eigenvalue of the loss's Hessian in the logits {first['sharpness']:.2g} and "
        f"{last['sharpness']:.2g}; loss on the architecture split at most "
        f"{max(check['gap'] for check in checks):.3f} above that on the training split; its alarm tripped {alarms} times"
        f"{frozen}."
    )


def cost_sentence(results: Results) -> str:
    """What the run cost in all."""
    ledger = results.ledger
    wall, cpu = sum(entry.seconds for entry in ledger), sum(entry.cpu_seconds for entry in ledger)
    memory = max((entry.peak_memory_mib for entry in ledger), default=0.0)
    trained = sum(entry.networks_trained for entry in ledger)
    return (
        f"{format_seconds(wall)} in all ({format_seconds(cpu)} of CPU time), {trained} networks trained, at most "
        f"{memory:.0f} MiB of memory."
    )
