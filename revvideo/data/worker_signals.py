"""Signals in worker processes of a loader.

Slurm and process groups send a stop signal to every process of a job. Training wants its workers until the checkpoint
is written, so that they listen to their parent only.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

# Ignored: these are for the training process, which a fork would otherwise leave its handlers in.
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
_HELD = {*_IGNORED, signal.SIGTERM}


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Signals wait while worker processes are started: a new one inherits that, until it has chosen its listeners.

    The signals of this process come when the block is left.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen_to_parent_only() -> None:
    """Called in a worker process at its start: SIGTERM ends it only when the parent process has sent it.

    Where the system does not tell the sender (macOS), SIGTERM keeps its meaning.
    """
    signal.set_wakeup_fd(-1)  # a fork shares its parent's, where signals would count as the parent's
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # also forgets the one that waits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    if not hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    # Blocked here, the signal waits for the thread that asks for it; threads begun later inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process().pid  # getppid() would be the fork server
    threading.Thread(target=_wait_for_parent, args=(parent,), name="sigterm", daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
