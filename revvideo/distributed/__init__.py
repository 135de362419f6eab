"""Processes and their place in a run. `distributed.env` imports no torch."""
