"""Signals that ask a run to stop: the first one is noted, for the next step to act on; the second one ends at once."""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# A launcher that forwards a signal to its processes, which had it from the system as well, means one signal.
SAME_SECONDS = 1.0


class StopSignals:
    """Takes signals while the context lasts; afterwards the handlers from before are back.

    Outside of the main thread Python can take no signals: then this does nothing, and `reason` stays None.

    Args:
        signals: which; Slurm sends SIGTERM, submitit SIGUSR2, others SIGUSR1.

    Attributes:
        reason: name of the first signal that came, such as "SIGTERM"; None so far.
    """

    def __init__(self, signals: Sequence[signal.Signals] = STOP_SIGNALS):
        self.signals = tuple(signals)
        self.reason: str | None = None
        self._came = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in self.signals}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            # None: the handler was installed by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _take(self, number: int, frame) -> None:
        """The handler. It takes no lock: the main thread may hold any of them right now."""
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._came = signal.Signals(number).name, now
        elif now - self._came > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
