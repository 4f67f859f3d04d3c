"""The picture of a latency model: what it predicted and what was measured."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.plots.style import BLUE, GREY, LOG_BEYOND, NARROW, SKY, VERMILLION, drawing, empty, head, log_ticks
from experiments.results import PredictorReport


@drawing()
def predictor_figure(predictor: PredictorReport, *, width: float = NARROW, how: str = "measured") -> Figure:
    """Predicted against measured latency of the held-out networks, each with its upper bound, and the band of 10 %; `how` is
    `Verdict.how`."""
    figure, axes = empty(width, 0.95 * width)
    measured, predicted, upper = (
        np.array([getattr(h, name) for h in predictor.held_out]) for name in ("measured_ms", "predicted_ms", "upper_ms")
    )
    low, high = min(*measured, *predicted), max(*measured, *upper)
    log = high > LOG_BEYOND * low
    ends = (low / 1.15, high * 1.15) if log else (max(0.0, low - 0.08 * high), 1.08 * high)
    axes.set(xlim=ends, ylim=ends, xlabel=f"{how} latency (ms)", ylabel="predicted latency (ms)")
    if log:
        log_ticks(axes, "x")
        log_ticks(axes, "y")
    line = np.geomspace(max(ends[0], 1e-3 * ends[1]), ends[1], 100)
    axes.fill_between(line, 0.9 * line, 1.1 * line, color=SKY, alpha=0.18, lw=0, label="within 10 %")
    axes.plot(line, line, color=GREY, lw=1.0, label="exact")
    axes.vlines(measured, predicted, upper, color=BLUE, lw=1.0, alpha=0.6)
    axes.plot(measured, upper, "_", color=BLUE, ms=6, mew=1.2, alpha=0.6, label="upper bound")
    axes.plot(measured, predicted, "o", color=BLUE, mec="white", mew=0.8, ms=5.5, label="predicted", gid="held out")
    over = measured > upper
    if over.any():
        axes.plot(measured[over], upper[over], "_", color=VERMILLION, ms=9, mew=2.2, label="upper bound exceeded", gid="exceeded")
    head(figure, axes, "Latency model", f"{predictor.num_held_out} networks that it had not seen")
    figure.legend(loc="outside lower left", ncols=2)
    return figure
