"""Signals that ask a run to stop: the first one is noted, for the next step to act on; the second one ends at once."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

# A launcher that forwards a signal to its processes, which had it from the system as well, means one signal.
SAME_SECONDS = 1.0

# Python runs a handler when its main thread comes back from C code, which may wait for another process for long.
HANDLER_SECONDS = 0.5


class StopSignals:
    """Takes signals while the context lasts; afterwards the handlers from before are back.

    Outside of the main thread Python can take no signals: then this does nothing, and `reason` stays None.

    Those that a launcher has blocked, so that none comes before we listen, are unblocked while the context lasts.

    Args:
        signals: which; Slurm sends SIGTERM, submitit SIGUSR2, others SIGUSR1, a keyboard SIGINT.
        end_at_second: whether the second signal ends the process at once. A scheduler may send one for each of its
            reasons and kills by other means: then the second one means nothing.

    Attributes:
        reason: name of the first signal that came, such as "SIGTERM"; None so far.
    """

    def __init__(self, signals: Sequence[signal.Signals] = STOP_SIGNALS, *, end_at_second: bool = True):
        self.signals, self.end_at_second = tuple(signals), end_at_second
        self.reason: str | None = None
        self._came = 0.0
        self._before: dict[signal.Signals, object] = {}
        self._blocked: set[signal.Signals] = set()
        self._close = contextlib.ExitStack()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in self.signals}
            self._start_thread()
            self._blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals) & set(self.signals)
        return self

    def __exit__(self, *exception) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        self._close.close()
        for number, handler in self._before.items():
            # None: the handler was installed by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before, self._blocked = {}, set()

    def _start_thread(self) -> None:
        """Python writes the number of each signal into a pipe when it comes; a thread reads them there."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._end_at_second, args=(reader,), name="revvideo-stop", daemon=True)
        thread.start()
        for undo, *arguments in (
            (os.close, reader),
            (os.close, writer),
            (thread.join,),
            (os.write, writer, b"\0"),  # the last number; worker processes may hold the pipe open
            (signal.set_wakeup_fd, before),
        ):
            self._close.callback(undo, *arguments)

    def _end_at_second(self, reader: int) -> None:
        """The thread: tells of the first signal; where the handler cannot run, ends the process at the second."""
        first = None
        while True:
            for number in os.read(reader, 64):
                if number == 0:
                    return
                if number not in self.signals:
                    continue
                now = time.monotonic()
                if first is None:
                    first = now
                    more = "; once more ends at once" if self.end_at_second else ""
                    logger.info("%s: stopping, with a checkpoint where there is training%s", _name(number), more)
                if self.end_at_second and now - first > SAME_SECONDS:
                    time.sleep(HANDLER_SECONDS)
                    os._exit(128 + number)  # as shells report the end by a signal

    def _take(self, number: int, frame) -> None:
        """The handler. It takes no lock: the main thread may hold any of them right now."""
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._came = _name(number), now
        elif self.end_at_second and now - self._came > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _name(number: int) -> str:
    return signal.Signals(number).name
