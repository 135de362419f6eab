"""The log files of a run's processes, followed through the restarts of its jobs: each start appends to the file."""

import codecs
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from revvideo.errors import InputError
from revvideo.launch.job_state import UNKNOWN, JobState, is_alive, newest
from revvideo.launch.slurm_queue import all_states
from revvideo.launch.submission import Submission

FILE_SECONDS = 0.5  # between two looks at the file
STATE_SECONDS = 10.0  # between two questions to Slurm, whose controller has others to answer
LOCAL_STATE_SECONDS = 1.0
BLOCK = 1 << 16  # bytes


class LogReader:
    """Reads what is appended to a file that may not be there yet.

    Args:
        path: the file.
        lines: start with so many of its last lines; None: all.
    """

    def __init__(self, path: Path, lines: int | None = None):
        self.path, self._lines = path, lines
        self._place: int | None = None  # None: not read yet
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self) -> Iterator[str]:
        """What has come since the last call, in pieces."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below) - anew: a network's file system looks again
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            if self._place is None:
                self._place = 0 if self._lines is None else _place_of_last_lines(file, self._lines)
            elif size < self._place:  # written anew
                self._place = 0
            file.seek(self._place)
            while data := file.read(BLOCK):
                self._place += len(data)
                yield self._decoder.decode(data)


def _place_of_last_lines(file, count: int) -> int:
    """Where the last `count` lines begin."""
    starts: deque[int] = deque(maxlen=count)
    place = 0
    for line in file:
        starts.append(place)
        place += len(line)
    return starts[0] if starts else place


def show_log(
    submission: Submission, member: int, rank: int, write: Callable[[str], object], *, lines: int | None
) -> None:
    """Write the log of one process of a run: of a chain, that of the newest job which has one.

    Args:
        submission: which.
        member: its number.
        rank: of the process.
        write: takes the text.
        lines: so many of the last ones; None: all.

    Raises:
        InputError: no job has such a log.
    """
    ids = submission.job_ids(member)
    files = [submission.log_file(job, rank) for job in ids]
    found = [file for file in files if file.exists()]
    if not found:
        state = _state(submission, member)
        raise InputError(
            f"there is no log of rank {rank} yet: {_told(state)}"
            + (f"; it will be {submission.log_file(state.job, rank)}" if is_alive(state) else "")
        )
    for piece in LogReader(found[-1], lines).read():
        write(piece)


def follow_log(
    submission: Submission,
    member: int,
    rank: int,
    write: Callable[[str], object],
    note: Callable[[str], object],
    *,
    lines: int | None,
) -> None:
    """Write the log of one process as it grows, through requeues and the jobs of a chain, until all are over.

    Args:
        submission, member, rank, write, lines: as for `show_log`.
        note: is told when the state of the job changes.

    Raises:
        InputError: Slurm cannot be asked at the beginning; later, that is noted and asked again.
    """
    state = _state(submission, member)
    reader, job, told = LogReader(submission.log_file(state.job, rank), lines), state.job, ""
    while True:
        if state.job != job:  # the next of a chain
            for piece in reader.read():
                write(piece)
            job, reader = state.job, LogReader(submission.log_file(state.job, rank))
        if _told(state) != told:
            told = _told(state)
            note(told)
        ended = not is_alive(state)
        until = time.monotonic() + (STATE_SECONDS if submission.cluster == "slurm" else LOCAL_STATE_SECONDS)
        while True:
            for piece in reader.read():
                write(piece)
            if ended or time.monotonic() >= until:
                break
            time.sleep(FILE_SECONDS)
        if ended:
            return
        state = _asked_again(submission, member, state, note)


def _asked_again(submission: Submission, member: int, state: JobState, note: Callable[[str], object]) -> JobState:
    try:
        return _state(submission, member)
    except InputError as error:  # a controller that restarts
        note(str(error))
        return state


def _state(submission: Submission, member: int) -> JobState:
    states = all_states(submission)
    ids = submission.job_ids(member)
    if not ids:
        raise InputError(f"{submission.folder} has no job: its submission did not come to an end; submit it again")
    return newest([states[job] for job in ids])


def _told(state: JobState) -> str:
    if state.state == UNKNOWN:
        return f"job {state.job} is not known any more" + (f" ({state.reason})" if state.reason else "")
    reason = f" ({state.reason})" if state.reason and not state.nodes else ""
    return f"job {state.job} is {state.state}{reason}" + (f" on {state.nodes}" if state.nodes else "")
