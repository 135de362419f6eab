"""Tells the user, once, that training waits for its data. Imports no torch."""

import logging
import os
from collections import deque


class DataWait:
    """Watches how much of the time of the training steps goes by before their batch is there.

    Args:
        logger: takes the advice, at level WARNING.
        limit: the share of the time above which there is advice, 0 to 1.
        steps: the share is that of so many steps, the last ones.
        num_workers: DATA_LOADER.NUM_WORKERS, of each process; None: not known here.
        num_processes: training processes on this machine, which share its cores.
        num_cores: of this machine; None: those that this process may use.
    """

    def __init__(
        self,
        logger: logging.Logger,
        limit: float = 0.2,
        steps: int = 100,
        *,
        num_workers: int | None = None,
        num_processes: int = 1,
        num_cores: int | None = None,
    ):
        self.logger, self.limit = logger, limit
        self.num_workers, self.num_processes = num_workers, num_processes
        self.num_cores = _usable_cores() if num_cores is None else num_cores
        self._last: deque[tuple[float, float]] = deque(maxlen=steps)
        self._advised = False

    def add(self, wait_seconds: float, step_seconds: float) -> str | None:
        """Take one more step.

        Args:
            wait_seconds: from asking for the batch to having it.
            step_seconds: from asking for the batch to the end of the step, so the wait is in it.

        Returns:
            The advice, when this step is the one after which it is logged; else None.
        """
        if self._advised:
            return None
        self._last.append((wait_seconds, step_seconds))
        waited, total = (sum(column) for column in zip(*self._last))
        if len(self._last) < self._last.maxlen or waited <= self.limit * total:
            return None
        self._advised = True
        advice = self._advice(waited / total)
        self.logger.warning("%s", advice)
        return advice

    def _advice(self, share: float) -> str:
        waits = f"training waits for data in {share:.0%} of the time of the last {len(self._last)} steps"
        each = "" if self.num_processes == 1 else f" for each of {self.num_processes} processes"
        now = "" if self.num_workers is None else f", now {self.num_workers}"
        workers = f"DATA_LOADER.NUM_WORKERS{each} ({self.num_cores} cores{now})"
        prepare = "re-encode the videos with `revvideo prepare_videos`, which makes them several times faster to decode"
        if self.num_workers is None or self.num_workers < max(1, self.num_cores // self.num_processes):
            return f"{waits}: raise {workers}, or {prepare}"
        return f"{waits}, and {workers} leaves no core idle: {prepare}"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
