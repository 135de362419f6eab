"""How the processes of a run find each other: a store at MASTER_ADDR:MASTER_PORT in which each writes who it is.

Rank 0 holds the store until it ends, unless torchrun's agent does.
"""

import contextlib
import functools
import os
import socket
from dataclasses import dataclass
from datetime import timedelta

from torch import distributed as dist

from revvideo.distributed.env import Process
from revvideo.errors import RankFailed

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
    try:
        run_store = _run_store(process, timeout)
        # The store outlives a group: the next group of these processes must not find the keys of this one.
        attempt = run_store.add(f"revvideo/opened/{process.rank}", 1)
        store = dist.PrefixStore(f"revvideo/{attempt}", run_store)
        store.set(f"here/{process.rank}", f"rank {process.rank} ({socket.gethostname()}, process {os.getpid()})")
        names = _wait_for_all(store, process, timeout)
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
        raise RankFailed(
            f"rank {process.rank} ({socket.gethostname()}) and rank 0 did not meet at {where} (MASTER_ADDR and "
            f"MASTER_PORT) within DIST.TIMEOUT_SECONDS {timeout_seconds:g}: {reason}"
        ) from error
    holder = f"torchrun's agent at {where}" if process.source == "torchrun" else names[0]
    return Meeting(store, names, dist.PrefixStore(f"revvideo/{attempt}", client), lifeline, holder)


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


def _wait_for_all(store: dist.Store, process: Process, timeout: timedelta) -> list[str]:
    keys = [f"here/{rank}" for rank in range(process.world_size)]
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        here = [rank for rank, key in enumerate(keys) if store.check([key])]
        missing = ", ".join(str(rank) for rank in range(process.world_size) if rank not in here)
        present = ", ".join(store.get(keys[rank]).decode() for rank in here)
        raise RankFailed(
            f"rank {missing} did not come to {process.master_addr}:{process.master_port} within DIST.TIMEOUT_SECONDS "
            f"{timeout.total_seconds():g}; here: {present}"
        ) from error
    return [store.get(key).decode() for key in keys]
