"""Whether a crash of a job is retried, and after which wait: ranks and batch script decide it from the same files."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from revvideo.errors import InputError
from revvideo.exit_codes import EXIT_STOPPED
from revvideo.launch.attempts import is_crash, read_attempts
from revvideo.launch.resources import Resources

LONGEST_BACKOFF_SECONDS = 3600
STOPS_IN_PLACE = 10  # then a job that is only ever stopped has ended; preemptions may come early, but not so often


def slurm_job(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Id, 17 or 17_2 in an array, and number of restarts of the job that these variables are of; None without Slurm.

    SLURM_JOB_ID alone would not do: that of an array's last element is the id of the whole array.

    Raises:
        InputError: SLURM_RESTART_COUNT is no number.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    count = environ.get("SLURM_RESTART_COUNT") or "0"
    if not count.isdigit():
        raise InputError(f"SLURM_RESTART_COUNT is {count!r}; expected a number, as Slurm sets it in a requeued job")
    return job, int(count)


def member_of(job: str) -> int:
    """The member of a submission that a job runs: the element of an array, else the only one."""
    return int(job.rpartition("_")[2]) if "_" in job else 0


def crashes_before(submission_folder: Path, job: str, restart: int) -> int:
    """How often earlier starts of a job have crashed."""
    return sum(is_crash(attempt) for attempt in read_attempts(submission_folder, (job,)) if attempt.restart < restart)


def stops_in_place(submission_folder: Path, job: str, restart: int) -> int:
    """How many starts of a job in a row, the last one this, were stopped at the same place: with the same message."""
    attempts = [each for each in read_attempts(submission_folder, (job,)) if each.restart <= restart]
    messages = [
        attempt.ranks[0].error if attempt.code == EXIT_STOPPED and attempt.ranks else None for attempt in attempts
    ]
    return sum(1 for _ in itertools.takewhile(lambda message: message == messages[-1], reversed(messages)))


def backoff_seconds(resources: Resources, crashes: int) -> int:
    """The wait after the first, second, ... crash: it doubles, up to an hour."""
    return min(resources.backoff_seconds * 2 ** (crashes - 1), max(LONGEST_BACKOFF_SECONDS, resources.backoff_seconds))
