"""Logging of one process among several: rank 0 tells what happens, the others only what is wrong."""

import io
import logging
import sys

from revvideo.distributed.env import Process


def line_prefix(process: Process) -> str:
    """What the lines of this process begin with, so that one log file of all can be read: "" for a lone process."""
    return f"[rank {process.rank}] " if process.world_size > 1 else ""


def set_up_logging(process: Process) -> None:
    """Log to standard error: INFO and above in rank 0, WARNING and above in the other ranks.

    Handlers that are there already stay and are the only ones: those of a program that calls us, or of a test.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names of files may be no UTF-8
    handler = logging.StreamHandler()
    handler.setFormatter(_RankFormatter(line_prefix(process)))
    logging.basicConfig(level=logging.INFO if process.is_main else logging.WARNING, handlers=[handler])


class _RankFormatter(logging.Formatter):
    """`12:34:56 INFO [rank 1] message`; the rank is in every line of a message that has several."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {prefix}%(message)s", datefmt="%H:%M:%S")
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", f"\n{self._prefix}")
