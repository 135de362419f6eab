"""The last command of a batch script, `python -m revvideo.launch.epilogue RUN/launch/NNN CODE`: what follows from how
srun has ended. A crash is retried after a wait, up to the limit; then the first error of the job stands in one place.

It prints to the log of the batch script, which is rank 0's, and its exit code is the job's. It replaces the shell
(`exec`), which would die of the SIGTERM that comes with a requeue, before the wait is set.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from revvideo.errors import InputError
from revvideo.exit_codes import EXIT_CHECK_FAILED, EXIT_CRASH, EXIT_DONE, EXIT_STOPPED, EXIT_WRONG_INPUT, run_guarded
from revvideo.launch.attempts import (
    Attempt,
    attempt_folder,
    is_crash,
    read_attempt,
    read_attempts,
    write_srun_end,
)
from revvideo.launch.retries import backoff_seconds, member_of, slurm_job
from revvideo.launch.slurm_queue import delay_start, job_states, requeue, shortest_wait
from revvideo.launch.submission import Submission, load_submission

MEANINGS = {EXIT_WRONG_INPUT: "wrong input", EXIT_CHECK_FAILED: "a check failed"}


@dataclass(frozen=True)
class Decision:
    """What the batch script does.

    Attributes:
        code: its exit code, where it is the end.
        text: for the log.
        again: whether the job is put back into the queue.
        wait_seconds: until it may start again.
    """

    code: int
    text: str = ""
    again: bool = False
    wait_seconds: int = 0


def decide(submission: Submission, job: str, restart: int, srun_code: int) -> Decision:
    """What follows from how srun has ended; all starts of the job have been written down.

    Args:
        submission: of the job.
        job, restart: its id, and which start this is.
        srun_code: exit code of srun.
    """
    if srun_code == 0 or submission.done_file(member_of(job)).exists():
        return Decision(EXIT_DONE)
    attempts = [each for each in read_attempts(submission.folder, (job,)) if each.restart <= restart]
    attempt = read_attempt(attempt_folder(submission.folder, job, restart))
    if not is_crash(attempt):
        if attempt.code == EXIT_STOPPED:
            return Decision(EXIT_STOPPED, again=True)
        why = MEANINGS[attempt.code]
        text = f"job {job} has ended with exit code {attempt.code} ({why}), which would come again:"
        return Decision(attempt.code, f"{text}\n{blame(submission, attempt)}")
    crashes = [each for each in attempts if is_crash(each)]
    resources = submission.resources
    if len(crashes) <= resources.max_restarts:
        seconds = backoff_seconds(resources, len(crashes))
        times = f"{len(crashes)} of {resources.max_restarts + 1} times"
        text = f"job {job} has crashed, {times}; it starts again in {seconds} s or more:"
        return Decision(EXIT_CRASH, f"{text}\n{blame(submission, attempt)}", again=True, wait_seconds=seconds)
    times = f"{len(crashes)} times" if len(crashes) > 1 else "once"
    text = f"job {job} has crashed {times} and is not started again (max_restarts {resources.max_restarts}):"
    lines = [blame(submission, each) for each in crashes]
    return Decision(EXIT_CRASH, "\n".join([text, *lines, "the same submission goes on from the last checkpoint"]))


def blame(submission: Submission, attempt: Attempt) -> str:
    """Who failed first in one start of a job, with what, and where its log is."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.srun_ended or attempt.began))
    start = f"  start {attempt.restart}, ended {when}: "
    record = attempt.first_error
    if record is None and not attempt.ranks:
        return f"{start}no rank has begun; srun ended with {attempt.srun_code} (see {submission.jobs_folder})"
    if record is None:
        killed = ", ".join(str(each.rank) for each in attempt.ranks if each.code is None) or "none"
        return f"{start}no rank has told an error; ended without a word: rank {killed}; srun: {attempt.srun_code}"
    node = f" on {record.node or record.host}"
    log = submission.log_file(attempt.job, record.rank)
    error = record.error if record.follows else f"rank {record.rank}{node}: {record.error}"
    return f"{start}{error}\n    log: {log}"


def put_back(job: str, wait_seconds: int) -> None:
    """Requeue the job that this process is part of, to start in `wait_seconds` at the earliest.

    Raises:
        InputError: Slurm refuses.
    """
    moved = wait_seconds > shortest_wait()  # never to before the end of Slurm's own wait
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with the requeue; the commands inherit that
    requeue(job)
    if moved:
        delay_start(job, wait_seconds)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code of the batch script.

    Raises:
        InputError: the submission cannot be read, this is no job of Slurm, or Slurm refuses.
    """
    if len(arguments) != 2 or not arguments[1].isdigit():
        raise InputError(f"the arguments are {list(arguments)}; expected a submission's folder and srun's exit code")
    submission, srun_code = load_submission(Path(arguments[0])), int(arguments[1])
    found = slurm_job(os.environ)
    if found is None:
        raise InputError("SLURM_JOB_ID is not set; expected to be called by the batch script of a job")
    job, restart = found
    write_srun_end(attempt_folder(submission.folder, job, restart), srun_code)
    decision = decide(submission, job, restart, srun_code)
    if decision.text:
        print(f"revvideo: {decision.text}", flush=True)
    if decision.again and not (decision.code == EXIT_STOPPED and is_leaving(job)):
        put_back(job, decision.wait_seconds)
    return decision.code


def is_leaving(job: str) -> bool:
    """Whether the job is in the queue again, or at the end of its time; rank 0 may have died before it requeued it."""
    with contextlib.suppress(InputError):
        return job_states([job])[job].state != "RUNNING"
    return False


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: main(sys.argv[1:])))
