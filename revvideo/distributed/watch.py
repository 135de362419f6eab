"""A thread in every process of a run that tells the others how it is, and learns how they are.

The main thread cannot: it computes, or it waits in a collective for a process that has long been dead. The thread has a
connection of its own to the store. Once a second it writes a heartbeat (verdict.py), and looks for a failure that some
process has reported, for a request to stop, and at the heartbeat of the next rank.

The first failure that is reported is the cause; all others follow from it. A main thread that does not come back within
a few seconds after it, because it hangs, is ended together with its process.
"""

import contextlib
import dataclasses
import faulthandler
import io
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from torch import distributed as dist

from revvideo.distributed.meeting import Meeting
from revvideo.distributed.verdict import Beat, behind_verdict, silent_verdict

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a watch is. All processes of a run have the same.

    Attributes:
        beat_seconds: between two heartbeats.
        look_seconds: between two looks at the store while the main thread waits for an answer.
        grace_seconds: for a main thread, from a failure elsewhere to the end of its process.
        silent_seconds: without a heartbeat a process counts as dead, when something has failed already.
        settle_seconds: the same for one that has not come to a collective in time; more than `beat_seconds`.
        search_seconds: for the cause of an error in a collective; more than `silent_seconds`.
        leave_seconds: that rank 0, which may hold the store, stays for the others to read it; for other last deeds too.
        guard_seconds: beyond the timeout, after which a process ends whose watch cannot run, because something holds
            the GIL or the network is dead; more than the others need to tell so.
    """

    beat_seconds: float = 1.0
    look_seconds: float = 0.2
    grace_seconds: float = 5.0
    silent_seconds: float = 4.0
    settle_seconds: float = 2.0
    search_seconds: float = 6.0
    leave_seconds: float = 2.0
    guard_seconds: float = 7.0


PACE = Pace()


def arm_guard(timeout_seconds: float, pace: Pace) -> None:
    """If this is not called again in time, the process ends: something holds the GIL, or the network is dead."""
    with contextlib.suppress(AttributeError, io.UnsupportedOperation, ValueError):  # a stderr that is no file
        faulthandler.dump_traceback_later(timeout_seconds + pace.guard_seconds, exit=True, file=sys.stderr)


def disarm_guard() -> None:
    """The process may take its time again."""
    faulthandler.cancel_dump_traceback_later()


class Watch:
    """The thread of one process. Its maker, the "main thread" of the process, calls the methods; none waits for ever.

    Args:
        rank: of this process.
        meeting: where the processes of the run have met.
        timeout_seconds: longest wait in a collective, and longest silence of a process.
        pace: see there.

    Attributes:
        failure: the first failure of the run as far as known here, one sentence; None so far.
        stop_reason: why some process asked all to stop; None so far.
    """

    def __init__(self, rank: int, meeting: Meeting, timeout_seconds: float, pace: Pace = PACE):
        self.failure: str | None = None
        self.stop_reason: str | None = None
        self._rank, self._names = rank, meeting.names
        self._timeout_seconds, self._pace = timeout_seconds, pace
        self._store, self._lifeline, self._holder = meeting.watch_store, meeting.lifeline, meeting.holder
        self._neighbour = (rank + 1) % len(meeting.names)
        self._moved: dict[int, tuple[Beat, float]] = {}  # rank -> last heartbeat, and when it came here
        self._count = 0
        self._mark = (0, "start", time.monotonic())
        self._failed_at = 0.0
        self._store_lost = False
        self._leaving = False  # the main thread is on its way out and needs no grace
        self._done = False
        self._all_done = threading.Event()
        self._all_know = threading.Event()
        self._patient = 0  # blocks of the main thread that may be finished after a failure
        self._stop_wish: str | None = None
        self._stop_told = False
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._main_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="revvideo-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        arm_guard(self._timeout_seconds, self._pace)
        self._jobs.put((self._beat, threading.Event()))
        self._thread.start()

    def mark(self, what: str) -> None:
        """The main thread comes to a collective; all processes mark the same ones in the same order."""
        self._mark = (self._mark[0] + 1, what, time.monotonic())

    def request_stop(self, reason: str) -> None:
        """Ask all processes to stop; the first reason of the run is the one that counts."""
        self._stop_wish = reason

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """What the main thread does in here it may finish, up to the timeout, also when another process has failed."""
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1

    def report(self, failure: str) -> None:
        """This process has failed: tell the others, unless one was earlier."""
        self._leaving = True
        self._ask(lambda: self._publish(failure), self._pace.beat_seconds + self._pace.leave_seconds)

    def find_cause(self, *, timed_out: bool) -> str | None:
        """Why a collective failed here, as far as it can be found out in a few seconds.

        Args:
            timed_out: it failed because the others did not come.

        Returns:
            The failure of the run; None if no process but this one seems to have any.
        """
        self._leaving = True
        if self.failure is None:
            self._ask(lambda: self._search(timed_out), self._pace.search_seconds + self._pace.leave_seconds)
        return self.failure

    def finish(self) -> str | None:
        """The work is done: wait for the others, then end the thread.

        Returns:
            The failure of another process, if there was one meanwhile.
        """
        self._leaving = True
        self._jobs.put((self._publish_done, threading.Event()))
        while not self._all_done.is_set() and self.failure is None and self._thread.is_alive():
            self._all_done.wait(self._pace.look_seconds)
        self.leave()
        return None if self._all_done.is_set() else self.failure

    def leave(self) -> None:
        """End the thread. Rank 0, which may hold the store, first lets the others read how the run has ended."""
        self._leaving = True
        if self._rank == 0:
            self._all_know.wait(self._pace.leave_seconds)
        self._jobs.put(None)
        self._thread.join(self._pace.leave_seconds)
        disarm_guard()
        self._lifeline.close()

    def _ask(self, job: Callable[[], None], wait_seconds: float) -> None:
        answered = threading.Event()
        self._jobs.put((job, answered))
        answered.wait(wait_seconds)

    # What follows runs in the thread, which alone talks to the store.

    def _run(self) -> None:
        while True:
            try:
                item = self._jobs.get(timeout=self._pace.look_seconds if self._leaving else self._pace.beat_seconds)
            except queue.Empty:
                item = self._beat, threading.Event()
            if item is None:
                return
            job, answered = item
            try:
                if not self._store_lost:
                    job()
            except (OSError, RuntimeError) as error:  # RuntimeError: torch's of the network and the store
                self._lose_store(error)
            answered.set()
            self._end_if_main_hangs()

    def _beat(self) -> None:
        self._check_lifeline()
        self._count += 1
        self._store.set(f"beat/{self._rank}", self._my_beat().to_json())
        arm_guard(self._timeout_seconds, self._pace)
        if self.failure is None and self._store.check(["failure"]):
            self._learn(self._store.get("failure"))
        if self.failure is not None or self._all_done.is_set():
            self._all_know_if(self._store.add("know", 0))
            return
        self._pass_stop_on()
        if self._done and self._store.add("done", 0) == len(self._names):
            self._all_done.set()
            self._all_know_if(self._store.add("know", 1))
            return
        self._look_at([self._neighbour])
        limit = self._mark[2] + self._timeout_seconds
        waited_until = limit if time.monotonic() > limit else None
        self._judge([self._neighbour], self._timeout_seconds, waited_until)

    def _check_lifeline(self) -> None:
        """Notice that the holder of the store is gone before torch does, which then writes pages to the log."""
        with contextlib.suppress(BlockingIOError):  # it lives and has nothing to say
            if not self._lifeline.recv(1):
                raise ConnectionResetError("connection closed")

    def _my_beat(self) -> Beat:
        number, what, since = self._mark
        return Beat(self._count, number, what, time.monotonic() - since, self._done)

    def _look_at(self, ranks: list[int]) -> None:
        """Take down the heartbeats of these."""
        keys = [f"beat/{rank}" for rank in ranks]
        there = [rank for rank, key in zip(ranks, keys) if self._store.check([key])]
        now = time.monotonic()
        for rank in ranks:
            self._moved.setdefault(rank, (Beat(), now))  # one that dies before its first heartbeat is silent from now
        if there:
            for rank, text in zip(there, self._store.multi_get([f"beat/{rank}" for rank in there])):
                beat = Beat.from_json(text)
                if beat.count != self._moved[rank][0].count:
                    self._moved[rank] = beat, now

    def _judge(self, ranks: list[int], silent_seconds: float, waited_until: float | None) -> None:
        """Report who of these is dead, or did not come to the collective in which this process has waited too long.

        Args:
            ranks: others, whose heartbeats have been looked at.
            silent_seconds: without a heartbeat, to be dead.
            waited_until: the moment at which it was too long; None: it is not.
        """
        now = time.monotonic()
        silent, behind = {}, {}
        for rank in ranks:
            beat, came = self._moved[rank]
            missed = waited_until is not None and beat.number < self._mark[0]
            if missed and (beat.done or came > waited_until):  # alive, and not there
                behind[rank] = beat
            elif not beat.done and now - came > (self._pace.settle_seconds if missed else silent_seconds):
                silent[rank] = beat, now - came
        verdict = silent_verdict(self._names, silent)
        if verdict is None:
            verdict = behind_verdict(self._names, self._mark[1], behind, self._timeout_seconds)
        if verdict is not None:
            self._publish(verdict)

    def _search(self, timed_out: bool) -> None:
        others = [rank for rank in range(len(self._names)) if rank != self._rank]
        time.sleep(self._pace.look_seconds)  # a holder of the store that is dying has now closed all its connections
        self._check_lifeline()
        self._look_at(others)
        begun = time.monotonic()
        while self.failure is None and time.monotonic() - begun < self._pace.search_seconds:
            time.sleep(self._pace.look_seconds)
            self._beat()
            self._look_at(others)
            self._judge(others, self._pace.silent_seconds, begun if timed_out else None)

    def _publish(self, failure: str) -> None:
        if self.failure is None:
            self._learn(self._store.compare_set("failure", "", failure))

    def _learn(self, failure: bytes) -> None:
        self._failed_at = time.monotonic()
        self.failure = failure.decode()
        self._all_know_if(self._store.add("know", 1))

    def _all_know_if(self, count: int) -> None:
        if count >= len(self._names):
            self._all_know.set()

    def _pass_stop_on(self) -> None:
        if self._stop_wish is not None and not self._stop_told:
            self._stop_told = True
            self._store.compare_set("stop", "", self._stop_wish)
        if self.stop_reason is None and self._store.check(["stop"]):
            self.stop_reason = self._store.get("stop").decode()

    def _publish_done(self) -> None:
        self._done = True
        self._store.add("done", 1)

    def _lose_store(self, error: Exception) -> None:
        self._store_lost = True
        disarm_guard()
        self._all_know.set()  # nobody can tell any more
        if self._done:  # then rank 0 need not wait for this process
            self._all_done.set()
        elif self.failure is None:
            self._failed_at = time.monotonic()
            reason = str(error).partition("\n")[0]
            self.failure = f"{self._holder} is gone, and with it the store of the run ({reason})"

    def _end_if_main_hangs(self) -> None:
        if self.failure is None or self._leaving:
            return
        grace = self._timeout_seconds if self._patient else self._pace.grace_seconds
        if time.monotonic() - self._failed_at < grace:
            return
        frame = sys._current_frames().get(self._main_thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(unknown)"
        logger.error(
            "%s\nThis process has not ended by itself within %g s after that; its main thread is here:\n%s",
            self.failure,
            grace,
            stack,
        )
        logging.shutdown()
        os._exit(1)


def is_of_others(error: BaseException) -> bool:
    """Whether an error may come from a collective, where the failure of any process shows in all others."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    words = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")
    return type(error) is RuntimeError and any(word in text for word in words)


def is_timeout(error: BaseException) -> bool:
    """Whether a collective failed because not all came to it."""
    return any(words in str(error).lower() for words in ("timed out", "timeout"))
