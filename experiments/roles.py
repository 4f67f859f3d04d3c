"""Who finds networks, and in which phases candidates are scored: what files call them, and what people do."""

from __future__ import annotations

ROLES = {"search": "search", "random": "random search", "hand": "designed by hand"}  # of trained networks
SEARCHES = ("search", "random")  # roles that choose among candidates; what is designed by hand is all trained
PHASES = {
    "search": "Outer loop",
    "random": "Random search, for comparison",
    "parameters": "Parameter count alone, for comparison",
    "hand": "Scoring the networks designed by hand",
}
SCORED_ON = "architecture"  # the split that scores candidates, in every phase and at rungs; what ships is chosen on "validation"
PROPOSING = "Differentiable search"  # what the ledger calls it
RUNG = "rung "  # how the phase of what a rung scored begins; then comes its share of the training
