"""The picture of what a run cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.formatting import format_seconds
from experiments.plots.style import INK, NARROW, SKY, WIDE, drawing, empty
from experiments.results import LedgerEntry


@drawing()
def ledger_figure(ledger: Sequence[LedgerEntry], *, width: float = WIDE) -> Figure:
    """What each phase cost in wall time, in the order in which they ran."""
    figure, axes = empty(width, 0.3 * len(ledger) + 0.3)
    seconds = [entry.seconds for entry in ledger]
    axes.barh(range(len(ledger)), seconds, height=0.62, color=SKY, gid="phases")
    for row, entry in enumerate(ledger):
        trained = f" · {entry.networks_trained} network{'s' * (entry.networks_trained > 1)}" if entry.networks_trained else ""
        words = f"{format_seconds(entry.seconds)}{trained}"
        axes.annotate(words, (entry.seconds, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    names = [entry.phase[:1].upper() + entry.phase[1:] for entry in ledger]
    axes.set_yticks(
        range(len(ledger)), [textwrap.fill(name, 40 if width > NARROW else 20, break_on_hyphens=False) for name in names]
    )
    axes.set_xlim(0, (1.3 if width > NARROW else 2.0) * max(seconds, default=0.0) or 1.0)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    return figure
