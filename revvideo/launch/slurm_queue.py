"""Asking Slurm about jobs and telling it what to do with them, by its own commands.

What the controller has forgotten (MinJobAge, 5 minutes by default) is asked of `sacct`, where there is accounting.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from revvideo.errors import InputError
from revvideo.launch.job_state import ALIVE, UNKNOWN, JobState, is_alive, newest
from revvideo.launch.local_jobs import local_state
from revvideo.launch.submission import Submission

__all__ = [
    "JobState",
    "all_states",
    "cancel",
    "delay_start",
    "is_alive",
    "is_leaving",
    "job_states",
    "requeue",
    "shortest_wait",
]

CREDENTIAL_SECONDS = 120  # Slurm's default of cred_expire
COMMAND_SECONDS = 90  # without a controller or a configuration the commands themselves try for 60 s
ARRAY_TASKS = re.compile(r"\[([\d,:-]+)(?:%\d+)?\]")  # of 17_[0-4,7%2]

# Fields of `squeue -O` with the characters that each gets: fixed columns can be told apart, whatever stands in them.
COLUMNS = {
    **{"JobArrayID": 64, "State": 32, "RestartCnt": 16, "exit_code": 16, "StartTime": 24},
    **{"Reason": 256, "NodeList": 1024},
}
# With these users filter what the commands show, or let them ask before they cancel.
USERS_OPTIONS = ("SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_", "SLURM_BITSTR_LEN")
NEVER_SATISFIED = "DependencyNeverSatisfied"  # then Slurm itself has cancelled it
AT_TIME_LIMIT = "TimeLimit"  # of a job that completes
FORGOTTEN = "Invalid job id"


def job_states(ids: Sequence[str]) -> dict[str, JobState]:
    """What Slurm knows about jobs.

    Args:
        ids: such as 17, 17_2 for an element of an array, or 17 for an array: of that, the element that lives longest.

    Returns:
        A state for each id; UNKNOWN for those that Slurm has forgotten, or never had.

    Raises:
        InputError: Slurm is not installed here, or does not answer.
    """
    if not ids:
        return {}
    found = _from_squeue(_array_ids(ids))
    missing = [job for job in ids if not _matches(job, found)]
    if missing:
        found |= {job: state for job, state in _from_sacct(_array_ids(missing)).items() if job not in found}
    states = {}
    for job in ids:
        matches = _matches(job, found)
        states[job] = newest(matches) if matches else JobState(job)
    return states


def all_states(submission: Submission) -> dict[str, JobState]:
    """The state of each job of a submission, by its id; elements of an array have ids of their own.

    Raises:
        InputError: Slurm is not installed here, or does not answer.
    """
    if submission.cluster != "slurm":
        return {job: local_state(submission, job) for job in submission.jobs}
    return job_states([job for member in range(len(submission.members)) for job in submission.job_ids(member)])


def is_leaving(job: str) -> bool:
    """Whether a job that this process is part of is in the queue again, or was cancelled.

    Slurm requeues a job also while it ends: one that was cancelled would come back. So does one at the end of its time
    (KillWait is left), which is meant to. False where nobody can be asked.
    """
    with contextlib.suppress(InputError):
        state = job_states([job])[job]
        return state.state not in ("RUNNING", UNKNOWN) and state.reason != AT_TIME_LIMIT
    return False


def requeue(job: str) -> None:
    """Put a job back into the queue, as it is.

    Raises:
        InputError: Slurm refuses; the message has what it says.
    """
    _run("scontrol", "requeue", job)


def shortest_wait() -> int:
    """Seconds that a requeued job waits in any case: until the credential of its last start has expired (cred_expire).

    Slurm's default where nobody can be asked.
    """
    found = None
    with contextlib.suppress(InputError):
        found = re.search(r"^AuthInfo\b.*\bcred_expire=(\d+)", _run("scontrol", "show", "config"), re.MULTILINE)
    return (int(found[1]) if found else CREDENTIAL_SECONDS) + 1


def delay_start(job: str, seconds: int) -> None:
    """Let a waiting job start in `seconds` at the earliest.

    Raises:
        InputError: Slurm refuses; the message has what it says.
    """
    _run("scontrol", "update", f"JobId={job}", f"StartTime=now+{seconds}")


def cancel(ids: Sequence[str]) -> None:
    """End jobs, running or waiting; those that have ended or are forgotten do not matter.

    Raises:
        InputError: Slurm refuses; the message has what it says.
    """
    if ids:
        _run("scancel", *ids, harmless=FORGOTTEN)


def _from_squeue(ids: Sequence[str]) -> dict[str, JobState]:
    fields = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    text = _run("squeue", "-h", "-r", "-t", "all", "-j", ",".join(ids), "-O", fields, harmless=FORGOTTEN)
    states = {}
    for line in text.splitlines():
        values, place = {}, 0
        for name, width in COLUMNS.items():
            values[name] = line[place : place + width].strip()
            place += width
        for job in _expand(values["JobArrayID"]):
            states[job] = JobState(
                job,
                values["State"],
                _reason(values["State"], values["Reason"]),
                _value(values["NodeList"]),
                restarts=_number(values["RestartCnt"]) or 0,
                exit_code=None if values["State"] in ALIVE else _exit_code(values["exit_code"]),
                start_time=_number(values["StartTime"]),
            )
    return states


def _from_sacct(ids: Sequence[str]) -> dict[str, JobState]:
    """What accounting knows; nothing where there is none."""
    columns = "JobID,State,ExitCode,NodeList,Start"
    try:
        text = _run("sacct", "-X", "-P", "-j", ",".join(ids), "-o", columns)
    except InputError:  # "Slurm accounting storage is disabled", or no sacct
        return {}
    header, *rows = [line.split("|") for line in text.splitlines()] or [[]]
    states = {}
    for row in rows:
        values = dict(zip([title.lower() for title in header], row))
        state, _, reason = values["state"].partition(" ")  # "CANCELLED by 1000"
        for job in _expand(values["jobid"]):
            states[job] = JobState(
                job,
                state,
                reason,
                _value(values["nodelist"]),
                exit_code=None if state in ALIVE else _exit_code(values["exitcode"]),
                start_time=_number(values["start"]),
            )
    return states


def _array_ids(ids: Iterable[str]) -> list[str]:
    """17 for 17_2, each once."""
    return list(dict.fromkeys(job.partition("_")[0] for job in ids))


def _expand(job: str) -> list[str]:
    """17_1, 17_2, 17_3 for 17_[1-3%2]: elements that wait, or were cancelled while they did, may share a row."""
    array, _, tasks = job.partition("_")
    found = ARRAY_TASKS.fullmatch(tasks)
    if not found:
        return [job]
    numbers = []
    for part in found[1].split(","):
        span, _, stride = part.partition(":")
        first, _, last = span.partition("-")
        numbers += range(int(first), int(last or first) + 1, int(stride or 1))
    return [f"{array}_{number}" for number in numbers]


def _matches(job: str, found: dict[str, JobState]) -> list[JobState]:
    """The job's own state, or those of all elements of an array."""
    if job in found:
        return [found[job]]
    return [state for each, state in found.items() if each.partition("_")[0] == job]


def _exit_code(text: str) -> int | None:
    """From what wait() gives (squeue: 768), or from code:signal (sacct: 3:0)."""
    code, _, signal = text.partition(":")
    if not code.isdecimal():
        return None
    if signal.isdecimal():
        return int(code) or (128 + int(signal) if int(signal) else 0)
    return int(code) >> 8 or (128 + (int(code) & 127) if int(code) & 127 else 0)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _reason(state: str, text: str) -> str:
    """A job that was cancelled while it waited keeps what it waited for, which no longer matters."""
    return "" if state == "CANCELLED" and text != NEVER_SATISFIED else _value(text)


def _value(text: str) -> str:
    return "" if text in ("None", "(null)", "N/A", "None assigned") else text


def _run(*command: str, harmless: str | None = None) -> str:
    """What a command prints; nothing if it fails with `harmless` in its message.

    Raises:
        InputError: it is not there, fails or does not answer.
    """
    if shutil.which(command[0]) is None:
        raise InputError(
            f"no Slurm here: {command[0]} is not on PATH; run this where sbatch works, such as a login node"
        )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(USERS_OPTIONS)}
    try:
        done = subprocess.run(
            command,
            env=environ | {"SLURM_TIME_FORMAT": "%s"},  # unix seconds
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"Slurm does not answer: {' '.join(command)} took more than {COMMAND_SECONDS} s") from None
    message = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    if done.returncode == 0 or (harmless and harmless in message):
        return done.stdout
    raise InputError(f"Slurm refuses {' '.join(command)}: {message or f'exit code {done.returncode}'}")
