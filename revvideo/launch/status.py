"""Where a run is: its jobs, their starts, its progress; from Slurm as far as it remembers, and from the run folder."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from revvideo.errors import InputError
from revvideo.exit_codes import EXIT_DONE, EXIT_STOPPED
from revvideo.launch.attempts import Attempt, read_attempts
from revvideo.launch.find_run import find_submission
from revvideo.launch.job_state import UNKNOWN, JobState, is_on_nodes, newest
from revvideo.launch.run_progress import RunProgress, read_progress
from revvideo.launch.slurm_queue import all_states
from revvideo.launch.start_history import Start, describe_starts
from revvideo.launch.submission import Submission, submission_folders


@dataclass(frozen=True)
class MemberStatus:
    """A run, or one point of a sweep.

    Attributes:
        number: of the member.
        run_folder: its OUTPUT_DIR.
        values: what the sweep sets.
        state: of the job that counts: of a chain the one that runs, else the next, else the last. COMPLETED where all
            work is done, whatever its jobs are.
        jobs: all its jobs in the order of submission.
        starts: all starts of them.
        restarts: how often a job began again; of a chain, the jobs after the first are no restarts.
        progress: from the diary.
        log: rank 0's log file of the job that counts; None without a job.
    """

    number: int
    run_folder: Path
    values: dict[str, str]
    state: JobState
    jobs: tuple[JobState, ...]
    starts: tuple[Start, ...]
    restarts: int
    progress: RunProgress
    log: Path | None

    @property
    def failure(self) -> str:
        """Why it is over without being complete; "" if it is not."""
        if self.state.state not in FAILURES:
            return ""
        if self.starts and self.starts[-1].failed:
            return self.starts[-1].reason
        if not self.starts:
            return f"no rank has begun{f' ({self.state.reason})' if self.state.reason else ''}; the log may tell why"
        return self.state.reason or self.starts[-1].reason


# Slurm's states of a job that is over; a cancelled one has not failed.
FAILURES = ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")


@dataclass(frozen=True)
class RunStatus:
    """What `revvideo status` shows.

    Attributes:
        folder: that was asked for.
        submission: the newest; None: the run was not submitted, its folder tells how far it is.
        members: those that were asked for.
        problem: why the states of jobs are not known; "" if they are.
    """

    folder: Path
    submission: Submission | None
    members: tuple[MemberStatus, ...]
    problem: str = ""

    def as_dict(self) -> dict:
        """For --json: plain values."""
        submission = self.submission
        told = None
        if submission is not None:
            told = {
                "folder": str(submission.folder),
                "cluster": submission.cluster,
                "time": submission.time,
                "command": shlex.join(submission.command),
                "jobs": list(submission.jobs),
                "is_sweep": submission.is_sweep,
            }
        members = []
        for member in self.members:
            own = asdict(member) | {"run_folder": str(member.run_folder), "failure": member.failure}
            members.append(own | {"log": None if member.log is None else str(member.log)})
        return {"folder": str(self.folder), "submission": told, "problem": self.problem, "members": members}


def run_status(folder: Path, point: int | None = None) -> RunStatus:
    """All that is known about a run.

    Args:
        folder: the run folder, of a sweep also that of one of its points.
        point: only this one of a sweep.

    Raises:
        InputError: nothing was submitted with this folder, and no run has begun in it.
    """
    folder = folder.expanduser().absolute()
    if not submission_folders(folder) and not submission_folders(folder.parent) and (folder / "events.jsonl").exists():
        member = MemberStatus(0, folder, {}, JobState(""), (), (), 0, read_progress(folder), None)
        return RunStatus(folder, None, (member,))
    submission, numbers = find_submission(folder, point)
    problem = ""
    try:
        states = all_states(submission)
    except InputError as error:  # no Slurm here: the run folder tells what it can
        states, problem = None, str(error)
    members = (_member_status(submission, number, states) for number in numbers)
    return RunStatus(folder, submission, tuple(members), problem)


def _member_status(submission: Submission, number: int, states: dict[str, JobState] | None) -> MemberStatus:
    member = submission.members[number]
    ids = submission.job_ids(number)
    jobs = tuple(JobState(job) if states is None else states[job] for job in ids)
    attempts = read_attempts(submission.folder, ids)
    run_folder = submission.run_folder / Path(member.run_folder).name if submission.is_sweep else submission.run_folder
    progress = read_progress(run_folder, submission.config_file(number))
    state = newest(list(jobs)) if jobs else JobState("", reason="no job was submitted")
    if submission.done_file(number).exists() and not is_on_nodes(state):
        state = replace(state, state="COMPLETED", reason="", exit_code=EXIT_DONE)
    elif state.state == UNKNOWN and attempts:
        state = _remembered(state, attempts[-1])
    starts = describe_starts(attempts, progress.stops, running=None if states is None else is_on_nodes(state))
    firsts = len({start.job for start in starts})
    restarts = max(sum(job.restarts for job in jobs), len(starts) - firsts)
    log = submission.log_file(state.job, 0) if state.job else None
    return MemberStatus(number, run_folder, member.values, state, jobs, tuple(starts), restarts, progress, log)


def _remembered(state: JobState, attempt: Attempt) -> JobState:
    """What the ranks have written about a job that Slurm has forgotten."""
    hosts = ",".join(dict.fromkeys(rank.node or rank.host for rank in attempt.ranks))
    error = attempt.first_error
    if error is not None:
        return replace(state, state="FAILED", nodes=hosts, exit_code=error.code)
    if attempt.code in (None, EXIT_STOPPED):  # killed, or still running where nobody can be asked
        return replace(state, nodes=hosts)
    return replace(state, state="COMPLETED", nodes=hosts, exit_code=attempt.code)
