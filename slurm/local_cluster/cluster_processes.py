"""Which processes of this machine belong to a cluster, and how to end these and no other.

A process tells by its environment, which cannot be mistaken for another one's: the daemons were started with SLURM_CONF
and DAEMON_VARIABLE, and what a node runs for a job has SLURM_CONF and SLURMD_NODENAME. Their children belong too.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

DAEMON_VARIABLE = "LOCAL_SLURM_DAEMON"
DAEMONS = ("munged", "slurmctld", "slurmd")
NODE_PREFIX = "127.0.0."  # of the names of virtual nodes
TERMINATE_SECONDS, KILL_SECONDS, POLL_SECONDS = 10, 10, 0.02


@dataclass(frozen=True)
class Process:
    """A process of this machine, as far as a cluster is concerned.

    Attributes:
        pid, parent: its number and its parent's.
        started: when it started, in the kernel's ticks: a later process with the same number has another one.
        command: its command line.
        daemon: munged, slurmctld or slurmd; "" for slurmstepd and the processes of jobs.
        node: the virtual node that it runs on; "" for munged and slurmctld.
        is_marked: its own environment says that it belongs to the cluster.
    """

    pid: int
    parent: int
    started: int
    command: str
    daemon: str
    node: str
    is_marked: bool


def find(configuration: Path) -> list[Process]:
    """The processes of the cluster with this slurm.conf, daemons first. None of another user's, nor this one."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or it is not ours to look at
                processes.append(look_at(entry, str(configuration)))
    found = {process.pid: process for process in processes if process.is_marked}
    while children := [p for p in processes if p.parent in found and p.pid not in found]:
        found |= {child.pid: replace(child, node=found[child.parent].node) for child in children}
    return sorted(found.values(), key=lambda process: (not process.daemon, process.pid))


def look_at(entry: Path, configuration: str) -> Process:
    """The process of /proc/PID. Raises OSError if it has ended, or is another user's."""
    variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
    environ = dict(variable.split("=", 1) for variable in variables if "=" in variable)
    words = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0 ").split("\0")
    numbers = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
    program = Path(words[0]).name
    is_own = environ.get("SLURM_CONF") == configuration
    node = environ.get("SLURMD_NODENAME", "")
    node = node if node.startswith(NODE_PREFIX) else ""  # else a real one's: its user uses this cluster in a job
    return Process(
        pid=int(entry.name),
        parent=int(numbers[1]),
        started=int(numbers[19]),
        command=" ".join(words),
        daemon=program if DAEMON_VARIABLE in environ and program in DAEMONS else "",
        node=node,
        is_marked=is_own and (DAEMON_VARIABLE in environ or node != "") and numbers[0] != "Z",
    )


def send(process: Process, number: signal.Signals) -> None:
    """Signal a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def end(find_them: Callable[[], list[Process]]) -> None:
    """SIGTERM, and SIGKILL for what is still there later; returns when `find_them` finds none.

    Raises TimeoutError with their command lines if some survive.
    """
    for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        told = set()
        while left := find_them():
            for process in set(left) - told:
                send(process, number)
                told.add(process)
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        else:
            return
    raise TimeoutError(f"still there: {[f'{process.pid} {process.command}' for process in left]}")


def kill(find_them: Callable[[], list[Process]]) -> None:
    """SIGKILL, parents and what they start meanwhile; returns when `find_them` finds none."""
    deadline = time.monotonic() + KILL_SECONDS
    while left := find_them():
        for process in left:
            send(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there: {[f'{process.pid} {process.command}' for process in left]}")
        time.sleep(POLL_SECONDS)
