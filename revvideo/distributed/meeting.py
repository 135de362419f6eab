"""How the processes of a run find each other: a store at MASTER_ADDR:MASTER_PORT in which each writes who it is.

Rank 0 holds the store until it ends, unless torchrun's agent does.
"""

import contextlib
import functools
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

from torch import distributed as dist

from revvideo.distributed.env import Process
from revvideo.errors import RankFailed

_LOOK_SECONDS = 0.1  # between two looks for the others
_WATCH_SECONDS = 10.0  # longest wait of the watch for a key, all of which are there when it asks


@dataclass(frozen=True)
class Meeting:
    """All processes are here.

    Attributes:
        store: of the process groups.
        names: who is who, by rank, such as `rank 1 (node7, process 4711)`.
        watch_store: the same keys by a connection of its own, since a blocked client blocks all threads that share it.
        lifeline: a connection to the store on which nothing is ever said and no read blocks; it closes when the holder
            of the store dies.
        holder: who has the store, for humans.
    """

    store: dist.Store
    names: list[str]
    watch_store: dist.Store
    lifeline: socket.socket
    holder: str


def meet(process: Process, timeout_seconds: float) -> Meeting:
    """Wait until all processes of the run are here.

    Args:
        process: this one.
        timeout_seconds: longest wait.

    Raises:
        RankFailed: not all came in time; the message names who is missing.
    """
    where = f"{process.master_addr}:{process.master_port}"
    timeout = timedelta(seconds=timeout_seconds)
    deadline = time.monotonic() + timeout_seconds
    try:
        run_store = _run_store(process, timeout)
        prefix = _begin(run_store, process, deadline, timeout_seconds)
        store = dist.PrefixStore(prefix, run_store)
        names = [store.get(f"here/{rank}").decode() for rank in range(process.world_size)]
        client = dist.TCPStore(
            process.master_addr,
            process.master_port,
            is_master=False,
            timeout=timedelta(seconds=_WATCH_SECONDS),
            wait_for_workers=False,
        )
        lifeline = socket.create_connection((process.master_addr, process.master_port), timeout=_WATCH_SECONDS)
        lifeline.setblocking(False)
    except RankFailed:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's errors of the network and the store
        reason = str(error).partition("\n")[0]
        did = f"and rank 0 did not meet within DIST.TIMEOUT_SECONDS {timeout_seconds:g}"
        if process.is_main:
            did = "cannot open the place to meet"
        raise RankFailed(
            f"rank {process.rank} ({socket.gethostname()}) {did}, {where} (MASTER_ADDR and MASTER_PORT): {reason}"
        ) from error
    holder = f"torchrun's agent at {where}" if process.source == "torchrun" else names[0]
    return Meeting(store, names, dist.PrefixStore(prefix, client), lifeline, holder)


def _agent_serves(process: Process) -> bool:
    """Whether torchrun's agent, which it can be told not to do, has the store; it then had it before it started us."""
    if process.source != "torchrun":
        return False
    with contextlib.suppress(OSError):
        socket.create_connection((process.master_addr, process.master_port), timeout=_WATCH_SECONDS).close()
        return True
    return False


@functools.cache
def _run_store(process: Process, timeout: timedelta) -> dist.TCPStore:
    """The store of the run, opened once: were rank 0 to open it again, others could come to the one that it closes."""
    return dist.TCPStore(
        process.master_addr,
        process.master_port,
        process.world_size,
        is_master=process.is_main and not _agent_serves(process),
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )


def _begin(run_store: dist.Store, process: Process, deadline: float, timeout_seconds: float) -> str:
    """Wait until all have come to one attempt to meet; returns the prefix of its keys.

    The store outlives a group and, where torchrun's agent has it, the processes: some of those that it started before
    may have come to an attempt and others not. So rank 0 numbers the attempts, and says when one has begun; the others
    go to the newest one, but to none twice.
    """
    name = f"rank {process.rank} ({socket.gethostname()}, process {os.getpid()})"
    attempt, is_new = -1, False
    while True:
        newest = run_store.add("revvideo/attempt", int(process.is_main and attempt < 0))
        if newest > attempt:
            attempt, prefix = newest, f"revvideo/{newest}"
            store = dist.PrefixStore(prefix, run_store)
            is_new = store.add(f"times/{process.rank}", 1) == 1
            store.set(f"here/{process.rank}", name)
        if process.is_main and store.check([f"here/{rank}" for rank in range(process.world_size)]):
            store.set("begun", "")
            return prefix
        if is_new and not process.is_main and store.check(["begun"]):
            return prefix
        if time.monotonic() > deadline:
            raise RankFailed(_who_is_missing(store, process, timeout_seconds))
        time.sleep(_LOOK_SECONDS)


def _who_is_missing(store: dist.Store, process: Process, timeout_seconds: float) -> str:
    keys = {rank: f"here/{rank}" for rank in range(process.world_size)}
    here = {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}
    missing = ", ".join(str(rank) for rank in keys if rank not in here)
    return (
        f"rank {missing} did not come to {process.master_addr}:{process.master_port} within DIST.TIMEOUT_SECONDS "
        f"{timeout_seconds:g}; here: {', '.join(here.values())}"
    )
