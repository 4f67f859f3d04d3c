"""What a run's claims rest on, from its results and candidates alone: `trust.json`, and sentences for the page.

Does the supernet's ranking agree with training? Is the latency model right about the networks that were picked, not only about
random ones? What did the search gain by each evaluation, beside random search and the networks designed by hand? Which
networks cannot be told apart?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.formatting import format_ms, format_seconds, params_in_words
from experiments.looks import in_words
from experiments.networks import Network
from experiments.results import Results
from experiments.roles import PHASES, PROPOSING, RUNG
from nas.pareto import hypervolume
from nas.types import Candidate, Provenance

RESAMPLES = 1000
COUNTED = (
    "those of the evaluations, with what scoring took where another phase had done it; the search's begin with those of the "
    "differentiable search; what asking a strategy and measuring on the way took is not in them"
)
FEWEST = 4  # networks from which a rank correlation is said


def evidence(results: Results, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The content of `trust.json`; what cannot be said of this run is None."""
    return {
        "seed": results.seed,
        "rank_correlation": rank_correlation(results, candidates),
        "rungs": rungs(results, candidates),
        "predictor_on_picked": predictor_on_picked(results.networks),
        "hypervolume": hypervolumes_by_cost(results, candidates),
        "ties": results.ties,
        "looks_at_the_device": results.looks,
        "measured_during_the_search": results.refined,
        "tuned_training": results.tuned,
        "ledger": [asdict(entry) for entry in results.ledger],
    }


def rank_correlation(results: Results, candidates: Sequence[Candidate]) -> dict[str, Any] | None:
    """Kendall's tau-b of inherited and retrained errors over the trained networks, and within their faster and slower halves."""
    inherited = _inherited(candidates)
    known = sorted((n for n in results.networks if n.id in inherited), key=lambda n: n.latency_ms)
    if len(known) < FEWEST:
        return None

    def of(networks: Sequence[Network]) -> dict[str, Any] | None:
        if len(networks) < FEWEST:
            return None
        pairs = np.array([[inherited[n.id], n.error_percent] for n in networks])
        return {"num": len(networks), **tau_with_interval(pairs, seed=results.seed)}

    middle = len(known) // 2
    return {"all": of(known), "faster_half": of(known[:middle]), "slower_half": of(known[middle:])}


def rungs(results: Results, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """What each rung was worth: Kendall's tau-b of its errors with the inherited ones of all that it scored, and of both with the
    errors of those that were finished; None where these are too few."""
    by_phase: dict[str, dict[str, float]] = {}
    for c in candidates:
        if c.provenance["error"] == Provenance.TUNED:
            by_phase.setdefault(c.phase, {})[c.arch.id] = c.objectives["error"]
    retrained = {n.id: n.error_percent for n in results.networks}

    def agreement(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any] | None:
        pairs = np.array([[one[id_], other[id_]] for id_ in one if id_ in other])
        return {"num": len(pairs), **tau_with_interval(pairs, seed=results.seed)} if len(pairs) >= FEWEST else None

    found = []
    for phase, errors in by_phase.items():
        inherited = {id_: error for id_, error in _inherited(candidates).items() if id_ in errors}
        found.append(
            {
                "share": float(phase.removeprefix(RUNG)),
                "inherited_with_rung": agreement(inherited, errors),
                "inherited_with_retrained": agreement(inherited, retrained),
                "rung_with_retrained": agreement(errors, retrained),
            }
        )
    return found


def _inherited(candidates: Sequence[Candidate]) -> dict[str, float]:
    return {c.arch.id: c.objectives["error"] for c in candidates if c.provenance["error"] == Provenance.INHERITED}


def tau_with_interval(pairs: np.ndarray, *, seed: int) -> dict[str, float | None]:
    """Kendall's tau-b of the columns [N, 2], and the 95 % percentile interval of a bootstrap over rows; None if all are equal."""
    signs = np.sign(pairs[:, None] - pairs[None])  # [N, N, 2]
    rng = np.random.default_rng([seed, 4])
    draws = rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))
    taus = np.array([_tau(signs[np.ix_(draw, draw)]) for draw in draws])
    low, high = np.nanquantile(taus, (0.025, 0.975)) if np.isfinite(taus).any() else (math.nan, math.nan)
    return {
        name: float(value) if math.isfinite(value) else None
        for name, value in (("tau", _tau(signs)), ("low", low), ("high", high))
    }


def _tau(signs: np.ndarray) -> float:
    """Tau-b from the signs of differences [N, N, 2] (Kendall, 1945); NaN if a column is constant."""
    one, other = signs[..., 0], signs[..., 1]
    untied = math.sqrt(np.abs(one).sum() * np.abs(other).sum())
    return float((one * other).sum()) / untied if untied else math.nan


def predictor_on_picked(networks: Sequence[Network]) -> dict[str, float] | None:
    """How the latency model did on the networks that were trained and measured: picking favours those that it underrates."""
    measured = [n for n in networks if n.measured_ms is not None]
    if not measured:
        return None
    ratios = np.array([n.latency_ms / n.predicted_ms for n in measured])
    return {
        "num": len(measured),
        "mape_percent": 100 * float(np.mean(np.abs(1 / ratios - 1))),
        "median_excess_percent": 100 * float(np.median(ratios) - 1),
        "over_bound": (over := sum(n.latency_ms > n.predicted_upper_ms for n in measured)),
        "coverage_percent": 100 * (1 - over / len(measured)),
    }


def hypervolumes_by_cost(results: Results, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Hypervolume in ms times percent after each evaluation, of inherited errors and predicted latencies, and the seconds that it
    took until then (see `COUNTED`); the networks designed by hand are one set."""
    reference = results.hypervolume_reference
    curves: dict[str, Any] = {"reference": reference, "seconds_are": COUNTED, "retrained": dict(results.hypervolumes)}
    proposing = sum(entry.seconds for entry in results.ledger if entry.phase == PROPOSING)
    for phase in PHASES:
        of_phase = [c for c in candidates if c.phase == phase]
        costs = np.array([[c.objectives["latency_ms"], c.objectives["error"]] for c in of_phase]).reshape(-1, 2)
        if phase == "hand":
            curves[phase] = hypervolume(costs, reference)
        elif of_phase:
            curves[phase] = {
                "after_evaluations": [hypervolume(costs[: i + 1], reference) for i in range(len(costs))],
                "seconds": (np.cumsum([c.seconds for c in of_phase]) + proposing * (phase == "search")).round(3).tolist(),
            }
    return curves


def at_equal_seconds(curves: Mapping[str, Any]) -> tuple[float, float, float]:
    """When the first of search and random search had ended, and the hypervolumes of both until then."""
    both = [curves[phase] for phase in ("search", "random")]
    end = min(curve["seconds"][-1] for curve in both)
    volumes = ([v for v, s in zip(c["after_evaluations"], c["seconds"], strict=True) if s <= end] for c in both)
    ours, theirs = ((until or [0.0])[-1] for until in volumes)
    return end, ours, theirs


def gained(curves: Mapping[str, Any]) -> str:
    """What the curves say in a sentence; empty without the search's."""
    if "search" not in curves:
        return ""
    names = {"search": "the search", "random": "random search", "parameters": "parameter count alone"}
    known = {name: curves[phase] for phase, name in names.items() if phase in curves}
    best = max(*(curve["after_evaluations"][-1] for curve in known.values()), curves["hand"]) or 1.0
    reached = ", ".join(
        f"{name} reaches {curve['after_evaluations'][-1] / best:.3f} with {len(curve['seconds'])} evaluations in "
        f"{format_seconds(curve['seconds'][-1])}"
        for name, curve in known.items()
    )
    return f"Of the largest hypervolume {reached}; the networks designed by hand have {curves['hand'] / best:.3f}."


def sentences(trust: Mapping[str, Any], results: Results) -> list[str]:
    """What people should know of it, as it came out."""
    said = [_ranking(trust["rank_correlation"]), *(s for s in map(_rung, trust["rungs"]) if s)]
    if picked := trust["predictor_on_picked"]:
        said.append(
            f"On the {picked['num']} networks that were picked, trained and measured, the latency model is off by "
            f"{picked['mape_percent']:.1f} % (on random ones {results.predictor.mape_percent:.1f} %); measured times differ from "
            f"predicted ones by {picked['median_excess_percent']:+.1f} % in the median, and the bound covers "
            f"{picked['coverage_percent']:.0f} % of them (of random ones {results.predictor.coverage_percent:.0f} %)."
        )
    said += map(in_words, trust["looks_at_the_device"])
    curves = trust["hypervolume"]
    if {"search", "random"} <= set(curves):
        said.append(_gains(curves))
    if trust["ties"]:
        said.append(_ties(trust["ties"]))
    if trust["measured_during_the_search"]:
        said.append(_refined(trust["measured_during_the_search"]))
    if trust["tuned_training"]:
        said.append(_tuned(trust["tuned_training"]))
    return said


def _ranking(ranking: Mapping[str, Any] | None) -> str:
    if ranking is None or ranking["all"] is None or ranking["all"]["tau"] is None:
        return "Too few networks were trained to say whether inherited weights rank them as training does."
    parts = {"all": "of all", "faster_half": "of the faster half", "slower_half": "of the slower half"}
    words = [
        f"{figures['tau']:.2f} {part} {figures['num']} ({figures['low']:.2f} to {figures['high']:.2f})"
        for name, part in parts.items()
        if (figures := ranking[name]) and figures["tau"] is not None
    ]
    doubt = " The ranking is not shown to mean anything." if ranking["all"]["low"] <= 0 else ""
    return (
        f"Inherited weights (split of the search) against training (validation), Kendall's tau with its 95 % bootstrap interval "
        f"over trained networks: "
        f"{', '.join(words)}.{doubt}"
    )


def _rung(rung: Mapping[str, Any]) -> str:
    """Empty if nothing can be said."""
    before, inherited, own = (rung[name] for name in ("inherited_with_rung", "inherited_with_retrained", "rung_with_retrained"))
    if not before:
        return ""
    share, num = f"{100 * rung['share']:g} %", before["num"]
    said = f"A rung at {share} of the training scored {num} networks; tau of inherited errors with its own {_tau_words(before)}."
    if not own:
        return said
    finished = f"With the final errors of the {own['num']} of them that were finished"
    return f"{said} {finished}: inherited ones {_tau_words(inherited)}, its own {_tau_words(own)}."


def _tau_words(figures: Mapping[str, Any]) -> str:
    tau, low, high = (figures[name] for name in ("tau", "low", "high"))
    return "not known, as all are equal" if tau is None else f"{tau:.2f} ({low:.2f} to {high:.2f})"


def _gains(curves: Mapping[str, Any]) -> str:
    ours, theirs = (curves[phase]["after_evaluations"] for phase in ("search", "random"))
    counted = curves.get("parameters", {}).get("after_evaluations", [])
    best = max(ours[-1], theirs[-1], curves["hand"], *counted[-1:]) or 1.0
    num = min(len(ours), len(theirs))
    points = sorted({max(1, num // 4), max(1, num // 2), num})
    shares = ", ".join(f"{ours[i - 1] / best:.3f} and {theirs[i - 1] / best:.3f} after {i}" for i in points)
    alone = f"parameter count alone {counted[-1] / best:.3f} after {len(counted)}; " if counted else ""
    seconds, ours_then, theirs_then = at_equal_seconds(curves)
    ms, percent = curves["reference"]
    return (
        f"Hypervolume by evaluations, of inherited errors on the split of the search, up to {format_ms(ms)} ms and "
        f"{percent:.4g} %, as a share of the best: "
        f"search and random search {shares}; {alone}the networks designed by hand {curves['hand'] / best:.3f}. After equal time, "
        f"{format_seconds(seconds)} with that of the differentiable search: {ours_then / best:.3f} and {theirs_then / best:.3f}. "
        f"The search chose by these errors, so they flatter it."
    )


def _tuned(tuned: Mapping[str, Any]) -> str:
    first, best = tuned["configured"], tuned["best"]
    if best == first:
        return f"Of {tuned['trials']} trainings of {tuned['network']} none was better than the configured one."
    before = "diverged" if first["error_percent"] is None else f"has {first['error_percent']:.2f} %"
    words = params_in_words(best["params"])
    return (
        f"All networks learn as in the best of {tuned['trials']} trainings of {tuned['network']}, with {words}: "
        f"{best['error_percent']:.2f} % error on the split that chooses architectures, where the configured one {before}."
    )


def _ties(tied: Mapping[str, Any]) -> str:
    first, *others = tied["groups"][0]
    who = f"{', '.join(others)} cannot be told apart from it" if others else "all others are worse beyond chance"
    return (
        f"On the test split, read after the choice, {first} is the most accurate; {who} (paired bootstrap over "
        f"{tied['num_test']} examples, 95 %)."
    )


def _refined(refined: Mapping[str, Any]) -> str:
    if not refined["measured"]:
        return f"Nothing was measured during the search{': ' + refined['lost'] if 'lost' in refined else ''}."
    return (
        f"Measured half way through, near the front: {refined['measured']} ({refined['seconds']:.0f} s). The "
        f"predictions for them were off by {refined['mape_percent_before']:.1f} %, {refined['over_bound_before']} took more than "
        f"their upper bound. Fitted again, the latency model changed predictions by {refined['mean_change_percent']:.1f} % "
        f"on average; of {refined['front_before']} on the front {len(refined['left'])} left and {len(refined['joined'])} joined."
    )
