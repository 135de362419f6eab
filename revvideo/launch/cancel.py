"""Ending the jobs of a run."""

from collections.abc import Sequence

from revvideo.launch import slurm_queue
from revvideo.launch.job_state import UNKNOWN, JobState, is_alive, is_on_nodes
from revvideo.launch.local_jobs import cancel_local, local_processes
from revvideo.launch.submission import Submission


def cancel_jobs(submission: Submission, members: Sequence[int]) -> list[str]:
    """End all jobs of these members, running or waiting; returns what was done, for humans.

    Raises:
        InputError: Slurm cannot be asked, or refuses.
    """
    ids = [job for member in members for job in submission.job_ids(member)]
    if not ids:
        return [f"nothing to cancel: {submission.folder} has no job"]
    states = slurm_queue.all_states(submission)
    ids = list(dict.fromkeys(ids))
    alive = [states[job] for job in ids if is_alive(states[job])]
    if not alive:
        return [f"nothing to cancel: {_over(states[job])}" for job in ids]
    if submission.cluster == "slurm":
        # Those that wait first: the end of one could be what another waits for.
        for group in ([job for job in alive if not is_on_nodes(job)], [job for job in alive if is_on_nodes(job)]):
            slurm_queue.cancel([job.job for job in group])
    elif submission.cluster == "debug":
        pids = [pid for job in alive for pid in local_processes(submission, job.job)]
        return [f"process {pid} runs in the terminal it was started from: press Ctrl-C there" for pid in pids]
    else:
        for job in alive:
            cancel_local(submission, job.job)
    return [f"cancelled job {job.job}, which was {job.state}{_place(job)}" for job in alive]


def _place(job: JobState) -> str:
    if job.nodes:
        return f" on {job.nodes}"
    return f" ({job.reason})" if job.reason else ""


def _over(state: JobState) -> str:
    if state.state == UNKNOWN:
        return f"job {state.job} is not known any more" + (f" ({state.reason})" if state.reason else "")
    return f"job {state.job} is {state.state}"
