"""Why a job began again: each of its starts in one line."""

from dataclasses import dataclass

from revvideo.exit_codes import EXIT_STOPPED
from revvideo.launch.attempts import Attempt, RankRecord

ERROR_LETTERS = 300
SHOWN_RANKS = 3
CLOCK_SECONDS = 5  # between the clocks of machines
RUNNING, FINISHED = "running", "finished"
NO_END = "no end is written: it runs, or was killed from outside"
KILLED = "killed from outside: requeue, preemption without a signal, lost node, or cancelled"


@dataclass(frozen=True)
class Start:
    """One start of a job.

    Attributes:
        job: its id.
        restart: its number among those of this job, 0 at first.
        began, ended: unix seconds; `ended` None: it runs, or was killed.
        hosts: where its ranks ran.
        code: exit code; None as for `ended`.
        reason: how it has ended, for humans.
        failed: it has ended with an error of its own.
    """

    job: str
    restart: int
    began: float
    ended: float | None
    hosts: tuple[str, ...]
    code: int | None
    reason: str
    failed: bool


def describe_starts(
    attempts: list[Attempt], stops: tuple[tuple[float, str], ...], *, running: bool | None
) -> list[Start]:
    """The starts of a member's jobs.

    Args:
        attempts: in the order of time.
        stops: (unix seconds, signal) of the stops in the diary of the run.
        running: the last of them still runs; None: nobody can be asked.
    """
    starts = []
    for position, attempt in enumerate(attempts):
        last = position == len(attempts) - 1
        reason, failed = _reason(attempt, stops, running=running if last else False)
        hosts = dict.fromkeys(rank.node or rank.host for rank in attempt.ranks)
        starts.append(
            Start(
                job=attempt.job,
                restart=attempt.restart,
                began=attempt.began,
                ended=attempt.ended,
                hosts=tuple(hosts),
                code=attempt.code,
                reason=reason,
                failed=failed,
            )
        )
    return starts


def _reason(attempt: Attempt, stops: tuple[tuple[float, str], ...], *, running: bool | None) -> tuple[str, bool]:
    """Why it has ended, and whether by an error."""
    silent = [rank for rank in attempt.ranks if rank.code is None]
    error, srun_code = attempt.first_error, attempt.srun_code
    if error is not None and not (error.follows and silent):
        failed = "" if error.follows else f"{_place(error)} failed, "  # the error of one that follows names the rank
        return f"{failed}exit code {error.code}: {first_line(error.error)}", True
    if attempt.code == EXIT_STOPPED:
        names = [name for time, name in stops if attempt.began <= time <= attempt.ended + CLOCK_SECONDS]
        return f"stopped by {names[-1] if names else 'a signal'}, after a checkpoint", False
    if srun_code and not attempt.ranks:
        return f"no rank has begun, srun ended with exit code {srun_code}", True
    if srun_code and silent:
        told = f"; {first_line(error.error)}" if error is not None else ""  # names the first; srun has killed more
        return f"{_places(silent)} killed, srun ended with exit code {srun_code}{told}", True
    if silent and error is not None:  # the batch script was killed as well
        return f"{_places(silent)} killed from outside, or lost with the node; the others followed", False
    if silent and running:
        return RUNNING, False
    if silent:
        return (KILLED if running is not None else NO_END), False
    return FINISHED, False


def first_line(error: str) -> str:
    """What an error says, on one line."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    text = lines[-1] if lines and lines[0].startswith("Traceback") else " ".join(lines)
    return text[:ERROR_LETTERS] or "no message"


def _places(ranks: list[RankRecord]) -> str:
    more = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return ", ".join(map(_place, ranks[:SHOWN_RANKS])) + more


def _place(rank: RankRecord) -> str:
    return f"rank {rank.rank} on {rank.node or rank.host}"
