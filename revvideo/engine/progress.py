"""How far a loop is: a bar on a terminal, one plain line every few steps elsewhere, never both. Imports no torch."""

import logging
import os
import sys
import time
from typing import TextIO

BAR_SECONDS = 0.25  # the fields of the bar are read at most this often: a tensor among them waits for its device


class Progress:
    """Shows the progress of a loop of known length.

    Args:
        total: number of steps.
        description: what runs, such as "train epoch 3/50".
        log_period: without a terminal, one line each time that many steps are done (and one at the end).
        logger: takes the lines, at level INFO.
        enabled: False shows nothing (all ranks but the first).
        stream: where a bar is drawn if it is a terminal; standard error if None.
        initial: steps that were done before, in a run that resumes in the middle.
        total_remaining: steps of the whole run that come after these; with them, the time to the end of the run is
            shown too (at the speed of these steps: what lies between, such as validation, is not in it).
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        log_period: int,
        logger: logging.Logger,
        enabled: bool = True,
        stream: TextIO | None = None,
        initial: int = 0,
        total_remaining: int = 0,
    ):
        stream = sys.stderr if stream is None else stream
        self.total, self.description, self.log_period, self.logger = total, description, max(1, log_period), logger
        self.total_remaining = total_remaining
        self.done = self._initial = self._logged = initial
        self._start = time.monotonic()
        self._drawn = -BAR_SECONDS
        self._bar = None
        self._lines = enabled and not _has_room(stream)
        if enabled and not self._lines:
            from tqdm import tqdm  # only a terminal needs it

            self._bar = tqdm(total=total, desc=description, initial=initial, file=stream, dynamic_ncols=True)

    def update(self, n: int = 1, **fields) -> None:
        """Count `n` more steps.

        Args:
            n: steps done since the last call.
            fields: values to show, in this order: numbers, strings, or scalar tensors, which are read only when shown.
        """
        self.done += n
        now = time.monotonic()
        if self._bar is not None:
            self._draw(n, now, fields)
        elif self._lines:
            period_over = self.done // self.log_period > self._logged // self.log_period
            if period_over or (self.done >= self.total and self.done > self._logged):
                self._logged = self.done
                self.logger.info("%s", self._line(now, fields))

    def _draw(self, n: int, now: float, fields: dict) -> None:
        if now - self._drawn >= BAR_SECONDS or self.done >= self.total:
            self._drawn = now
            run = {"run": self._run_left(now)} if self.total_remaining else {}
            self._bar.set_postfix_str(_listing(run | fields), refresh=False)
        self._bar.update(n)

    def _line(self, now: float, fields: dict) -> str:
        rate = self._rate(now)
        remaining = _time_for(self.total - self.done, rate)
        if self.total_remaining:
            remaining += f" (run {self._run_left(now)})"
        speed = f"{rate:.2f} it/s" if rate >= 1 or rate == 0 else f"{1 / rate:.2f} s/it"
        parts = [f"{self.description}: {self.done}/{self.total}", f"eta {remaining}", speed]
        return ", ".join(parts + ([_listing(fields)] if fields else []))

    def _run_left(self, now: float) -> str:
        return _time_for(self.total - self.done + self.total_remaining, self._rate(now))

    def _rate(self, now: float) -> float:
        """Steps a second since this loop began."""
        return (self.done - self._initial) / max(now - self._start, 1e-9)

    def close(self) -> None:
        """Release the terminal; closing twice is harmless."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, such as 1:02:03."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def _time_for(steps: int, rate: float) -> str:
    return duration(steps / rate) if rate > 0 else "?"


def _listing(fields: dict) -> str:
    """Fields as "loss 1.234, lr 0.0001"."""
    return ", ".join(f"{name} {_value(value)}" for name, value in fields.items())


def _value(value) -> str:
    """A value in at most about four significant digits."""
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _has_room(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that a bar can be drawn on; one of a container may say that it has no columns."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # it does not tell
        return True
