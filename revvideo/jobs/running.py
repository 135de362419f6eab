"""A run: the config with what goes along with it from the first process to the last line of the diary."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import Signals

import torch
from fvcore.common.config import CfgNode

from revvideo import build
from revvideo.config.batch import BatchPlan, batch_plan
from revvideo.distributed.env import Process, current_process
from revvideo.distributed.group import Group, open_group
from revvideo.engine.events import EventLog
from revvideo.engine.stopping import STOP_SIGNALS, StopSignals
from revvideo.jobs.run_folder import open_run


@dataclasses.dataclass
class Run:
    """What the jobs need besides their config.

    Attributes:
        cfg: the loaded config.
        events: the diary.
        process, group: this process, and how it talks to the others.
        device: of this process.
        stop: takes the signals to stop; None: they keep their meaning.
        on_stop: called in every process when such a signal ends the run; where it was training, after the checkpoint.
            It returns: who wants to leave the process catches `Stopped`, when all is closed and the handlers are back.
    """

    cfg: CfgNode
    events: EventLog
    process: Process = dataclasses.field(default_factory=Process)
    group: Group = dataclasses.field(default_factory=Group)
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    stop: StopSignals | None = None
    on_stop: Callable[[], None] | None = None

    @property
    def folder(self) -> Path:
        """The run folder (OUTPUT_DIR)."""
        return Path(self.cfg.OUTPUT_DIR)

    def batch_plan(self, num_parts: int | None = None) -> BatchPlan:
        """The batch arithmetic on the machines that take part; `num_parts` as RUN.AUTO_BATCH_SIZE has found them."""
        return batch_plan(self.cfg, self.process.num_machines, self.process.local_world_size, parts=num_parts)

    def stop_reason(self) -> str | None:
        """Why to stop, as this process or another one was told; None to go on."""
        mine = self.stop.reason if self.stop is not None else None
        if mine is not None and self.group.stop_requested is None:
            self.group.request_stop(mine)
        return mine or self.group.stop_requested


@contextlib.contextmanager
def start(
    cfg: CfgNode,
    *,
    stop_signals: Sequence[Signals] = STOP_SIGNALS,
    end_at_second: bool = True,
    on_stop: Callable[[], None] | None = None,
) -> Iterator[Run]:
    """Join the other processes, take the signals, open the run folder; afterwards all of it is closed.

    Args:
        cfg: the loaded config.
        stop_signals: the signals that ask for a checkpoint and the end.
        end_at_second: see `StopSignals`.
        on_stop: see `Run`; how a launcher learns that the job wants to come back.

    Raises:
        InputError: the environment of the process, the device or the run folder is not as it must be.
    """
    process = current_process()
    device = build.choose_device(cfg, process)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(cfg.RUN.DETERMINISTIC)
    if cfg.RUN.DETERMINISTIC:
        # Without it torch refuses cuBLAS, whose results vary. Read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with (
        StopSignals(stop_signals, end_at_second=end_at_second) as stop,
        open_group(process, device, timeout_seconds=cfg.DIST.TIMEOUT_SECONDS) as group,
    ):
        here = {"host": socket.gethostname(), "first_rank": process.rank, "processes": process.local_world_size}
        hosts = group.gather(None if process.local_rank else here, "hosts")
        with open_run(cfg, process, hosts=[host for host in hosts if host is not None]) as events:
            yield Run(cfg, events, process, group, device, stop, on_stop)
