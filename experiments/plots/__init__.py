"""The pictures of a run, one in each module, as matplotlib figures that depend on plain data and on no global state."""
