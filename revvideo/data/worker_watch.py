"""What the loader's worker processes are reading, so that a silent or dead one can be told with its path.

Each worker writes the number of the sample that it is at, and since when, into a tensor in shared memory; the main
process looks there when no batch comes. The clock is the monotonic one, which all processes of a machine share.
"""

import os
import re
import time
from collections.abc import Callable, Sequence

import torch

from revvideo.data.worker_signals import listen_to_parent_only
from revvideo.errors import WorkerFailed

_PROCESS, _SAMPLE, _SINCE = range(3)  # columns: process id, sample (or _IDLE), monotonic nanoseconds
_IDLE = -1
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_TIMED_OUT = "DataLoader timed out"


class WorkerBoard:
    """One row for each worker. It goes to the workers by fork or by pickling; all see the same memory.

    Args:
        num_workers: processes of the loader.
    """

    def __init__(self, num_workers: int):
        self._rows = torch.zeros(num_workers, 3, dtype=torch.int64)
        self._rows[:, _SAMPLE] = _IDLE
        self._rows[:, _SINCE] = time.monotonic_ns()  # a worker that never starts is silent from now on
        self._rows.share_memory_()

    def start(self, worker: int) -> None:
        """Called in a worker process when it begins."""
        self._rows[worker, _PROCESS] = os.getpid()
        self.mark_idle(worker)

    def mark(self, worker: int, sample: int) -> None:
        """The worker now reads this sample (an index of the manifest)."""
        self._rows[worker, _SAMPLE] = sample
        self._rows[worker, _SINCE] = time.monotonic_ns()

    def mark_idle(self, worker: int) -> None:
        """The worker reads nothing: it collates, or waits for work."""
        self.mark(worker, _IDLE)

    def silent_processes(self, timeout_seconds: float) -> set[int]:
        """Ids of the processes that are at one sample for longer."""
        now = time.monotonic_ns()
        return {
            process
            for process, sample, since in self._rows.tolist()
            if sample != _IDLE and (now - since) / 1e9 > timeout_seconds
        }

    def check_silence(self, waiting_since_ns: int, timeout_seconds: float, paths: Sequence[str]) -> None:
        """Called by the main process while it waits for a batch.

        Args:
            waiting_since_ns: when it began to wait, in monotonic nanoseconds.
            timeout_seconds: the silence that is allowed.
            paths: of the samples.

        Raises:
            WorkerFailed: a worker is at one sample for longer than that, or none has done anything for so long.
        """
        now = time.monotonic_ns()
        silent = [(now - since) / 1e9 for since in self._rows[:, _SINCE].tolist()]
        allowed = f"LOADER.TIMEOUT_SECONDS is {timeout_seconds:g}"
        for worker, (process, sample, _) in enumerate(self._rows.tolist()):
            if sample != _IDLE and silent[worker] > timeout_seconds:
                raise WorkerFailed(
                    f"loader worker {worker} (process {process}) has been reading {paths[sample]} for "
                    f"{silent[worker]:.1f} s; {allowed}. The file or its file system does not answer"
                )
        waited = (now - waiting_since_ns) / 1e9
        if min(waited, *silent) > timeout_seconds:
            raise WorkerFailed(
                f"no batch for {waited:.1f} s, and not one of the {len(silent)} loader workers has begun to read a "
                f"video for {min(silent):.1f} s; {allowed}"
            )

    def explain_death(self, error: RuntimeError, paths: Sequence[str]) -> WorkerFailed | None:
        """The error with the paths, if `error` is torch's about dead workers of this board; else None."""
        found = _DEAD.search(str(error))
        if found is None:
            return None
        dead = {int(process) for process in found[1].replace(",", " ").split()}
        now, parts = time.monotonic_ns(), []
        for worker, (process, sample, since) in enumerate(self._rows.tolist()):
            if process in dead:
                seconds = f"{(now - since) / 1e9:.1f} s"
                doing = f"reading {paths[sample]}, begun {seconds} ago" if sample != _IDLE else "between two videos"
                parts.append(f"loader worker {worker} (process {process}) died while {doing}")
        if not parts and self._rows[:, _PROCESS].all():
            return None  # of another loader
        parts = parts or [f"loader processes {sorted(dead)} died at their start"]
        return WorkerFailed(
            f"{'; '.join(parts)} ({str(error).strip().rstrip('.')}). A process that is killed has often run out of "
            "memory: lower DATA_LOADER.NUM_WORKERS or LOADER.PREFETCH"
        )


def is_timeout(error: RuntimeError) -> bool:
    """Whether `error` is the DataLoader's own about a batch that did not come in time."""
    return str(error).startswith(_TIMED_OUT)


class StartWorker:
    """Runs in each worker process at its start (`worker_init_fn`): the data set tells the board what it reads."""

    def __init__(self, board: WorkerBoard):
        self.board = board

    def __call__(self, worker: int) -> None:
        listen_to_parent_only()
        self.board.start(worker)
        dataset = torch.utils.data.get_worker_info().dataset
        dataset.watch(_Marker(self.board, worker))


class _Marker:
    """`marker(sample)`: this worker now reads the sample; `marker(None)`: it reads nothing."""

    def __init__(self, board: WorkerBoard, worker: int):
        self.board, self.worker = board, worker

    def __call__(self, sample: int | None) -> None:
        if sample is None:
            self.board.mark_idle(self.worker)
        else:
            self.board.mark(self.worker, sample)


Mark = Callable[[int | None], None]
