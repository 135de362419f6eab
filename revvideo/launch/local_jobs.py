"""Jobs on this machine without Slurm (clusters local and debug): their state from the processes that live and from what
the ranks have written down. A local job's id is the process id of submitit's controller, which has started the ranks.
Processes are looked up in /proc."""

import os
import signal
import socket
import time
from pathlib import Path

from revvideo.errors import InputError
from revvideo.exit_codes import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED
from revvideo.launch.attempts import RankRecord, read_attempts
from revvideo.launch.job_state import JobState
from revvideo.launch.submission import Submission

CONTROLLER, TASK = "submitit.local._local", "submitit.core._submit"  # the modules that they run
PROC = Path("/proc")
GRACE_SECONDS = 10.0  # the controller gives its tasks one second before it kills them
CLOCK_SECONDS = 5.0  # between the kernel's clock and ours
STATES = {EXIT_DONE: "COMPLETED", EXIT_STOPPED: "CANCELLED", EXIT_INTERRUPTED: "CANCELLED"}


def local_state(submission: Submission, job: str) -> JobState:
    """The state of a job of the clusters local and debug; UNKNOWN for one of another machine."""
    attempts = read_attempts(submission.folder, (job,))
    ranks = attempts[-1].ranks if attempts else ()
    here = socket.gethostname()
    place = {
        "nodes": ranks[0].host if ranks else "",
        "restarts": max(0, len(attempts) - 1) if submission.cluster == "local" else 0,
        "start_time": attempts[-1].began if attempts else None,
    }
    if local_processes(submission, job):
        return JobState(job, "RUNNING", **place | {"nodes": here})
    if all(submission.done_file(member).exists() for member in range(len(submission.members))):
        return JobState(job, "COMPLETED", exit_code=EXIT_DONE, **place)
    if ranks and ranks[0].host != here:
        return JobState(job, reason=f"it was started on {ranks[0].host}: ask there", **place)
    if not ranks:
        return JobState(job, "FAILED", reason="it is gone, and no rank of it has begun", **place)
    attempt = attempts[-1]
    if attempt.first_error is None and any(rank.code is None for rank in ranks):
        return JobState(job, "CANCELLED", reason="killed", **place)
    return JobState(job, STATES.get(attempt.code, "FAILED"), exit_code=attempt.code, **place)


def local_processes(submission: Submission, job: str) -> list[int]:
    """Those processes of a job of this machine that live, the controller first."""
    if submission.cluster == "debug":
        attempts = read_attempts(submission.folder, (job,))
        ranks = [rank for attempt in attempts for rank in attempt.ranks]
        return [rank.pid for rank in ranks if rank.code is None and _lives(rank)]
    processes = _processes(submission)
    return sorted(processes, key=lambda pid: str(pid) != job)


def cancel_local(submission: Submission, job: str) -> None:
    """End a job and its ranks: as submitit does, by SIGINT to the controller; what then still lives is killed.

    Raises:
        InputError: the processes are another user's.
    """
    alive = local_processes(submission, job)
    if str(alive[0]) == job:
        _send(alive[0], signal.SIGINT)
        end = time.monotonic() + GRACE_SECONDS
        while int(job) in local_processes(submission, job) and time.monotonic() < end:
            time.sleep(0.1)
    for pid in local_processes(submission, job):
        _send(pid, signal.SIGKILL)


def _processes(submission: Submission) -> list[int]:
    """Controller and ranks of a submission. An id alone would not tell: it may be another process's by now."""
    folders = {str(submission.jobs_folder), str(submission.jobs_folder.resolve())}
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        except OSError:  # it has just ended
            continue
        if (CONTROLLER in words or TASK in words) and not folders.isdisjoint(words):
            found.append(int(entry.name))
    return found


def _lives(rank: RankRecord) -> bool:
    """Whether the process with the rank's id is here, and as old as the rank; it is the client's own."""
    if rank.host != socket.gethostname():
        return False
    try:
        ticks = int((PROC / str(rank.pid) / "stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime "))
    except OSError:
        return False
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK") < rank.began + CLOCK_SECONDS


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has just ended
        return
    except PermissionError as error:
        raise InputError(f"process {pid} is another user's: it cannot be cancelled from here") from error
