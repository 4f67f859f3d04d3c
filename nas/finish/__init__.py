"""What a chosen network is finished with: distillation, cuts, factors, sparse weights and fewer bits. No device, no run.

Every stage (`Learn`, `Cut`, `LowRank`, `Prune`, `EarlyExit`, `LayerSkip`, `Quantise`) is a frozen dataclass:
`apply(network, school)` gives the network that comes out, taught again. Whether it ships is decided elsewhere, by what its file
measures.
"""
