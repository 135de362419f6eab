"""One function over many files in processes of our own, none of which can take the run with it.

`concurrent.futures` gives up when one of its processes is killed. Here every process has a pipe of its own: a process
that dies (out of memory, a crash in a codec) or that is silent for too long (a stalled file system) costs the one file
that it had, and a fresh one takes its place. Processes are spawned, so nothing of the parent's threads comes along.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

_READY = "ready"  # what a worker says when its imports are done: only then does a time limit run
_FAILED_STARTS = 3  # processes in a row that die before they are ready: something general is wrong
_STOP_SECONDS = 5.0  # for a killed process to be gone; one that hangs in the kernel is left behind


@dataclass(frozen=True)
class TaskResult:
    """What became of one task.

    Attributes:
        number: position of the task in the sequence that was given.
        value: what the function returned; None if it returned nothing or failed.
        error: in words why there is no value; "" where there is one.
        error_type: name of the exception, "TimeoutError", or "ProcessDied".
    """

    number: int
    value: Any = None
    error: str = ""
    error_type: str = ""


def run_tasks(
    work: Callable[[Any], Any], tasks: Sequence[Any], num_workers: int, *, timeout_seconds: float
) -> Iterator[TaskResult]:
    """Call `work(task)` for every task in `num_workers` processes; the results come in the order in which they finish.

    An exception in `work` is a result, too. A task whose process died is tried a second time, because the kernel may
    have chosen it while another one took the memory. Closing the iterator kills the processes.

    Args:
        work: a function of a module (or a `functools.partial` of one): it travels to spawned processes.
        tasks: anything that pickles.
        num_workers: processes, at least 1; never more than tasks are started.
        timeout_seconds: a task that takes longer is given up and its process killed.

    Raises:
        RuntimeError: processes cannot be started.
    """
    waiting = deque((number, False) for number in range(len(tasks)))
    workers: list[_Worker] = []
    failed_starts = 0
    try:
        while waiting or any(worker.number is not None for worker in workers):
            for worker in workers:
                if worker.ready and worker.number is None and waiting:
                    worker.give(*waiting.popleft(), tasks, timeout_seconds)
            starting = sum(not worker.ready for worker in workers)
            if len(workers) < num_workers and starting < len(waiting):
                workers.append(_Worker(work))
                continue
            for worker in _with_news(workers):
                message = worker.receive()
                if message == _READY:
                    worker.ready, failed_starts = True, 0
                elif message is not None:
                    yield TaskResult(worker.take(), *message)
                else:
                    workers.remove(worker)
                    failed_starts += not worker.ready
                    if failed_starts == _FAILED_STARTS:
                        raise RuntimeError(f"worker processes end while they start: {worker.end()}")
                    yield from _lost(worker, waiting, timeout_seconds)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.end()


def _with_news(workers: list["_Worker"]) -> list["_Worker"]:
    """The workers that have sent something, have died, or are over their time limit; waits for one."""
    deadlines = [worker.deadline for worker in workers if worker.number is not None]
    seconds = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
    ready = set(connection.wait([worker.pipe for worker in workers], seconds))
    now = time.monotonic()
    return [worker for worker in workers if worker.pipe in ready or (worker.number is not None and worker.late(now))]


def _lost(worker: "_Worker", waiting: deque, timeout_seconds: float) -> Iterator[TaskResult]:
    """The result of the task that a worker took with it, unless it gets a second try."""
    late = worker.killed_late
    words = worker.end()
    if worker.number is None:
        return
    if late:
        reason = f"gave no answer within {timeout_seconds:g} s"
        yield TaskResult(worker.number, error=reason, error_type=TimeoutError.__name__)
    elif worker.second_try:
        yield TaskResult(worker.number, error=f"its worker process died twice ({words})", error_type="ProcessDied")
    else:
        waiting.append((worker.number, True))  # at the end: by then the memory may be free


class _Worker:
    """The parent's side of one process."""

    def __init__(self, work: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        with _interrupts_held():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.ready = self.killed_late = self.second_try = False
        self.number: int | None = None
        self.deadline = 0.0

    def give(self, number: int, second_try: bool, tasks: Sequence[Any], timeout_seconds: float) -> None:
        self.number, self.second_try = number, second_try
        self.deadline = time.monotonic() + timeout_seconds
        with contextlib.suppress(OSError):  # it died while idle: the pipe tells so at the next look
            self.pipe.send(tasks[number])

    def take(self) -> int:
        number, self.number = self.number, None
        assert number is not None
        return number

    def late(self, now: float) -> bool:
        return now >= self.deadline

    def receive(self) -> Any:
        """The next message; None when there is none and will be none: the process has died or is killed here."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.killed_late = True
        self.kill()
        return None

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> str:
        """Wait for the end of a process that has died or was killed, and say in words how it ended."""
        self.process.join(_STOP_SECONDS)
        self.pipe.close()
        code = self.process.exitcode
        if code is None:
            return "it cannot be stopped"
        if code == -signal.SIGKILL:
            return "killed, perhaps out of memory"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal; one that is started here never sees it, we see it a moment later."""
    resource_tracker.ensure_running()  # started with the first process, it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """The process: one task after the other until the parent closes the pipe or is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(_READY)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = (work(task), "", "")
        except Exception as error:  # the parent decides what it means; the next task has a right to run
            answer = (None, " ".join(str(error).split()) or type(error).__name__, type(error).__name__)
        pipe.send(answer)


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its processes: each watches for it, also in the middle of a task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    sys.stderr.flush()
    os._exit(1)
