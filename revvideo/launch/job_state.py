"""What is known about a job, in the words of Slurm, whoever runs it."""

from dataclasses import dataclass

UNKNOWN = "UNKNOWN"  # nobody knows the job (any more)

# Everything that can still compute or come back; Slurm names more states, all of them final.
ALIVE = frozenset(
    (
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"),
        *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "STAGE_OUT"),
    )
)
ON_NODES = ALIVE - {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}


@dataclass(frozen=True)
class JobState:
    """A job, or one element of an array.

    Attributes:
        job: its id: 17, or 17_2 in an array.
        state: Slurm's long name, such as PENDING; UNKNOWN: nobody knows it (any more).
        reason: why it waits or has ended so, as Slurm says; "" if there is none.
        nodes: where it runs or has run, such as gpu[01-04]; "" if nowhere yet.
        restarts: how often it was requeued; 0 where that is no longer known.
        exit_code: of a job that has ended: its exit code, 128 + the signal that killed it; None if it is not known.
        start_time: unix seconds of its (last) start, or of the planned one; None if it is not known.
    """

    job: str
    state: str = UNKNOWN
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    exit_code: int | None = None
    start_time: float | None = None


def is_alive(state: JobState) -> bool:
    """Whether the job waits, runs or can still come back by itself."""
    return state.state in ALIVE


def is_on_nodes(state: JobState) -> bool:
    """Whether the job has nodes now."""
    return state.state in ON_NODES


def newest(states: list[JobState]) -> JobState:
    """The one of a chain that counts: what has nodes, else what waits, else the last that ran, else the last known."""
    for wanted in (is_on_nodes, is_alive):
        found = [state for state in states if wanted(state)]
        if found:
            return found[0]
    known = [state for state in states if state.state != UNKNOWN]
    ran = [state for state in known if state.nodes]
    return (ran or known or states)[-1]
