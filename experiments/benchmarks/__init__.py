"""Benchmarks: each module has `Words` (what it takes), `PRESETS` and `run`, which returns plain keys and numbers."""
