"""`events.jsonl`, the diary of a run and the truth for every plot: one JSON object a line, appended, never rewritten.

Every event has `kind`, `time` (unix seconds) and `restart` (0 for the first start of a run, one more for each later
one). A kill can leave half a line at the end; the next start begins on a fresh one and readers skip the broken one.
This module imports no torch.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

RESERVED = ("kind", "time", "restart")


class EventLog:
    """Appends events to a file.

    Args:
        path: the file; its folder is made if needed.
        restart: number of this start of the run; None means 0 for a new file, else one more than the last in it.

    Attributes:
        restart: the number that every event of this log carries.
    """

    def __init__(self, path: str | os.PathLike, restart: int | None = None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.restart = next_restart(self.path) if restart is None else restart
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as the log)
        self._in_line = _ends_in_line(self.path)

    def write(self, kind: str, **fields) -> None:
        """Append one event; it is with the operating system when this returns.

        Args:
            kind: what happened, such as "step" or "checkpoint".
            fields: plain values; scalars of numpy or torch are taken by `.item()` (which waits for their device), NaN
                and infinities become the strings "nan", "inf", "-inf" (`float()` reads them), others their `str()`.

        Raises:
            ValueError: a field called kind, time or restart.
            OSError: the file could not be written; the next event then begins on a fresh line.
        """
        taken = [name for name in RESERVED if name in fields]
        if taken:
            raise ValueError(f"events have their own {', '.join(taken)}; name the field otherwise")
        event = {"kind": kind, "time": round(time.time(), 3), "restart": self.restart, **_plain(fields)}
        line = json.dumps(event, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        # One write call a line: a kill cuts at most this line, and a reader never sees two lines mixed.
        data = b"\n" + line if self._in_line else line
        self._in_line = True
        while data:
            data = data[self._file.write(data) :]
        self._in_line = False

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_events(path: str | os.PathLike) -> Iterator[dict]:
    """Yield the events of a file in the order of writing, leaving out broken lines.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:  # half a line, left by a kill (JSON and UTF-8 errors are both ValueErrors)
                continue
            if isinstance(event, dict):
                yield event


def last_per_step(events: Iterable[dict]) -> list[dict]:
    """Events that carry a `step`, each (kind, step) once, in ascending order of step.

    A run that is resumed repeats the steps after its checkpoint: the last line of a step counts.
    """
    last = {(event.get("kind"), event["step"]): event for event in events if "step" in event}
    return sorted(last.values(), key=lambda event: event["step"])


def next_restart(path: str | os.PathLike) -> int:
    """Number for a new start of the run: 0 without events in `path`, else one more than the largest there."""
    if not Path(path).exists():
        return 0
    return max((event.get("restart", 0) for event in read_events(path)), default=-1) + 1


def _ends_in_line(path: Path) -> bool:
    """True if the file is not empty and its last byte is not a line end."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _plain(value):
    """`value` as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if getattr(value, "ndim", None) == 0:  # numpy and torch scalars
        return _plain(value.item())
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)
