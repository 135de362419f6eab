"""Training and evaluation: it receives modules, loaders and plain numbers, never a config.

This package imports nothing by itself: `engine.events` and `engine.progress` also run where torch is not installed.
"""
