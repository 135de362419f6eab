"""Children that are forked from the tests' process, which has torch already, and may be killed at any moment."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

LIMIT_SECONDS = 60  # a child that hangs ends by SIGALRM


def start_forked(work: Callable[[], object]) -> int:
    """Fork a child that runs `work`; returns its process id. It exits with 0, or 1 and a traceback."""
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_SECONDS)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a child: its exit code, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_forked(work: Callable[[], object]) -> int:
    """Fork a child that runs `work` and wait for it: its exit code, negative for the signal that ended it."""
    return exit_code(start_forked(work))
