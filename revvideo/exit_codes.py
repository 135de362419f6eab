"""Exit codes of a process, and how an error becomes one (DESIGN.md, "Exit codes")."""

import sys
import traceback
from collections.abc import Callable

from revvideo.errors import CheckFailed, InputError, NotSaved, RankFailed, Stopped, WorkerFailed

EXIT_DONE, EXIT_CRASH, EXIT_WRONG_INPUT, EXIT_CHECK_FAILED = 0, 1, 2, 3
EXIT_STOPPED, EXIT_INTERRUPTED = 75, 130  # 75 is EX_TEMPFAIL of sysexits.h, 130 a shell's for SIGINT


def run_guarded(work: Callable[[], int | None], *, prefix: str = "") -> int:
    """Run `work`; an error becomes a message on standard error and an exit code.

    What a user or another process is to blame for is one message; anything else shows its traceback.

    Args:
        work: returns an exit code; None is 0.
        prefix: what every line of a message begins with, such as `[rank 1] `.

    Returns:
        The exit code. SystemExit passes through.
    """
    try:
        return work() or EXIT_DONE
    except InputError as error:
        return fail(f"error: {error}", EXIT_WRONG_INPUT, prefix=prefix)
    except CheckFailed as error:
        return fail(f"check failed: {error}", EXIT_CHECK_FAILED, prefix=prefix)
    except (NotSaved, RankFailed, WorkerFailed) as error:
        return fail(f"error: {error}", EXIT_CRASH, prefix=prefix)
    except Stopped as error:
        return fail(str(error), EXIT_STOPPED, prefix=prefix)
    except KeyboardInterrupt:
        return fail("interrupted", EXIT_INTERRUPTED, prefix=prefix)
    except Exception:
        _write(traceback.format_exc(), prefix)
        return EXIT_CRASH


def fail(message: str, exit_code: int, *, prefix: str = "") -> int:
    """Print `revvideo: MESSAGE` to standard error; returns the exit code."""
    _write(f"revvideo: {message}\n", prefix)
    return exit_code


def _write(text: str, prefix: str) -> None:
    # In one write: other processes write to the same file.
    sys.stderr.write("".join(prefix + line for line in text.splitlines(keepends=True)))
    sys.stderr.flush()
