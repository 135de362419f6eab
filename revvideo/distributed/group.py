"""The processes of a run as one: collectives that name what they are for, and failures that name who is to blame.

    with open_group(current_process(), device, timeout_seconds=1800) as group:
        replica = group.replicate(model, deterministic=False)
        ...
        if group.any(out_of_memory, "step 12"): ...

A single process is a group too; then all of it is local and nothing of torch.distributed is touched.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from revvideo.distributed.env import Process
from revvideo.distributed.meeting import Meeting, meet
from revvideo.distributed.ordered_sum import ordered_sum_hook
from revvideo.distributed.watch import PACE, Pace, Watch, arm_guard, disarm_guard, is_of_others, is_timeout
from revvideo.errors import CheckFailed, InputError, RankFailed, Stopped

logger = logging.getLogger(__name__)

_NCCL_MORE_SECONDS = 9.0  # NCCL's own watchdog kills without naming anybody: ours, which needs up to 8, comes first


class Group:
    """This process alone.

    In every method `what` names the occasion for humans, such as "step 12". All processes call the same methods in the
    same order, from one thread.

    Args:
        process: this one; None: a plain process.
        device: of its tensors; None: the CPU.
    """

    def __init__(self, process: Process | None = None, device: torch.device | None = None):
        self.process = Process() if process is None else process
        self.device = torch.device("cpu") if device is None else device
        self._stop_requested: str | None = None

    @property
    def rank(self) -> int:
        """Number of this process, 0 .. world_size - 1."""
        return self.process.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.process.world_size

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and prints."""
        return self.process.is_main

    def sum(self, values: Tensor, what: str) -> Tensor:
        """Sum over the processes, added in the order of ranks: the same bits each time.

        Args:
            values: (n,), small, on any device; the same n everywhere.
            what: see above.

        Returns:
            (n,) float64 on the CPU.
        """
        return values.detach().to("cpu", torch.float64, copy=True)

    def any(self, flag: bool, what: str) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor([float(flag)]), what) > 0)

    def gather(self, value: object, what: str) -> list:
        """The values of all processes, in the order of ranks, in every process: plain values and tensors on the CPU."""
        return [value]

    def broadcast(self, value: object, what: str) -> object:
        """Rank 0's value in every process: plain values and tensors on the CPU. The others' are not looked at."""
        return value

    def barrier(self, what: str) -> None:
        """Wait until all processes are here."""
        self.any(False, what)

    def replicate(self, model: nn.Module, *, deterministic: bool) -> nn.Module:
        """What trains like `model` on the batches of all processes: gradients are averaged in the backward.

        Args:
            model: on its device, of the same architecture everywhere; rank 0's weights and buffers are taken.
            deterministic: add up gradients in the order of ranks, for any layout of buckets (ordered_sum.py).

        Returns:
            The model itself for one process, else a DistributedDataParallel of it.
        """
        return model

    def request_stop(self, reason: str) -> None:
        """Ask all processes to stop, without waiting: they see it in `stop_requested` within a second or two."""
        self._stop_requested = self._stop_requested or reason

    @property
    def stop_requested(self) -> str | None:
        """Why some process asked all to stop; None if none did. Processes may see it at different steps."""
        return self._stop_requested

    def uninterrupted(self) -> contextlib.AbstractContextManager[None]:
        """What is done in here, such as writing a checkpoint, may be finished also when another process has failed."""
        return contextlib.nullcontext()

    def explain(self, error: BaseException) -> BaseException:
        """What an error really is: a RankFailed if it only follows from the failure of another process.

        It takes some seconds where that has to be found out. An error of this process's own is told to the others.
        """
        return error


class _Processes(Group):
    """Several processes, after `dist.init_process_group`."""

    def __init__(self, process: Process, device: torch.device, watch: Watch, name: str):
        super().__init__(process, device)
        self._watch, self._name = watch, name
        self._told: BaseException | None = None
        self._occasion = "start"

    def sum(self, values: Tensor, what: str) -> Tensor:
        mine = super().sum(values, what)
        parts = mine.new_empty(self.world_size * mine.numel())
        self._enter(what)
        dist.all_gather_into_tensor(parts, mine)
        total = torch.zeros_like(mine)
        for part in parts.view(self.world_size, -1):
            total += part
        return total

    def gather(self, value: object, what: str) -> list:
        values: list = [None] * self.world_size
        self._enter(what)
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: object, what: str) -> object:
        values = [value if self.is_main else None]
        self._enter(what)
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def replicate(self, model: nn.Module, *, deterministic: bool) -> nn.Module:
        self._enter("copying the model")
        replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
        replica.register_comm_hook(None, self._marking(ordered_sum_hook if deterministic else allreduce_hook))
        return replica

    def request_stop(self, reason: str) -> None:
        super().request_stop(reason)
        self._watch.request_stop(reason)

    @property
    def stop_requested(self) -> str | None:
        return self._watch.stop_reason or self._stop_requested

    def uninterrupted(self) -> contextlib.AbstractContextManager[None]:
        return self._watch.uninterrupted()

    def explain(self, error: BaseException) -> BaseException:
        if isinstance(error, RankFailed) or error is self._told:
            return error
        if is_of_others(error):
            failure = self._watch.find_cause(timed_out=is_timeout(error))
            if failure is not None:
                return RankFailed(failure)
        self._told = error
        message = str(error).strip().partition("\n")[0]
        failure = f"{self._name} failed after {self._occasion!r}: {type(error).__name__}: {message}"
        if not isinstance(error, InputError | CheckFailed):  # these are told in words of their own
            # Before the others know: what they say of it comes later in a common log.
            logger.error("%s", failure)
        self._watch.report(failure)
        return error

    def _enter(self, what: str) -> None:
        if self._watch.failure is not None:
            raise RankFailed(self._watch.failure)
        self._occasion = what
        self._watch.mark(what)

    def _marking(self, hook: Callable) -> Callable:
        """The communication hook, with every bucket of gradients marked as a collective."""

        def marking_hook(group: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            self._watch.mark(f"gradients after {self._occasion}")
            return hook(group, bucket)

        return marking_hook


@contextlib.contextmanager
def open_group(process: Process, device: torch.device, *, timeout_seconds: float, pace: Pace = PACE) -> Iterator[Group]:
    """Join the other processes of the run; leave them at the end, also after an error.

    A normal end waits until all processes have come to theirs. An error that leaves the context is told to the other
    processes first, or replaced by the one that it follows from (`Group.explain`).

    Args:
        process: this one.
        device: of its tensors: a CUDA device (collectives by NCCL, those of plain values by gloo) or the CPU (gloo).
        timeout_seconds: longest wait for another process, DIST.TIMEOUT_SECONDS.
        pace: how fast failures are noticed.

    Raises:
        RankFailed: the processes did not find each other, or another one has failed.
        InputError: two processes were given one GPU.
    """
    if process.world_size == 1:
        yield Group(process, device)
        return
    arm_guard(timeout_seconds, pace)  # who answers at that address may never say a word
    try:
        meeting = meet(process, timeout_seconds)
    finally:
        disarm_guard()
    watch = Watch(process.rank, meeting, timeout_seconds, pace)
    group = _Processes(process, device, watch, meeting.names[process.rank])
    watch.start()
    try:
        _join(group, meeting, timeout_seconds)
        yield group
    except Stopped:  # all of them do
        _finish(watch, pace)
        raise
    except BaseException as error:
        explained = group.explain(error)
        watch.leave()
        _destroy_within(pace.leave_seconds)
        if explained is error:
            raise
        raise explained from error
    _finish(watch, pace)


def _join(group: _Processes, meeting: Meeting, timeout_seconds: float) -> None:
    on_cuda = group.device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=dist.PrefixStore("group", meeting.store),
        rank=group.rank,
        world_size=group.world_size,
        timeout=timedelta(seconds=timeout_seconds + (_NCCL_MORE_SECONDS if on_cuda else 0.0)),
    )
    gpu = str(torch.cuda.get_device_properties(group.device).uuid) if on_cuda else None
    check_gpus(meeting.names, group.gather(gpu, "start"))


def check_gpus(names: list[str], gpus: list[str | None]) -> None:
    """Check that no two processes use one GPU.

    Args:
        names: of the processes, by rank.
        gpus: the UUIDs of their GPUs; None for the CPU.

    Raises:
        InputError: two use the same one.
    """
    owners: dict[str, str] = {}
    for name, gpu in zip(names, gpus):
        if gpu is None:
            continue
        if gpu in owners:
            raise InputError(
                f"{owners[gpu]} and {name} both use GPU {gpu}; each process needs one of its own: start as many "
                "processes on a machine as it has GPUs (NUM_GPUS, --nproc-per-node, --ntasks-per-node), and let "
                "LOCAL_RANK count them"
            )
        owners[gpu] = name


def _finish(watch: Watch, pace: Pace) -> None:
    """The end of a run in which nothing went wrong here."""
    failure = watch.finish()
    if failure is not None:
        _destroy_within(pace.leave_seconds)
        raise RankFailed(failure)
    dist.destroy_process_group()


def _destroy_within(seconds: float) -> None:
    """Take down the process group, without waiting for what waits for peers that are gone."""
    if dist.is_initialized():
        thread = threading.Thread(target=dist.destroy_process_group, name="revvideo-destroy", daemon=True)
        thread.start()
        thread.join(seconds)
