"""What `run_net` runs: train a config, evaluate a config, in a run folder (OUTPUT_DIR).

Names are imported when they are first used: a process that only starts others needs no torch.
"""

from importlib import import_module

_HOME_OF = {
    "Run": "revvideo.jobs.running",
    "build_trainer": "revvideo.jobs.training",
    "check_test": "revvideo.jobs.testing",
    "evaluate_edited": "revvideo.jobs.testing",
    "load_tested_model": "revvideo.jobs.testing",
    "report": "revvideo.jobs.main",
    "run": "revvideo.jobs.main",
    "start": "revvideo.jobs.running",
    "start_from_weights": "revvideo.jobs.training",
    "test": "revvideo.jobs.testing",
    "train": "revvideo.jobs.training",
}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'revvideo.jobs' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
