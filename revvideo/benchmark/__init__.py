"""Measurements: what a step costs in memory and time."""
