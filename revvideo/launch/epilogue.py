"""The last command of a batch script, `python -m revvideo.launch.epilogue RUN/launch/NNN CODE`: what follows from how
srun has ended. A crash is retried after a wait, up to the limit; then the first error of the job stands in one place.

It prints to the log of the batch script, which is rank 0's, and its exit code is the job's. It replaces the shell
(`exec`), which would die of the SIGTERM that comes with a requeue, before the wait is set.
"""

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
from revvideo.launch.slurm_queue import delay_start, is_leaving, requeue, shortest_wait
from revvideo.launch.submission import Submission, load_submission

PAUSES_SECONDS = (10, 30, 60, 120)  # before further tries to requeue
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
    attempts = read_attempts(submission.folder, (job,))
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
        log = submission.log_file(attempt.job, 0)
        return (
            f"{start}no rank has told an error; killed: rank {killed}; srun ended with {ending(attempt.srun_code)}\n"
            f"    log: {log} (its first `srun: error` says who was first)"
        )
    node = f" on {record.node or record.host}"
    log = submission.log_file(attempt.job, record.rank)
    error = record.error if record.follows else f"rank {record.rank}{node}: {record.error}"
    return f"{start}{error}\n    log: {log}"


def ending(code: int | None) -> str:
    """An exit code, with the signal that it stands for; SIGKILL is what the kernel sends where memory is short."""
    try:
        name = signal.Signals((code or 0) - 128).name
    except ValueError:
        return str(code)
    return f"{code} ({name}{': out of memory?' * (name == 'SIGKILL')})"


def put_back(job: str, wait_seconds: int) -> None:
    """Requeue the job that this process is part of, to start in `wait_seconds` at the earliest.

    It tries again for some minutes: what has ended the job may have hit Slurm's controller, too.

    Raises:
        InputError: Slurm refuses to the end.
    """
    moved = wait_seconds > shortest_wait()  # never to before the end of Slurm's own wait
    for pause in (*PAUSES_SECONDS, None):
        if is_leaving(job):  # cancelled, or after a stop: rank 0 has requeued it
            return
        listening = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes with the requeue; the commands inherit that
        try:
            requeue(job)
            break
        except InputError as error:
            if pause is None:
                raise
            signal.signal(signal.SIGTERM, listening)
            print(f"revvideo: {error}; once more in {pause} s", flush=True)
            time.sleep(pause)
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
    if decision.again:
        put_back(job, decision.wait_seconds)
    return decision.code


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: main(sys.argv[1:])))
