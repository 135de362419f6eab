"""How many processes a command starts, and how long it waits for one video."""

import math
import os

from revvideo.errors import InputError

MAX_WORKERS = 1024


def checked_workers(asked: int | None) -> int:
    """--num-workers, or one process for each core that this process may use.

    Raises:
        InputError: not 1 to 1024.
    """
    if asked is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= asked <= MAX_WORKERS:
        raise InputError(f"--num-workers is {asked}; expected 1 to {MAX_WORKERS} processes")
    return asked


def checked_seconds(asked: float) -> float:
    """--timeout, in seconds for one video.

    Raises:
        InputError: not above 0.
    """
    if not (asked > 0 and math.isfinite(asked)):
        raise InputError(f"--timeout is {asked:g}; expected the seconds that one video may take, such as 60")
    return asked
