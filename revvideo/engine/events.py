"""`events.jsonl`, the diary of a run and the truth for every plot: one JSON object a line, appended, never rewritten.

Every event has `kind`, `time` (unix seconds) and `restart` (0 for the first start of a run, one more for each later
one). A kill can leave half a line at the end; the next start begins on a fresh one and readers skip the broken one.
This module imports no torch.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

RESERVED = ("kind", "time", "restart")
MAX_WAITING = 10_000  # lines kept in memory while the file cannot be written: a few MiB

Listener = Callable[[dict], object]  # it may have a `close()`


class EventLog:
    """Appends events to a file and tells them to listeners; neither can end the run.

    While the file cannot be written (a full disk), there is one warning, and the lines wait in memory: up to
    `MAX_WAITING`, the oldest are given up. They follow, in their order and with their own times, as soon as a later
    event can be written; an event `events_lost` with a `count` stands where lines are missing.

    Args:
        path: the file; its folder is made if needed.
        restart: number of this start of the run; None means 0 for a new file, else one more than the last in it.
        listeners: each is called with every event, as `read_events` will give it, and closed with the log where it has
            a `close`. An exception of a listener becomes one warning.
        enabled: False writes nothing, makes nothing and tells nobody (all ranks but the first).

    Attributes:
        restart: the number that every event of this log carries.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        restart: int | None = None,
        listeners: Iterable[Listener] = (),
        *,
        enabled: bool = True,
    ):
        self.path, self.enabled, self.listeners = Path(path), enabled, tuple(listeners)
        self.restart = restart or 0
        self._waiting: deque[bytes] = deque()
        self._lost = 0  # lines given up since the last one that was written
        self._failing = self._closed = False
        self._silenced: set[int] = set()  # numbers of the listeners that have been warned of
        if enabled:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.restart = next_restart(self.path) if restart is None else restart
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as the log)
            self._in_line = _ends_in_line(self.path)

    def write(self, kind: str, **fields) -> None:
        """Append one event; it is with the operating system when this returns, or waits for the disk.

        Args:
            kind: what happened, such as "step" or "checkpoint".
            fields: plain values; scalars of numpy or torch are taken by `.item()` (which waits for their device), NaN
                and infinities become the strings "nan", "inf", "-inf" (`float()` reads them), others their `str()`.

        Raises:
            ValueError: a field called kind, time or restart, or the log is closed.
        """
        taken = [name for name in RESERVED if name in fields]
        if taken:
            raise ValueError(f"events have their own {', '.join(taken)}; name the field otherwise")
        if not self.enabled:
            return
        if self._closed:
            raise ValueError(f"{self.path} is closed; it cannot take the event {kind!r}")
        event = self._event(kind, fields)
        self._waiting.append(_line(event))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._write_waiting()
        for number, listener in enumerate(self.listeners):
            self._guarded(number, listener, event)

    def _event(self, kind: str, fields: dict) -> dict:
        return {"kind": kind, "time": round(time.time(), 3), "restart": self.restart, **_plain(fields)}

    def _write_waiting(self) -> None:
        """Write what waits, as far as the disk allows."""
        try:
            if self._lost:
                self._append(_line(self._event("events_lost", {"count": self._lost})))
                self._lost = 0
            written = 0
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
                written += 1
        except OSError as error:
            if not self._failing:
                logger.warning(
                    "%s cannot be written (%s); the run goes on, its events wait in memory until it can",
                    self.path,
                    error,
                )
            self._failing = True
        else:
            if self._failing:
                logger.info("%s can be written again: %d events that waited are in it", self.path, written)
            self._failing = False

    def _append(self, line: bytes) -> None:
        # One write call a line: a kill cuts at most this line, and a reader never sees two lines mixed.
        data = b"\n" + line if self._in_line else line
        while data:
            try:
                count = self._file.write(data)
            except OSError:
                if data == b"\n":  # the event is there; the next one begins with the line end that is missing
                    return
                raise
            self._in_line = not data[:count].endswith(b"\n")
            data = data[count:]

    def _guarded(self, number: int, work: Callable, *arguments) -> None:
        """Call a listener; of what it raises, the first is a warning."""
        try:
            work(*arguments)
        except Exception as error:  # whatever it is: a picture of the run must not end the run
            if number not in self._silenced:
                self._silenced.add(number)
                name = getattr(self.listeners[number], "__name__", type(self.listeners[number]).__name__)
                logger.warning(
                    "%s failed (%s: %s); the run goes on, and it is told of later events without further warnings",
                    *(name, type(error).__name__, error),
                )

    def close(self) -> None:
        """Close the file and the listeners; closing twice is harmless."""
        if not self.enabled or self._closed:
            return
        self._closed = True
        self._write_waiting()
        if self._waiting:
            logger.warning("%d events are lost: %s could not be written to the end", len(self._waiting), self.path)
        try:
            self._file.close()
        except OSError as error:  # a network's file system may tell of a full disk only now
            logger.warning("%s: the last events may be lost (%s)", self.path, error)
        for number, listener in enumerate(self.listeners):
            if hasattr(listener, "close"):
                self._guarded(number, listener.close)

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


def _line(event: dict) -> bytes:
    # Names of files may be no UTF-8. Their lone surrogates become \\udcXX, which JSON reads back as they were.
    return json.dumps(event, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


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
