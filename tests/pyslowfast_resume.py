"""Which checkpoint of a folder PySlowFast resumes from, told by names alone."""

import os
from pathlib import Path


def pyslowfasts_choice(folder: Path) -> Path | None:
    """If any name contains "checkpoint", the alphabetically last one that begins with it (an error if none does)."""
    names = os.listdir(folder)
    if not any("checkpoint" in name for name in names):
        return None
    return folder / sorted(name for name in names if name.startswith("checkpoint"))[-1]
