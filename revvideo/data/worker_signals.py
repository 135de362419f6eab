"""Signals in worker processes of a loader.

Slurm and process groups send a stop signal to every process of a job. Training wants its workers until the checkpoint
is written, so that they listen to their parent only.
"""

import os
import signal
import threading

# Ignored: these are for the training process, which a fork would otherwise leave its handlers in.
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def listen_to_parent_only() -> None:
    """Called in a worker process at its start: SIGTERM ends it only when the parent process has sent it.

    Where the system does not tell the sender (macOS), SIGTERM keeps its meaning.
    """
    signal.set_wakeup_fd(-1)  # a fork shares its parent's, where signals would count as the parent's
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    # Blocked here, the signal waits for the thread that asks for it; threads begun later inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), name="sigterm", daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
