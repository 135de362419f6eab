"""Starting the processes of a run on this machine, and ending with them. It imports no torch.

Children are new Python processes (nothing of CUDA survives a fork). Each leads a process group of its own: a signal to
the group of this process, such as `timeout` and a terminal's Ctrl-C send, then comes to them once, from here.
"""

import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from revvideo.distributed.env import Process, environment_of
from revvideo.exit_codes import (
    EXIT_CHECK_FAILED,
    EXIT_CRASH,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_WRONG_INPUT,
)

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
KILL_AT_SECOND = (signal.SIGTERM, signal.SIGINT)

# `timeout` sends its signal to the process and to its group; a wrapper passes on a Ctrl-C that the terminal has sent to
# all. What comes again within this time is the same.
SAME_SECONDS = 1.0

EXIT_BY_SIGNAL = 128  # plus its number, as a shell says it

_LOOK_SECONDS = 0.1  # between two looks at the signals that have come
_PARENT_LOOK_SECONDS = 0.5


def spawn(work: Callable[..., int], args: tuple, processes: Sequence[Process], *, grace_seconds: float = 10.0) -> int:
    """Run `work(*args)` in a new process for each of `processes`, and wait for all.

    The environment of a child names its place before anything is imported in it, and OMP_NUM_THREADS is its share of
    the cores unless the variable is set. SIGTERM, SIGUSR1 and SIGUSR2 are passed on to the children; SIGINT is passed
    on as SIGTERM, so that a checkpoint can be written; SIGTERM or SIGINT once more kills them. (Outside of the main
    thread, where Python takes no signals, none of that.) When one child fails, the others have `grace_seconds` to end
    by themselves. Children end when this process is gone.

    Args:
        work: a function of a module; returns an exit code.
        args: its arguments; they are pickled.
        processes: the places of the children, see `machine_processes`.
        grace_seconds: see above.

    Returns:
        0 if all children ended with 0; 75 if they ended with 0 and 75; 130 after a SIGINT otherwise. 128 + the
        number of a signal that came twice, or that was passed on and ended a child (not yet ready for it), where none
        had failed before. Else the exit code of the child that failed first, 1 for one that a signal killed. Where
        that is 1 and another child ended with 2 or 3, that: the first to be gone may be one that the failure of
        another has ended.
    """
    family = _Family(grace_seconds)
    with _signals_into(family.signals):
        try:
            for process in processes:
                family.start(work, args, process, num_processes=len(processes))
            family.wait()
        finally:
            family.kill()
    return family.exit_code()


class _Family:
    """The children of one `spawn`, running and ended."""

    def __init__(self, grace_seconds: float) -> None:
        self.signals: list[tuple[int, float]] = []  # that have come, when, and wait to be passed on
        self._grace_seconds = grace_seconds
        self._running: dict[int, BaseProcess] = {}  # by rank
        self._failed: list[int] = []  # exit codes of the children that failed by themselves, in order
        self._all_codes: set[int] = set()
        self._kill_at: float | None = None  # on the monotonic clock
        self._stopped_at: float | None = None  # when the first SIGTERM or SIGINT came
        self._interrupted = False
        self._passed_on: set[int] = set()
        self._ended_by: int | None = None  # the signal that came from here and ended a child
        self._killed = False

    def start(self, work: Callable[..., int], args: tuple, process: Process, *, num_processes: int) -> None:
        # Pickled here: the child is ready for signals and a lost parent before it imports what `work` needs.
        pickled = pickle.dumps((work, args))
        child = get_context("spawn").Process(
            target=_run_child, args=(os.getpid(), pickled), name=f"revvideo-rank-{process.rank}"
        )
        variables = environment_of(process)
        if not os.environ.get("OMP_NUM_THREADS"):
            variables["OMP_NUM_THREADS"] = str(max(1, _num_cores() // num_processes))
        with _environment(variables):
            child.start()
        self._running[process.rank] = child

    def wait(self) -> None:
        while self._running:
            wait([child.sentinel for child in self._running.values()], timeout=_LOOK_SECONDS)
            while self.signals:
                self._pass_on(*self.signals.pop(0))
            self._collect()
            if self._running and self._kill_at is not None and time.monotonic() > self._kill_at:
                late = ", ".join(map(str, sorted(self._running)))
                logger.error("not ended within %g s after that, killed: rank %s", self._grace_seconds, late)
                self.kill()

    def kill(self) -> None:
        """SIGKILL to all that still run; returns when they are gone."""
        self._killed = self._killed or bool(self._running)
        for child in self._running.values():
            child.kill()
        for child in self._running.values():
            child.join()
        self._running.clear()

    def exit_code(self) -> int:
        if not self._failed and not self._killed and self._ended_by is None:
            return EXIT_STOPPED if EXIT_STOPPED in self._all_codes else EXIT_DONE
        if self._interrupted:
            return EXIT_INTERRUPTED
        first = self._failed[0] if self._failed else EXIT_CRASH
        told = [code for code in self._failed if code in (EXIT_WRONG_INPUT, EXIT_CHECK_FAILED)]
        if first == EXIT_CRASH and told:
            return told[0]
        return first if self._ended_by is None else EXIT_BY_SIGNAL + self._ended_by

    def _collect(self) -> None:
        """Take note of the children that have ended."""
        ended = {rank: child for rank, child in self._running.items() if child.exitcode is not None}
        # Of those that ended between two looks, one that was killed is the cause, not one that lost it.
        for rank in sorted(ended, key=lambda rank: (ended[rank].exitcode >= 0, rank)):
            code = self._running.pop(rank).exitcode
            self._all_codes.add(code)
            if code in (EXIT_DONE, EXIT_STOPPED):
                continue
            if -code in self._passed_on:
                logger.warning("rank %d was ended by %s, without a checkpoint", rank, _signal_name(-code))
                self._ended_by = None if self._failed else -code
            else:
                how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
                if code not in (EXIT_WRONG_INPUT, EXIT_CHECK_FAILED):  # the child has said why, which is enough
                    logger.error("rank %d %s", rank, how)
                self._failed.append(EXIT_CRASH if code < 0 else code)
            if self._kill_at is None:
                self._kill_at = time.monotonic() + self._grace_seconds

    def _pass_on(self, signum: int, came: float) -> None:
        self._interrupted = self._interrupted or signum == signal.SIGINT
        if signum in KILL_AT_SECOND and self._stopped_at is not None:
            if came - self._stopped_at > SAME_SECONDS:
                logger.error("second signal, %s: all processes are killed", _signal_name(signum))
                self._ended_by = None if self._failed else signum
                self.kill()
            return
        if signum in KILL_AT_SECOND:
            self._stopped_at = came
        if signum == signal.SIGINT:
            logger.warning("interrupted: the processes are told to stop; once more kills them")
        passed_on = signal.SIGTERM if signum == signal.SIGINT else signum
        self._passed_on.add(int(passed_on))
        for child in self._running.values():
            with suppress(ProcessLookupError):
                os.kill(child.pid, passed_on)


def _run_child(parent: int, pickled: bytes) -> None:
    """What a child does."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), name="revvideo-parent", daemon=True).start()
    work, args = pickle.loads(pickled)
    sys.exit(work(*args))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_LOOK_SECONDS)
    sys.stderr.write("revvideo: error: the process that started this one is gone\n")
    os._exit(EXIT_CRASH)


@contextmanager
def _signals_into(signals: list[tuple[int, float]]) -> Iterator[None]:
    """Meanwhile the signals that `spawn` takes are only written down, with the time on the monotonic clock."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int, frame: object) -> None:
        signals.append((signum, time.monotonic()))

    before = {number: signal.signal(number, note) for number in (*STOP_SIGNALS, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Meanwhile `variables` are set: a child inherits them, so that they are there before its first import."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
